"""Pages for a person: grids drawn as inline SVG in one self-contained HTML file."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from dataset.grids import PALETTE, Grid
from inference.traces import QueryTrace

GRID_PIXELS = 150
CELL_PIXELS = (5, 14)

templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(["html", "j2"]),
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)


def grid_svg(grid: Grid | None, label: str) -> Markup:
    """A grid as an inline SVG; a dash where there is no grid.

    One path for each colour, with a stroke one cell high along each run of equal cells: "M2 0h3" are three cells from
    column 2 of row 0. The first path paints all cells in the commonest colour. The page's style dashes the strokes, so
    that each cell stands apart.
    """
    if grid is None or not grid.size:
        return Markup('<span class="none" role="img" aria-label="{}: no grid">–</span>').format(label)
    height, width = grid.shape
    ground = int(np.bincount(grid.ravel()).argmax())
    strokes = {ground: "".join(f"M0 {row}h{width}" for row in range(height))}
    for row, start, length in _runs(grid):
        color = int(grid[row, start])
        if color != ground:
            strokes[color] = f"{strokes.get(color, '')}M{start} {row}h{length}"
    paths = "".join(f'<path stroke="{PALETTE[color]}" d="{stroke}"/>' for color, stroke in strokes.items())
    least, most = CELL_PIXELS
    cell = min(most, max(least, GRID_PIXELS // max(height, width)))
    size = f'width="{width * cell}" height="{height * cell}" viewBox="0 -.5 {width} {height}"'
    opening = Markup('<svg class="grid" {} role="img" aria-label="{}, {} by {}">')
    return opening.format(Markup(size), label, height, width) + Markup(paths + "</svg>")


def _runs(grid: Grid) -> Iterator[tuple[int, int, int]]:
    """(row, first column, length) of each run of equal cells in a row."""
    for row, cells in enumerate(grid):
        starts = [0, *(np.flatnonzero(cells[1:] != cells[:-1]) + 1).tolist()]
        for start, end in pairwise([*starts, len(cells)]):
            yield row, start, end - start


def percent(share: float) -> str:
    """For a person; a dash where a model that diverged gives no number."""
    return f"{100 * share:.0f} %" if math.isfinite(share) else "–"


templates.filters["percent"] = percent
for _name in templates.list_templates():  # now: a run of many days draws with the templates that it started with
    templates.get_template(_name)


def _rounded(share: float | None) -> float | None:
    """In percent; None for no number, which JSON does not have."""
    return round(100 * share, 1) if share is not None and math.isfinite(share) else None


@dataclass(frozen=True)
class Stretch:
    """Consecutive ACT steps, from 1, after which the same grid is predicted."""

    first: int
    last: int
    grid: Grid

    @property
    def name(self) -> str:
        return f"step {self.first}" if self.first == self.last else f"steps {self.first}–{self.last}"


@dataclass(frozen=True)
class Prediction:
    """What one run (of no name where there is but one) predicted for a query."""

    run: str
    trace: QueryTrace

    @property
    def stretches(self) -> list[Stretch]:
        """Each grid once, however long it stays."""
        found: list[Stretch] = []
        for number, step in enumerate(self.trace.steps, start=1):
            if found and np.array_equal(found[-1].grid, step.grid):
                found[-1] = replace(found[-1], last=number)
            else:
                found.append(Stretch(number, number, step.grid))
        return found

    @property
    def by_step(self) -> str:
        """For the slider, as JSON: of each ACT step the confidence and the change of the latent in percent, or null."""
        steps = [(_rounded(s.confidence), _rounded(s.carry_change)) for s in self.trace.steps]
        return json.dumps(steps, separators=(",", ":"))


@dataclass(frozen=True)
class QueryView:
    """A test input with the predictions of one or several runs.

    attempts: how many of the candidates with most votes are the answer; 0 where the last ACT step is looked at.
    """

    predictions: tuple[Prediction, ...]
    attempts: int = 0

    @property
    def is_right(self) -> bool:
        """Whether the first run's answer is the truth."""
        if not self.attempts:
            return self.query.is_right
        return any(self.query.is_truth(vote.grid) for vote in self.query.votes[: self.attempts])

    @property
    def query(self) -> QueryTrace:
        """Its demonstrations, input and truth: the same for all of them."""
        return self.predictions[0].trace

    @property
    def num_steps(self) -> int:
        return max(len(p.trace.steps) for p in self.predictions)


def query_html(view: QueryView, number: int) -> Markup:
    """A query drawn: demonstrations, input, truth, and the predictions with their slider over ACT steps.

    Args:
        number: tells it from the page's other queries.
    """
    macros: Any = templates.get_template("query.html.j2").make_module({"svg": grid_svg})
    return macros.query(view, number)


def predictions_page(title: str, sections: dict[str, list[QueryTrace]], attempts: int = 0) -> str:
    """The HTML of `predictions.html`: demonstrations, input, what each ACT step predicts, and truth of each query.

    Args:
        attempts: judge so many of the candidates with most votes, instead of the last ACT step.
    """
    number = itertools.count()
    drawn = {}
    for name, traces in sections.items():
        views = [QueryView((Prediction("", trace),), attempts) for trace in traces]
        drawn[name] = [(view, query_html(view, next(number))) for view in views]
    return templates.get_template("predictions.html.j2").render(title=title, sections=drawn, attempts=attempts)
