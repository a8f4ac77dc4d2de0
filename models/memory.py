"""A memory that packed sequences read, again and again: its keys and values are made once.

across   the rows of a sequence read the memory alone (cross-attention)
beside   the memory's keys stand beside those of the sequence's own rows, under one softmax
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.packing import Packing
from models.segments import GatheredRuns, Segments, ends_of, gathered_runs


@dataclass(frozen=True)
class Reading:
    """Which rows each sequence of a packing reads.

    Attributes:
        rows: the row that each key is: of the memory, or `beside` of the sequences' rows followed by the memory's
            (None: the memory's rows are the keys, one after another).
        runs: how the queries are gathered, where no packed kernel is used; the keys are arranged by `rows` already.
    """

    rows: Int[Tensor, " keys"] | None
    segments: Segments
    runs: GatheredRuns | None

    @classmethod
    def across(cls, queries: Packing, memory: Packing) -> "Reading":
        """Each sequence reads the memory's sequence of the same number."""
        segments = Segments(ends_of(queries.lengths), ends_of(memory.lengths), queries.max_seqlen, memory.max_seqlen)
        if queries.runs is None:
            return cls(None, segments, None)
        runs = gathered_runs(queries.first_row, queries.lengths, memory.first_row, memory.lengths)
        return cls(runs.k_index, segments, runs)

    @classmethod
    def beside(cls, queries: Packing, rows: Int[Tensor, " m"], sequence: Int[Tensor, " m"], longest: int) -> "Reading":
        """Each sequence reads itself, and the memory's rows that are given with its number.

        Args:
            longest: an upper bound of how many rows a sequence reads of the memory.
        """
        own = queries.live_rows
        order = torch.argsort(torch.cat([queries.sequence[own], sequence]), stable=True)
        keys = torch.cat([own, len(queries.rows) + rows])[order]
        lengths = queries.lengths.index_add(0, sequence, torch.ones_like(sequence, dtype=queries.lengths.dtype))
        ends = ends_of(lengths)
        segments = Segments(ends_of(queries.lengths), ends, queries.max_seqlen, queries.max_seqlen + longest)
        if queries.runs is None:
            return cls(keys, segments, None)
        runs = gathered_runs(queries.first_row, queries.lengths, ends[:-1], lengths)
        return cls(keys[runs.k_index], segments, runs)

    def arranged(self, rows: Float[Tensor, "m *shape"]) -> Float[Tensor, "keys *shape"]:
        """What belongs to each row, for each key."""
        return rows if self.rows is None else rows.index_select(0, self.rows)


@dataclass(frozen=True)
class Memory:
    """Keys and values for one layer: `across` those of `reading`, `beside` those of the memory's rows."""

    keys: Float[Tensor, "m h d"]
    values: Float[Tensor, "m h d"]
    reading: Reading
