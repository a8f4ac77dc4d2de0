"""What learns from batches: a model with its loss, optimizer and average, and one training step.

A training run, the adaptation of a model to one task, and a test use it alike: it knows no folder, clock or schedule.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from learning.ema import EMA
from learning.groups import clip_gradients, drop_frozen_gradients, gradient_norms, set_learning_rates
from learning.guards import non_finite_parts
from learning.optim import OptimizerOptions, PuzzleEmbeddingSGD, create_optimizer
from models.act import Batch
from models.losses import ACTLossHead
from utils.distributed import Ranks, sum_over_ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


def no_flags() -> Sequence[bool]:
    """Nothing to agree on."""
    return ()


@dataclass(frozen=True)
class LearnerOptions:
    """How a model learns.

    global_batch_size: samples of a step on all ranks; gradients are of loss / global_batch_size.
    grad_clip_norm: 0 = off.
    ema_rate: None = no average.
    """

    optimizer: OptimizerOptions
    global_batch_size: int
    grad_clip_norm: float = 1.0
    ema_rate: float | None = None
    puzzle_emb_lr: float = 1e-2
    puzzle_emb_weight_decay: float = 0.1


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind.

    carry: None after a step that was left out.
    sums: for the metrics, with `grad/*_norm` before clipping; empty after a step that was left out.
    outputs: the model's, still on the device.
    flags: how many ranks had each flag set.
    fault: names what was not finite, so that the step was left out.
    """

    carry: Any
    sums: dict[str, Tensor]
    outputs: dict[str, Tensor]
    flags: list[float]
    fault: str | None = None


@dataclass
class Learner:
    """Built by `create_learner`; the model is in training mode when it steps.

    reduce: adds tensors up over ranks in place; it gets the gradients before they are clipped, and a few numbers.
    """

    head: ACTLossHead
    optimizer: Optimizer
    puzzle_optimizer: PuzzleEmbeddingSGD
    ema: EMA | None
    options: LearnerOptions
    ranks: Ranks = ALONE
    reduce: Callable[[list[Tensor], Ranks], None] = sum_over_ranks

    @property
    def model(self) -> Any:
        return self.head.model

    def step(
        self, carry: Any, batch: Batch, number: int, lr: float, flags: Callable[[], Sequence[bool]] = no_flags
    ) -> StepResult:
        """One ACT step, one backward, one optimizer step. If anything is not finite no weight changes.

        Args:
            carry: of the step before; None starts every sample of the batch.
            number: steps before this one; submodules that are frozen at first count them.
            lr: the rate of this step; the optimizer's other rates keep their ratio to it.
            flags: asked after the backward pass; summed over ranks in the gradients' own reduction.
        """
        if carry is None:
            carry = self.model.initial_carry(batch)
        carry, loss, sums, outputs = self.head(carry, batch)
        (loss / self.options.global_batch_size).backward()
        return self.learn(StepResult(carry, sums, outputs, []), loss, number, lr, flags)

    def learn(
        self, result: StepResult, loss: Tensor, number: int, lr: float, flags: Callable[[], Sequence[bool]] = no_flags
    ) -> StepResult:
        """The optimizer step after a backward pass, which was somebody else's or `step`'s.

        Args:
            result: of the pass; what is returned besides is what the step adds.
            loss: that of the pass, before it was divided.
        """
        carry, sums, outputs = result.carry, result.sums, result.outputs
        loss = loss.detach().float()
        control = self._reduced(loss, flags())
        set_learning_rates(self.optimizer, lr, number)
        norms = gradient_norms(self.optimizer)
        parts = torch.stack([control[0], control[1], *norms.values()]).abs().sum()
        finite, *counts = torch.cat([parts[None], control[2:]]).tolist()  # the one wait for the device in a step
        if not math.isfinite(finite):
            return StepResult(None, {}, outputs, counts, self._left_out(loss, control))
        norms |= self._update(norms["total"], lr)
        return StepResult(carry, sums | {f"grad/{name}_norm": norm for name, norm in norms.items()}, outputs, counts)

    def _reduced(self, loss: Tensor, flags: Sequence[bool]) -> Float[Tensor, " numbers"]:
        """Sum the gradients over ranks; the sums of loss, norm of the puzzle embeddings' gradients, and flags."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        puzzle_norm = torch.stack([loss.new_zeros(()), *(g.norm() for g in self.puzzle_optimizer.gradients())]).norm()
        flagged = torch.tensor(flags, dtype=torch.float32).to(loss.device, non_blocking=True)
        control = torch.cat([torch.stack([loss, puzzle_norm.float()]), flagged])
        self.reduce([*grads, control], self.ranks)
        return control

    def _update(self, total_norm: Tensor, lr: float) -> dict[str, Tensor]:
        """Clip, move weights, embeddings and average; the norm of the embeddings' gradient, where there are any."""
        options = self.options
        if options.grad_clip_norm:
            clip_gradients(self.optimizer, total_norm, options.grad_clip_norm)
        drop_frozen_gradients(self.optimizer)
        self.optimizer.step()
        norms = self.puzzle_optimizer.step(lr / options.optimizer.lr * options.puzzle_emb_lr)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        return norms

    def _left_out(self, loss: Tensor, control: Tensor) -> str:
        """Drop the gradients of this step; what was not finite."""
        fault = non_finite_parts(self.model, loss, control[:2].tolist(), self.ranks)
        self.optimizer.zero_grad(set_to_none=True)
        self.puzzle_optimizer.skip()
        return fault

    def averaged_weights(self) -> AbstractContextManager[None]:
        """The model with its averaged weights inside the block, where there are any."""
        return nullcontext() if self.ema is None else self.ema.swapped_in()


def create_learner(head: ACTLossHead, options: LearnerOptions, ranks: Ranks = ALONE) -> Learner:
    """A learner of a model as it is now: its average starts at the present weights."""
    model = head.model
    return Learner(
        head=head,
        optimizer=create_optimizer(model, options.optimizer),
        puzzle_optimizer=PuzzleEmbeddingSGD(model, options.puzzle_emb_weight_decay, ranks),
        ema=None if options.ema_rate is None else EMA(model, options.ema_rate),
        options=options,
        ranks=ranks,
    )
