"""A 3 x 3 depthwise convolution over the cells of each grid, on packed rows (`arch.grid_conv`).

n rows   s sequences   l positions of a padded sequence   9 taps, row by row: each from -1 to 1 rows and columns away

Rows of tokens that are no cells have no neighbours, and a neighbour outside the grid counts as zeros. So values stay
within a grid, and with it within a pair and a task.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dataset.grids import CANVAS_SIDE, SEQ_LEN
from models.packing import Packing

SIDE = 3
TAPS = SIDE * SIDE


def with_neighbours(packing: Packing, cells: Int[Tensor, "s l"], grids: int) -> Packing:
    """The packing that knows the neighbours of each row; see `grid_neighbours`."""
    return replace(packing, neighbours=grid_neighbours(packing, cells, grids))


def grid_neighbours(packing: Packing, cells: Int[Tensor, "s l"], grids: int) -> Int[Tensor, "9 n"]:
    """For each tap the packed row of the cell that is there, n where there is none.

    Args:
        cells: 900 · grid + cell of each position, -1 where it is no cell.
        grids: how many a sequence has at most.
    """
    cell, none = packing.gather(cells), len(packing.rows)
    live = packing.live_rows
    is_cell = torch.zeros_like(cell, dtype=torch.bool).index_copy(0, live, cell[live] >= 0)
    nowhere = len(packing.lengths) * grids * SEQ_LEN
    place = torch.where(is_cell, packing.sequence * (grids * SEQ_LEN) + cell, nowhere)
    row_at = place.new_full((nowhere + 1,), none).index_copy(0, place[live], live)
    row_at[-1] = none
    tap = torch.arange(TAPS, device=cell.device)[:, None]
    down, right = tap // SIDE - SIDE // 2, tap % SIDE - SIDE // 2
    row, column = cell % SEQ_LEN // CANVAS_SIDE + down, cell % CANVAS_SIDE + right
    inside = is_cell & (row >= 0) & (row < CANVAS_SIDE) & (column >= 0) & (column < CANVAS_SIDE)
    return row_at[torch.where(inside, place + down * CANVAS_SIDE + right, nowhere)]


def _with_zeros(x: Float[Tensor, "n hidden"]) -> Float[Tensor, "n+1 hidden"]:
    return torch.cat([x, x.new_zeros(1, x.shape[1])])


def _weighed(x: Float[Tensor, "n hidden"], weights: Tensor, neighbours: Int[Tensor, "9 n"]) -> Tensor:
    """The sum over taps of weights times neighbours, in the dtype of x; no more than one tap is held at once."""
    rows, total = _with_zeros(x), None
    for weight, index in zip(weights, neighbours, strict=True):
        part = weight * rows.index_select(0, index)
        total = part if total is None else total + part
    assert total is not None
    return total.to(x.dtype)


class _DepthwiseConv(torch.autograd.Function):
    """Its gradient is the same sum with the taps in reverse, for whoever is a row's neighbour has it as one: it gathers
    and never scatters, so that it is as fast and gives the same bits again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, neighbours: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights, neighbours)
        return _weighed(x, weights, neighbours)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weights, neighbours = ctx.saved_tensors
        rows = _with_zeros(x)
        d_weights = [(grad * rows.index_select(0, index)).sum(0, dtype=weights.dtype) for index in neighbours]
        return _weighed(grad, weights.flip(0), neighbours), torch.stack(d_weights), None


class GridConv(nn.Module):
    """x + the convolution of x, which is zero at the start."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(TAPS, hidden_size))

    def forward(self, x: Float[Tensor, "n hidden"], packing: Packing) -> Float[Tensor, "n hidden"]:
        assert packing.neighbours is not None
        out = _DepthwiseConv.apply(x, self.weight, packing.neighbours)
        assert isinstance(out, Tensor)
        return x + out
