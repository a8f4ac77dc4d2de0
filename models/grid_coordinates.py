"""Where a cell stands in its grid, in the residual stream: what attention finds can then tell where it was.

A cell has four numbers: its row and column from the grid's first corner, and from its last, both counted from 0. Grids
of other sizes and offsets agree in them where they agree in structure: the source of a mirrored cell is as far from
the last corner as the cell is from the first. Cells outside the grid (a border, a larger output) go on counting.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dataset.grids import CANVAS_SIDE
from models.layers import TokenEmbedding

ABSENT = -CANVAS_SIDE  # of a token that is no cell
NUMBERS = {"corner": 2, "both": 4}


def grid_coordinates(
    cells: Int[Tensor, "batch n"], first: Int[Tensor, "batch n 2"], end: Int[Tensor, "batch n 2"]
) -> Int[Tensor, "batch n 4"]:
    """Row and column from the first corner, then from the last, of canvas cells by number.

    Args:
        first: the grid's first row and column on the canvas.
        end: one past its last.
    """
    place = torch.stack([cells // CANVAS_SIDE, cells % CANVAS_SIDE], dim=-1)
    return torch.cat([place - first, end - 1 - place], dim=-1)


class GridCoordinates(nn.Module):
    """The sum of an embedding for each number, of unit scale; of zeros for a token that is absent from any grid.

    Args:
        kind: "corner": the first two numbers alone; "both": all four.
    """

    def __init__(self, kind: str, hidden_size: int):
        super().__init__()
        self.tables = nn.ModuleList(TokenEmbedding(2 * CANVAS_SIDE, hidden_size) for _ in range(NUMBERS[kind]))

    def forward(self, numbers: Int[Tensor, "n 4"], dtype: torch.dtype) -> Float[Tensor, "n hidden"]:
        index = (numbers + CANVAS_SIDE).clamp(min=0)
        summed = torch.stack([table(index[:, axis], dtype) for axis, table in enumerate(self.tables)]).sum(0)
        return torch.where(numbers[:, :1] == ABSENT, 0, summed.shape[-1] ** 0.5 * summed)


def create_grid_coordinates(kind: str, hidden_size: int) -> GridCoordinates | None:
    """What `arch.grid_coordinates` names."""
    return None if kind == "none" else GridCoordinates(kind, hidden_size)
