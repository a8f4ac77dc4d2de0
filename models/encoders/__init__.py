"""Encoders: demonstrations to context tokens. A module that is imported here adds its encoders to the registries."""

from models.encoders import hybrid, in_context, lpn, recurrent_in_context, recurrent_standard, standard, trm_style
from models.encoders.base import (
    ENCODERS,
    RECURRENT_ENCODERS,
    DemoEncoder,
    EncoderOutput,
    create_encoder,
    create_recurrent_encoder,
)

__all__ = [
    "ENCODERS",
    "RECURRENT_ENCODERS",
    "DemoEncoder",
    "EncoderOutput",
    "create_encoder",
    "create_recurrent_encoder",
    "hybrid",
    "in_context",
    "lpn",
    "recurrent_in_context",
    "recurrent_standard",
    "standard",
    "trm_style",
]
