"""Evaluation: every query takes `max_steps` ACT steps; the final predictions vote."""

import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from tqdm import tqdm

from dataset.batches import Batch, iterate
from dataset.context_limit import LEFT_OUT_KEY
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.grids import CANVAS_SIDE
from evaluators.arc import EVALUATORS, QueryResult, Submission
from evaluators.eos_utils import crop_extents
from inference.diagnostics import HEALTH_MEASURES, encoder_health
from models.act import RecursiveReasoner
from models.canvas import task_canvas_bounds
from models.losses import ACTLossHead
from utils.distributed import Ranks, any_rank, gather_lists, sum_over_ranks

log = logging.getLogger(__name__)
STEP_MEASURES = ("accuracy", "exact_accuracy", "q_halt_accuracy")
# What a model tells of its encoder's latent at each ACT step, (B) each.
CARRY_MEASURES = ("encoder_carry_norm", "encoder_carry_change", "encoder_carry_change_rel")
CONVERGED_BELOW = 0.05


class EvaluationStopped(RuntimeError):
    """An evaluation was given up, on all ranks."""


@dataclass
class Evaluation:
    """What one evaluation found; complete on every rank."""

    metrics: dict[str, float]
    step_table: list[dict[str, float]] = field(default_factory=list)
    results: list[QueryResult] = field(default_factory=list)
    submission: Submission = field(default_factory=dict)
    credits: dict[str, dict[int, float]] = field(default_factory=dict)
    contaminated: list[str] = field(default_factory=list)


def runs_into_canvas_edge(batch: Batch, predictions: Tensor) -> Bool[Tensor, " batch"]:
    """Which predicted grids reach the last row or column of their task canvas, so that a border may be cut off."""
    start, end = task_canvas_bounds(batch, include_labels=False)
    extents = crop_extents(predictions, start)
    return ((extents > 0) & (start + extents == end) & (end < CANVAS_SIDE)).any(dim=1)


def step_outputs(model: RecursiveReasoner, batch: Batch) -> Iterator[dict[str, Tensor]]:
    """The outputs of each ACT step; in the last one, samples that ran into the edge of their task canvas are predicted
    again on the full canvas, and `rerun` (B) says which."""
    outputs: dict[str, Tensor] = {}
    steps = model.max_steps
    for step, outputs in enumerate(model.rollout(batch)):
        if step < steps - 1:
            yield outputs
    at_edge = torch.zeros(len(batch["inputs"]), dtype=torch.bool, device=batch["inputs"].device)
    if model.config.canvas == "task":
        at_edge = runs_into_canvas_edge(batch, outputs["logits"].argmax(-1))
    rows = at_edge.nonzero().squeeze(1)
    if len(rows):
        *_, again = model.rollout({key: value[rows] for key, value in batch.items()}, canvas="full")
        for key in ("logits", "q_halt_logits", "q_continue_logits"):
            outputs[key] = outputs[key].index_copy(0, rows, again[key])
    yield {**outputs, "rerun": at_edge}


class Totals:
    """Weighted sums and weights by name, on the device; means after one reduction over ranks."""

    def __init__(self, names: Collection[str], device: torch.device):
        self.sums = {name: torch.zeros(2, dtype=torch.float64, device=device) for name in names}

    def add(self, name: str, values: Tensor, weights: Tensor | None = None) -> None:
        """Add (B) values; those that are not finite weigh nothing."""
        values = values.detach().double().reshape(-1)
        weights = torch.isfinite(values).double() if weights is None else weights.double()
        self.sums[name] += torch.stack([(torch.nan_to_num(values) * weights).sum(), weights.sum()])

    def means(self, ranks: Ranks) -> dict[str, float]:
        """Over all ranks, without names of no weight."""
        sum_over_ranks(list(self.sums.values()), ranks)
        pairs = dict(zip(self.sums, torch.stack(list(self.sums.values())).tolist(), strict=True))
        return {name: total / weight for name, (total, weight) in pairs.items() if weight}

    def weight(self, name: str) -> float:
        """The sum of a name's weights (after `means`: over all ranks)."""
        return float(self.sums[name][1])


