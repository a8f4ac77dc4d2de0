"""Encoders whose latent evolves with the ACT steps: their carries and their common part."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from config.arch_schema import EtrmtrmArch
from dataset.batches import Demonstrations
from models.encoders.grid import DemoGridEncoder


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


class BaseRecurrentEncoder(nn.Module, ABC):
    """Demonstrations are encoded pair by pair as in `DemoGridEncoder`; `update` then moves the latent by one ACT step.

    `forward` returns only the new carry, attached to the graph; the context is `carry.get_context()`. `num_tokens` is
    how many tokens that has for every sample, as in `DemoEncoder`.
    """

    def __init__(self, config: EtrmtrmArch):
        super().__init__()
        self.config = config
        self.num_tokens: int | None = config.puzzle_emb_len
        self.grid_encoder = DemoGridEncoder(config)

    @abstractmethod
    def initial_carry(self, batch_size: int, device: torch.device) -> Any:
        """The latent before the first step, without gradient."""

    @abstractmethod
    def reset_carry(self, needs_reset: Bool[Tensor, " batch"], carry: Any) -> Any:
        """The initial latent where `needs_reset`, else the carry's."""

    @abstractmethod
    def update(self, carry: Any, encoding: PairEncoding) -> Any:
        """The carry after one ACT step."""

    def encode_pairs(self, demonstrations: Demonstrations) -> PairEncoding:
        """The part that does not depend on the carry."""
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
        """`encoder_state_ema` of the previous latent (which carries no gradient) and the rest of the updated one."""
        rate = self.config.encoder_state_ema
        return updated if rate == 0 else rate * previous + (1 - rate) * updated
