"""Everything that one run holds, and its training step: the same for every model."""

import logging
import math
import time
from contextlib import nullcontext
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
from dataset.sources import TrainSource
from dataset.trained_on import TrainedOn
from inference.evaluation import Evaluation, evaluate
from learning.ema import EMA
from learning.guards import NonFiniteError, non_finite_parts
from learning.optim import (
    PuzzleEmbeddingSGD,
    clip_gradients,
    drop_frozen_gradients,
    gradient_norms,
    learning_rate,
    set_learning_rates,
)
from models.act import EXPLORATION_KEY, exploration_draws
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
    head: ACTLossHead
    optimizer: torch.optim.Optimizer
    puzzle_optimizer: PuzzleEmbeddingSGD
    ema: EMA | None
    trained_on: TrainedOn
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
    def model(self) -> Any:
        return self.head.model

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
        if self.carry is None:
            self.carry = self.fresh_carry(batch)
        slots = self.ranks.local_slots(config.global_batch_size)
        draws = exploration_draws(config.seed, self.step, config.global_batch_size, slots)
        batch = {**batch, EXPLORATION_KEY: draws.to(self.ranks.device, non_blocking=True)}
        self.carry, loss, sums, outputs = self.head(self.carry, batch)
        (loss / config.global_batch_size).backward()
        norms = self._optimizer_step(loss.detach().float())
        self.step += 1
        return (sums | norms if norms else {}), outputs

    def _optimizer_step(self, loss: Tensor) -> dict[str, Tensor]:
        """The gradients' norms before clipping; empty where the step was skipped."""
        config = self.config
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        # What the ranks must agree on goes through the gradients' own reduction: no further message in a step.
        puzzle_norm = torch.stack([loss.new_zeros(()), *(g.norm() for g in self.puzzle_optimizer.gradients())]).norm()
        flags = torch.tensor([bool(self.stop), self._is_time_to_save()], dtype=torch.float32)
        control = torch.cat([torch.stack([loss, puzzle_norm.float()]), flags.to(loss.device, non_blocking=True)])
        distributed.sum_over_ranks([*grads, control], self.ranks)
        base_lr = self.base_lr
        set_learning_rates(self.optimizer, base_lr, self.step)
        norms = gradient_norms(self.optimizer)
        parts = torch.stack([control[0], control[1], *norms.values()]).abs().sum()
        finite, stops, saves = torch.cat([parts[None], control[2:]]).tolist()  # the one wait for the device in a step
        self.stop_agreed, self.save_agreed = stops > 0, saves > 0
        if not math.isfinite(finite):
            self._leave_out_step(loss, control)
            return {}
        if config.grad_clip_norm:
            clip_gradients(self.optimizer, norms["total"], config.grad_clip_norm)
        drop_frozen_gradients(self.optimizer)
        self.optimizer.step()
        norms |= self.puzzle_optimizer.step(base_lr / config.lr * config.puzzle_emb_lr)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        return {f"grad/{name}_norm": norm for name, norm in norms.items()}

    def _leave_out_step(self, loss: Tensor, control: Tensor) -> None:
        """After a loss or a gradient that is not finite: stop, or go on with fresh carries and the same weights."""
        parts = non_finite_parts(self.model, loss, control[:2].tolist(), self.ranks)
        reason = f"step {self.step + 1}: {parts}; no weight has been changed by it"
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
        self.optimizer.zero_grad(set_to_none=True)
        self.puzzle_optimizer.skip()
        self.carry = None

    @property
    def base_lr(self) -> float:
        """The schedule's rate at the current step."""
        return learning_rate(
            self.step,
            lr=self.config.lr,
            warmup_steps=self.config.lr_warmup_steps,
            total_steps=self.total_steps,
            min_ratio=self.config.lr_min_ratio,
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
                workers=self.config.data_workers,
                description=description,
                stop=self.stop,
            )

    def averaged_weights(self) -> Any:
        return nullcontext() if self.ema is None else self.ema.swapped_in()

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
            "samples": self.step // config.arch.steps_per_batch * config.global_batch_size,
        }
        self.logger.to_disk()
        path = writer.save_shared(
            self.model,
            None if self.ema is None else self.ema.state_dict(),
            self.optimizer.state_dict(),
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
