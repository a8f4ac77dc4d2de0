"""How a grid lies on the 30 × 30 canvas, against the words of the token section, cell by cell."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dataset.grids import SEQ_LEN, VOCAB_SIZE, Grid, cells_of_rectangles, draw_eos_borders, place_grid

GRIDS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30), elements=st.integers(0, 9))


@st.composite
def placed_grids(draw: st.DrawFn) -> tuple[Grid, tuple[int, int]]:
    """A grid and an offset at which it fits; edges of the canvas are drawn as often as its middle."""
    grid = draw(GRIDS)
    room_below, room_right = 30 - grid.shape[0], 30 - grid.shape[1]
    row = max(0, draw(st.sampled_from([0, room_below - 1, room_below]) | st.integers(0, room_below)))
    column = max(0, draw(st.sampled_from([0, room_right - 1, room_right]) | st.integers(0, room_right)))
    return grid, (row, column)


def naive_canvas(grid: Grid, offset: tuple[int, int]) -> list[int]:
    """PAD 0; colour c as c + 2; EOS 1 in row r + h and in column c + w beside the grid, where inside the canvas."""
    (height, width), (r, c) = grid.shape, offset
    tokens = [0] * 900
    for row in range(30):
        for column in range(30):
            beside_rows, beside_columns = r <= row < r + height, c <= column < c + width
            if beside_rows and beside_columns:
                tokens[30 * row + column] = int(grid[row - r, column - c]) + 2
            elif (row == r + height and beside_columns) or (column == c + width and beside_rows):
                tokens[30 * row + column] = 1
    return tokens


@settings(max_examples=60, deadline=None)
@given(placed_grids())
def test_a_placed_grid_has_the_tokens_of_the_spec(placed: tuple[Grid, tuple[int, int]]) -> None:
    grid, offset = placed
    before = grid.copy()
    tokens = place_grid(grid, offset)
    assert tokens.dtype == np.uint8
    assert tokens.tolist() == naive_canvas(grid, offset)
    assert np.array_equal(grid, before)


def test_the_default_offset_is_the_top_left_corner() -> None:
    grid = np.array([[3, 0], [9, 1]], dtype=np.uint8)
    assert place_grid(grid).tolist() == naive_canvas(grid, (0, 0))


def test_the_corner_between_the_two_borders_stays_pad() -> None:
    tokens = place_grid(np.zeros((2, 3), dtype=np.uint8), (4, 5)).reshape(30, 30)
    assert tokens[6, 7] == tokens[5, 8] == 1
    assert tokens[6, 8] == 0


def test_every_token_is_inside_the_vocabulary_and_every_colour_has_its_own() -> None:
    tokens = place_grid(np.arange(10, dtype=np.uint8)[None])
    assert len(tokens) == SEQ_LEN
    assert len(set(tokens[:10].tolist())) == 10
    assert set(tokens.tolist()) == set(range(VOCAB_SIZE))


@pytest.mark.parametrize(
    ("shape", "offset"),
    [
        ((31, 1), (0, 0)),
        ((1, 31), (0, 0)),
        ((3, 3), (28, 0)),
        ((3, 3), (0, 28)),
        ((1, 1), (30, 0)),
        ((1, 1), (-1, 0)),
        ((1, 1), (0, -1)),
        ((0, 0), (0, 0)),
        ((0, 3), (0, 0)),
        ((3, 0), (0, 0)),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(shape: tuple[int, int], offset: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{shape[0]} x {shape[1]} grid does not fit"):
        place_grid(np.zeros(shape, dtype=np.uint8), offset)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8))
def test_cells_of_rectangles_are_those_of_nested_loops(shapes: list[tuple[int, int]]) -> None:
    expected = [(n, i, j) for n, (height, width) in enumerate(shapes) for i in range(height) for j in range(width)]
    sizes = np.array(shapes, dtype=np.int64).reshape(-1, 2)
    found = cells_of_rectangles(sizes[:, 0], sizes[:, 1])
    assert list(zip(*(part.tolist() for part in found), strict=True)) == expected


@settings(max_examples=30, deadline=None)
@given(st.lists(placed_grids(), min_size=1, max_size=5))
def test_borders_drawn_for_many_canvases_are_those_of_each_alone(placed: list[tuple[Grid, tuple[int, int]]]) -> None:
    alone = np.stack([place_grid(grid, offset) for grid, offset in placed])
    together = np.where(alone == 1, 0, alone).astype(np.uint8)
    heights, widths = np.array([grid.shape for grid, _ in placed]).T
    draw_eos_borders(together, heights, widths, np.array([offset for _, offset in placed]))
    assert np.array_equal(together, alone)
