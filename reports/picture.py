"""One query as a picture: `python -m reports.picture RUN [--puzzle ID] -o idea.svg`.

Demonstrations in the upper row; below, the test input, what the model drew after each ACT step, and the truth. The
queries are those of the run's `predictions.json`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset.grids import PALETTE, Grid
from inference.traces import QueryTrace, read_traces
from reports.pages import templates
from utils.files import write_file

SIDE, GAP, MARGIN, HEAD = 14, 24, 20, 56
MAX_DEMONSTRATIONS = 4


@dataclass(frozen=True)
class Cell:
    x: int
    y: int
    color: str


@dataclass(frozen=True)
class Panel:
    """A grid at its place, with what stands above it."""

    title: str
    grid: Grid
    x: int
    y: int
    side: int = SIDE

    @property
    def width(self) -> int:
        return max(1, self.grid.shape[1]) * self.side

    @property
    def height(self) -> int:
        return max(1, self.grid.shape[0]) * self.side

    @property
    def cells(self) -> list[Cell]:
        rows = enumerate(self.grid.tolist())
        return [
            Cell(self.x + j * self.side, self.y + i * self.side, PALETTE[color])
            for i, row in rows
            for j, color in enumerate(row)
        ]


@dataclass(frozen=True)
class Note:
    text: str
    x: int
    y: int
    size: int = 14


def in_a_row(grids: Sequence[tuple[str, Grid]], y: int) -> list[Panel]:
    """Grids side by side, each as wide as it or its title is."""
    panels: list[Panel] = []
    x = MARGIN
    for title, grid in grids:
        panels.append(Panel(title, grid, x, y))
        x += max(panels[-1].width, 8 * len(title)) + GAP
    return panels


def sheet(
    heading: str,
    demonstrations: Sequence[tuple[Grid, Grid]],
    between: str,
    answers: Sequence[tuple[str, Grid]],
    note: str,
) -> str:
    """An SVG: a heading and demonstrations, below them a line of text and grids with their titles, and a note."""
    shown = [
        (f"{word} {n}", grid)
        for n, pair in enumerate(demonstrations[:MAX_DEMONSTRATIONS], start=1)
        for word, grid in zip(("input", "output"), pair, strict=True)
    ]
    upper = in_a_row(shown, MARGIN + HEAD)
    middle = max(panel.y + panel.height for panel in upper)
    lower = in_a_row(answers, middle + 2 * HEAD)
    panels = [*upper, *lower]
    notes = [Note(heading, MARGIN, MARGIN + HEAD // 2 - 4), Note(between, MARGIN, middle + HEAD + 14)]
    bottom = max(panel.y + panel.height for panel in lower)
    if note:
        notes.append(Note(note, MARGIN, bottom + HEAD // 2, 12))
    widest = max(max(panel.x + panel.width for panel in panels), 8 * max(len(n.text) for n in notes)) + MARGIN
    return templates.get_template("picture.svg.j2").render(
        title=heading, panels=panels, notes=notes, width=widest, height=bottom + HEAD
    )


def picture(trace: QueryTrace, note: str) -> str:
    """The SVG of a query."""
    steps = [(f"step {n}", step.grid) for n, step in enumerate(trace.steps, start=1)]
    truth = [] if trace.truth is None else [("truth", trace.truth)]
    return sheet(
        f"{trace.name}: the encoder reads the demonstrations ...",
        trace.demonstrations,
        "... and gives the decoder its context. What the decoder has drawn after each ACT step:",
        [("test input", trace.input), *steps, *truth],
        note,
    )


def find(folder: Path, puzzle: str | None) -> QueryTrace:
    """The named puzzle's first query; without a name the first that the model answered rightly, else the first.

    Raises:
        ValueError: the run has no predictions, or none of that puzzle.
    """
    _, sections = read_traces(folder)
    traces = [trace for section in sections.values() for trace in section if puzzle in (None, trace.puzzle)]
    if not traces:
        known = sorted({trace.puzzle for section in sections.values() for trace in section})
        raise ValueError(f"{folder}: no prediction of {puzzle or 'any puzzle'}; it has {', '.join(known) or 'none'}")
    return next((trace for trace in traces if trace.is_right), traces[0])


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m reports.picture", description="One query of a run as an SVG.")
    parser.add_argument("run", type=Path, help="a run folder with predictions.json")
    parser.add_argument("--puzzle", help="which one; default: the first that the model answered rightly")
    parser.add_argument("--note", default="", help="a line below the picture")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    try:
        write_file(arguments.output, picture(find(arguments.run, arguments.puzzle), arguments.note))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    sys.stdout.write(f"{arguments.output}\n")


if __name__ == "__main__":
    main()
