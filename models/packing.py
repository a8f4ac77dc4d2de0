"""Packing: which tokens of a padded batch are computed, and where they stand in the packed tensor.

On CUDA in half precision the packed rows are just the valid tokens. Elsewhere sequences are sorted by length and each
is rounded up to the longest of its group (about 1 % of dead rows), so that a group is a padded batch *by view* and
attention needs no gather and no scatter in any layer. A dead row repeats its sequence's last token: it is never a
key, nobody reads it, and no gradient comes from it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Lengths of one group lie between two neighbouring levels: steps of 8 tokens, later of an eighth.
_STEP = 8
_LEVELS = [_STEP]
while _LEVELS[-1] < 1 << 20:
    _LEVELS.append(max(_LEVELS[-1] + _STEP, _LEVELS[-1] * 9 // 8))
# The packed kernel starts a block of threads for each so many queries that a sequence could have.
QUERIES_A_BLOCK = 128
LENGTH_LEVELS = np.array(_LEVELS)


@dataclass(frozen=True)
class Segments:
    """Which packed queries attend to which packed keys: sequence i has the queries `cu_q[i]:cu_q[i + 1]` and the keys
    `cu_k[i]:cu_k[i + 1]`.

    Attributes:
        cu_q, cu_k: int32 starts of the sequences, and the end of the last.
        max_q, max_k: upper bounds of the lengths.
        all_have_keys: no sequence that has queries is without keys.
    """

    cu_q: Int[Tensor, " s+1"]
    cu_k: Int[Tensor, " s+1"]
    max_q: int
    max_k: int
    all_have_keys: bool = False


@dataclass(frozen=True)
class Runs:
    """Sequences of one extent next to each other, run after run.

    Attributes:
        plan: (r, 3) int64 on the CPU: rows of queries, rows of keys, number of sequences of each run; zeros fill up.
        key_is_real: (nk) which key rows are tokens, and not copies that fill a sequence up.
    """

    plan: Int[Tensor, "r 3"]
    key_is_real: Bool[Tensor, " nk"]


@dataclass(frozen=True)
class GatheredRuns:
    """How to gather packed sequences into runs: row indices, and which of the gathered query rows are real."""

    q_index: Int[Tensor, " rows"]
    k_index: Int[Tensor, " rows"]
    q_valid: Bool[Tensor, " rows"]
    runs: Runs


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
    """

    rows: Int[Tensor, " n"]
    live: Int[Tensor, " m"] | None
    sequence: Int[Tensor, " n"]
    first_row: Int[Tensor, " s"]
    lengths: Int[Tensor, " s"]
    cu_seqlens: Int[Tensor, " used+1"]
    max_seqlen: int
    padded_length: int
    runs: Runs | None

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

    def gather(self, padded: Tensor) -> Tensor:
        """(s, l, ...) -> (n, ...)."""
        return padded.flatten(0, 1)[self.rows]

    def scatter(self, packed: Tensor, base: Tensor) -> Tensor:
        """(n, ...) written over `base` (s, l, ...), which keeps its other positions."""
        rows, values = self.rows, packed
        if self.live is not None:
            rows, values = rows[self.live], packed[self.live]
        return base.flatten(0, 1).index_copy(0, rows, values.to(base.dtype)).view_as(base)

    def in_order(self, packed: Tensor) -> Tensor:
        """The valid tokens' rows in the order of the sequences, as they stand where no runs are arranged."""
        if self.runs is None:
            return packed
        tokens, sequence = (
            (packed, self.sequence) if self.live is None else (packed[self.live], self.sequence[self.live])
        )
        return tokens[torch.argsort(sequence, stable=True)]

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


def _levels_of(lengths: np.ndarray) -> np.ndarray:
    return np.searchsorted(LENGTH_LEVELS, lengths)


def _group(level: np.ndarray) -> list[np.ndarray]:
    """Indices of the sequences of each level, longest level first."""
    order = np.argsort(-level, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(level[order])) + 1) if len(order) else []


