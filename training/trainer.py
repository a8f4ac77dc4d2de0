"""What a run holds besides its learner: data, place in the schedule, carry, log, checkpoints; for every model."""

import logging
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints import folder as checkpoint_folder
from checkpoints.carry_state import carry_tensors
from checkpoints.writer import CheckpointWriter, SaveError
from config.schema import TrainConfig, dump_config
from dataset.batches import Batch
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.sources import SampleResults, TrainSource
from dataset.trained_on import TrainedOn
from inference.control_measures import create_controls
from inference.evaluation import Evaluation, evaluate
from learning.guards import NonFiniteError
from learning.learner import Learner
from learning.optim import learning_rate
from models.act import DEPTH_KEY, EXPLORATION_KEY, depth_draw, exploration_draws
from models.losses import ACTLossHead
from training.metric_window import MetricWindow
from utils import distributed
from utils.distributed import Ranks
from utils.run_logger import RunLogger
from utils.signals import StopRequest

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """What a run has behind it besides its steps; the same on every rank.

    best: step and value of the best evaluation so far that has a checkpoint.
    evaluation_due: the evaluation of this step was put off, because the run was asked to stop.
    """

    evaluations: int = 0
    skipped_steps: int = 0
    best_step: int | None = None
    best_value: float | None = None
    evaluation_due: bool = False


