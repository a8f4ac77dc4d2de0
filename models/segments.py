"""Segments: which packed queries attend to which packed keys, and how they are grouped where there is no packed kernel.

Sequences of similar length stand next to each other as runs, each of which is a padded batch by view. Where the rows
are not arranged so (`models/packing.py` arranges those of self-attention), they are gathered.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

# Lengths of one group lie between two neighbouring levels: steps of 8 tokens, later of an eighth.
_STEP = 8
_LEVELS = [_STEP]
while _LEVELS[-1] < 1 << 20:
    _LEVELS.append(max(_LEVELS[-1] + _STEP, _LEVELS[-1] * 9 // 8))
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
    """How to gather packed sequences into runs.

    Attributes:
        q_index, k_index: the packed row that each gathered row of queries, and of keys, holds.
        live: the gathered query rows that are no copies, and `answered`, the packed rows that they hold.
    """

    q_index: Int[Tensor, " q_rows"]
    k_index: Int[Tensor, " k_rows"]
    live: Int[Tensor, " m"]
    answered: Int[Tensor, " m"]
    runs: Runs


def levels_of(lengths: np.ndarray) -> np.ndarray:
    return np.searchsorted(LENGTH_LEVELS, lengths)


def by_level(level: np.ndarray) -> list[np.ndarray]:
    """Indices of the sequences of each level, longest level first."""
    order = np.argsort(-level, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(level[order])) + 1) if len(order) else []


def padded_index(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(count, longest) indices start + 0..length-1, the last repeated, and which of them are real."""
    column = np.arange(lengths.max())
    return starts[:, None] + np.minimum(column, lengths[:, None] - 1), column < lengths[:, None]


def joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)


def make_runs(sizes: list[tuple[int, int, int]], key_is_real: np.ndarray, device: torch.device) -> Runs:
    """`Runs` from (rows of queries, rows of keys, sequences) of each run."""
    # At least two rows: compilers tell the sizes 0 and 1 from all others.
    sizes = sizes + [(0, 0, 0)] * max(0, 2 - len(sizes))
    return Runs(torch.tensor(sizes, dtype=torch.int64), torch.from_numpy(key_is_real).to(device))


def length_runs(segments: Segments) -> GatheredRuns:
    """`gathered_runs` of packed sequences that follow one another without gaps."""
    cu_q, cu_k = segments.cu_q, segments.cu_k
    return gathered_runs(cu_q[:-1], cu_q.diff(), cu_k[:-1], cu_k.diff())


def gathered_runs(
    starts_q: Int[Tensor, " s"], lengths_q: Int[Tensor, " s"], starts_k: Int[Tensor, " s"], lengths_k: Int[Tensor, " s"]
) -> GatheredRuns:
    """Group packed sequences by the lengths of their queries and keys; a sequence without either is in no group."""
    device = starts_q.device
    start_q, length_q, start_k, length_k = (
        values.cpu().numpy().astype(np.int64) for values in (starts_q, lengths_q, starts_k, lengths_k)
    )
    used = np.flatnonzero((length_q > 0) & (length_k > 0))
    level = levels_of(length_q[used]) * len(LENGTH_LEVELS) + levels_of(length_k[used])
    q_parts, k_parts, q_real_parts, k_real_parts, sizes = [], [], [], [], []
    for group in by_level(level):
        members = used[group]
        q_index, q_real = padded_index(start_q[members], length_q[members])
        k_index, k_real = padded_index(start_k[members], length_k[members])
        sizes.append((q_index.size, k_index.size, len(members)))
        q_parts.append(q_index.ravel())
        k_parts.append(k_index.ravel())
        q_real_parts.append(q_real.ravel())
        k_real_parts.append(k_real.ravel())

    def on_device(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    q_rows, live = joined(q_parts, np.int64), np.flatnonzero(joined(q_real_parts, np.bool_))
    return GatheredRuns(
        on_device(q_rows),
        on_device(joined(k_parts, np.int64)),
        on_device(live),
        on_device(q_rows[live]),
        make_runs(sizes, joined(k_real_parts, np.bool_), device),
    )


def ends_of(lengths: Int[Tensor, " s"]) -> Int[Tensor, " s+1"]:
    """int32 starts of packed sequences of these lengths, and the end of the last."""
    ends = lengths.cumsum(0).to(torch.int32)
    return torch.cat([ends.new_zeros(1), ends])


def set_segments(num_queries: int, mask: Bool[Tensor, "batch slots"]) -> Segments:
    """`num_queries` queries a sample, and its valid slots as keys, for cross-attention over `x[mask]`."""
    cu_q = torch.arange(0, (len(mask) + 1) * num_queries, num_queries, dtype=torch.int32, device=mask.device)
    return Segments(cu_q, ends_of(mask.sum(1)), num_queries, mask.shape[1])
