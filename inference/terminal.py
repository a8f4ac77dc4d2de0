"""Answers to tasks as a person reads them in a terminal: grids in colour, or in digits where there is no colour."""

import shutil
from collections.abc import Sequence
from typing import TextIO

from rich.columns import Columns
from rich.console import Console, Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

from dataset.grids import PALETTE, Grid
from inference.explain import Explanation
from inference.solver import Solution

COLOR_CHOICES = ("auto", "always", "never")
CELL = "  "
CELL_STYLES = tuple(Style(bgcolor=color) for color in PALETTE)


def make_console(color: str = "auto", file: TextIO | None = None) -> Console:
    """A console that writes to `file` (None: standard output).

    Args:
        color: `auto` draws colours on a terminal, unless the environment has a NO_COLOR that is not empty.
    """
    width = shutil.get_terminal_size().columns
    if color == "always":
        return Console(file=file, width=width, color_system="truecolor", force_terminal=True, no_color=False)
    return Console(file=file, width=width, color_system="auto" if color == "auto" else None)


def print_line(console: Console, text: str = "", style: str = "") -> None:
    """Text as it is: what looks like markup, a path or a number is left alone, and lines break where it says."""
    console.print(Text(text, style), soft_wrap=True)


def grid_text(grid: Grid, *, colored: bool) -> Text:
    """A grid, a line for each row: two spaces on the cell's colour, or its digit."""
    text = Text(no_wrap=True)
    for number, row in enumerate(grid.tolist()):
        text.append("\n" if number else "")
        for cell in row:
            text.append(CELL if colored else str(cell), CELL_STYLES[cell] if colored else None)
    return text


def print_solution(console: Console, solution: Solution) -> None:
    """The input, the attempts with their votes, and the truth, side by side where the terminal is wide enough."""
    trace = solution.trace
    shown = [("input", "", trace.input)]
    for number, attempt in enumerate(solution.attempts, start=1):
        right = "" if trace.truth is None else ", right" if trace.is_truth(attempt.grid) else ", wrong"
        votes = f"{attempt.votes} of {solution.versions} votes, confidence {100 * attempt.confidence:.0f} %"
        shown.append((f"attempt {number}{right}", votes, attempt.grid))
    if trace.truth is not None:
        shown.append(("truth", "", trace.truth))
    colored = console.color_system is not None and not console.no_color
    blocks = [Group(Text(title), Text(below), grid_text(grid, colored=colored)) for title, below, grid in shown]
    # A narrower terminal breaks lines; cells are never cut off.
    widest = max(grid.shape[1] for *_, grid in shown) * (len(CELL) if colored else 1)
    console.width = max(console.width, widest)
    print_line(console)
    print_line(console, f"{trace.name}: {verdict(solution)}", "bold")
    console.print(Columns(blocks, padding=(1, 3, 1, 0)))


def verdict(solution: Solution) -> str:
    """What is known of an answer, in a word or two."""
    if not solution.attempts:
        found = "no version gave a grid, so each attempt is [[0]]"
    elif solution.trace.truth is None:
        found = "no known solution"
    else:
        found = "solved" if solution.is_solved else "not solved"
    return f"{found} (contaminated)" if solution.is_contaminated else found


def print_explanation(console: Console, explanation: Explanation) -> None:
    """A table of the ACT steps of the task as it is, and what it means in words."""
    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 2, 0, 0))
    for title in ("ACT step", "cells changed", "confidence"):
        table.add_column(title, justify="right")
    steps = explanation.trace.steps
    for number, (count, step) in enumerate(zip(explanation.changed, steps, strict=True), start=1):
        table.add_row(str(number), str(count), f"{100 * step.confidence:.0f} %")
    print_line(console, f"{explanation.trace.name}, the task as it is, without votes:")
    console.print(table)
    for sentence in sentences(explanation):
        print_line(console, sentence)


def sentences(explanation: Explanation) -> tuple[str, str]:
    """What an explanation means."""
    return _on_the_steps(explanation), _on_the_swap(explanation)


def _on_the_steps(explanation: Explanation) -> str:
    number, last = len(explanation.changed), explanation.last_change
    if not last:
        return f"None of the {number} ACT steps predicted a grid."
    still = ": it had not settled" if last == number > 1 else ""
    rerun = " (the last step was made again on the full canvas)" if explanation.trace.rerun else ""
    return f"The prediction last changed at ACT step {last} of {number}{still}{rerun}."


def _on_the_swap(explanation: Explanation) -> str:
    donor, count = explanation.donor, explanation.swap_changes
    if explanation.same_demonstrations:
        return f"{donor} has the same demonstrations, so exchanging them says nothing."
    if not count:
        return (
            f"With the demonstrations of {donor} instead, no cell changes: the prediction does not depend on the "
            "demonstrations."
        )
    return (
        f"With the demonstrations of {donor} instead, {count} cells change (it has "
        f"{explanation.trace.prediction.size}): the prediction depends on the demonstrations."
    )


def score_lines(solutions: Sequence[Solution], attempts: int) -> list[str]:
    """How many test inputs of known truth were solved; those seen in training apart, as contaminated."""
    lines = []
    for name, contaminated in (("", False), ("contaminated: ", True)):
        known = [s for s in solutions if s.trace.truth is not None and s.is_contaminated == contaminated]
        missed = {s.trace.puzzle for s in known if not s.is_solved}
        tasks = {s.trace.puzzle for s in known}
        if known:
            before = sum(bool(s.was_solved_before(attempts)) for s in known)
            adapted = f"; before adapting {before}" if known[0].adaptation is not None else ""
            lines.append(
                f"{name}solved {sum(s.is_solved for s in known)} of {len(known)} test inputs with a known solution, "
                f"{len(tasks - missed)} of {len(tasks)} tasks as a whole (attempts: {attempts}){adapted}"
            )
    return lines
