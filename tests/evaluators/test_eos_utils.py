"""Cropping against a search over all rectangles, the loss against a loop over cells."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dataset.grids import Grid, place_grid
from evaluators.eos_utils import compute_exact_match, compute_loss_with_crop, crop_grid_from_eos

GRIDS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30), elements=st.integers(0, 9))


@st.composite
def placed_grids(draw: st.DrawFn) -> tuple[Grid, tuple[int, int]]:
    """A grid and an offset at which it fits, at the edges of the canvas as often as inside."""
    grid = draw(GRIDS)
    room_below, room_right = 30 - grid.shape[0], 30 - grid.shape[1]
    row = max(0, draw(st.sampled_from([0, room_below - 1, room_below]) | st.integers(0, room_below)))
    column = max(0, draw(st.sampled_from([0, room_right - 1, room_right]) | st.integers(0, room_right)))
    return grid, (row, column)


def largest_rectangle(tokens: np.ndarray, offset: tuple[int, int]) -> Grid:
    """Of all rectangles of colours with their top-left cell at the offset, the largest; of equals, fewest rows."""
    canvas, (r, c) = tokens.reshape(30, 30), offset
    best = np.zeros((0, 0), dtype=np.uint8)
    for height in range(1, 31 - r):
        for width in range(1, 31 - c):
            rectangle = canvas[r : r + height, c : c + width]
            # Heights grow, so an equal area found later has more rows.
            if height * width > best.size and ((rectangle >= 2) & (rectangle <= 11)).all():
                best = (rectangle - 2).astype(np.uint8)
    return best


@st.composite
def broken_canvases(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int]]:
    """A canvas of colours with a few cells that are none, many of them near the offset, where they matter."""
    tokens = draw(arrays(np.int64, (30, 30), elements=st.integers(2, 11)))
    row, column = draw(st.integers(0, 29)), draw(st.integers(0, 29))
    for _ in range(draw(st.integers(0, 12))):
        i = draw(st.integers(0, 29 - row) | st.integers(0, min(4, 29 - row)))
        j = draw(st.integers(0, 29 - column) | st.integers(0, min(4, 29 - column)))
        tokens[row + i, column + j] = draw(st.sampled_from([0, 1, 12, 255, -100]))
    return tokens.reshape(900), (row, column)


@settings(max_examples=60, deadline=None)
@given(st.lists(placed_grids(), min_size=1, max_size=3))
def test_cropping_gives_back_every_placed_grid(placed: list[tuple[Grid, tuple[int, int]]]) -> None:
    tokens = np.stack([place_grid(grid, offset) for grid, offset in placed])
    offsets = np.array([offset for _, offset in placed])
    for (grid, _), cropped in zip(placed, crop_grid_from_eos(tokens, offsets), strict=True):
        assert cropped.dtype == np.uint8
        assert cropped.shape == grid.shape
        assert np.array_equal(cropped, grid)


@settings(max_examples=30, deadline=None)
@given(GRIDS)
def test_without_offsets_the_grid_is_read_at_the_corner(grid: Grid) -> None:
    (cropped,) = crop_grid_from_eos(place_grid(grid)[None])
    assert np.array_equal(cropped, grid)


@settings(max_examples=60, deadline=None)
@given(broken_canvases())
def test_the_crop_is_the_largest_rectangle_of_colours_at_the_offset(
    broken: tuple[np.ndarray, tuple[int, int]],
) -> None:
    tokens, offset = broken
    (cropped,) = crop_grid_from_eos(tokens[None], np.array([offset]))
    expected = largest_rectangle(tokens, offset)
    assert cropped.shape == expected.shape
    assert np.array_equal(cropped, expected)


@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        # Equal areas: 1 x 4, 2 x 2 and 4 x 1, of which the first has the fewest rows.
        (["2345", "67", "8", "9"], (1, 4)),
        (["23", "45", "6", "7"], (2, 2)),
        (["2", "3"], (2, 1)),
        (["234", "56", "78"], (3, 2)),
        (["234", "567", "89"], (2, 3)),
    ],
)
def test_of_equal_rectangles_the_one_with_fewest_rows_is_read(rows: list[str], shape: tuple[int, int]) -> None:
    canvas = np.zeros((30, 30), dtype=np.uint8)
    for r, row in enumerate(rows):
        canvas[r, : len(row)] = [int(token) for token in row]
    (cropped,) = crop_grid_from_eos(canvas.reshape(1, 900))
    assert cropped.shape == shape
    assert np.array_equal(cropped, canvas[: shape[0], : shape[1]] - 2)


@pytest.mark.parametrize("token", [0, 1, 12, 13, 255, -1, -100])
def test_a_token_that_is_no_colour_ends_the_grid(token: int) -> None:
    tokens = place_grid(np.full((5, 6), 4, dtype=np.uint8)).astype(np.int64).reshape(30, 30)
    tokens[0, 3] = token
    (cropped,) = crop_grid_from_eos(tokens.reshape(1, 900))
    assert cropped.tolist() == [[4, 4, 4]] * 5
    tokens[0, 0] = token
    (cropped,) = crop_grid_from_eos(tokens.reshape(1, 900))
    assert cropped.shape == (0, 0)


def test_nothing_at_the_offset_gives_an_empty_grid_and_a_full_canvas_gives_all_of_it() -> None:
    tokens = np.stack([np.zeros(900), np.ones(900), np.full(900, 2), np.full(900, 12)]).astype(np.uint8)
    assert [grid.shape for grid in crop_grid_from_eos(tokens)] == [(0, 0), (0, 0), (30, 30), (0, 0)]
    beside = place_grid(np.ones((2, 2), dtype=np.uint8), (1, 1))[None]
    assert crop_grid_from_eos(beside)[0].shape == (0, 0)
    assert crop_grid_from_eos(beside, np.array([[2, 2]]))[0].shape == (1, 1)
    assert crop_grid_from_eos(np.zeros((0, 900), dtype=np.uint8)) == []


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_tensors_and_arrays_are_read_alike(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    placed = [(rng.integers(0, 10, (4, 7), dtype=np.uint8), (3, 5)), (np.zeros((30, 30), dtype=np.uint8), (0, 0))]
    arrays_ = np.stack([place_grid(grid, offset) for grid, offset in placed])
    offsets = np.array([offset for _, offset in placed])
    from_tensor = crop_grid_from_eos(torch.from_numpy(arrays_).to(dtype), torch.from_numpy(offsets).to(dtype))
    from_array = crop_grid_from_eos(arrays_, offsets)
    for (grid, _), one, other in zip(placed, from_tensor, from_array, strict=True):
        assert isinstance(one, np.ndarray)
        assert one.dtype == other.dtype == np.uint8
        assert one.tolist() == other.tolist() == grid.tolist()


@pytest.mark.parametrize("shape", [(900,), (2, 899), (2, 30, 30), (0,)])
def test_tokens_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected tokens of shape \(B, 900\)"):
        crop_grid_from_eos(np.zeros(shape, dtype=np.uint8))


def test_a_crop_does_not_share_memory_with_its_tokens() -> None:
    tokens = place_grid(np.ones((2, 2), dtype=np.uint8))[None].copy()
    (cropped,) = crop_grid_from_eos(tokens)
    tokens[:] = 0
    assert cropped.tolist() == [[1, 1], [1, 1]]


# Loss and exact match


def some_targets() -> torch.Tensor:
    """Targets with PAD, EOS, the ignore id and every colour, in samples of different size."""
    rng = np.random.default_rng(1)
    grids = [np.arange(10, dtype=np.uint8)[None], rng.integers(0, 10, (5, 8), dtype=np.uint8)]
    targets = torch.from_numpy(np.stack([place_grid(grid) for grid in grids])).to(torch.int64)
    targets[1, 800:] = -100
    return targets


def naive_loss(logits: torch.Tensor, targets: torch.Tensor, counted: range) -> float:
    losses = []
    for sample in range(len(targets)):
        for cell in range(900):
            target = int(targets[sample, cell])
            if target in counted:
                scores = logits[sample, cell].double().tolist()
                losses.append(math.log(sum(math.exp(score) for score in scores)) - scores[target])
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("include_eos", "counted"), [(False, range(2, 12)), (True, range(1, 12))])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_the_loss_is_the_mean_cross_entropy_over_the_counted_targets(
    include_eos: bool, counted: range, dtype: torch.dtype
) -> None:
    targets = some_targets()
    logits = torch.randn(2, 900, 12)
    expected = naive_loss(logits, targets, counted)
    found = compute_loss_with_crop(logits, targets.to(dtype), include_eos=include_eos)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_uint8_targets_as_batches_hold_them_give_the_same_loss() -> None:
    targets = some_targets().clamp(min=0)
    logits = torch.randn(2, 900, 12)
    expected = compute_loss_with_crop(logits, targets, include_eos=True)
    assert torch.equal(compute_loss_with_crop(logits, targets.to(torch.uint8), include_eos=True), expected)


def test_only_counted_cells_get_a_gradient() -> None:
    targets = some_targets()
    for include_eos, lowest in ((False, 2), (True, 1)):
        logits = torch.randn(2, 900, 12, requires_grad=True)
        compute_loss_with_crop(logits, targets, include_eos=include_eos).backward()
        assert logits.grad is not None
        assert torch.equal(logits.grad.abs().sum(-1) > 0, targets >= lowest)


def test_without_a_counted_target_the_loss_is_zero_and_can_be_differentiated() -> None:
    logits = torch.randn(1, 900, 12, requires_grad=True)
    loss = compute_loss_with_crop(logits, torch.ones(1, 900, dtype=torch.int64))
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_an_exact_match_looks_only_inside_the_crop() -> None:
    grid = np.random.default_rng(2).integers(0, 10, (3, 4), dtype=np.uint8)
    target = torch.from_numpy(place_grid(grid))
    outside = target.clone().reshape(30, 30)
    outside[3:, :] = torch.where(outside[3:, :] == 1, 1, 7)
    outside[:3, 5:] = 9
    predictions = torch.stack([target, outside.reshape(900)])
    assert compute_exact_match(predictions, target.expand(2, 900)).tolist() == [True, True]


def test_a_wrong_cell_or_a_wrong_size_is_no_exact_match() -> None:
    grid = np.random.default_rng(2).integers(0, 10, (3, 4), dtype=np.uint8)
    wrong_cell = grid.copy()
    wrong_cell[2, 3] = (grid[2, 3] + 1) % 10
    others = [wrong_cell, grid[:2], grid[:, :3], np.pad(grid, ((0, 1), (0, 0))), grid.reshape(4, 3), grid.reshape(2, 6)]
    predictions = torch.from_numpy(np.stack([place_grid(other) for other in others]))
    empty = torch.zeros(1, 900, dtype=torch.uint8)
    target = torch.from_numpy(place_grid(grid)).expand(len(others) + 1, 900)
    matches = compute_exact_match(torch.cat([predictions, empty]), target)
    assert matches.dtype == torch.bool
    assert matches.tolist() == [False] * (len(others) + 1)


def test_logits_match_as_the_tokens_of_their_largest_scores_do() -> None:
    rng = np.random.default_rng(3)
    grids = [rng.integers(0, 10, (3, 4), dtype=np.uint8) for _ in range(3)]
    targets = torch.from_numpy(np.stack([place_grid(grid) for grid in grids]))
    predictions = targets.clone()
    predictions[1, 0] = 2 + (predictions[1, 0] - 1) % 10
    logits = torch.randn(3, 900, 12).scatter_(2, predictions.long()[..., None], 100.0)
    assert compute_exact_match(logits, targets).tolist() == [True, False, True]
    assert compute_exact_match(predictions, targets).tolist() == [True, False, True]
