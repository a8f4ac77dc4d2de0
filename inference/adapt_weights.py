"""Weights that learn from a task: a copy of a model with an optimizer and an average of its own."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from config.arch_schema import AnyArch
from dataset.batches import Batch
from inference.adapt_options import AdaptOptions
from inference.adapt_views import TaskViews
from learning.groups import GroupOptions
from learning.learner import Learner, LearnerOptions, StepResult, create_learner
from learning.optim import OptimizerOptions, learning_rate
from models.act import RecursiveReasoner
from models.layers import Linear, trunc_normal_
from models.losses import create_loss_head


class LowRank(nn.Module):
    """weight + up · down, which is the weight itself at first."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        rank = min(rank, *weight.shape)
        self.down = nn.Parameter(trunc_normal_(weight.new_empty(rank, weight.shape[1]), weight.shape[1] ** -0.5))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def add_low_rank(model: nn.Module, rank: int) -> None:
    """Let every matrix of the model change by a product of rank `rank`, and nothing else."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, Linear):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))


def create_task_learner(model: RecursiveReasoner, arch: AnyArch, options: AdaptOptions) -> Learner:
    """A learner of a copy of the model; what of it is trained, `options.weights` says."""
    model = copy.deepcopy(model)
    model.requires_grad_(True)
    if options.weights == "lora":
        add_low_rank(model, options.lora_rank)
    optimizer = OptimizerOptions(
        name=options.optimizer,
        lr=options.lr,
        muon_lr=options.muon_lr,
        weight_decay=options.weight_decay,
        inner=GroupOptions(frozen=options.weights == "encoder_only"),
    )
    learner_options = LearnerOptions(optimizer, options.views, options.grad_clip_norm, options.ema_rate)
    return create_learner(create_loss_head(arch, model), learner_options)


@dataclass
class Course:
    """One set of weights that learns from some of a task's pairs.

    total: updates of it in all, where that is known; a cosine schedule ends there.
    losses: of the updates since they were last read.
    """

    learner: Learner
    views: TaskViews
    options: AdaptOptions
    total: int | None
    device: torch.device
    updates: int = 0
    losses: list[Tensor] = field(default_factory=list)
    carry: Any = None
    batch: Batch = field(default_factory=dict)

    @property
    def act_steps(self) -> int:
        return self.options.act_steps or self.learner.model.max_steps

    def update(self) -> str | None:
        """One ACT step and optimizer step; what was not finite, if anything, so that nothing was changed."""
        self.begin()
        return self.end(self.learner.step(self.carry, self.batch, self.updates, self.rate()))

    def begin(self) -> None:
        """Have the batch, and the carry, of the next update."""
        step = self.updates % self.act_steps
        if step == 0:
            drawn = self.views[self.updates // self.act_steps]
            self.batch = {key: value.to(self.device, non_blocking=True) for key, value in drawn.items()}
            self.carry = None
        torch.manual_seed((self.views.key + self.updates) % (1 << 63))  # for encoders that sample

    def end(self, result: StepResult) -> str | None:
        """Take what an update left behind; what was not finite, if anything."""
        self.carry, self.updates = result.carry, self.updates + 1
        if result.fault is None:
            self.losses.append(result.sums["lm_loss"] / self.options.views)
        return result.fault

    def rate(self) -> float:
        """The learning rate of the next update."""
        options = self.options
        falls = options.schedule == "cosine" and self.total is not None
        return learning_rate(
            self.updates,
            lr=options.lr,
            warmup_steps=options.warmup_updates,
            total_steps=self.total if falls and self.total else self.updates + 1,
            min_ratio=0.0 if falls else 1.0,
        )

    def mean_loss(self) -> float | None:
        """Token loss of the updates since the last call; None where there were none."""
        losses, self.losses = self.losses, []
        return float(torch.stack(losses).mean()) if losses else None

    @contextmanager
    def answering(self) -> Iterator[RecursiveReasoner]:
        """The model with its averaged weights, in evaluation mode, inside the block."""
        model = self.learner.model.eval()
        with self.learner.averaged_weights(), torch.no_grad():
            yield model
        model.train()

    @torch.no_grad()
    def settle(self) -> RecursiveReasoner:
        """The model with its averaged weights for good; nothing can be learned after this."""
        ema = self.learner.ema
        if ema is not None:
            for parameter, average in zip(ema.params, ema.shadow, strict=True):
                parameter.copy_(average)
        return self.learner.model.eval()