def _padded_index(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(count, longest) indices start + 0..length-1, the last repeated, and which of them are real."""
    column = np.arange(lengths.max())
    return starts[:, None] + np.minimum(column, lengths[:, None] - 1), column < lengths[:, None]


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)


def make_runs(sizes: list[tuple[int, int, int]], key_is_real: np.ndarray, device: torch.device) -> Runs:
    """`Runs` from (rows of queries, rows of keys, sequences) of each run."""
    # At least two rows: compilers tell the sizes 0 and 1 from all others.
    sizes = sizes + [(0, 0, 0)] * max(0, 2 - len(sizes))
    return Runs(torch.tensor(sizes, dtype=torch.int64), torch.from_numpy(key_is_real).to(device))


def length_runs(segments: Segments) -> GatheredRuns:
    """Group packed sequences by the lengths of their queries and keys; a sequence without either is in no group."""
    cu_q, cu_k = segments.cu_q, segments.cu_k
    start_q, start_k = cu_q[:-1].cpu().numpy().astype(np.int64), cu_k[:-1].cpu().numpy().astype(np.int64)
    length_q, length_k = cu_q.diff().cpu().numpy(), cu_k.diff().cpu().numpy()
    used = np.flatnonzero((length_q > 0) & (length_k > 0))
    level = _levels_of(length_q[used]) * len(LENGTH_LEVELS) + _levels_of(length_k[used])
    q_parts, k_parts, q_real_parts, k_real_parts, sizes = [], [], [], [], []
    for group in _group(level):
        members = used[group]
        q_index, q_real = _padded_index(start_q[members], length_q[members])
        k_index, k_real = _padded_index(start_k[members], length_k[members])
        sizes.append((q_index.size, k_index.size, len(members)))
        q_parts.append(q_index.ravel())
        k_parts.append(k_index.ravel())
        q_real_parts.append(q_real.ravel())
        k_real_parts.append(k_real.ravel())

    def on_device(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(cu_q.device)

    return GatheredRuns(
        on_device(_joined(q_parts, np.int64)),
        on_device(_joined(k_parts, np.int64)),
        on_device(_joined(q_real_parts, np.bool_)),
        make_runs(sizes, _joined(k_real_parts, np.bool_), cu_k.device),
    )


def ends_of(lengths: Int[Tensor, " s"]) -> Int[Tensor, " s+1"]:
    """int32 starts of packed sequences of these lengths, and the end of the last."""
    ends = lengths.cumsum(0).to(torch.int32)
    return torch.cat([ends.new_zeros(1), ends])


def set_segments(num_queries: int, mask: Bool[Tensor, "batch slots"]) -> Segments:
    """`num_queries` queries a sample, and its valid slots as keys, for cross-attention over `x[mask]`."""
    cu_q = torch.arange(0, (len(mask) + 1) * num_queries, num_queries, dtype=torch.int32, device=mask.device)
    return Segments(cu_q, ends_of(mask.sum(1)), num_queries, mask.shape[1])


def pack(mask: Bool[Tensor, "s l"], *, by_view: bool) -> Packing:
    """The packing of the valid tokens of a padded batch.

    Args:
        mask: which tokens are valid.
        by_view: arrange sequences of similar length as runs (everywhere but in the packed CUDA kernel).
    """
    return _pack_by_view(mask) if by_view else _pack_tightly(mask)


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


def _pack_tightly(mask: Bool[Tensor, "s l"]) -> Packing:
    padded_length = mask.shape[1]
    lengths = mask.sum(dim=1)
    sizes = torch.stack([lengths.sum(), lengths.max(), (lengths > 0).sum()])
    total, longest, used = sizes.tolist()  # the one synchronisation
    ends = lengths.cumsum(0)
    rows = torch.nonzero_static(mask.flatten(), size=total).squeeze(-1)
    ends_of_used = ends[torch.nonzero_static(lengths, size=used).squeeze(-1)].to(torch.int32)
    return Packing(
        rows=rows,
        live=None,
        sequence=rows // padded_length,
        first_row=(ends - lengths).clamp(max=max(total - 1, 0)),
        lengths=lengths,
        cu_seqlens=torch.cat([ends_of_used.new_zeros(1), ends_of_used]),
        max_seqlen=max(1, -(-longest // QUERIES_A_BLOCK)) * QUERIES_A_BLOCK,
        padded_length=padded_length,
        runs=None,
    )


def _pack_by_view(mask: Bool[Tensor, "s l"]) -> Packing:
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
    for group in _group(_levels_of(lengths[used])):
        members = used[group]
        index, real = _padded_index(starts[members], lengths[members])
        extent = index.shape[1]
        first_row[members] = row + np.arange(len(members)) * extent
        row += index.size
        sizes.append((index.size, index.size, len(members)))
        row_parts.append(tokens[index.ravel()])
        real_parts.append(real.ravel())
        sequence_parts.append(np.repeat(members, extent))
        extents += [extent] * len(members)

    real = _joined(real_parts, np.bool_)
    return Packing(
        rows=torch.from_numpy(_joined(row_parts, np.int64)).to(device),
        live=None if real.all() else torch.from_numpy(np.flatnonzero(real)).to(device),
        sequence=torch.from_numpy(_joined(sequence_parts, np.int64)).to(device),
        first_row=torch.from_numpy(first_row).to(device),
        lengths=torch.from_numpy(lengths).to(device),
        cu_seqlens=torch.from_numpy(np.cumsum([0, *extents], dtype=np.int32)).to(device),
        max_seqlen=max(extents, default=0),
        padded_length=padded_length,
        runs=make_runs(sizes, real, device),
    )
