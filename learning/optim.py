"""AdamATan2, sign-SGD for puzzle embeddings, parameter groups, the learning-rate schedule, gradient clipping."""

import importlib
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from models.recursive_reasoning.trm import PuzzleEmbedding
from utils.distributed import Ranks, gather_rows

log = logging.getLogger(__name__)


class AdamATan2(Optimizer):
    """Adam with atan2 in place of the division, so that no epsilon is needed and steps are bounded.

    p *= 1 - lr·wd; p -= lr / (1 - β1^t) · atan2(m, sqrt(v) / sqrt(1 - β2^t)). Source: "Scaling Exponents Across
    Parameterizations and Optimizers", arXiv 2407.05872. A group with `active` False is left as it is: no decay, and
    no change of its moments.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
    ):
        if lr < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr={lr}, betas={betas}, weight_decay={weight_decay}: out of range")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "active": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all active groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["active"]:
                self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        grads = [p.grad for p in params]
        exp_avgs = [self.state[p]["exp_avg"] for p in params]
        exp_avg_sqs = [self.state[p]["exp_avg_sq"] for p in params]
        steps = [self.state[p]["step"] for p in params]
        beta1, beta2 = group["betas"]
        lr = group["lr"]

        torch._foreach_add_(steps, 1)  # on the CPU: reading it synchronises nothing
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        counts = [float(step) for step in steps]
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_div_(denominators, [math.sqrt(1 - beta2**t) for t in counts])
        updates = [torch.atan2(m, d) for m, d in zip(exp_avgs, denominators, strict=True)]
        torch._foreach_mul_(updates, [-lr / (1 - beta1**t) for t in counts])
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, updates)


def adam_atan2_class(device: torch.device) -> Callable[..., Optimizer]:
    """The CUDA kernel of the extra `[fused]` where it is installed and imports, else `AdamATan2`."""
    if device.type == "cuda":
        try:
            return importlib.import_module("adam_atan2").AdamATan2
        except (ImportError, OSError, AttributeError) as error:
            log.info("fused AdamATan2 is not to be had (%s): using the multi-tensor form", error)
    return AdamATan2


class PuzzleEmbeddingSGD:
    """Sign-SGD with decoupled weight decay on the rows that a batch touches, the same on every rank.

    row = (1 - lr·wd) · row - lr · sign(Σ gradients of the row, over samples and ranks). No state.
    """

    def __init__(self, model: nn.Module, weight_decay: float, ranks: Ranks):
        self.embeddings = [module for module in model.modules() if isinstance(module, PuzzleEmbedding)]
        self.weight_decay, self.ranks = weight_decay, ranks

    def gradients(self) -> list[Tensor]:
        """This rank's gradients after a backward pass: of each embedding, the rows that its batch has touched."""
        rows = [embedding.touched[1] for embedding in self.embeddings if embedding.touched is not None]
        return [row.grad for row in rows if row.grad is not None]

    def skip(self) -> None:
        """Leave the embeddings as they are after a backward pass."""
        for embedding in self.embeddings:
            embedding.touched = None

    @torch.no_grad()
    def step(self, lr: float) -> dict[str, Float[Tensor, ""]]:
        """Update after a backward pass; the norm of the gradient by name, where there are embeddings."""
        norms = {}
        for embedding in self.embeddings:
            assert embedding.touched is not None, "a training step must come first"
            identifiers, rows = embedding.touched
            embedding.touched = None
            assert rows.grad is not None
            identifiers, grads = (gather_rows(part, self.ranks) for part in (identifiers.long(), rows.grad))
            # Each sample adds to the first one of its puzzle and reads the sum there: no size depends on the data.
            first = (identifiers[:, None] == identifiers).int().argmax(dim=1)
            summed = torch.zeros_like(grads).index_add(0, first, grads)
            updated = embedding.weights[identifiers] * (1 - lr * self.weight_decay) - lr * summed[first].sign()
            embedding.weights.index_copy_(0, identifiers, updated)
            norms["puzzle_emb"] = summed.norm()
        return norms


@dataclass(frozen=True)
class GroupOptions:
    """How a submodule's parameters are trained."""

    lr_scale: float = 1.0
    frozen: bool = False
    frozen_steps: int = 0


def parameter_groups(model: nn.Module, options: dict[str, GroupOptions]) -> list[dict[str, Any]]:
    """One optimizer group for each direct submodule (`encoder`, `inner`), without frozen ones.

    Each parameter of the model is in exactly one submodule, which is asserted. Frozen parameters get
    `requires_grad=False`.
    """
    groups = []
    placed: list[int] = []
    for name, module in model.named_children():
        option = options.get(name, GroupOptions())
        params = list(module.parameters())
        placed += [id(p) for p in params]
        if option.frozen:
            module.requires_grad_(False)
        elif params:
            groups.append(
                {
                    "params": params,
                    "name": name,
                    "lr_scale": option.lr_scale,
                    "frozen_steps": option.frozen_steps,
                }
            )
    everything = [id(p) for p in model.parameters()]
    assert sorted(placed) == sorted(everything), "the submodules must partition the parameters"
    return groups


def learning_rate(step: int, *, lr: float, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Linear warm-up, then half a cosine down to `min_ratio` · lr at `total_steps`. `step` counts from 0."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return lr * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rates(optimizer: Optimizer, base_lr: float, step: int) -> None:
    """Give each group its rate for this step, and switch on the groups whose frozen steps are over."""
    for group in optimizer.param_groups:
        group["active"] = step >= group["frozen_steps"]
        group["lr"] = base_lr * group["lr_scale"] if group["active"] else 0.0


def drop_frozen_gradients(optimizer: Optimizer) -> None:
    """Free the gradients of groups that are not trained yet: the fused kernel waits for want of a gradient."""
    for group in optimizer.param_groups:
        if not group["active"]:
            for param in group["params"]:
                param.grad = None


def gradient_norms(optimizer: Optimizer) -> dict[str, Float[Tensor, ""]]:
    """The norm of each group's gradient by name, and `total`: that of the groups that are trained at this step."""
    norms: dict[str, Tensor] = {}
    trained: list[Tensor] = []
    for group in optimizer.param_groups:
        grads = [p.grad for p in group["params"] if p.grad is not None]
        norms[group["name"]] = torch.stack(torch._foreach_norm(grads)).norm() if grads else torch.zeros(())
        if group["active"]:
            trained.append(norms[group["name"]])
    norms["total"] = torch.stack(trained).norm() if trained else torch.zeros(())
    return norms


def clip_gradients(optimizer: Optimizer, total_norm: Float[Tensor, ""], max_norm: float) -> None:
    """Scale the gradients, whose global norm is `total_norm`, to a norm of at most `max_norm`."""
    scale = (max_norm / (total_norm + 1e-6)).clamp(max=1.0)
    for group in optimizer.param_groups:
        grads = [p.grad for p in group["params"] if p.grad is not None]
        if grads:
            torch._foreach_mul_(grads, scale)
