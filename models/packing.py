"""Packing: which tokens of a padded batch are computed, and where they stand in the packed tensor.

On CUDA in half precision the packed rows are just the valid tokens. Elsewhere sequences are sorted by length and each
is rounded up to the longest of its group (about 1 % of dead rows), so that a group is a padded batch *by view* and
attention needs no gather and no scatter in any layer. A dead row repeats its sequence's last token: it is never a
key, nobody reads it, and no gradient comes from it.

Where kernels are recorded by their sizes, the tight rows can be rounded up to one of few numbers (`rounded_up`): rows
that fill up repeat the last token, in short sequences of their own.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.segments import (
    LENGTH_LEVELS,
    GatheredRuns,
    Runs,
    Segments,
    by_level,
    ends_of,
    gathered_runs,
    joined,
    levels_of,
    make_runs,
    padded_index,
)
from models.task_rows import TaskRows, active_stack

# The packed kernel starts a block of threads for each so many queries that a sequence could have.
QUERIES_A_BLOCK = 128


@dataclass(frozen=True)
class Packing:
    """The packed rows of a padded (s, l) batch.

    Attributes:
        rows: (n) position in the flattened (s · l) batch that each packed row holds.
        live: (m) the packed rows that are valid tokens (None: all).
        sequence: (n) which sequence a row belongs to.
        first_row: (s) the packed row of each sequence's first token; for an empty sequence, an arbitrary row.
        lengths: (s) number of valid tokens.
        cu_seqlens, max_seqlen: starts of the sequences that have tokens, and the end of the last; a bound of their
            lengths. For the packed kernel, only where `runs` is None.
        runs: the groups for attention by view, where these are used.
        scopes: the same rows as the layers in turn attend within them (none: all do as this packing says).
        neighbours: the rows of the cells around each cell in its grid (`models.grid_conv`; None: nothing asks).
        tasks: whose each row is, where weights are stacked; rows are sorted by it first (None: there is one task).
        filling: int32 ends of the sequences behind all others that fill tight rows up (None: nothing does).
    """

    rows: Int[Tensor, " n"]
    live: Int[Tensor, " m"] | None
    sequence: Int[Tensor, " n"]
    first_row: Int[Tensor, " s"]
    lengths: Int[Tensor, " s"]
    cu_seqlens: Int[Tensor, " used+1"]
    max_seqlen: int
    padded_length: int
    runs: Runs | GatheredRuns | None
    scopes: "tuple[Packing, ...]" = ()
    neighbours: Int[Tensor, "9 n"] | None = None
    tasks: TaskRows | None = None
    filling: Int[Tensor, " pieces"] | None = None

    @property
    def segments(self) -> Segments:
        """Each sequence attends to itself."""
        return Segments(self.cu_seqlens, self.cu_seqlens, self.max_seqlen, self.max_seqlen, all_have_keys=True)

    @property
    def place(self) -> Int[Tensor, " n"]:
        """Which of its sequence's valid tokens each row holds, from 0; rows that fill up hold the last one."""
        within = torch.arange(len(self.rows), device=self.rows.device) - self.first_row[self.sequence]
        return torch.minimum(within, self.lengths[self.sequence] - 1)

    @property
    def positions(self) -> Int[Tensor, " n"]:
        """Position of each row in its padded sequence."""
        return self.rows % self.padded_length

    def scoped(self, scope: str, lengths: Int[Tensor, "s p"] | None, longest: int) -> Self:
        """The packing whose layers attend within whole sequences (`all`), within parts of them (`pair`), or in turn
        within parts and sequences (`alternate`).

        Args:
            lengths: those of the consecutive parts that make up a sequence.
            longest: an upper bound of them.
        """
        if scope == "all":
            return self
        assert lengths is not None
        parts = self._cut(lengths, longest)
        return replace(self, scopes=(parts,) if scope == "pair" else (parts, self))

    def _cut(self, lengths: Int[Tensor, "s p"], longest: int) -> Self:
        flat = lengths.flatten()
        if self.runs is None:
            ends = ends_of(flat) if self.filling is None else torch.cat([ends_of(flat), self.filling])
            return replace(self, cu_seqlens=ends, max_seqlen=longest)
        starts = (self.first_row[:, None] + lengths.cumsum(1) - lengths).flatten()
        return replace(self, runs=gathered_runs(starts, flat, starts, flat))

    def of_layer(self, number: int) -> "Packing":
        """What a layer attends within, by its number."""
        return self.scopes[number % len(self.scopes)] if self.scopes else self

    @property
    def live_rows(self) -> Int[Tensor, " m"]:
        """The packed rows that are valid tokens."""
        return torch.arange(len(self.rows), device=self.rows.device) if self.live is None else self.live

    def gather(self, padded: Tensor) -> Tensor:
        """(s, l, ...) -> (n, ...)."""
        return padded.flatten(0, 1)[self.rows]

    def scatter(self, packed: Tensor, base: Tensor) -> Tensor:
        """(n, ...) written over `base` (s, l, ...), which keeps its other positions."""
        rows, values = self.rows, packed
        if self.live is not None:
            rows, values = rows[self.live], packed[self.live]
        return base.flatten(0, 1).index_copy(0, rows, values.to(base.dtype)).view_as(base)

    def in_order(self, packed: Float[Tensor, "n width"]) -> Float[Tensor, "m width"]:
        """The valid rows in the order of the sequences, as they stand where no runs are arranged."""
        live = self.live
        if self.runs is None:
            return packed if live is None else packed[live]
        rows, sequence = (packed, self.sequence) if live is None else (packed[live], self.sequence[live])
        return rows[torch.argsort(sequence, stable=True)]

    def norms(self, packed: Float[Tensor, "n width"]) -> Float[Tensor, " s"]:
        """The norm of each sequence's valid rows together, float32."""
        squares, sequence = packed.float().square().sum(-1), self.sequence
        if self.live is not None:
            squares, sequence = squares[self.live], sequence[self.live]
        return squares.new_zeros(len(self.lengths)).index_add(0, sequence, squares).sqrt()

    def mean(self, packed: Float[Tensor, "n width"], weights: Float[Tensor, " n"] | None = None) -> Tensor:
        """The (weighted) mean over each sequence's valid tokens, (s, width) float32; zeros for an empty sequence."""
        values, sequence = packed.to(torch.promote_types(packed.dtype, torch.float32)), self.sequence
        if self.live is not None:
            values, sequence = values[self.live], sequence[self.live]
            weights = weights[self.live] if weights is not None else None
        zeros = values.new_zeros(len(self.lengths), values.shape[1])
        if weights is None:
            return zeros.index_add(0, sequence, values) / self.lengths.clamp(min=1)[:, None]
        total = zeros[:, 0].index_add(0, sequence, weights.to(values.dtype)).clamp(min=1e-6)
        return zeros.index_add(0, sequence, values * weights.to(values.dtype)[:, None]) / total[:, None]


