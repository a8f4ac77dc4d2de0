"""ETRM: an encoder reads the demonstrations at every ACT step and gives the decoder its context."""

from dataclasses import replace
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from config.arch_schema import EtrmArch
from dataset.batches import Batch, Demonstrations
from models.act import StaticContextReasoner, Thought
from models.encoders.base import EncoderOutput, create_encoder
from models.recursive_reasoning.decoder import TRMEncoderInner


class TRMWithEncoder(StaticContextReasoner):
    """Demonstrations → `encoder` → context → `inner`. The context is static for given weights.

    The encoder runs inside every step, attached to the graph: the loss trains it at each step for all samples.
    """

    def __init__(self, config: EtrmArch):
        super().__init__(config)
        self.encoder = create_encoder(config)
        answers_alone = self.max_steps == 1 and not config.loss.pair_weight
        self.inner = TRMEncoderInner(config, answers_alone=answers_alone)

    @property
    def context_tokens(self) -> int | None:
        return self.encoder.num_tokens

    def encode(self, data: Batch) -> EncoderOutput:
        return self.encoder(*Demonstrations.of(data))

    def think(self, carry: Any, data: Batch, encoding: EncoderOutput, active: Bool[Tensor, "batch 900"]) -> Thought:
        """Where the demonstrations' cells evolve, a pair's vector is the mean of their z_H after the step."""
        if encoding.pairs is not None or not (self.training and self.config.loss.pair_weight):
            return super().think(carry, data, encoding, active)
        found = self.inner.reason(self.inner.reset_carry(carry.halted, carry.inner_carry), data, encoding, active)
        context = replace(encoding, pairs=found.pairs(data["demo_mask"].shape[1]))
        return Thought(context, found.logits, found.halting, {"inner_carry": found.carry}, {})
