"""Reading a grid back from tokens (EOS cropping), and the loss and exact match that go with it."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dataset.grids import CANVAS_SIDE, COLOR_OFFSET, EOS, MAX_TOKEN, Grid

TokensLike = Tensor | np.ndarray


def crop_extents(
    tokens: Int[Tensor, "batch 900"], offsets: Int[Tensor, "batch 2"] | None = None
) -> Int[Tensor, "batch 2"]:
    """Height and width of the grid that `crop_grid_from_eos` reads; on a device nothing waits for it."""
    is_color = ((tokens >= COLOR_OFFSET) & (tokens <= MAX_TOKEN)).unflatten(1, (CANVAS_SIDE, CANVAS_SIDE))
    side = torch.arange(CANVAS_SIDE, device=tokens.device)
    if offsets is not None:
        row, column = (side + offsets[:, axis, None] for axis in range(2))  # (b, 30) each
        inside = (row < CANVAS_SIDE)[:, :, None] & (column < CANVAS_SIDE)[:, None, :]
        row, column = row.clamp(max=CANVAS_SIDE - 1), column.clamp(max=CANVAS_SIDE - 1)
        sample = torch.arange(len(tokens), device=tokens.device)[:, None, None]
        is_color = is_color[sample, row[:, :, None], column[:, None, :]] & inside
    unbroken = is_color.long().cumprod(dim=2).sum(dim=2)  # (b, 30) cells from the left edge
    widths = unbroken.cummin(dim=1).values
    areas = widths * (side + 1)
    best = (areas * CANVAS_SIDE - side).argmax(dim=1)  # of equal areas the one with fewest rows
    found = torch.stack([best + 1, widths.gather(1, best[:, None]).squeeze(1)], dim=1)
    return torch.where(areas.amax(dim=1, keepdim=True) > 0, found, 0)


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
    values = torch.as_tensor(tokens)
    if values.dim() != 2 or values.shape[1] != CANVAS_SIDE**2:
        raise ValueError(f"expected tokens of shape (B, {CANVAS_SIDE**2}), not {tuple(values.shape)}")
    corners = torch.zeros(len(values), 2) if offsets is None else torch.as_tensor(offsets)
    corners = corners.to(values.device, torch.int64)
    extents = crop_extents(values, None if offsets is None else corners).tolist()
    canvases = values.detach().cpu().numpy().reshape(-1, CANVAS_SIDE, CANVAS_SIDE)
    return [
        (canvas[r : r + h, c : c + w] - COLOR_OFFSET).astype(np.uint8)
        for canvas, (r, c), (h, w) in zip(canvases, corners.tolist(), extents, strict=True)
    ]


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
    extents = crop_extents(targets)
    side = torch.arange(CANVAS_SIDE, device=targets.device)
    inside = (side < extents[:, :1])[:, :, None] & (side < extents[:, 1:])[:, None, :]  # (b, 30, 30)
    are_equal = (predictions == targets) | ~inside.flatten(1)
    return are_equal.all(dim=1) & (crop_extents(predictions) == extents).all(dim=1)
