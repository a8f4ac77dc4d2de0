"""What torch offers for attention over many short sequences, forward and backward, on the lengths of a real batch."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_measure import Clock
from models.attention import attend
from models.segments import Segments, ends_of, length_runs

BACKENDS = {
    "padded groups, cuDNN": SDPBackend.CUDNN_ATTENTION,
    "padded groups, flash": SDPBackend.FLASH_ATTENTION,
    "padded groups, memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_groups(segments: Segments, backend: SDPBackend) -> Attention:
    """Attention over groups of sequences of similar length, gathered and scattered. Without the mask of the keys that
    fill a sequence up, of which not every backend knows: no time of one that knows it is less."""
    gathered = length_runs(segments)
    plan = [run for run in gathered.runs.plan.tolist() if run[2]]

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [x[gathered.q_index].split([rows for rows, _, _ in plan]) for x in (q, k, v)]
        found = []
        with sdpa_kernel(backend):
            for (_, _, count), *run in zip(plan, *parts, strict=True):
                heads_first = [x.unflatten(0, (count, -1)).transpose(1, 2) for x in run]
                found.append(F.scaled_dot_product_attention(*heads_first).transpose(1, 2).flatten(0, 1))
        out = torch.cat(found)
        return torch.zeros_like(q).index_copy(0, gathered.answered, out[gathered.live])

    return attention


def candidates(lengths: Int[Tensor, " s"], slots: int) -> dict[str, Attention]:
    """By name; the packed kernel is told the longest sequence, or no more than how many slots there are."""
    ends = ends_of(lengths)
    bounds = {"packed kernel": int(lengths.max()), "packed kernel, bound by the slots": slots}
    found: dict[str, Attention] = {
        name: partial(attend, segments=Segments(ends, ends, bound, bound)) for name, bound in bounds.items()
    }
    segments = Segments(ends, ends, slots, slots)
    return found | {name: by_groups(segments, backend) for name, backend in BACKENDS.items()}


def milliseconds(
    lengths: Int[Tensor, " s"], slots: int, *, heads: int, width: int, dtype: torch.dtype, repeats: int = 5
) -> dict[str, float | None]:
    """Of a forward and backward pass of each candidate; None where this machine does not have it."""
    shape, device = (int(lengths.sum()), heads, width), lengths.device
    qkv: list[Float[Tensor, "n h d"]] = [
        torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3)
    ]
    weight = torch.randn(shape, dtype=dtype, device=device)

    def both_passes(attention: Attention) -> None:
        torch.autograd.grad(attention(*qkv), qkv, weight)

    times: dict[str, float | None] = {}
    for name, attention in candidates(lengths, slots).items():
        run = partial(both_passes, attention)
        try:
            run()
        except RuntimeError:  # no kernel of this backend for these sizes here
            times[name] = None
            continue
        times[name] = 1e3 * min(Clock(device).seconds(run) for _ in range(repeats))
    return times
