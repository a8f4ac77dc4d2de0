"""Runs side by side: `python -m utils.compare RUN... --output-dir DIR`.

Writes the comparison matrix (`matrix.md`), the training curves as one figure (`curves.svg`), and a small summary of
each run's `metrics.jsonl` (`summary/<run>.json`).
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, select_autoescape

log = logging.getLogger(__name__)

SMOOTHING_STEPS = 100
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
    "eval/encoder_convergence_steps",
    "ARC/pass@1",
    "ARC/pass@2",
)
# Okabe and Ito's colours: apart for colour-blind eyes, readable on light and dark ground.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a6761d")


@dataclass(frozen=True)
class Run:
    """A run folder's config and metrics."""

    name: str
    config: dict[str, Any]
    rows: list[dict[str, float]]

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) wherever the metric was logged, each the mean of the last 100 steps' values."""
        points = [(int(row["step"]), row[key]) for row in self.rows if key in row]
        smoothed = []
        for i, (step, _) in enumerate(points):
            near = [value for s, value in points[: i + 1] if s > step - SMOOTHING_STEPS]
            smoothed.append((step, sum(near) / len(near)))
        return smoothed

    def last(self, key: str) -> float | None:
        """The last smoothed value."""
        points = self.series(key)
        return points[-1][1] if points else None

    def final(self, key: str) -> float | None:
        """The last value as it was logged."""
        values = [row[key] for row in self.rows if key in row]
        return values[-1] if values else None

    def steps_to(self, key: str, level: float) -> int | None:
        """The first step at which the smoothed metric reaches the level."""
        return next((step for step, value in self.series(key) if value >= level), None)


def load_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: it has no config or no metrics.
    """
    for name in ("config.yaml", "metrics.jsonl"):
        if not (folder / name).exists():
            raise ValueError(f"{folder}: not a run folder ({name} is missing)")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if not rows:
        raise ValueError(f"{folder / 'metrics.jsonl'}: no metrics yet")
    return Run(folder.name, yaml.safe_load((folder / "config.yaml").read_text()), rows)


def model_name(config: dict[str, Any]) -> str:
    """The system and its encoder in a few words."""
    arch = config["arch"]
    encoder = arch.get("recurrent_encoder_type", arch.get("encoder_type", ""))
    system = arch["name"].split("@")[0].rsplit(".", 1)[-1].upper()
    return f"{system} {encoder}" + (", encoder frozen" if config.get("freeze_encoder") else "")


def matrix(runs: Sequence[Run]) -> str:
    """The comparison matrix as Markdown."""
    header = (
        "experiment | model | train accuracy | train exact match | mean steps | steps to 80 % | steps to 90 % | "
        "encoder variance | gradient share | carry change (rel.) | held-out accuracy | pass@1"
    )
    lines = [f"| {header} |", "|" + "---|" * len(header.split(" | "))]

    def shown(value: float | None, form: str, scale: float = 1.0) -> str:
        return "–" if value is None else form.format(value * scale)

    for run in runs:
        solved, puzzles = run.final("ARC/pass@1_solved"), run.final("ARC/num_puzzles")
        cells = [
            run.name,
            model_name(run.config),
            shown(run.last("train/accuracy"), "{:.1f} %", 100),
            shown(run.last("train/exact_accuracy"), "{:.1f} %", 100),
            shown(run.last("train/steps"), "{:.2f}"),
            shown(run.steps_to("train/accuracy", 0.8), "{:.0f}"),
            shown(run.steps_to("train/accuracy", 0.9), "{:.0f}"),
            shown(run.last("train/encoder_cross_sample_var"), "{:.2f}"),
            shown(run.last("grad/encoder_share"), "{:.0f} %", 100),
            shown(run.last("train/encoder_carry_change_rel"), "{:.2f}"),
            shown(run.final("eval/accuracy"), "{:.1f} %", 100),
            "–" if solved is None else f"{solved:g}/{puzzles:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; status 2 and one message for a folder that is no run."""
    parser = argparse.ArgumentParser(prog="python -m utils.compare", description="Compare runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--output-dir", type=Path, required=True)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        runs = [load_run(folder) for folder in arguments.runs]
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    (arguments.output_dir / "summary").mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "matrix.md").write_text(matrix(runs))
    (arguments.output_dir / "curves.svg").write_text(curves_svg(runs))
    for run in runs:
        rows = {"config": run.config, "rows": summary_rows(run)}
        (arguments.output_dir / "summary" / f"{run.name}.json").write_text(json.dumps(rows, indent=0) + "\n")
    log.info("%s", matrix(runs))


if __name__ == "__main__":
    main()
