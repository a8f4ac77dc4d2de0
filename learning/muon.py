"""Muon: momentum made orthogonal for hidden matrices, AdamATan2 for everything else.

A matrix moves by an update whose singular values are all near one, so that no direction of the gradient drowns the
rest. Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from learning.adam_atan2 import AdamATan2
from models.layers import CrossAttention, SelfAttention, SwiGLU

MOMENTUM = 0.95
# Newton-Schulz: five times x = a·x + (b·xxᵀ + c·(xxᵀ)²)·x moves the singular values of (0, 1] into about [0.7, 1.2].
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-12

# Maps to tokens and to halting: not between hidden vectors.
OUTPUT_HEADS = ("lm_head", "q_head")
# Projections that hold several matrices one above the other, and how many.
FUSED: dict[type[nn.Module], tuple[str, int]] = {
    SelfAttention: ("qkv_proj", 3),
    CrossAttention: ("kv_proj", 2),
    SwiGLU: ("gate_up_proj", 2),
}


def hidden_matrices(module: nn.Module) -> dict[Tensor, int]:
    """The weights of linear maps between hidden vectors, each with the number of matrices that it holds."""
    found = {
        part.weight: 1
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and name.rsplit(".", 1)[-1] not in OUTPUT_HEADS and min(part.weight.shape) > 1
    }
    for part in module.modules():
        for kind, (name, count) in FUSED.items():
            if isinstance(part, kind):
                found[part.get_parameter(f"{name}.weight")] = count
    return found


def by_kind(module: nn.Module, lr_ratio: float) -> list[dict[str, Any]]:
    """Two groups: the hidden matrices, with `lr_ratio` times the rate of the rest, and the rest."""
    matrices = hidden_matrices(module)
    return [
        {"params": list(matrices), "fused": list(matrices.values()), "lr_scale": lr_ratio},
        {"params": [p for p in module.parameters() if p not in matrices]},
    ]


def orthogonalized(matrices: Float[Tensor, "n rows cols"]) -> Float[Tensor, "n rows cols"]:
    """About U·Vᵀ for each matrix U·S·Vᵀ, by Newton-Schulz iterations."""
    rows, cols = matrices.shape[-2:]
    x = matrices.mT if rows > cols else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if rows > cols else x


class Muon(AdamATan2):
    """Groups with `fused` are hidden matrices, that many in each parameter; the others are AdamATan2's.

    m = 0.95·m + 0.05·g; p *= 1 - lr·wd; p -= lr · sqrt(max(1, rows/cols)) · orthogonalized(0.05·g + 0.95·m).
    """

    def _update(self, group: dict[str, Any]) -> None:
        if "fused" not in group:
            super()._update(group)
            return
        trained = [(p, n) for p, n in zip(group["params"], group["fused"], strict=True) if p.grad is not None]
        if not trained:
            return
        params = [p for p, _ in trained]
        grads = [p.grad for p in params]
        for p in params:
            if not self.state[p]:
                self.state[p] = {"momentum": torch.zeros_like(p)}
        momenta = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
        directions = torch._foreach_lerp(grads, momenta, MOMENTUM)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        pieces = [piece for d, (_, n) in zip(directions, trained, strict=True) for piece in d.chunk(n)]
        targets = [piece for p, n in trained for piece in p.chunk(n)]
        self._move(targets, pieces, group["lr"])

    @staticmethod
    def _move(targets: list[Tensor], directions: list[Tensor], lr: float) -> None:
        """Those of one shape are orthogonalised together."""
        shapes: dict[torch.Size, list[int]] = {}
        for i, direction in enumerate(directions):
            shapes.setdefault(direction.shape, []).append(i)
        for (rows, cols), indices in shapes.items():
            updates = orthogonalized(torch.stack([directions[i] for i in indices]))
            step = -lr * max(1.0, rows / cols) ** 0.5
            torch._foreach_add_([targets[i] for i in indices], list(updates.unbind()), alpha=step)
