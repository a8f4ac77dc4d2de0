"""ETRM: an encoder reads the demonstrations at every ACT step and gives the decoder its context."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from models.act import EXPLORATION_KEY, Batch, RecursiveReasoner
from models.encoders.base import EncoderOutput, create_encoder
from models.recursive_reasoning.trm import TRMEncoderInner, TRMEncoderInnerCarry


@dataclass(frozen=True)
class TRMEncoderCarry:
    """State between ACT steps: latents, steps taken, who has halted, and the data each sample works on."""

    inner_carry: TRMEncoderInnerCarry
    steps: Int[Tensor, " batch"]
    halted: Bool[Tensor, " batch"]
    current_data: Batch


class TRMWithEncoder(RecursiveReasoner):
    """Demonstrations → `encoder` → context → `inner`. The context is static for given weights.

    The encoder runs inside every step, attached to the graph: the loss trains it at each step for all samples.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.encoder = create_encoder(config)
        self.inner = TRMEncoderInner(config)

    def initial_carry(self, batch: Batch) -> TRMEncoderCarry:
        inputs = batch["inputs"]
        return TRMEncoderCarry(
            inner_carry=self.inner.initial_carry(len(inputs), inputs.device),
            steps=torch.zeros(len(inputs), dtype=torch.int32, device=inputs.device),
            halted=torch.ones(len(inputs), dtype=torch.bool, device=inputs.device),
            current_data={key: value for key, value in batch.items() if key != EXPLORATION_KEY},
        )

    def encode(self, data: Batch) -> EncoderOutput:
        return self.encoder(data["demo_inputs"], data["demo_labels"], data["demo_mask"])

    def advance_context(
        self, carry: TRMEncoderCarry, encoding: EncoderOutput
    ) -> tuple[EncoderOutput, dict[str, Any], dict[str, Tensor]]:
        return encoding, {}, {}
