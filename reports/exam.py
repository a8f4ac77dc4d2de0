"""Evaluations by adaptation side by side: `python -m reports.exam RECORD... --output-dir DIR`.

Writes `table.md`, and a small summary of each record (`summary/<record>.json`): what was asked, the figures, and what
each puzzle came to. It takes summaries as well as records, so a table is put together again from what was kept.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inference.adapt_options import AdaptOptions
from inference.adapt_record import SETTINGS_FILE, AdaptRecord
from inference.puzzle_results import read_puzzle_results
from reports.compare import MISSING
from utils.files import read_json, write_file

log = logging.getLogger(__name__)
KS = (1, 2, 10)
HEAD = (
    "record",
    "what is done",
    "votes",
    *(f"pass@{k} (95 %)" for k in KS),
    "updates a puzzle",
    "pass@2 along the time",
)


@dataclass(frozen=True)
class Exam:
    """A complete record without its marks.

    asked: budget, total seconds, and the options that are not the defaults.
    puzzles: {id: pass@1 and pass@2, updates, seconds and why it ended}.
    """

    name: str
    asked: dict[str, Any]
    metrics: dict[str, float]
    puzzles: dict[str, dict[str, Any]]

    @classmethod
    def of_record(cls, folder: Path) -> "Exam":
        """Read a record.

        Raises:
            ValueError: it is not complete.
        """
        solved = read_puzzle_results(folder)
        if solved is None or not (folder / "metrics.json").exists():
            raise ValueError(f"{folder}: no complete record of an evaluation by adaptation")
        settings, defaults = read_json(folder / SETTINGS_FILE), AdaptOptions().model_dump()
        options = {key: value for key, value in settings["options"].items() if value != defaults.get(key)}
        budget = {key: value for key, value in (settings["budget"] or {}).items() if value is not None}
        asked = {**budget, "total_seconds": settings["total_seconds"], "votes": settings["options"]["votes"], **options}
        puzzles = {}
        for found in AdaptRecord(folder).read_all(settings["puzzles"]):
            assert found is not None
            shares = {f"pass@{k}": share for k, share in solved.credits.get(found.puzzle, {}).items()}
            more = {"updates": found.updates, "seconds": round(found.seconds, 1), "ended": found.ended}
            puzzles[found.puzzle] = shares | more
        return cls(folder.name, asked, read_json(folder / "metrics.json"), puzzles)

    def row(self) -> tuple[str, ...]:
        """The cells under `HEAD`."""
        what = self.asked.get("control") or "adapted"
        budget = f"{self.asked['seconds']:g} s" if "seconds" in self.asked else f"{self.asked.get('updates')} updates"
        if (total := self.asked.get("total_seconds")) is not None:
            budget = f"{total:g} s in all" + (f", {budget} each at most" if self.asked["seconds"] != total else "")
        passes = (self._passed(what, k) for k in KS)
        updates = f"{self.metrics['adapt/updates_per_puzzle']:.0f}"
        return self.name, f"{what}, {budget}", str(self.asked["votes"]), *passes, updates, self._curve(what)

    def _passed(self, what: str, k: int) -> str:
        for prefix in ("ARC/", "ARC/contaminated_"):
            name = f"{prefix}{what}_pass@{k}"
            if name in self.metrics:
                low, high = (100 * self.metrics[f"{name}_{end}"] for end in ("low", "high"))
                return f"{self.metrics[f'{name}_solved']:g}/{len(self.puzzles)} ({low:.1f}-{high:.1f})"
        return MISSING

    def _curve(self, what: str) -> str:
        marker = f"{what}_pass@2_after_"
        points = {key.split(marker)[1]: value for key, value in self.metrics.items() if marker in key}
        return ", ".join(f"{time}: {100 * value:.1f}" for time, value in points.items()) or MISSING


def load(path: Path) -> Exam:
    """A record by its folder, or by its summary.

    Raises:
        ValueError: it is neither.
    """
    if path.is_dir():
        return Exam.of_record(path)
    try:
        return Exam(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a summary of a record ({type(error).__name__}: {error})") from error


def table(exams: Sequence[Exam]) -> str:
    """The rows in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *(exam.row() for exam in exams)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; status 2 and one message for what is neither a record nor a summary."""
    parser = argparse.ArgumentParser(prog="python -m reports.exam", description="Compare evaluations by adaptation.")
    parser.add_argument(
        "records", nargs="+", type=Path, metavar="RECORD", help="a record's folder, or a summary of one"
    )
    parser.add_argument("--output-dir", type=Path, required=True)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        exams = [load(path) for path in arguments.records]
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    (arguments.output_dir / "summary").mkdir(parents=True, exist_ok=True)
    for exam, path in zip(exams, arguments.records, strict=True):
        if path.is_dir():
            write_file(
                arguments.output_dir / "summary" / f"{exam.name}.json", json.dumps(asdict(exam), indent=0) + "\n"
            )
    write_file(arguments.output_dir / "table.md", table(exams))
    log.info("%s", table(exams))


if __name__ == "__main__":
    main()
