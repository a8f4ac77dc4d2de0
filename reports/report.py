"""One page about one or several runs: `python -m reports RUN... -o report.html`.

The page is self-contained (inline style, drawings and script; nothing is fetched) and is complete without its script.
It shows the runs and what their configs differ in, their curves over each other, what each ACT step brings, which
held-out puzzles each run solves, its predictions after each ACT step, and the comparison matrix.
"""

import argparse
import itertools
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from markupsafe import Markup

from inference.puzzle_results import KEPT_KS, read_puzzle_results
from inference.traces import TRACES_FILE, QueryTrace, read_traces
from reports.compare import SUMMARY_KEYS, matrix, matrix_rows, telling
from reports.curves import MAX_POINTS, PANELS, draw_panels, seed_groups
from reports.pages import QueryView, percent, query_html, templates
from reports.puzzles import query_views, shown_table, solved_puzzles
from reports.run_reader import SMOOTHING_STEPS, Run, last_step_table, load_run, with_distinct_names
from reports.tables import controls_table, differences_table, families_table, runs_table, step_table, utc
from utils.files import write_file
from utils.run_folder import REPORT_FILE

log = logging.getLogger(__name__)

MAX_PUZZLE_BYTES = 3_800_000  # of drawn puzzles; with the rest the page stays under 5 MB
PASS_KEYS = tuple(
    f"ARC/{word}pass@{k}_{part}"
    for word in ("", "contaminated_")
    for k in KEPT_KS
    for part in ("solved", "low", "high")
)
RERUNS = "eval/full_canvas_reruns"
READ_KEYS = frozenset((*SUMMARY_KEYS, *(key for key, *_ in PANELS), *PASS_KEYS, "ARC/num_puzzles", RERUNS))
TRAINING = "Training puzzles"
T = TypeVar("T")


def write_report(folders: Sequence[Path], output: Path) -> None:
    """Write the page of the runs, in one move; folders on the way to it are made.

    Raises:
        ValueError: a folder is no run, none has any metrics, or the output cannot be a page.
        OSError: it cannot be written.
    """
    if output.suffix not in (".html", ".htm") or output.is_dir():
        raise ValueError(f"{output}: the report is a file whose name ends in .html")
    html = report_html(load_runs(folders))
    html = html.encode("utf-8", "replace").decode("utf-8")  # a file name may have bytes that are no text
    output.parent.mkdir(parents=True, exist_ok=True)
    write_file(output, html)


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, each under a name of its own; one that has logged nothing yet is one too.

    Raises:
        ValueError: a folder is no run, is given twice, or none of them has any metrics.
    """
    if not folders:
        raise ValueError("no run is given")
    runs = with_distinct_names([load_run(folder, READ_KEYS, may_be_empty=True) for folder in folders])
    if not any(run.rows for run in runs):
        raise ValueError(f"{', '.join(str(run.folder) for run in runs)}: no metrics yet")
    return runs


@dataclass
class Reader:
    """Reads a file of each run, by run; a damaged one is named on the page and in the log, and counts as nothing."""

    runs: Sequence[Run]
    faults: list[str] = field(default_factory=list)

    def __call__(self, read: Callable[[Path], T], nothing: T) -> dict[str, T]:
        found = dict.fromkeys((run.name for run in self.runs), nothing)
        for run in self.runs:
            try:
                found[run.name] = read(run.folder)
            except (ValueError, OverflowError, RecursionError) as error:
                fault = str(error) if isinstance(error, ValueError) else f"{run.folder}: {error}"
                log.warning("%s", fault)
                self.faults.append(fault)
        return found


@dataclass(frozen=True)
class Section:
    """Queries of one kind: (view, drawing) of the first ones, and how many the page has no room for."""

    name: str
    drawings: list[tuple[QueryView, Markup]]
    left_out: int


def draw_sections(sections: Mapping[str, Mapping[str, Sequence[QueryTrace]]]) -> list[Section]:
    """The queries of each section and run, as many as there is room for."""
    drawn, number = [], itertools.count()
    for name, queries in sections.items():
        views, drawings, room = query_views(queries), [], MAX_PUZZLE_BYTES // len(sections)
        for view in views:
            html = query_html(view, next(number))
            room -= len(html.encode())
            if room < 0:
                break
            drawings.append((view, html))
        drawn.append(Section(name, drawings, len(views) - len(drawings)))
    return drawn


def report_html(runs: Sequence[Run]) -> str:
    """The page as text."""
    read = Reader(runs)
    tables = read(last_step_table, (0, []))
    traces = read(read_checked_traces, (0, {}))
    results = read(read_puzzle_results, None)
    sections = {
        name: {run: found[name] for run, (_, found) in traces.items() if found.get(name)}
        for name in dict.fromkeys(name for _, found in traces.values() for name in found)
    }
    lines, rows = seed_groups(runs), matrix_rows(runs)
    return templates.get_template("report.html.j2").render(
        title=f"Report of {runs[0].name if len(runs) == 1 else f'{len(runs)} runs'}",
        written=utc(time.time()),
        runs=runs,
        runs_table=runs_table(runs),
        differences=differences_table(runs),
        lines=lines,
        panels=draw_panels(lines),
        max_points=MAX_POINTS,
        smoothing=SMOOTHING_STEPS,
        steps=step_table({run: rows for run, (_, rows) in tables.items() if rows}),
        evaluated_at={run: step for run, (step, rows) in tables.items() if rows},
        reruns={run.name: percent(share) for run in runs if (share := run.final(RERUNS))},
        controls=controls_table(runs),
        families=families_table(runs),
        solved=solved_puzzles({run: found for run, found in results.items() if found is not None}),
        shown=shown_table(sections.get(TRAINING, {})),
        sections=draw_sections(sections),
        predicted_at={run: step for run, (step, found) in traces.items() if found},
        matrix=telling(rows),
        markdown=matrix(rows),
        faults=read.faults,
    )


def read_checked_traces(folder: Path) -> tuple[int, dict[str, list[QueryTrace]]]:
    """As `read_traces`; every query has a prediction.

    Raises:
        ValueError: the file is damaged.
    """
    step, sections = read_traces(folder)
    for trace in (trace for traces in sections.values() for trace in traces):
        confidences = [prediction.confidence for prediction in (*trace.steps, *trace.votes)]
        changes = [step.carry_change for step in trace.steps if step.carry_change is not None]
        if not trace.steps or not all(isinstance(number, int | float) for number in confidences + changes):
            raise ValueError(f"{folder / TRACES_FILE}: {trace.name} has no prediction, or one without its figures")
    return step, sections


def write_own_report(folder: Path) -> None:
    """The report of a run into its own folder. A disk that is full, or a file that someone changed, stops no run."""
    try:
        write_report([folder], folder / REPORT_FILE)
    except (OSError, ValueError) as error:
        log.warning("%s could not be written: %s", folder / REPORT_FILE, error)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; status 2 and one message for what cannot be reported."""
    parser = argparse.ArgumentParser(prog="python -m reports", description="A page about one or several runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the page to write: a file ending in .html")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        write_report(arguments.runs, arguments.output)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    kilobytes = arguments.output.stat().st_size / 1000
    sys.stdout.write(f"{arguments.output} ({kilobytes:.0f} kB)\n")
