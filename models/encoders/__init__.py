"""Encoders: demonstrations to context tokens, and the two registries that name them."""

from collections.abc import Callable
from typing import Any

from models.encoders.base import DemoEncoder, EncoderOutput, create_encoder, create_recurrent_encoder
from models.encoders.hybrid import HybridEncoder, HybridVariationalEncoder
from models.encoders.lpn import LpnEncoder, LpnVariationalEncoder
from models.encoders.recurrent_base import BaseRecurrentEncoder
from models.encoders.recurrent_standard import RecurrentAggregationEncoder
from models.encoders.standard import StandardDemoEncoder
from models.encoders.trm_style import TRMStyleEncoder

ENCODERS: dict[str, Callable[[Any], DemoEncoder]] = {
    "standard": StandardDemoEncoder,
    "hybrid_standard": HybridEncoder,
    "hybrid_variational": HybridVariationalEncoder,
    "lpn_standard": LpnEncoder,
    "lpn_variational": LpnVariationalEncoder,
}
RECURRENT_ENCODERS: dict[str, Callable[[Any], BaseRecurrentEncoder]] = {
    "recurrent_standard": RecurrentAggregationEncoder,
    "trm_style": TRMStyleEncoder,
}

__all__ = [
    "ENCODERS",
    "RECURRENT_ENCODERS",
    "BaseRecurrentEncoder",
    "DemoEncoder",
    "EncoderOutput",
    "create_encoder",
    "create_recurrent_encoder",
]
