"""Encoders whose latent evolves with the ACT steps: their carries and their common part."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from config.arch_schema import EtrmtrmArch
from dataset.batches import Demonstrations
from models.encoders.grid import CellEncoding, CellGridEncoder, DemoGridEncoder
from models.segments import Segments, set_segments


@dataclass(frozen=True)
class RecurrentEncoderCarry:
    """Variant A's latent, which is the context."""

    z_e: Float[Tensor, "batch tokens hidden"]

    def get_context(self) -> Float[Tensor, "batch tokens hidden"]:
        return self.z_e


@dataclass(frozen=True)
class TRMStyleEncoderCarry:
    """Variant B's latents; the context is the slow one."""

    z_e_H: Float[Tensor, "batch tokens hidden"]
    z_e_L: Float[Tensor, "batch tokens hidden"]

    def get_context(self) -> Float[Tensor, "batch tokens hidden"]:
        return self.z_e_H


@dataclass(frozen=True)
class PairEncoding:
    """What the carry does not change: one vector for each demonstration pair, and which slots hold one."""

    pairs: Float[Tensor, "batch demos hidden"]
    mask: Bool[Tensor, "batch demos"]

    def read_by(self, num_queries: int) -> tuple[Float[Tensor, "m hidden"], Segments]:
        """The vectors one after another, and which of them so many queries of each sample attend to."""
        return self.pairs[self.mask], set_segments(num_queries, self.mask)


class BaseRecurrentEncoder(nn.Module, ABC):
    """Demonstrations are encoded pair by pair, to vectors of pairs or of their cells; `update` then moves the latent by
    one ACT step.

    `forward` returns only the new carry, attached to the graph; the context is `carry.get_context()`. `num_tokens` is
    how many tokens that has for every sample, as in `DemoEncoder`.
    """

    def __init__(self, config: EtrmtrmArch):
        super().__init__()
        self.config = config
        self.num_tokens: int | None = config.puzzle_emb_len
        self.grid_encoder = (CellGridEncoder if config.encoder_memory == "cells" else DemoGridEncoder)(config)

    @abstractmethod
    def initial_carry(self, batch_size: int, device: torch.device) -> Any:
        """The latent before the first step, without gradient."""

    @abstractmethod
    def reset_carry(self, needs_reset: Bool[Tensor, " batch"], carry: Any) -> Any:
        """The initial latent where `needs_reset`, else the carry's."""

    @abstractmethod
    def update(self, carry: Any, encoding: PairEncoding | CellEncoding) -> Any:
        """The carry after one ACT step."""

    def encode_pairs(self, demonstrations: Demonstrations) -> PairEncoding | CellEncoding:
        """The part that does not depend on the carry: the memory (`encoder_memory`)."""
        if isinstance(self.grid_encoder, CellGridEncoder):
            return self.grid_encoder(demonstrations)
        return PairEncoding(self.grid_encoder(demonstrations), demonstrations.mask)

    def forward(
        self,
        carry: Any,
        demo_inputs: Int[Tensor, "batch demos 900"],
        demo_labels: Int[Tensor, "batch demos 900"],
        demo_mask: Bool[Tensor, "batch demos"],
    ) -> Any:
        return self.update(carry, self.encode_pairs(Demonstrations(demo_inputs, demo_labels, demo_mask)))

    def smoothed(self, previous: Tensor, updated: Tensor) -> Tensor:
        return smoothed(self.config.encoder_state_ema, previous, updated)


def smoothed(rate: float, previous: Tensor, updated: Tensor) -> Tensor:
    """`encoder_state_ema` of the previous latent (which carries no gradient) and the rest of the updated one."""
    return updated if rate == 0 else rate * previous + (1 - rate) * updated
