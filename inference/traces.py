"""What a model does with single queries: its prediction after each ACT step, and the votes for each.

A run keeps those of its first training and held-out puzzles in `predictions.json`, from which pages are drawn.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.grids import Grid
from evaluators.arc import Candidate, QueryResult
from evaluators.eos_utils import crop_grid_from_eos
from inference.evaluation import step_outputs
from models.act import RecursiveReasoner
from utils.files import write_file

TRACES_FILE = "predictions.json"


@dataclass(frozen=True)
class StepPrediction:
    """The grid read after one ACT step (0 x 0: none), sigmoid(q_halt), and how much the encoder's latent moved
    relative to its size (None: it has none)."""

    grid: Grid
    confidence: float
    carry_change: float | None = None


@dataclass(frozen=True)
class VotedGrid:
    """A candidate of the vote over augmentations: how many predicted it, and their mean confidence.

    likelihood: its log-probability in the mean over versions (None: not asked for, see `inference.likelihood`).
    """

    grid: Grid
    votes: int
    confidence: float
    likelihood: float | None = None


def voted(candidates: Sequence[Candidate]) -> tuple[VotedGrid, ...]:
    """Ranked candidates as they are kept."""
    return tuple(VotedGrid(c.grid, c.votes, c.rank_key[1]) for c in candidates)


@dataclass(frozen=True)
class QueryTrace:
    """One test input of a puzzle as it is (not augmented), with everything that was predicted for it.

    test_index: from 1.
    truth: None where no solution is known.
    votes: best first; empty where only this one version was asked.
    rerun: the last prediction ran into the edge of the task canvas and was made again on the full one.
    """

    puzzle: str
    test_index: int
    demonstrations: tuple[tuple[Grid, Grid], ...]
    input: Grid
    truth: Grid | None
    steps: tuple[StepPrediction, ...]
    votes: tuple[VotedGrid, ...] = ()
    rerun: bool = False

    @property
    def name(self) -> str:
        return f"{self.puzzle}, test {self.test_index}"

    @property
    def prediction(self) -> Grid:
        return self.steps[-1].grid

    @property
    def confidence(self) -> float:
        return self.steps[-1].confidence

    @property
    def is_right(self) -> bool:
        """Whether the last step's prediction is the truth."""
        return self.is_truth(self.prediction)

    def is_truth(self, grid: Grid) -> bool:
        return self.truth is not None and np.array_equal(grid, self.truth)


def plain_queries(dataset: FewshotEvalDataset, count: int | None = None) -> Int64[np.ndarray, " queries"]:
    """The first rows of the query table that show a puzzle as it is (its first augmentation)."""
    is_plain = dataset.query_augmentation == dataset.store.puzzle_augmentations[dataset.query_puzzle]
    return np.flatnonzero(is_plain)[:count]


@torch.no_grad()
def trace_queries(
    model: RecursiveReasoner, dataset: FewshotEvalDataset, indices: Int64[np.ndarray, " queries"], device: torch.device
) -> list[QueryTrace]:
    """Predict the given queries, in one batch, and keep what each ACT step says. The model's mode is left as it was."""
    if not len(indices):
        return []
    batch = {key: value.to(device) for key, value in dataset.queries(indices).items() if key != "query_indices"}
    was_training = model.training
    model.eval()
    steps: list[list[StepPrediction]] = [[] for _ in indices]
    outputs: dict[str, Tensor] = {}
    for outputs in step_outputs(model, batch):
        grids = crop_grid_from_eos(outputs["logits"].argmax(-1))
        confidences = torch.sigmoid(outputs["q_halt_logits"].float()).tolist()
        change = outputs.get("encoder_carry_change_rel")
        changes = [None] * len(grids) if change is None else change.tolist()
        for kept, step in zip(steps, zip(grids, confidences, changes, strict=True), strict=True):
            kept.append(StepPrediction(*step))
    model.train(was_training)
    reruns = outputs["rerun"].tolist()
    return [_trace(dataset, int(i), kept, rerun) for i, kept, rerun in zip(indices, steps, reruns, strict=True)]


