"""Tokens and the 30 × 30 canvas: how ARC grids become token sequences.

Vocabulary: PAD = 0, EOS = 1, colour c = c + 2. A grid of h × w at offset (r, c) is bordered by EOS in the row
below it and in the column to its right, where these are inside the canvas; the rest is PAD.
"""

import numpy as np
from jaxtyping import Int, UInt8

PAD = 0
EOS = 1
COLOR_OFFSET = 2
NUM_COLORS = 10
VOCAB_SIZE = NUM_COLORS + COLOR_OFFSET
MAX_TOKEN = VOCAB_SIZE - 1
CANVAS_SIDE = 30
SEQ_LEN = CANVAS_SIDE * CANVAS_SIDE
IGNORE_LABEL_ID = -100

# The colours 0-9 as ARC's own page shows them.
PALETTE = (
    "#000000",
    "#0074d9",
    "#ff4136",
    "#2ecc40",
    "#ffdc00",
    "#aaaaaa",
    "#f012be",
    "#ff851b",
    "#7fdbff",
    "#870c25",
)

Grid = UInt8[np.ndarray, "rows cols"]


def cells_of_rectangles(
    heights: Int[np.ndarray, " n"], widths: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " cells"], Int[np.ndarray, " cells"], Int[np.ndarray, " cells"]]:
    """Every cell of n rectangles, row-major, as (rectangle, row, column) index arrays."""
    areas = heights * widths
    rectangle = np.repeat(np.arange(len(areas)), areas)
    starts = np.cumsum(areas) - areas
    within = np.arange(len(rectangle)) - starts[rectangle]
    row, column = np.divmod(within, widths[rectangle])
    return rectangle, row, column


def draw_eos_borders(
    canvases: UInt8[np.ndarray, "n 900"],
    heights: Int[np.ndarray, " n"],
    widths: Int[np.ndarray, " n"],
    offsets: Int[np.ndarray, "n 2"],
) -> None:
    """Write the EOS borders of n grids into their canvases, in place."""
    flat = canvases.reshape(-1)
    bottoms, rights = offsets[:, 0] + heights, offsets[:, 1] + widths
    for has_border, lengths, is_row in (
        (bottoms < CANVAS_SIDE, widths, True),
        (rights < CANVAS_SIDE, heights, False),
    ):
        chosen = np.flatnonzero(has_border)
        grid, _, along = cells_of_rectangles(np.ones(len(chosen), dtype=np.int64), lengths[chosen])
        grid = chosen[grid]
        row = bottoms[grid] if is_row else offsets[grid, 0] + along
        column = offsets[grid, 1] + along if is_row else rights[grid]
        flat[grid * SEQ_LEN + row * CANVAS_SIDE + column] = EOS


def place_grid(grid: Grid, offset: tuple[int, int] = (0, 0)) -> UInt8[np.ndarray, "900"]:
    """One grid of colours as the 900 tokens of its canvas.

    Raises:
        ValueError: the grid does not fit into the canvas at this offset.
    """
    height, width = grid.shape
    row, column = offset
    if min(height, width) < 1 or min(row, column) < 0 or max(row + height, column + width) > CANVAS_SIDE:
        raise ValueError(f"a {height} x {width} grid does not fit at {offset} in {CANVAS_SIDE} x {CANVAS_SIDE}")
    canvas = np.zeros((CANVAS_SIDE, CANVAS_SIDE), dtype=np.uint8)
    canvas[row : row + height, column : column + width] = grid + COLOR_OFFSET
    tokens = canvas.reshape(1, SEQ_LEN)
    draw_eos_borders(tokens, np.array([height]), np.array([width]), np.array([offset]))
    return tokens[0]
