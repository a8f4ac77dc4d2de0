"""The linear map of each task over its own rows: the grouped product of mixtures of experts, the task as the expert.

n rows, sorted by task   t tasks   i inputs   o outputs
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

ALIGNED = 8  # bfloat16 numbers in 16 bytes, of which the grouped kernel's strides must be multiples


def uses_grouped_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether all groups are one kernel; elsewhere they are computed one after another."""
    return device.type in ("cuda", "meta") and dtype == torch.bfloat16


def stacked_linear(
    rows: Float[Tensor, "n i"], weights: Float[Tensor, "t o i"], ends: Int[Tensor, " t"]
) -> Float[Tensor, "n o"]:
    """Each row times the transposed weights of its task.

    Args:
        ends: int32, where the rows of each task end.
    """
    if uses_grouped_kernel(rows.device, rows.dtype):
        return _in_one_kernel(rows, weights, ends)
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    out = _OneByOne.apply(rows, weights, sizes)
    assert isinstance(out, Tensor)
    return out


def _in_one_kernel(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    outputs, inputs = weights.shape[1:]
    weights = F.pad(weights, (0, -inputs % ALIGNED, 0, -outputs % ALIGNED))
    rows = F.pad(rows, (0, -inputs % ALIGNED))
    return F.grouped_mm(rows, weights.transpose(1, 2), offs=ends)[:, :outputs]


class _OneByOne(torch.autograd.Function):
    """A product for each task, written where its rows stand."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.sizes = sizes
        out = rows.new_empty(len(rows), weights.shape[1])
        for part, weight, target in zip(rows.split(sizes), weights, out.split(sizes), strict=True):
            torch.mm(part, weight.t(), out=target)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, weights = ctx.saved_tensors
        grad = grads[0].contiguous()
        d_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        d_weights = torch.empty_like(weights) if ctx.needs_input_grad[1] else None
        start = 0
        for task, size in enumerate(ctx.sizes):
            part = slice(start, start := start + size)
            if d_rows is not None:
                torch.mm(grad[part], weights[task], out=d_rows[part])
            if d_weights is not None:
                torch.mm(grad[part].t(), rows[part], out=d_weights[task])
        return d_rows, d_weights, None
