"""The task canvas: the cells that a task can need, from its demonstrations and query input alone.

Rows = the most of the query input's rows, all demonstrations' rows and, where output/input height has one constant
ratio in all demonstrations, that ratio × the query's rows; columns alike; one more for the EOS border, at most 30, at
the query's offset. Evaluation never looks at a label. Training may let a label enlarge the canvas.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dataset.batches import Batch
from dataset.grids import CANVAS_SIDE, COLOR_OFFSET, SEQ_LEN

# Optional key of a batch in evaluation: (B, 2, 2), the canvas' first rows and columns and its ends, which then counts
# instead of what the demonstrations say.
CANVAS_KEY = "canvas_bounds"


def with_canvas(batch: Batch) -> Batch:
    """The batch with its canvases fixed: other demonstrations in it will not change them."""
    return batch | {CANVAS_KEY: torch.stack(task_canvas_bounds(batch, include_labels=False), dim=1)}


def full_canvas(inputs: Tensor) -> Bool[Tensor, "batch 900"]:
    """All cells."""
    return torch.ones(len(inputs), SEQ_LEN, dtype=torch.bool, device=inputs.device)


def extents_of(tokens: Int[Tensor, "*shape 900"]) -> tuple[Int[Tensor, "*shape 2"], Int[Tensor, "*shape 2"]]:
    """First row and column of each grid, and one past its last (0 and 0 where there is no grid)."""
    is_cell = tokens.unflatten(-1, (CANVAS_SIDE, CANVAS_SIDE)) >= COLOR_OFFSET
    along = torch.stack([is_cell.any(-1), is_cell.any(-2)], dim=-2)  # (..., 2, 30)
    index = torch.arange(CANVAS_SIDE, device=tokens.device)
    first = torch.where(along, index, CANVAS_SIDE).amin(-1)
    end = torch.where(along, index + 1, 0).amax(-1)
    return torch.where(end > 0, first, 0), end


def task_canvas_bounds(batch: Batch, *, include_labels: bool) -> tuple[Int[Tensor, "batch 2"], Int[Tensor, "batch 2"]]:
    """The canvas of each sample: first row and column, and one past the last.

    Args:
        batch: `demo_inputs`, `demo_labels` (B, K, 900), `demo_mask` (B, K), `inputs` (B, 900); `labels` are read only
            with `include_labels`. A `CANVAS_KEY` in it is the answer, where labels are not to be read.
    """
    if CANVAS_KEY in batch and not include_labels:
        start, end = batch[CANVAS_KEY].unbind(1)
        return start, end
    start, end = extents_of(batch["inputs"])
    canvas_end = _end_of_canvas(start, end - start, *demonstration_sizes(batch))
    if include_labels:
        label_start, label_end = extents_of(batch["labels"])
        start = torch.where(label_end > 0, torch.minimum(start, label_start), start)
        canvas_end = torch.maximum(canvas_end, torch.where(label_end > 0, label_end + 1, 0))
    return start, canvas_end.clamp(max=CANVAS_SIDE)


def demonstration_sizes(batch: Batch) -> tuple[Int[Tensor, "batch demos 2"], Int[Tensor, "batch demos 2"]]:
    """Rows and columns of the demonstrations' inputs, and of their outputs; 0 where a slot is empty."""
    shown = batch["demo_mask"][..., None]
    extents = [extents_of(batch[key]) for key in ("demo_inputs", "demo_labels")]
    inputs, outputs = (torch.where(shown, end - first, 0) for first, end in extents)
    return inputs, outputs


def _end_of_canvas(
    start: Int[Tensor, "batch 2"],
    query: Int[Tensor, "batch 2"],
    demo_in: Int[Tensor, "batch demos 2"],
    demo_out: Int[Tensor, "batch demos 2"],
) -> Int[Tensor, "batch 2"]:
    """One past the last row and column that the sizes allow for; it may lie outside the canvas."""
    # One constant ratio out/in: out_i · in_j = out_j · in_i against the pair with the largest input.
    widest = demo_in.argmax(dim=1, keepdim=True)
    ratio_in, ratio_out = demo_in.gather(1, widest), demo_out.gather(1, widest)
    is_constant = (demo_out * ratio_in == ratio_out * demo_in).all(dim=1)
    ratio_in, ratio_out = ratio_in.squeeze(1), ratio_out.squeeze(1)
    scaled = (query * ratio_out + ratio_in - 1) // ratio_in.clamp(min=1)
    size = torch.maximum(query, torch.maximum(demo_in.amax(1), demo_out.amax(1)))
    size = torch.maximum(size, torch.where(is_constant & (ratio_in > 0), scaled, 0))
    return start + size + 1


def canvases_by_sizes(
    inputs: Int[Tensor, "batch 900"], demo_in: Int[Tensor, "batch demos 2"], demo_out: Int[Tensor, "batch demos 2"]
) -> Bool[Tensor, "batch 900"]:
    """The cells of the task canvas of each input beside demonstrations of these sizes."""
    start, end = extents_of(inputs)
    return _cells_between(start, _end_of_canvas(start, end - start, demo_in, demo_out).clamp(max=CANVAS_SIDE))


def task_canvas(batch: Batch, *, include_labels: bool) -> Bool[Tensor, "batch 900"]:
    """The cells of each sample's task canvas; see `task_canvas_bounds`."""
    return _cells_between(*task_canvas_bounds(batch, include_labels=include_labels))


def _cells_between(start: Int[Tensor, "batch 2"], end: Int[Tensor, "batch 2"]) -> Bool[Tensor, "batch 900"]:
    index = torch.arange(CANVAS_SIDE, device=start.device)
    inside = (index >= start[..., None]) & (index < end[..., None])  # (b, 2, 30)
    return (inside[:, 0, :, None] & inside[:, 1, None, :]).flatten(1)
