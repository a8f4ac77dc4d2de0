"""The rows of the answer: all that is read of the last block of the last ACT step.

The latents of demonstration cells that evolve beside the answer are read by later blocks and later steps; where there
are none, those of the last block need not be computed.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.packing import Packing
from models.segments import GatheredRuns, gathered_runs


@dataclass(frozen=True)
class AnswerRows:
    """The last part of each packed sequence.

    Attributes:
        rows: (m) which packed rows they are.
        first: (s) the place in `rows` of each sequence's first.
        runs: how the block that computes them alone attends from them to what its layer attends within.
        packing: the rows with their positions in the padded batch.
    """

    rows: Int[Tensor, " m"]
    first: Int[Tensor, " s"]
    runs: GatheredRuns
    packing: Packing

    @classmethod
    def behind(
        cls, packing: Packing, before: Int[Tensor, " s"], lengths: Int[Tensor, " s"], *, whole: bool
    ) -> "AnswerRows":
        """
        Args:
            packing: arranged by view.
            before: how many tokens of each sequence stand before its answer.
            lengths: of the answers.
            whole: they attend to their whole sequence, else to themselves.
        """
        starts = packing.first_row + before
        first = lengths.cumsum(0) - lengths
        rows = torch.repeat_interleave(starts - first, lengths) + torch.arange(int(lengths.sum()), device=starts.device)
        keys = (packing.first_row, packing.lengths) if whole else (starts, lengths)
        alone = replace(packing, rows=packing.rows[rows], live=None, sequence=packing.sequence[rows], first_row=first)
        return cls(rows, first, gathered_runs(first, lengths, *keys), alone)

    def of(self, packed: Float[Tensor, "n *width"]) -> Float[Tensor, "m *width"]:
        """Their values."""
        return packed[self.rows]
