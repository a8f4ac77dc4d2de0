"""Evaluation: every query takes `halt_max_steps` ACT steps; the final predictions vote."""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from dataset.fewshot_puzzle_dataset import Batch, FewshotEvalDataset, iterate
from dataset.grids import CANVAS_SIDE
from evaluators.arc import ARC, EVALUATORS, QueryResult
from evaluators.eos_utils import crop_extents
from models.act import RecursiveReasoner
from models.canvas import task_canvas_bounds
from models.losses import ACTLossHead
from utils.diagnostics import encoder_health
from utils.distributed import Ranks, gather_lists, sum_over_ranks

STEP_MEASURES = ("accuracy", "exact_accuracy", "q_halt_accuracy")


@dataclass
class Evaluation:
    """What one evaluation found; complete on every rank."""

    metrics: dict[str, float]
    step_table: list[dict[str, float]] = field(default_factory=list)
    results: list[QueryResult] = field(default_factory=list)
    submission: dict[str, list[dict[str, list[list[int]]]]] = field(default_factory=dict)


def runs_into_canvas_edge(batch: Batch, predictions: Tensor) -> Bool[np.ndarray, " batch"]:
    """Which predicted grids reach the last row or column of their task canvas, so that a border may be cut off."""
    start, end = (bound.cpu().numpy() for bound in task_canvas_bounds(batch, include_labels=False))
    extents = crop_extents(predictions.cpu().numpy(), start)
    side = CANVAS_SIDE
    return ((extents > 0) & (start + extents == end) & (end < side)).any(axis=1)


def final_outputs(model: RecursiveReasoner, batch: Batch) -> Iterator[dict[str, Tensor]]:
    """The outputs of each ACT step; in the last one, samples that ran into the edge of their task canvas are predicted
    again on the full canvas, and `rerun` (B) says which."""
    outputs: dict[str, Tensor] = {}
    steps = model.config.halt_max_steps
    for step, outputs in enumerate(model.rollout(batch)):
        if step < steps - 1:
            yield outputs
    at_edge = np.zeros(len(batch["inputs"]), dtype=bool)
    if model.config.canvas == "task":
        at_edge = runs_into_canvas_edge(batch, outputs["logits"].argmax(-1))
    rows = torch.from_numpy(np.flatnonzero(at_edge)).to(outputs["logits"].device)
    if len(rows):
        *_, again = model.rollout({key: value[rows] for key, value in batch.items()}, canvas="full")
        for key in ("logits", "q_halt_logits", "q_continue_logits"):
            outputs[key] = outputs[key].index_copy(0, rows, again[key])
    yield {**outputs, "rerun": torch.from_numpy(at_edge).to(outputs["logits"].device)}


def evaluate(
    head: ACTLossHead,
    dataset: FewshotEvalDataset,
    ranks: Ranks,
    *,
    evaluators: Collection[str] = ("arc@ARC",),
    seen_pairs: Collection[str] = (),
    workers: int = 0,
    description: str = "evaluate",
) -> Evaluation:
    """Predict every query of the data set once, over all ranks, and let the predictions vote.

    Metrics: `eval/` means over labelled queries at the last step, encoder health (means over batches), throughput,
    and those of the evaluators. The model is left in the mode it was in.
    """
    model = head.model
    was_training = model.training
    model.eval()
    votings: list[ARC] = [EVALUATORS[name](dataset, seen_pairs) for name in evaluators]
    limit = model.config.halt_max_steps
    device = ranks.device
    by_step = {key: torch.zeros(limit, dtype=torch.float64, device=device) for key in (*STEP_MEASURES, "q_halt")}
    totals = {
        key: torch.zeros((), dtype=torch.float64, device=device) for key in ("labelled", "queries", "rerun", "lm_loss")
    }
    health: dict[str, Tensor] = {}
    began = time.perf_counter()
    batches = iterate(dataset, workers=workers, pin_memory=device.type == "cuda")
    with torch.no_grad():
        for batch in tqdm(batches, total=len(dataset), desc=description, disable=not ranks.is_first, leave=False):
            batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
            queries = batch.pop("query_indices")
            outputs: dict[str, Tensor] = {}
            terms: dict[str, Tensor] = {}
            for step, outputs in enumerate(final_outputs(model, batch)):
                terms = head.terms(outputs, batch["labels"])
                for key in STEP_MEASURES:
                    by_step[key][step] += (terms[key] * terms["labelled"]).sum()
                by_step["q_halt"][step] += (torch.sigmoid(outputs["q_halt_logits"]) * terms["labelled"]).sum()
            totals["labelled"] += terms["labelled"].sum()
            totals["lm_loss"] += (terms["lm_loss"] * terms["labelled"]).sum()
            totals["queries"] += len(queries)
            totals["rerun"] += outputs["rerun"].sum()
            for key, value in encoder_health(outputs["context"], batch.get("puzzle_groups")).items():
                seen = torch.isfinite(value).double()
                pair = torch.stack([torch.nan_to_num(value).double(), seen])
                health[key] = health.get(key, torch.zeros_like(pair)) + pair
            predictions = outputs["logits"].argmax(-1).to(torch.uint8).cpu().numpy()
            for voting in votings:
                voting.update(queries.cpu().numpy(), predictions, outputs["q_halt_logits"].float().cpu().numpy())
    if was_training:
        model.train()
    names = sorted(set(gather_lists(list(health), ranks)))
    health = {key: health.get(key, torch.zeros(2, dtype=torch.float64, device=device)) for key in names}
    sum_over_ranks([*by_step.values(), *totals.values(), *health.values()], ranks)
    labelled = max(float(totals["labelled"]), 1.0)
    queries_done = max(float(totals["queries"]), 1.0)
    metrics = {f"eval/{key}": float(by_step[key][-1]) / labelled for key in STEP_MEASURES}
    metrics |= {
        "eval/steps": float(limit),
        "eval/lm_loss": float(totals["lm_loss"]) / labelled,
        "eval/num_queries": float(totals["queries"]),
        "eval/full_canvas_reruns": float(totals["rerun"]) / queries_done,
        "eval/samples_per_second": float(totals["queries"]) / (time.perf_counter() - began),
    }
    metrics |= {f"eval/{key}": float(total / count) for key, (total, count) in health.items() if count > 0}
    table = [
        {"step": step + 1, **{key: float(values[step]) / labelled for key, values in by_step.items()}}
        for step in range(limit)
    ]
    evaluation = Evaluation(metrics, table)
    for voting in votings:
        evaluation.results = voting.results(gather_lists(voting.votes, ranks))
        evaluation.metrics |= voting.metrics(evaluation.results)
        evaluation.submission = voting.submission(evaluation.results)
    return evaluation