class Measures:
    """What an evaluation measures besides the votes, filled batch by batch."""

    def __init__(self, max_steps: int, device: torch.device):
        self.max_steps = max_steps
        by_step = (*STEP_MEASURES, "q_halt", *CARRY_MEASURES)
        names = [f"{name}@{step}" for step in range(max_steps) for name in by_step]
        names += [LEFT_OUT_KEY, "lm_loss", "full_canvas_reruns", "encoder_convergence_steps", *HEALTH_MEASURES]
        self.totals = Totals(names, device)

    def add_batch(self, head: ACTLossHead, batch: Batch) -> dict[str, Tensor]:
        """Predict a batch, measure each ACT step; returns the final outputs."""
        converged = torch.full((len(batch["inputs"]),), self.max_steps + 1.0, device=batch["inputs"].device)
        outputs: dict[str, Tensor] = {}
        terms: dict[str, Tensor] = {}
        for step, outputs in enumerate(step_outputs(head.model, batch)):
            terms = head.terms(outputs, batch["labels"])
            for name in STEP_MEASURES:
                self.totals.add(f"{name}@{step}", terms[name], terms["labelled"])
            self.totals.add(f"q_halt@{step}", torch.sigmoid(outputs["q_halt_logits"]))
            for name in CARRY_MEASURES:
                if name in outputs:
                    self.totals.add(f"{name}@{step}", outputs[name])
            if "encoder_carry_change_rel" in outputs:
                settles = (outputs["encoder_carry_change_rel"] < CONVERGED_BELOW) & (converged > self.max_steps)
                converged = torch.where(settles, step + 1.0, converged)
        if "encoder_carry_change_rel" in outputs:
            self.totals.add("encoder_convergence_steps", converged)
        self.totals.add("lm_loss", terms["lm_loss"], terms["labelled"])
        self.totals.add("full_canvas_reruns", outputs["rerun"])
        if LEFT_OUT_KEY in batch:
            self.totals.add(LEFT_OUT_KEY, batch[LEFT_OUT_KEY])
        if head.model.reads_demonstrations:
            for name, value in encoder_health(
                outputs["context"], batch.get("puzzle_groups"), outputs.get("context_mask")
            ).items():
                self.totals.add(name, value)
        return outputs

    def read(self, ranks: Ranks) -> tuple[dict[str, float], list[dict[str, float]]]:
        """`eval/` metrics, and the table of measures by ACT step."""
        means = self.totals.means(ranks)
        table: list[dict[str, float]] = [{"step": step + 1.0} for step in range(self.max_steps)]
        metrics = {"eval/steps": float(self.max_steps), "eval/num_queries": self.totals.weight("full_canvas_reruns")}
        for name, value in means.items():
            measure, _, step = name.partition("@")
            if not step:
                metrics[f"eval/{measure}"] = value
                continue
            table[int(step)][measure] = value
            if int(step) == self.max_steps - 1 and measure != "q_halt":
                metrics[f"eval/{measure}"] = value
        return metrics, table


class Controls(Protocol):
    """Follows an evaluation and measures on after it: `inference.control_measures.ControlMeasures`."""

    def keep(self, queries: Int64[np.ndarray, " batch"], batch: Batch, outputs: dict[str, Tensor]) -> None: ...

    def metrics(self, stop: Any = False) -> dict[str, float]: ...


def warn_of_shortened_rules(dataset: FewshotEvalDataset) -> None:
    """Say where the run reads fewer demonstrations than show a known rule."""
    if (found := dataset.shortened_rule()) is not None:
        log.warning("%s: the run reads no more, so the answer of such a task need not follow", found)


@torch.no_grad()
def evaluate(
    head: ACTLossHead,
    dataset: FewshotEvalDataset,
    ranks: Ranks,
    *,
    evaluator: str | None = "arc@ARC",
    seen_pairs: Collection[str] = (),
    unknown_origin: bool = False,
    seen_puzzles: Collection[str] = (),
    workers: int = 0,
    description: str = "evaluate",
    stop: Any = False,
    controls: Controls | None = None,
) -> Evaluation:
    """Predict every query of the data set once, over all ranks, and let the predictions vote.

    Metrics: `eval/` means over labelled queries at the last step, encoder health (means over batches), throughput,
    and those of the evaluator and of the controls, where there are any. The model is left in the mode it was in.

    Args:
        stop: as soon as it is true on a rank (`utils.signals.StopRequest`), the evaluation is given up on all of them.

    Raises:
        EvaluationStopped: it was given up.
    """
    model = head.model
    was_training = model.training
    model.eval()
    voting = None if evaluator is None else EVALUATORS[evaluator](dataset, seen_pairs, unknown_origin, seen_puzzles)
    measures = Measures(model.max_steps, ranks.device)
    began = time.perf_counter()
    batches = iterate(dataset, workers=workers, pin_memory=ranks.device.type == "cuda", what="the queries")
    for batch in tqdm(batches, total=len(dataset), desc=description, disable=not ranks.is_first, leave=False):
        if stop:
            break
        batch = {key: value.to(ranks.device, non_blocking=True) for key, value in batch.items()}
        queries = batch.pop("query_indices").cpu().numpy()
        outputs = measures.add_batch(head, batch)
        if controls is not None:
            controls.keep(queries, batch, outputs)
        predictions = outputs["logits"].argmax(-1).to(torch.uint8).cpu().numpy()
        if voting is not None:
            voting.update(queries, predictions, outputs["q_halt_logits"].float().cpu().numpy())
    model.train(was_training)
    _end_if_stopped(stop, ranks)
    metrics, table = measures.read(ranks)
    metrics["eval/samples_per_second"] = metrics["eval/num_queries"] / (time.perf_counter() - began)
    if controls is not None:
        metrics |= controls.metrics(stop)
        _end_if_stopped(stop, ranks)
    evaluation = Evaluation(metrics, table)
    if voting is not None:
        evaluation.results = voting.results(gather_lists(voting.votes, ranks))
        evaluation.credits = voting.puzzle_credits(evaluation.results)
        evaluation.contaminated = voting.contaminated_puzzles()
        evaluation.metrics |= voting.metrics(evaluation.credits)
        evaluation.submission = voting.submission(evaluation.results)
    return evaluation


def _end_if_stopped(stop: Any, ranks: Ranks) -> None:
    if any_rank(bool(stop), ranks):
        raise EvaluationStopped("a rank was asked to stop during the evaluation")
