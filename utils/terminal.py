"""Answers to tasks as a person reads them in a terminal: grids in colour, or in digits where there is no colour."""

import os
import shutil
from collections.abc import Sequence
from typing import TextIO

from rich.columns import Columns
from rich.console import Console, Group
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table
from rich.text import Text

from dataset.grids import Grid
from utils.explain import Explanation
from utils.pages import PALETTE
from utils.solver import Solution
from utils.traces import VotedGrid

COLOR_CHOICES = ("auto", "always", "never")
CELL = "  "
CELL_STYLES = tuple(Style(bgcolor=color) for color in PALETTE)


def make_console(color: str = "auto", file: TextIO | None = None) -> Console:
    """A console that writes to `file` (None: standard output).

    Args:
        color: `auto` draws colours on a terminal, unless the environment has a NO_COLOR that is not empty.
    """
    width = shutil.get_terminal_size().columns
    plain = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": False, "width": width, "file": file}
    if color == "always":
        environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}
        return Console(color_system="truecolor", force_terminal=True, _environ=environment, **plain)
    return Console(color_system=None, **plain) if color == "never" else Console(**plain)


def draws_colors(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def grid_text(grid: Grid, *, colored: bool) -> Text:
    """A grid, a line for each row: two spaces on the cell's colour, or its digit."""
    if not grid.size:
        return Text("(no grid)")
    text = Text(no_wrap=True, overflow="ignore", end="")
    for number, row in enumerate(grid.tolist()):
        text.append("\n" if number else "")
        for cell in row:
            text.append(CELL if colored else str(cell), CELL_STYLES[cell] if colored else None)
    return text


def print_solution(console: Console, solution: Solution) -> None:
    """The input, the attempts with their votes, and the truth, side by side where the terminal is wide enough."""
    trace, colored = solution.trace, draws_colors(console)
    captions = [("input", ""), *(_attempt(solution, a, i) for i, a in enumerate(solution.attempts, start=1))]
    grids = [trace.input, *(attempt.grid for attempt in solution.attempts)]
    if trace.truth is not None:
        captions.append(("truth", ""))
        grids.append(trace.truth)
    blocks = [
        Group(*(Text(line, no_wrap=True) for line in caption), grid_text(grid, colored=colored))
        for caption, grid in zip(captions, grids, strict=True)
    ]
    console.print()
    console.print(Text(f"{trace.name}: {_verdict(solution)}", style="bold"))
    widest = max(Measurement.get(console, console.options, block).maximum for block in blocks)
    console.print(Columns(blocks, padding=(0, 3)), width=max(console.width, widest))


def _attempt(solution: Solution, attempt: VotedGrid, number: int) -> tuple[str, str]:
    right = ""
    if solution.trace.truth is not None:
        right = ", right" if solution.trace.is_truth(attempt.grid) else ", wrong"
    votes = f"{attempt.votes} of {solution.versions} votes, confidence {100 * attempt.confidence:.0f} %"
    return f"attempt {number}{right}", votes


def _verdict(solution: Solution) -> str:
    if not solution.attempts:
        found = "no version gave a grid, the submission has [[0]]"
    elif solution.trace.truth is None:
        found = "no known solution"
    else:
        found = "solved" if solution.is_solved else "not solved"
    return f"{found} (contaminated: seen in training)" if solution.is_contaminated else found


def print_explanation(console: Console, explanation: Explanation) -> None:
    """A table of the ACT steps of the task as it is, and what it means in words."""
    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 2, 0, 0))
    for title in ("ACT step", "cells changed", "confidence"):
        table.add_column(title, justify="right")
    steps = explanation.trace.steps
    for number, (count, step) in enumerate(zip(explanation.changed, steps, strict=True), start=1):
        table.add_row(str(number), str(count), f"{100 * step.confidence:.0f} %")
    console.print()
    console.print(f"{explanation.trace.name}, as it is, without votes:")
    console.print(table)
    for sentence in sentences(explanation):
        console.print(sentence)


def sentences(explanation: Explanation) -> tuple[str, str]:
    """What an explanation means."""
    number, last = len(explanation.changed), explanation.last_change
    steps = (
        f"No step of {number} predicted a grid." if not last else f"Step {last} of {number} was the last to change it."
    )
    if 0 < last < number:
        steps += " The prediction had settled."
    return steps, _on_the_swap(explanation)


def _on_the_swap(explanation: Explanation) -> str:
    count, donor = explanation.swap_changes, explanation.donor
    if explanation.same_demonstrations:
        return f"{donor} has the same demonstrations, so exchanging them says nothing."
    if not count:
        return (
            f"With the demonstrations of {donor} instead, no cell changes: the prediction does not depend on the "
            "demonstrations."
        )
    cells = explanation.trace.prediction.size
    return (
        f"With the demonstrations of {donor} instead, {count} cells change (the prediction has {cells}): it depends on "
        "the demonstrations."
    )


def score_lines(solutions: Sequence[Solution], attempts: int) -> list[str]:
    """How many test inputs of known truth were solved; those seen in training apart, as contaminated."""
    lines = []
    for name, contaminated in (("", False), ("contaminated ", True)):
        known = [s for s in solutions if s.trace.truth is not None and s.is_contaminated == contaminated]
        if known:
            tasks: dict[str, bool] = {}
            for s in known:
                tasks[s.trace.puzzle] = tasks.get(s.trace.puzzle, True) and s.is_solved
            lines.append(
                f"{name}pass@{attempts}: solved {sum(s.is_solved for s in known)} of {len(known)} test inputs with "
                f"known solution; every one of them in {sum(tasks.values())} of {len(tasks)} tasks"
            )
    return lines
