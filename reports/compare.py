"""Runs side by side: `python -m reports.compare RUN... --output-dir DIR`.

Writes the comparison matrix (`matrix.md`), the training curves as one figure (`curves.svg`), and a small summary of
each run's `metrics.jsonl` (`summary/<run>.json`). A run is its folder, or such a summary: it holds the run's row of the
matrix, so a series that is made over days is put together again from what was kept of each run.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from inference.control_table import PREFIX
from reports.run_reader import Run, load_run, with_distinct_names
from utils.files import read_json, write_file
from utils.run_status import read_status

log = logging.getLogger(__name__)

MISSING = "–"
COLLAPSED_BELOW = 0.1  # cross-sample variance under which an encoder says the same of every puzzle
SUMMARY_ROWS = 60
CURVES = {
    "train/accuracy": "train token accuracy",
    "train/exact_accuracy": "train exact match",
    "train/lm_loss": "token loss",
    "grad/encoder_share": "encoder's share of the gradient",
}
SUMMARY_KEYS = (
    *CURVES,
    "train/inflight_accuracy",
    "train/q_halt_accuracy",
    "train/steps",
    "train/encoder_cross_sample_var",
    "train/encoder_carry_change_rel",
    "grad/encoder_norm",
    "grad/inner_norm",
    "eval/accuracy",
    "eval/exact_accuracy",
    "eval/reading_gain",
    "eval/encoder_convergence_steps",
    "ARC/pass@1",
    "ARC/pass@2",
)
# Okabe and Ito's colours: apart for colour-blind eyes, on light and dark ground.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a6761d")


def model_name(config: dict[str, Any]) -> str:
    """The system and its encoder in a few words."""
    arch = config["arch"]
    encoder = arch.get("recurrent_encoder_type", arch.get("encoder_type", ""))
    system = arch["name"].split("@")[0].rsplit(".", 1)[-1].upper()
    fixed = f"-FCT{arch.get('num_act_steps')}" if arch.get("halting") == "fixed" else ""
    return f"{system}{fixed} {encoder}".strip() + (", encoder frozen" if config.get("freeze_encoder") else "")


@dataclass(frozen=True)
class PassFigure:
    """pass@k of the last evaluation: a count with its 95 % Wilson interval."""

    solved: float
    puzzles: float
    low: float
    high: float
    word: str  # "contaminated" where a puzzle was seen in training

    def __str__(self) -> str:
        return f"{self.solved:g}/{self.puzzles:g} {self.word}".rstrip()


def pass_at(run: Run, k: int) -> PassFigure | None:
    """None where the run has not been evaluated."""
    puzzles = run.final("ARC/num_puzzles")
    for word in ("", "contaminated"):
        key = f"ARC/{word}{'_' if word else ''}pass@{k}"
        solved, low, high = (run.final(f"{key}_{part}") for part in ("solved", "low", "high"))
        if puzzles is not None and solved is not None:
            return PassFigure(solved, puzzles, low or 0.0, 1.0 if high is None else high, word)
    return None


def matrix_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The comparison matrix: a row for each run, by column."""

    def shown(value: float | None, form: str, scale: float = 1.0) -> str:
        return MISSING if value is None else form.format(value * scale)

    return [
        {
            "experiment": run.name,
            "model": model_name(run.config),
            "train accuracy": shown(run.last("train/accuracy"), "{:.1f} %", 100),
            "train exact match": shown(run.last("train/exact_accuracy"), "{:.1f} %", 100),
            "mean steps": shown(run.last("train/steps"), "{:.2f}"),
            "steps to 80 %": shown(run.steps_to("train/accuracy", 0.8), "{:.0f}"),
            "steps to 90 %": shown(run.steps_to("train/accuracy", 0.9), "{:.0f}"),
            "encoder variance": shown(run.last("train/encoder_cross_sample_var"), "{:.2f}"),
            "gradient share": shown(run.last("grad/encoder_share"), "{:.0f} %", 100),
            "carry change (rel.)": shown(run.last("train/encoder_carry_change_rel"), "{:.2f}"),
            "held-out accuracy": f"{shown(run.final('eval/accuracy'), '{:.1f} %', 100)} {_word(run)}".rstrip(),
            "held-out exact match": shown(run.controls.get(f"{PREFIX}/right_exact_accuracy"), "{:.1f} %", 100),
            "a donor's demonstrations": shown(run.controls.get(f"{PREFIX}/donor_exact_accuracy"), "{:.1f} %", 100),
            "pass@1": str(pass_at(run, 1) or MISSING),
            "notes": notes(run),
        }
        for run in runs
    ]


def _word(run: Run) -> str:
    found = pass_at(run, 1)
    return "" if found is None else found.word


