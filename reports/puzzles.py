"""The report's puzzles: which run solves which, and the runs' predictions of one query beside each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inference.puzzle_results import KEPT_KS, PuzzleResults
from inference.traces import QueryTrace
from reports.compare import MISSING
from reports.pages import Prediction, QueryView
from reports.tables import Cell, Table, number_cell


@dataclass(frozen=True)
class Solved:
    """Held-out puzzles by run.

    summary: of each run the counts, and the puzzles that it alone solves.
    table: the puzzles of which any run has a test input right; None without any.
    """

    summary: Table
    table: Table | None
    num_evaluated: int


def solved_puzzles(results: Mapping[str, PuzzleResults]) -> Solved | None:
    """Who solves what: a puzzle is solved when all its test inputs are; None without any results."""
    if not results:
        return None
    evaluated = list(dict.fromkeys(puzzle for found in results.values() for puzzle in found.credits))
    touched = [p for p in evaluated if any(found.credits.get(p, {}).get(2, 0) > 0 for found in results.values())]
    rows = tuple((_puzzle_cell(p, results), *(_credit_cell(found, p) for found in results.values())) for p in touched)
    summary = tuple(
        (
            Cell(run),
            number_cell(found.step, "{:,}"),
            *(_count_cell(found, k) for k in KEPT_KS),
            Cell(", ".join(_only_solved_by(run, results)) or MISSING),
        )
        for run, found in results.items()
    )
    return Solved(
        Table(
            ("run", "evaluated at step", "solves at pass@1", "solves at pass@2", "that no other run solves"), summary
        ),
        Table(("puzzle", *results), rows, has_marks=True) if rows else None,
        len(evaluated),
    )


def _solves(found: PuzzleResults, puzzle: str, k: int) -> bool:
    return found.credits.get(puzzle, {}).get(k) == 1


def _only_solved_by(run: str, results: Mapping[str, PuzzleResults]) -> list[str]:
    """With a single run there is nothing to set it against."""
    others = [found for name, found in results.items() if name != run]
    mine = [puzzle for puzzle in results[run].credits if _solves(results[run], puzzle, 2)]
    return [p for p in mine if others and not any(_solves(found, p, 2) for found in others)]


def _count_cell(found: PuzzleResults, k: int) -> Cell:
    count = sum(_solves(found, puzzle, k) for puzzle in found.credits)
    seen = len(found.contaminated & found.credits.keys())
    note = f"contaminated: {seen} of them seen" if seen else ""
    return Cell(f"{count} of {len(found.credits)}", sort=count, note=note, kind="contaminated" if seen else "")


def _puzzle_cell(puzzle: str, results: Mapping[str, PuzzleResults]) -> Cell:
    solvers = [run for run, found in results.items() if _solves(found, puzzle, 2)]
    note = f"only {solvers[0]}" if len(solvers) == 1 and len(results) > 1 else ""
    return Cell(puzzle, note=note)


def _credit_cell(found: PuzzleResults, puzzle: str) -> Cell:
    credit = found.credits.get(puzzle)
    if credit is None:
        return Cell("not asked", sort=-1.0)
    best = next((k for k in KEPT_KS if credit[k] == 1), None)
    order = credit[1] + credit[2]
    seen = "contaminated" if puzzle in found.contaminated else ""
    if best is not None:
        return Cell(f"✓ pass@{best}", sort=order, note=seen, kind="right")
    text = f"{100 * credit[2]:.0f} % of its inputs" if credit[2] > 0 else "✗"
    return Cell(text, sort=order, note=seen)


def shown_table(queries: Mapping[str, Sequence[QueryTrace]]) -> Table | None:
    """Which of the queries shown each run predicts exactly, by run; None where nothing is shown."""
    names = list(dict.fromkeys(trace.name for traces in queries.values() for trace in traces))
    if not names:
        return None
    rows = []
    for name in names:
        found = {run: next((t for t in traces if t.name == name), None) for run, traces in queries.items()}
        rows.append((Cell(name), *(_exact_cell(trace) for trace in found.values())))
    counts = tuple(f"{run}: {sum(t.is_right for t in traces)}/{len(traces)}" for run, traces in queries.items())
    return Table(("training puzzle", *counts), tuple(rows), has_marks=True)


def _exact_cell(trace: QueryTrace | None) -> Cell:
    if trace is None:
        return Cell("not shown", sort=-1.0)
    return Cell("✓ right", sort=1.0, kind="right") if trace.is_right else Cell("✗", sort=0.0)


def query_views(queries: Mapping[str, Sequence[QueryTrace]]) -> list[QueryView]:
    """The queries of all runs, those of several runs once, with each run's prediction."""
    found: dict[object, list[Prediction]] = {}
    for run, traces in queries.items():
        for trace in traces:
            found.setdefault(_asked(trace), []).append(Prediction(run if len(queries) > 1 else "", trace))
    return [QueryView(tuple(predictions)) for predictions in found.values()]


def _asked(trace: QueryTrace) -> object:
    """What tells queries apart: data sets may differ in what they have under one name."""
    grids = [grid for pair in trace.demonstrations for grid in pair] + [trace.input]
    return trace.name, tuple((grid.shape, grid.tobytes()) for grid in grids)
