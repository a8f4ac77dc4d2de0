"""Encoders: demonstrations to context tokens. `ENCODERS` is the one registry of `arch.encoder_type`."""

from collections.abc import Callable
from typing import Any

from models.encoders.base import DemoEncoder, EncoderOutput, create_encoder
from models.encoders.standard import StandardDemoEncoder

ENCODERS: dict[str, Callable[[Any], DemoEncoder]] = {
    "standard": StandardDemoEncoder,
}

__all__ = ["ENCODERS", "DemoEncoder", "EncoderOutput", "create_encoder"]