@dataclass
class Trainer:
    """Built by `training.setup.create_trainer`; `training.loop.fit` runs it."""

    config: TrainConfig
    ranks: Ranks
    train_data: TrainSource
    eval_data: FewshotEvalDataset
    train_queries: FewshotEvalDataset
    learner: Learner
    trained_on: TrainedOn
    data: dict[str, str]  # see `training.resume.data_of_run`
    logger: RunLogger
    folder: Path = Path()
    stop: StopRequest = field(default_factory=StopRequest)
    window: MetricWindow = field(default_factory=MetricWindow)
    progress: Progress = field(default_factory=Progress)
    carry: Any = None
    step: int = 0
    saved_step: int = -1
    saved_at: float = field(default_factory=time.monotonic)
    # What all ranks know since the last step: a rank has been asked to stop; rank 0 wants a checkpoint by its clock.
    stop_agreed: bool = False
    save_agreed: bool = False

    @property
    def head(self) -> ACTLossHead:
        return self.learner.head

    @property
    def model(self) -> Any:
        return self.learner.model

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return len(self.train_data) * self.config.arch.steps_per_batch

    @property
    def epoch(self) -> int:
        """Complete epochs so far."""
        return self.train_data.epoch_of(self.step // self.config.arch.steps_per_batch)

    def fresh_carry(self, batch: Batch) -> Any:
        """A carry that starts all samples of the batch; in the middle of a batch that is given `num_act_steps` times
        it only has the steps left that the batch has left."""
        carry = self.model.initial_carry(batch)
        done = self.step % self.config.arch.steps_per_batch
        if done:
            steps, halted = torch.full_like(carry.steps, done), torch.zeros_like(carry.halted)
            carry = replace(carry, steps=steps, halted=halted)
        return carry

    def train_step(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One ACT step, one backward, one optimizer step.

        Returns:
            The sums for the metrics (none where the step was skipped) and the model's outputs, still on the device.

        Raises:
            NonFiniteError: before any weight has changed.
        """
        config = self.config
        carry = self.fresh_carry(batch) if self.carry is None else self.carry
        slots = self.ranks.local_slots(config.global_batch_size)
        draws = exploration_draws(config.seed, self.step, config.global_batch_size, slots)
        batch = {**batch, EXPLORATION_KEY: draws.to(self.ranks.device, non_blocking=True)}
        if config.arch.random_depth:
            batch[DEPTH_KEY] = depth_draw(config.seed, self.step)
        result = self.learner.step(carry, batch, self.step, self.base_lr, self._flags)
        self.carry = result.carry
        self.stop_agreed, self.save_agreed = (count > 0 for count in result.flags)
        if result.fault is not None:
            self._count_skipped(f"step {self.step + 1}: {result.fault}; no weight has been changed by it")
        self.step += 1
        return result.sums, result.outputs

    def sample_results(self, outputs: dict[str, Tensor]) -> SampleResults:
        """What the last step, which gave these outputs, did with its samples."""
        return SampleResults(self.carry.current_data, self.carry.halted.float(), outputs["exact"])

    def _flags(self) -> tuple[bool, bool]:
        """What the ranks must agree on."""
        return bool(self.stop), self._is_time_to_save()

    def _count_skipped(self, reason: str) -> None:
        """After a step that was left out: stop, or go on with fresh carries and the same weights."""
        if self.config.on_nonfinite == "stop":
            raise NonFiniteError(f"{reason}; the run is stopped (on_nonfinite=skip would leave such steps out)")
        self.progress.skipped_steps += 1
        if self.progress.skipped_steps > self.config.nonfinite_limit:
            limit = self.config.nonfinite_limit
            raise NonFiniteError(
                f"{reason}; nonfinite_limit={limit} steps have been skipped before, the run is stopped"
            )
        if self.ranks.is_first:
            log.warning("%s; skipped, the %d. of this run", reason, self.progress.skipped_steps)

    @property
    def base_lr(self) -> float:
        """The schedule's rate at the current step."""
        return learning_rate(
            self.step,
            lr=self.config.lr,
            warmup_steps=self.config.lr_warmup_steps,
            total_steps=self.total_steps,
            min_ratio=self.config.lr_min_ratio,
            decay_share=self.config.lr_decay_share,
        )

    def evaluate(self, description: str = "evaluate") -> Evaluation:
        """Evaluate the averaged weights, where there are any.

        Raises:
            EvaluationStopped: a rank was asked to stop meanwhile.
        """
        with self.averaged_weights():
            return evaluate(
                self.head,
                self.eval_data,
                self.ranks,
                evaluator=self.config.evaluator,
                seen_pairs=self.trained_on.pair_hashes,
                unknown_origin=bool(self.trained_on.unknown_origin),
                seen_puzzles=self.trained_on.puzzle_ids,
                workers=self.config.data_workers,
                description=description,
                stop=self.stop,
                controls=create_controls(self.config, self.head, self.eval_data, self.ranks),
            )

    def averaged_weights(self) -> AbstractContextManager[None]:
        return self.learner.averaged_weights()

    def _is_time_to_save(self) -> bool:
        minutes = self.config.checkpoint_minutes
        return self.ranks.is_first and bool(minutes) and time.monotonic() - self.saved_at >= 60 * minutes

    def save_checkpoint(self) -> Path | None:
        """Write a checkpoint of the current step; its path on rank 0. Older ones make room (`checkpoint_keep`).

        Raises:
            SaveError: on every rank, if any rank cannot write.
        """
        self.saved_at = time.monotonic()
        writer = CheckpointWriter(self.folder / "checkpoints", self.step)
        path, error = None, None
        try:
            writer.save_rank(self.ranks.rank, self._rank_state())
        except SaveError as fault:
            error = fault
        try:
            distributed.raise_together(error, self.ranks)
            if self.ranks.is_first:
                path = self._save_shared(writer)
        except SaveError as fault:
            if self.ranks.is_first:
                writer.discard()
            error = fault
        distributed.raise_together(error, self.ranks)
        self.saved_step = self.step
        return path

    def _save_shared(self, writer: CheckpointWriter) -> Path:
        config = self.config
        progress = {
            **vars(self.progress),
            "step": self.step,
            "total_steps": self.total_steps,
            "world_size": self.ranks.world_size,
            "data": self.data,
            "samples": self.step // config.arch.steps_per_batch * config.global_batch_size,
        }
        self.logger.to_disk()
        path = writer.save_shared(
            self.model,
            None if self.learner.ema is None else self.learner.ema.state_dict(),
            self.learner.optimizer.state_dict(),
            dump_config(config),
            self.trained_on,
            progress,
        )
        if self.progress.best_step == self.step:
            checkpoint_folder.link_best(path.parent, path)
        checkpoint_folder.prune(path.parent, config.checkpoint_keep, self.progress.best_step)
        return path

    def _rank_state(self) -> dict[str, Any]:
        state = {"carry": carry_tensors(self.carry), "rng": torch.get_rng_state(), "window": self.window.state_dict()}
        state["source"] = {self.config.data.name: self.train_data.state_dict()}
        if self.ranks.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.ranks.device)
        return state
