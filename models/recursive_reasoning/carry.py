"""The decoder's latents between ACT steps, in two forms.

Where every sample has the same context slots, latents are padded: slots and cells at fixed places. Where the length of
the context differs from sample to sample, they are packed rows, so that memory follows the tokens that there are.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.act import where_halted
from models.packing import Packing
from models.ragged import RaggedRows


@dataclass(frozen=True)
class TRMEncoderInnerCarry:
    """The latents of context slots and cells; slots and cells that are not computed keep their initial state."""

    z_H: Float[Tensor, "batch slots hidden"]
    z_L: Float[Tensor, "batch slots hidden"]

    def reset(self, flag: Bool[Tensor, " batch"], H_init: Tensor, L_init: Tensor) -> Self:
        """The initial latents where `flag`."""
        return replace(self, z_H=where_halted(flag, H_init, self.z_H), z_L=where_halted(flag, L_init, self.z_L))

    def rows(self, packing: Packing) -> tuple[Float[Tensor, "n hidden"], Float[Tensor, "n hidden"]]:
        """The latents of packed rows."""
        return packing.gather(self.z_H), packing.gather(self.z_L)

    def updated(self, z_H: Float[Tensor, "n hidden"], z_L: Float[Tensor, "n hidden"], packing: Packing) -> Self:
        """The detached carry with new latents in the packed rows."""
        return replace(self, z_H=packing.scatter(z_H.detach(), self.z_H), z_L=packing.scatter(z_L.detach(), self.z_L))


@dataclass(frozen=True)
class RaggedInnerCarry(RaggedRows):
    """The latents of each sample's context tokens and active cells, as packed rows.

    Attributes:
        z_H, z_L: (n + 1, hidden) the rows of all samples in some order; the last row is the initial latent.
    """

    z_H: Float[Tensor, "rows hidden"] = field(metadata={"ragged": True})
    z_L: Float[Tensor, "rows hidden"] = field(metadata={"ragged": True})

    @classmethod
    def initial(cls, batch_size: int, H_init: Tensor, L_init: Tensor) -> Self:
        """Every sample at its start."""
        none = cls.none(batch_size, H_init.device)
        return cls(none, none, H_init[None], L_init[None])

    def reset(self, flag: Bool[Tensor, " batch"], H_init: Tensor, L_init: Tensor) -> Self:
        """The initial latents where `flag`."""
        return self.restarted(flag)

    def rows(self, packing: Packing) -> tuple[Float[Tensor, "n hidden"], Float[Tensor, "n hidden"]]:
        """The latents of packed rows: those of the sample's row of the same place, where it has one."""
        index = self.row_index(packing, len(self.z_H))
        return self.z_H[index], self.z_L[index]

    def updated(self, z_H: Float[Tensor, "n hidden"], z_L: Float[Tensor, "n hidden"], packing: Packing) -> Self:
        """The detached carry of the packed rows."""
        return type(self)(
            packing.first_row,
            packing.lengths,
            torch.cat([z_H.detach(), self.z_H[-1:]]),
            torch.cat([z_L.detach(), self.z_L[-1:]]),
        )


InnerCarry = TRMEncoderInnerCarry | RaggedInnerCarry
