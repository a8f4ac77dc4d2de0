"""Pages for a person: grids drawn as inline SVG in one self-contained HTML file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.grids import Grid
from evaluators.eos_utils import crop_grid_from_eos
from models.act import RecursiveReasoner
from utils.evaluation import final_outputs

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
CELL_PIXELS = 9

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape(["html", "j2"])
)


@dataclass(frozen=True)
class ShownQuery:
    """One query of a puzzle with its demonstrations, and what was predicted."""

    name: str
    demonstrations: list[tuple[Grid, Grid]]
    input: Grid
    prediction: Grid
    truth: Grid | None
    confidence: float

    @property
    def is_right(self) -> bool:
        return self.truth is not None and np.array_equal(self.prediction, self.truth)


def grid_svg(grid: Grid | None, label: str) -> Markup:
    """A grid as an inline SVG, one path for each colour; a dash where there is no grid."""
    if grid is None or not grid.size:
        return Markup('<span class="none" role="img" aria-label="{}: no grid">–</span>').format(label)
    height, width = grid.shape
    paths = []
    for color in np.unique(grid):
        cells = "".join(f"M{c} {r}h1v1h-1z" for r, c in np.argwhere(grid == color))
        paths.append(f'<path fill="{PALETTE[color]}" d="{cells}"/>')
    size = f'width="{width * CELL_PIXELS}" height="{height * CELL_PIXELS}" viewBox="0 0 {width} {height}"'
    opening = Markup('<svg {} role="img" aria-label="{}, {} by {}">').format(Markup(size), label, height, width)
    return opening + Markup("".join(paths) + "</svg>")


@torch.no_grad()
def shown_queries(
    model: RecursiveReasoner, dataset: FewshotEvalDataset, count: int, device: torch.device
) -> list[ShownQuery]:
    """Predictions for the first `count` queries of a data set, each puzzle as it is (its first augmentation)."""
    store = dataset.store
    is_plain = dataset.query_augmentation == store.puzzle_augmentations[dataset.query_puzzle]
    indices = np.flatnonzero(is_plain)[:count]
    if not len(indices):
        return []
    batch = {key: value.to(device) for key, value in dataset.queries(indices).items() if key != "query_indices"}
    was_training = model.training
    model.eval()
    *_, outputs = final_outputs(model, batch)
    model.train(was_training)
    predictions = crop_grid_from_eos(outputs["logits"].argmax(-1))
    confidences = torch.sigmoid(outputs["q_halt_logits"].float()).tolist()
    shown = []
    for index, prediction, confidence in zip(indices, predictions, confidences, strict=True):
        puzzle, pair = int(dataset.query_puzzle[index]), int(dataset.query_pair[index])
        first, demos = int(store.puzzle_pairs[puzzle]), int(store.puzzle_demos[puzzle])
        truth = store.grid(2 * pair + 1)
        shown.append(
            ShownQuery(
                name=f"{store.metadata.puzzle_ids[puzzle]}, test {pair - first - demos + 1}",
                demonstrations=[(store.grid(2 * p), store.grid(2 * p + 1)) for p in range(first, first + demos)],
                input=store.grid(2 * pair),
                prediction=prediction,
                truth=truth if truth.size else None,
                confidence=confidence,
            )
        )
    return shown


def predictions_page(title: str, sections: dict[str, list[ShownQuery]]) -> str:
    """The HTML of `predictions.html`: demonstrations, input, prediction and truth of each query."""
    template = _templates.get_template("predictions.html.j2")
    return template.render(title=title, sections=sections, svg=grid_svg)