def _trace(dataset: FewshotEvalDataset, index: int, steps: Sequence[StepPrediction], rerun: bool) -> QueryTrace:
    store, puzzle, pair = dataset.store, int(dataset.query_puzzle[index]), int(dataset.query_pair[index])
    first, demos = int(store.puzzle_pairs[puzzle]), int(store.puzzle_demos[puzzle])
    truth = store.grid(2 * pair + 1)
    return QueryTrace(
        puzzle=store.metadata.puzzle_ids[puzzle],
        test_index=pair - first - demos + 1,
        demonstrations=tuple((store.grid(2 * p), store.grid(2 * p + 1)) for p in range(first, first + demos)),
        input=store.grid(2 * pair),
        truth=truth if truth.size else None,
        steps=tuple(steps),
        rerun=rerun,
    )


def with_votes(
    traces: Sequence[QueryTrace], dataset: FewshotEvalDataset, results: Sequence[QueryResult], most: int | None = None
) -> list[QueryTrace]:
    """The traces with the candidates of an evaluation of the same data set, at most `most` each."""
    store = dataset.store
    votes: dict[tuple[str, int], tuple[VotedGrid, ...]] = {}
    for result in results:
        test_index = result.pair - int(store.puzzle_pairs[result.puzzle]) - int(store.puzzle_demos[result.puzzle]) + 1
        candidates = result.candidates[:most]
        votes[store.metadata.puzzle_ids[result.puzzle], test_index] = voted(candidates)
    return [replace(trace, votes=votes.get((trace.puzzle, trace.test_index), ())) for trace in traces]


def write_traces(folder: Path, step: int, sections: dict[str, list[QueryTrace]]) -> None:
    """`predictions.json` of a run folder, in one move."""
    content = {"step": step, "sections": {name: [_to_json(t) for t in traces] for name, traces in sections.items()}}
    write_file(folder / TRACES_FILE, json.dumps(content) + "\n")


def read_traces(folder: Path) -> tuple[int, dict[str, list[QueryTrace]]]:
    """The training step and the sections of `predictions.json`; step 0 and nothing where a run has none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / TRACES_FILE
    if not path.exists():
        return 0, {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sections = {name: [_from_json(t) for t in traces] for name, traces in content["sections"].items()}
        return int(content["step"]), sections
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a file of predictions ({type(error).__name__}: {error})") from error


def grid_rows(grid: Grid | None) -> list[str] | None:
    """A grid as one string of digits a row, a tenth of the size of nested lists."""
    return None if grid is None else ["".join(map(str, row)) for row in grid.tolist()]


def grid_of_rows(rows: list[str]) -> Grid:
    """The inverse of `grid_rows`."""
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.uint8).reshape(
        len(rows), len(rows[0]) if rows else 0
    )


def _to_json(trace: QueryTrace) -> dict[str, Any]:
    return {
        "puzzle": trace.puzzle,
        "test_index": trace.test_index,
        "demonstrations": [[grid_rows(a), grid_rows(b)] for a, b in trace.demonstrations],
        "input": grid_rows(trace.input),
        "truth": grid_rows(trace.truth),
        "steps": [{**vars(step), "grid": grid_rows(step.grid)} for step in trace.steps],
        "votes": [{**vars(vote), "grid": grid_rows(vote.grid)} for vote in trace.votes],
        "rerun": trace.rerun,
    }


def _from_json(value: dict[str, Any]) -> QueryTrace:
    return QueryTrace(
        puzzle=value["puzzle"],
        test_index=value["test_index"],
        demonstrations=tuple((grid_of_rows(a), grid_of_rows(b)) for a, b in value["demonstrations"]),
        input=grid_of_rows(value["input"]),
        truth=None if value["truth"] is None else grid_of_rows(value["truth"]),
        steps=tuple(StepPrediction(**{**step, "grid": grid_of_rows(step["grid"])}) for step in value["steps"]),
        votes=tuple(VotedGrid(**{**vote, "grid": grid_of_rows(vote["grid"])}) for vote in value["votes"]),
        rerun=value["rerun"],
    )