def pack(mask: Bool[Tensor, "s l"], *, by_view: bool, rounded: bool = False) -> Packing:
    """The packing of the valid tokens of a padded batch.

    Args:
        mask: which tokens are valid.
        by_view: arrange sequences of similar length as runs (everywhere but in the packed CUDA kernel).
        rounded: fill tight rows up to one of few numbers.
    """
    stack = active_stack()
    if stack is None:
        return _pack_by_view(mask) if by_view else _pack_tightly(mask, rounded=rounded)
    task = stack.samples.task
    assert len(task) == len(mask), f"{len(mask)} sequences of {len(task)} samples"
    packing = _pack_by_view(mask, task) if by_view else _pack_tightly(mask)
    return replace(packing, tasks=stack.enter(packing.sequence))


def pack_all(num_sequences: int, length: int, device: torch.device, *, by_view: bool) -> Packing:
    """The packing of a batch in which every token is valid, which no synchronisation is needed for."""
    rows = torch.arange(num_sequences * length, device=device)
    runs = None
    if by_view:
        runs = make_runs([(len(rows), len(rows), num_sequences)], np.ones(len(rows), dtype=np.bool_), device)
    return Packing(
        rows=rows,
        live=None,
        sequence=rows // length,
        first_row=torch.arange(num_sequences, device=device) * length,
        lengths=torch.full((num_sequences,), length, device=device),
        cu_seqlens=torch.arange(0, len(rows) + 1, length, dtype=torch.int32, device=device),
        max_seqlen=length,
        padded_length=length,
        runs=runs,
    )