def notes(run: Run) -> str:
    """What a reader of the row should know: a run that is not done, an encoder that tells nothing apart."""
    status = read_status(run.folder)
    found = []
    if status.get("state") not in ("done", None):
        found.append(f"{status['state']} at step {status.get('step')} of {status.get('total_steps')}")
    variance = run.last("train/encoder_cross_sample_var")
    if variance is not None and variance < COLLAPSED_BELOW:
        found.append(f"encoder variance under {COLLAPSED_BELOW}")
    return "; ".join(found)


def telling(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The rows with all columns that say something of one of them."""
    columns = [c for c in dict.fromkeys(chain(*rows)) if any(row.get(c, MISSING) not in ("", MISSING) for row in rows)]
    return [{column: row.get(column, MISSING) for column in columns} for row in rows]


def matrix(rows: Sequence[Mapping[str, str]]) -> str:
    """The comparison matrix as Markdown."""
    told = telling(rows)
    lines = [list(told[0]), ["---"] * len(told[0]), *(list(row.values()) for row in told)]
    return "".join(f"| {' | '.join(map(_markdown_cell, line))} |\n" for line in lines)


def _markdown_cell(text: str) -> str:
    """Text that ends no cell and no line."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def curves_svg(runs: Sequence[Run]) -> str:
    """All runs' curves in one figure, a panel for each metric."""
    width, height = 380, 210
    last_step = max(int(run.rows[-1]["step"]) for run in runs)
    panels = []
    for key, title in CURVES.items():
        all_points = [run.series(key) for run in runs]
        top = max((value for points in all_points for _, value in points), default=1.0) or 1.0
        top = 1.0 if key != "train/lm_loss" else top
        lines = [
            {
                "color": COLORS[i % len(COLORS)],
                "points": " ".join(f"{width * s / last_step:.1f},{height * (1 - v / top):.1f}" for s, v in points),
            }
            for i, points in enumerate(all_points)
            if points
        ]
        ticks = [{"y": height * (1 - part), "label": f"{top * part:.2g}"} for part in (0, 0.25, 0.5, 0.75, 1)]
        panels.append({"title": title, "lines": lines, "ticks": ticks})
    legend = [{"name": run.name, "color": COLORS[i % len(COLORS)]} for i, run in enumerate(runs)]
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape(["svg", "j2"])
    )
    template = templates.get_template("curves.svg.j2")
    return template.render(panels=panels, legend=legend, width=width, height=height, last_step=last_step)


def summary_rows(run: Run) -> list[dict[str, float]]:
    """About sixty rows of the metrics that the matrix and the figure use; all rows with an evaluation."""
    stride = max(1, len(run.rows) // SUMMARY_ROWS)
    kept = [
        row for i, row in enumerate(run.rows) if i % stride == 0 or "eval/accuracy" in row or i == len(run.rows) - 1
    ]
    keys = ("step", "epoch", *SUMMARY_KEYS)
    return [{key: round(row[key], 4) for key in keys if key in row} for row in kept]


def load(path: Path) -> tuple[Run, dict[str, str] | None]:
    """A run by its folder, or by its summary with its row of the matrix.

    Raises:
        ValueError: it is neither.
    """
    if not path.is_file():
        return load_run(path), None
    try:
        kept = read_json(path)
        run, row = Run(path.stem, kept["config"], kept["rows"], path.with_suffix("")), kept["row"]
        if not isinstance(row, dict) or not run.rows:
            raise ValueError("it has no row of a matrix, or no metrics")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a summary of a run ({type(error).__name__}: {error})") from error
    return run, row


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; status 2 and one message for what is neither a run nor a summary."""
    parser = argparse.ArgumentParser(prog="python -m reports.compare", description="Compare runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or a summary of one")
    parser.add_argument("--output-dir", type=Path, required=True)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        loaded = [load(path) for path in arguments.runs]
        runs = with_distinct_names([run for run, _ in loaded])
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    rows = [row or matrix_rows([run])[0] for run, (_, row) in zip(runs, loaded, strict=True)]
    (arguments.output_dir / "summary").mkdir(parents=True, exist_ok=True)
    write_file(arguments.output_dir / "matrix.md", matrix(rows))
    write_file(arguments.output_dir / "curves.svg", curves_svg(runs))
    for run, (_, known), row in zip(runs, loaded, rows, strict=True):
        if known is None:
            summary = {"config": run.config, "row": row, "rows": summary_rows(run)}
            path = arguments.output_dir / "summary" / f"{run.name.replace(os.sep, '-')}.json"
            write_file(path, json.dumps(summary, indent=0) + "\n")
    log.info("%s", matrix(rows))


if __name__ == "__main__":
    main()
