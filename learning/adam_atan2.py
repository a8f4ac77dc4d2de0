"""AdamATan2, in the multi-tensor form or as the fused CUDA kernel."""

import importlib
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

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
