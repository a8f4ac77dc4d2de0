"""The report's tables: the runs, what their configs differ in, and what each ACT step brings."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from config.keys import flat_config
from inference.control_table import control_rows, family_rows
from inference.puzzle_results import KEPT_KS
from reports.compare import MISSING, model_name, pass_at
from reports.run_reader import Run
from utils.run_status import read_status

NOT_SHOWN = ("run_name",)
FAR_FUTURE = 1e11  # seconds: beyond it a time has no date
# Of act_steps.jsonl: measure, title, whether it is a share of one.
STEP_MEASURES = (
    ("accuracy", "token accuracy", True),
    ("exact_accuracy", "exact match", True),
    ("q_halt", "q_halt (mean probability)", True),
    ("q_halt_accuracy", "q_halt accuracy", True),
    ("encoder_carry_change_rel", "change of the encoder's latent (relative)", True),
)


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    sort: what a column of numbers is sorted by; None in a column of text.
    note: small print below.
    """

    text: str
    sort: float | None = None
    note: str = ""
    kind: str = ""

    @property
    def is_missing(self) -> bool:
        return self.text == MISSING


@dataclass(frozen=True)
class Table:
    """Rows of cells, by column; a row begins with its heading.

    has_marks: what it says of each run is right or wrong, not a number.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    has_marks: bool = False

    def is_number(self, column: int) -> bool:
        """Whether the column is one of numbers, aligned to the right."""
        return not self.has_marks and any(row[column].sort is not None for row in self.rows)


def number_cell(value: float | None, form: str = "{:g}", scale: int = 1, **kwargs: Any) -> Cell:
    """A number, or a dash."""
    return Cell(MISSING) if value is None else Cell(form.format(value * scale), sort=value, **kwargs)


def percent_cell(value: float | None) -> Cell:
    return number_cell(value, "{:.1f} %", 100)


def runs_table(runs: Sequence[Run]) -> Table:
    """State and figures of each run."""
    header = (
        "run",
        "state",
        "step",
        "system",
        "train accuracy",
        "train exact match",
        "held-out accuracy",
        "pass@1",
        "pass@2",
    )
    rows = []
    for run in runs:
        status = read_status(run.folder)
        rows.append(
            (
                Cell(run.name),
                _state_cell(status),
                _step_cell(run, status),
                Cell(model_name(run.config)),
                percent_cell(run.last("train/accuracy")),
                percent_cell(run.last("train/exact_accuracy")),
                _held_out_cell(run),
                *(_pass_cell(run, k) for k in KEPT_KS),
            )
        )
    return Table(header, tuple(rows))


def _held_out_cell(run: Run) -> Cell:
    """Token accuracy of held-out queries; named contaminated where pass@k is."""
    found, cell = pass_at(run, 1), percent_cell(run.final("eval/accuracy"))
    return cell if found is None else replace(cell, note=found.word, kind=found.word)


def _state_cell(status: Mapping[str, object]) -> Cell:
    """What the run says of itself. One that was killed outright still says `running`, so with the time."""
    state = str(status.get("state", "unknown"))
    note = str(status.get("reason") or "")
    updated = status.get("updated")
    if not status:
        note = "no status.json"
    elif state == "running" and isinstance(updated, int | float) and 0 <= updated < FAR_FUTURE:
        note = f"last heard of {utc(updated)}"
    return Cell(state, note=note, kind=f"state-{state}")


def utc(seconds: float) -> str:
    """A time for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _step_cell(run: Run, status: Mapping[str, object]) -> Cell:
    total = status.get("total_steps")
    note = f"of {total:,}" if isinstance(total, int) else ""
    step = status.get("step", run.last_step)
    return number_cell(step if isinstance(step, int) else run.last_step, "{:,}", note=note)


def _pass_cell(run: Run, k: int) -> Cell:
    """The sum of the puzzles' shares, of how many, with the 95 % Wilson interval; named contaminated where it is."""
    found = pass_at(run, k)
    if found is None:
        return Cell(MISSING)
    note = f"95 %: {100 * found.low:.1f}–{100 * found.high:.1f} %"
    return Cell(str(found), sort=found.solved / max(found.puzzles, 1), note=note, kind=found.word)


def controls_table(runs: Sequence[Run]) -> Table | None:
    """What queries are asked with at the last evaluation, and how they are answered then; None where no run asks."""
    rows = tuple(
        (
            Cell(run.name),
            Cell(row.name),
            Cell(row.meaning, note=row.note),
            percent_cell(row.exact),
            percent_cell(row.accuracy),
        )
        for run in runs
        for row in control_rows(run.controls)
    )
    return Table(("run", "control", "asked with", "exact match", "token accuracy"), rows) if rows else None


def families_table(runs: Sequence[Run]) -> Table | None:
    """Exact match by family of rules; None where none is known."""
    rows = tuple(
        (Cell(run.name), Cell(row.family), number_cell(row.queries), *map(percent_cell, row.shares))
        for run in runs
        for row in family_rows(run.controls)
    )
    header = ("run", "family", "queries", "right", "donor", "the donor's answer", "a random rule")
    return Table(header, rows) if rows else None


def differences_table(runs: Sequence[Run]) -> Table | None:
    """The config keys in which the runs differ, a column each; None where there are none."""
    configs = [flat_config(run.config) for run in runs]
    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if key not in NOT_SHOWN]
    differing = [key for key in keys if len({repr(config.get(key, MISSING)) for config in configs}) > 1]
    if not differing:
        return None
    rows = tuple(
        (Cell(run.name), *(_config_cell(config.get(key, MISSING)) for key in differing))
        for run, config in zip(runs, configs, strict=True)
    )
    return Table(("run", *differing), rows)


def _config_cell(value: Any) -> Cell:
    if isinstance(value, bool) or value is None:
        return Cell({True: "true", False: "false", None: "null"}[value])
    is_number = isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return Cell(str(value), sort=float(value) if is_number else None)


@dataclass(frozen=True)
class StepTable:
    """What each ACT step brings: a block of rows (one for each run) for each measure, a column for each step."""

    num_steps: int
    blocks: tuple[tuple[str, tuple[tuple[Cell, ...], ...]], ...]


def step_table(tables: Mapping[str, Sequence[Mapping[str, float]]]) -> StepTable | None:
    """The tables of the last evaluations, by run; None where none has any."""
    num_steps = max((len(rows) for rows in tables.values()), default=0)
    if not num_steps:
        return None
    blocks = []
    for key, title, is_share in STEP_MEASURES:
        measured = {run: rows for run, rows in tables.items() if any(key in row for row in rows)}
        lines = tuple((Cell(run), *_step_cells(rows, key, num_steps, is_share)) for run, rows in measured.items())
        if lines:
            blocks.append((title, lines))
    return StepTable(num_steps, tuple(blocks))


def _step_cells(rows: Sequence[Mapping[str, float]], key: str, num_steps: int, is_share: bool) -> Iterable[Cell]:
    for number in range(num_steps):
        value = rows[number].get(key) if number < len(rows) else None
        yield percent_cell(value) if is_share else number_cell(value, "{:.3f}")