def rounding_step(rows: int) -> int:
    """A sixteenth of the power of two that is not above `rows`, at least a block of queries."""
    return max(QUERIES_A_BLOCK, 1 << max(0, rows.bit_length() - 5))


def rounded_up(rows: int) -> int:
    """The next of few numbers, at most a sixteenth or a block of queries more: sixteen for each doubling."""
    step = rounding_step(rows)
    return -(-rows // step) * step


def _pack_tightly(mask: Bool[Tensor, "s l"], *, rounded: bool = False) -> Packing:
    padded_length = mask.shape[1]
    lengths = mask.sum(dim=1)
    sizes = torch.stack([lengths.sum(), lengths.max(), (lengths > 0).sum()])
    total, longest, used = sizes.tolist()  # the one synchronisation
    ends = lengths.cumsum(0)
    rows = torch.nonzero_static(mask.flatten(), size=total).squeeze(-1)
    ends_of_used = ends[torch.nonzero_static(lengths, size=used).squeeze(-1)].to(torch.int32)
    filling = _filling(total, mask.device) if rounded and total else None
    if filling is not None:
        rows = torch.cat([rows, rows[-1:].expand(rounded_up(total) - total)])
        ends_of_used = torch.cat([ends_of_used, filling])
    return Packing(
        rows=rows,
        live=None if filling is None else torch.arange(total, device=mask.device),
        sequence=rows // padded_length,
        first_row=(ends - lengths).clamp(max=max(total - 1, 0)),
        lengths=lengths,
        cu_seqlens=torch.cat([ends_of_used.new_zeros(1), ends_of_used]),
        max_seqlen=max(1, -(-longest // QUERIES_A_BLOCK)) * QUERIES_A_BLOCK,
        padded_length=padded_length,
        runs=None,
        filling=filling,
    )


def _filling(total: int, device: torch.device) -> Int[Tensor, " pieces"]:
    """The ends of the sequences that fill `total` rows up; how many there are depends on the rounded number alone."""
    rounded = rounded_up(total)
    pieces = rounding_step(rounded) // QUERIES_A_BLOCK
    ends = total + QUERIES_A_BLOCK * torch.arange(1, 1 + pieces, device=device, dtype=torch.int32)
    return ends.clamp(max=rounded)


def _pack_by_view(mask: Bool[Tensor, "s l"], task: Int[Tensor, " s"] | None = None) -> Packing:
    """Runs of similar length, of one task each."""
    num_sequences, padded_length = mask.shape
    device = mask.device
    host = mask.cpu().numpy()
    tokens = np.flatnonzero(host)
    lengths = host.sum(axis=1)
    starts = np.cumsum(lengths) - lengths
    used = np.flatnonzero(lengths)
    row_parts, real_parts, sequence_parts, sizes = [], [], [], []
    first_row = np.zeros(num_sequences, dtype=np.int64)
    extents = []
    row = 0
    level = levels_of(lengths[used])
    if task is not None:
        level = level - task.cpu().numpy()[used] * len(LENGTH_LEVELS)
    for group in by_level(level):
        members = used[group]
        index, real = padded_index(starts[members], lengths[members])
        extent = index.shape[1]
        first_row[members] = row + np.arange(len(members)) * extent
        row += index.size
        sizes.append((index.size, index.size, len(members)))
        row_parts.append(tokens[index.ravel()])
        real_parts.append(real.ravel())
        sequence_parts.append(np.repeat(members, extent))
        extents += [extent] * len(members)

    real = joined(real_parts, np.bool_)
    return Packing(
        rows=torch.from_numpy(joined(row_parts, np.int64)).to(device),
        live=None if real.all() else torch.from_numpy(np.flatnonzero(real)).to(device),
        sequence=torch.from_numpy(joined(sequence_parts, np.int64)).to(device),
        first_row=torch.from_numpy(first_row).to(device),
        lengths=torch.from_numpy(lengths).to(device),
        cu_seqlens=torch.from_numpy(np.cumsum([0, *extents], dtype=np.int32)).to(device),
        max_seqlen=max(extents, default=0),
        padded_length=padded_length,
        runs=make_runs(sizes, real, device),
    )
