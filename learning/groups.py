"""Groups of parameters: how the model is divided among them, and what is done to all: rates, norms, clipping."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class GroupOptions:
    """How a submodule's parameters are trained."""

    lr_scale: float = 1.0
    frozen: bool = False
    frozen_steps: int = 0


def undivided(module: nn.Module) -> list[dict[str, Any]]:
    """All parameters of a submodule in one group."""
    return [{"params": list(module.parameters())}]


def parameter_groups(
    model: nn.Module,
    options: dict[str, GroupOptions],
    kinds: Callable[[nn.Module], list[dict[str, Any]]] = undivided,
) -> list[dict[str, Any]]:
    """Optimizer groups for each direct submodule (`encoder`, `inner`), without frozen ones.

    Each parameter of the model is in exactly one group or frozen submodule, which is asserted. Frozen parameters get
    `requires_grad=False`.

    Args:
        kinds: divides a submodule into groups; an `lr_scale` that it gives multiplies the submodule's.
    """
    groups = []
    placed: list[int] = []
    for name, module in model.named_children():
        option = options.get(name, GroupOptions())
        parts = kinds(module)
        placed += [id(p) for part in parts for p in part["params"]]
        if option.frozen:
            module.requires_grad_(False)
            continue
        for part in parts:
            lr_scale = option.lr_scale * part.get("lr_scale", 1.0)
            if part["params"]:
                groups.append({**part, "name": name, "lr_scale": lr_scale, "frozen_steps": option.frozen_steps})
    everything = [id(p) for p in model.parameters()]
    assert sorted(placed) == sorted(everything), "the submodules must partition the parameters"
    return groups


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
    """The norm of each submodule's gradient by name, and `total`: that of those that are trained at this step."""
    grads: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        grads.setdefault(group["name"], []).extend(p.grad for p in group["params"] if p.grad is not None)
    norms = {
        name: torch.stack(torch._foreach_norm(part)).norm() if part else torch.zeros(()) for name, part in grads.items()
    }
    active = {group["name"] for group in optimizer.param_groups if group["active"]}
    trained = [norm for name, norm in norms.items() if name in active]
    norms["total"] = torch.stack(trained).norm() if trained else torch.zeros(())
    return norms


def clip_gradients(optimizer: Optimizer, total_norm: Float[Tensor, ""], max_norm: float) -> None:
    """Scale the gradients, whose global norm is `total_norm`, to a norm of at most `max_norm`."""
    scale = (max_norm / (total_norm + 1e-6)).clamp(max=1.0)
    for group in optimizer.param_groups:
        grads = [p.grad for p in group["params"] if p.grad is not None]
        if grads:
            torch._foreach_mul_(grads, scale)
