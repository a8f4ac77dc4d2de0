"""A memory that packed sequences read by cross-attention, again and again: its keys and values are made once."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.packing import Packing
from models.segments import GatheredRuns, Segments, ends_of, gathered_runs


@dataclass(frozen=True)
class Reading:
    """Which rows of a memory each sequence of a packing reads.

    Attributes:
        rows: the row of the memory that each key is (None: they are the keys, one after another).
        runs: how the queries are gathered, where no packed kernel is used; the keys are arranged by `rows` already.
    """

    rows: Int[Tensor, " keys"] | None
    segments: Segments
    runs: GatheredRuns | None

    @classmethod
    def between(cls, queries: Packing, memory: Packing) -> "Reading":
        """Each sequence reads the sequence of the same number."""
        segments = Segments(ends_of(queries.lengths), ends_of(memory.lengths), queries.max_seqlen, memory.max_seqlen)
        if queries.runs is None:
            return cls(None, segments, None)
        runs = gathered_runs(queries.first_row, queries.lengths, memory.first_row, memory.lengths)
        return cls(runs.k_index, segments, runs)

    @classmethod
    def of(cls, queries: Packing, rows: Int[Tensor, "s k"], readable: Bool[Tensor, "s k"]) -> "Reading":
        """Each sequence reads those of its row numbers that are readable."""
        keys, lengths = rows[readable], readable.sum(1)
        ends = ends_of(lengths)
        segments = Segments(ends_of(queries.lengths), ends, queries.max_seqlen, rows.shape[1])
        if queries.runs is None:
            return cls(keys, segments, None)
        runs = gathered_runs(queries.first_row, queries.lengths, ends[:-1], lengths)
        return cls(keys[runs.k_index], segments, runs)

    def arranged(self, memory: Float[Tensor, "m *shape"]) -> Float[Tensor, "keys *shape"]:
        """What belongs to each row of the memory, for each key."""
        return memory if self.rows is None else memory[self.rows]


@dataclass(frozen=True)
class Memory:
    """Keys and values for one layer."""

    keys: Float[Tensor, "keys h d"]
    values: Float[Tensor, "keys h d"]
    reading: Reading
