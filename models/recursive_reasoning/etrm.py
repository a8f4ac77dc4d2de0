"""ETRM: an encoder reads the demonstrations at every ACT step and gives the decoder its context."""

from typing import Any

from torch import Tensor

from models.act import Batch, RecursiveReasoner
from models.encoders.base import EncoderOutput, create_encoder
from models.recursive_reasoning.trm import TRMEncoderCarry, TRMEncoderInner


class TRMWithEncoder(RecursiveReasoner):
    """Demonstrations → `encoder` → context → `inner`. The context is static for given weights.

    The encoder runs inside every step, attached to the graph: the loss trains it at each step for all samples.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.encoder = create_encoder(config)
        self.inner = TRMEncoderInner(config)

    def initial_carry(self, batch: Batch) -> TRMEncoderCarry:
        return TRMEncoderCarry(**self._fresh_state(batch))

    def encode(self, data: Batch) -> EncoderOutput:
        return self.encoder(data["demo_inputs"], data["demo_labels"], data["demo_mask"])

    def advance_context(
        self, carry: TRMEncoderCarry, encoding: EncoderOutput
    ) -> tuple[EncoderOutput, dict[str, Any], dict[str, Tensor]]:
        return encoding, {}, {}
