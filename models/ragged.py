"""State of sequences whose length differs from sample to sample: packed rows, so that memory follows real tokens."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from models.packing import Packing


@dataclass(frozen=True)
class RaggedRows:
    """Which of the rows that a subclass holds are a sample's.

    Attributes:
        starts: the row of each sample's first token, whose others follow.
        lengths: how many rows a sample has; what it has none for starts from the initial latent, so a sample of length
            0 starts afresh, with however many tokens.
    """

    starts: Int[Tensor, " batch"]
    lengths: Int[Tensor, " batch"]

    @staticmethod
    def none(batch_size: int, device: torch.device) -> Int[Tensor, " batch"]:
        """Starts, or lengths, of samples without rows."""
        return torch.zeros(batch_size, dtype=torch.int64, device=device)

    def restarted(self, flag: Bool[Tensor, " batch"]) -> Self:
        """The same without the rows of the samples where `flag`."""
        return replace(self, lengths=torch.where(flag, 0, self.lengths))

    def row_index(self, packing: Packing, num_rows: int) -> Int[Tensor, " n"]:
        """For packed rows the sample's row of the same place, or the last one of all, which is the initial latent."""
        place, sample = packing.place, packing.sequence
        return torch.where(place < self.lengths[sample], self.starts[sample] + place, num_rows - 1)
