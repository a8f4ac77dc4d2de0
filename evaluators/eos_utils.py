"""Reading a grid back from tokens (EOS cropping), and the loss and exact match that go with it."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dataset.grids import CANVAS_SIDE, COLOR_OFFSET, EOS, MAX_TOKEN, Grid

TokensLike = Tensor | np.ndarray


def crop_extents(
    tokens: Int[np.ndarray, "batch 900"], offsets: Int[np.ndarray, "batch 2"] | None = None
) -> Int[np.ndarray, "batch 2"]:
    """Height and width of the grid that `crop_grid_from_eos` reads."""
    batch = len(tokens)
    is_color = ((tokens >= COLOR_OFFSET) & (tokens <= MAX_TOKEN)).reshape(batch, CANVAS_SIDE, CANVAS_SIDE)
    if offsets is not None:
        row = np.arange(CANVAS_SIDE) + np.asarray(offsets)[:, :1]
        column = np.arange(CANVAS_SIDE) + np.asarray(offsets)[:, 1:]
        inside = (row < CANVAS_SIDE)[:, :, None] & (column < CANVAS_SIDE)[:, None, :]
        row, column = np.minimum(row, CANVAS_SIDE - 1), np.minimum(column, CANVAS_SIDE - 1)
        is_color = is_color[np.arange(batch)[:, None, None], row[:, :, None], column[:, None, :]] & inside
    unbroken = np.cumprod(is_color, axis=2, dtype=np.int64).sum(axis=2)  # (b, 30) cells from the left edge
    widths = np.minimum.accumulate(unbroken, axis=1)
    areas = widths * np.arange(1, CANVAS_SIDE + 1)
    best = areas.argmax(axis=1)  # the first of equals: fewest rows
    chosen = np.stack([best + 1, widths[np.arange(batch), best]], axis=1)
    return np.where(areas.max(axis=1, keepdims=True) > 0, chosen, 0)


def crop_grid_from_eos(tokens: TokensLike, offsets: TokensLike | None = None) -> list[Grid]:
    """The largest rectangle free of PAD and EOS whose top-left cell is the grid's offset, as colours.

    A token above 11 (or below 0) ends the grid like PAD; of equal areas the one with fewest rows is taken; a grid of
    0 × 0 is returned where nothing stands at the offset.

    Args:
        tokens: (B, 900).
        offsets: (B, 2) row and column of each grid's top-left cell (None: 0, 0).

    Raises:
        ValueError: another shape.
    """
    values = _numpy(tokens)
    if values.ndim != 2 or values.shape[1] != CANVAS_SIDE**2:
        raise ValueError(f"expected tokens of shape (B, {CANVAS_SIDE**2}), not {tuple(values.shape)}")
    corners = np.zeros((len(values), 2), dtype=np.int64) if offsets is None else _numpy(offsets).astype(np.int64)
    extents = crop_extents(values, None if offsets is None else corners)
    canvases = values.reshape(-1, CANVAS_SIDE, CANVAS_SIDE)
    return [
        (canvas[r : r + h, c : c + w] - COLOR_OFFSET).astype(np.uint8)
        for canvas, (r, c), (h, w) in zip(canvases, corners, extents, strict=True)
    ]


def _numpy(value: TokensLike) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def counted_targets(targets: Int[Tensor, "*shape"], include_eos: bool) -> Bool[Tensor, "*shape"]:
    """The targets that carry loss: colours (2..11), with `include_eos` also EOS."""
    return (targets >= (EOS if include_eos else COLOR_OFFSET)) & (targets <= MAX_TOKEN)


def compute_loss_with_crop(
    logits: Float[Tensor, "batch 900 vocab"], targets: Int[Tensor, "batch 900"], include_eos: bool = False
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the targets that are colours (2..11), with `include_eos` also EOS.

    Zero (still attached to the graph) where there is no such target.
    """
    counted = counted_targets(targets, include_eos)
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), targets.long().clamp(0, MAX_TOKEN).flatten(), reduction="none"
    )
    return (losses * counted.flatten()).sum() / counted.sum().clamp(min=1)


def compute_exact_match(predictions: Tensor, targets: Int[Tensor, "batch 900"]) -> Bool[Tensor, " batch"]:
    """Whether the cropped prediction equals the cropped target in size and every cell.

    Args:
        predictions: tokens (B, 900), or logits (B, 900, vocab), of which the largest counts.
    """
    if predictions.dim() == 3:
        predictions = predictions.argmax(-1)
    pairs = zip(crop_grid_from_eos(predictions), crop_grid_from_eos(targets), strict=True)
    return torch.tensor([np.array_equal(p, t) for p, t in pairs], dtype=torch.bool, device=targets.device)
