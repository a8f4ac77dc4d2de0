"""What happens between the steps of a run: log lines, evaluations, checkpoints, and stopping when asked to."""

import json
import logging
from typing import NoReturn

from evaluators.arc import QueryResult
from inference.evaluation import EvaluationStopped
from inference.puzzle_results import PuzzleResults
from inference.traces import write_traces
from training.memory import memory_of_evaluation
from training.metric_window import MetricWindow
from training.metrics import shown_predictions
from training.trainer import Trainer
from utils import distributed
from utils.files import write_file

log = logging.getLogger(__name__)


class Preempted(Exception):
    """The run was asked to stop and has saved; the same command goes on."""


def log_window(trainer: Trainer, metrics: dict[str, float]) -> dict[str, float]:
    """Write a line with the means since the last one, and begin the next."""
    metrics = trainer.window.read(trainer.ranks, trainer.config.global_batch_size) | metrics
    metrics["epoch"] = trainer.epoch
    if trainer.config.on_nonfinite == "skip":
        metrics["train/skipped_steps"] = trainer.progress.skipped_steps
    trainer.logger.log(trainer.step, metrics)
    trainer.window = MetricWindow()
    return metrics


def saves_by_the_clock(trainer: Trainer) -> bool:
    """Whether `checkpoint_interval` or `checkpoint_minutes` has passed."""
    interval = trainer.config.checkpoint_interval
    return trainer.save_agreed or bool(interval and trainer.step % interval == 0)


def save_and_stop(trainer: Trainer) -> NoReturn:
    """Save where this step has no checkpoint yet, then end the run.

    Raises:
        Preempted: always.
    """
    if trainer.saved_step != trainer.step or trainer.progress.evaluation_due:
        trainer.save_checkpoint()
    why = trainer.stop.signal_name or "a signal to another rank"
    raise Preempted(f"{why}: saved at step {trainer.step} of {trainer.total_steps}; the same command goes on")


def evaluate_and_save(trainer: Trainer) -> dict[str, float]:
    """One evaluation with everything that is written at it, beside the window of the log.

    Raises:
        Preempted: a signal came meanwhile; the evaluation is made when the run goes on.
    """
    with trainer.window.paused():
        return _evaluate_and_save(trainer)


def _evaluate_and_save(trainer: Trainer) -> dict[str, float]:
    config, logger, progress = trainer.config, trainer.logger, trainer.progress
    is_last = trainer.step == trainer.total_steps
    metrics: dict[str, float] = {}
    results: list[QueryResult] = []
    if len(trainer.eval_data.query_row):
        try:
            with memory_of_evaluation(config):
                evaluation = trainer.evaluate(f"evaluate (step {trainer.step})")
        except EvaluationStopped:
            progress.evaluation_due = True
            save_and_stop(trainer)
        metrics, results = evaluation.metrics, evaluation.results
        logger.log(trainer.step, {**metrics, "epoch": trainer.epoch})
        if logger.folder is not None and config.evaluators:
            write_file(logger.folder / "submission.json", json.dumps(evaluation.submission))
            solved = PuzzleResults(trainer.step, evaluation.credits, frozenset(evaluation.contaminated))
            solved.write(logger.folder)
        logger.log_rows(trainer.step, "act_steps", evaluation.step_table)
    progress.evaluations += 1
    progress.evaluation_due = False
    every = config.log_predictions_every
    if every and (progress.evaluations % every == 0 or is_last) and trainer.ranks.is_first:
        with trainer.averaged_weights():
            sections = shown_predictions(trainer, results)
        write_traces(trainer.folder, trainer.step, sections)
    is_best = is_best_so_far(trainer, metrics)
    if config.checkpoint_every_eval or is_last or is_best or saves_by_the_clock(trainer):
        trainer.save_checkpoint()
    logger.evaluated(is_last=is_last)
    return metrics


def is_best_so_far(trainer: Trainer, metrics: dict[str, float]) -> bool:
    """Whether this evaluation is at least as good as those before, by `checkpoint_best`; notes it if so."""
    key, progress = trainer.config.checkpoint_best, trainer.progress
    if key is None:
        return False
    value = distributed.from_first_rank(metrics.get(key), trainer.ranks)  # throughput differs by rank
    if value is None:
        if trainer.ranks.is_first and progress.evaluations == 1:
            known = ", ".join(sorted(metrics)) or "nothing"
            log.warning(
                "checkpoint_best=%s is not measured in this run, so no checkpoint is kept for it: %s", key, known
            )
        return False
    if progress.best_value is not None and value < progress.best_value:
        return False
    progress.best_step, progress.best_value = trainer.step, value
    return True
