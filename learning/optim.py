"""The optimizers by name, sign-SGD for puzzle embeddings, the learning-rate schedule."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from learning.adam_atan2 import adam_atan2_class
from learning.groups import GroupOptions, parameter_groups
from learning.muon import Muon, by_kind
from models.recursive_reasoning.trm import PuzzleEmbedding
from utils.distributed import Ranks, gather_rows

DEFAULT_OPTIONS = GroupOptions()


@dataclass(frozen=True)
class OptimizerOptions:
    """Which optimizer trains a model, and how.

    muon_lr: the rate of hidden matrices under `muon`; schedules apply to it as to `lr`.
    """

    name: str = "adam_atan2"
    lr: float = 1e-4
    muon_lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    encoder: GroupOptions = DEFAULT_OPTIONS
    inner: GroupOptions = DEFAULT_OPTIONS

    @property
    def groups(self) -> dict[str, GroupOptions]:
        return {"encoder": self.encoder, "inner": self.inner}


def create_adam_atan2(model: nn.Module, options: OptimizerOptions) -> Optimizer:
    """AdamATan2 for every parameter."""
    groups = parameter_groups(model, options.groups)
    optimizer_class = adam_atan2_class(next(model.parameters()).device)
    return optimizer_class(groups, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay)


def create_muon(model: nn.Module, options: OptimizerOptions) -> Optimizer:
    """Muon for the hidden matrices, AdamATan2 for the rest."""
    kinds = partial(by_kind, lr_ratio=options.muon_lr / options.lr)
    groups = parameter_groups(model, options.groups, kinds)
    return Muon(groups, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay)


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimizerOptions], Optimizer]] = {
    "adam_atan2": create_adam_atan2,
    "muon": create_muon,
}


def create_optimizer(model: nn.Module, options: OptimizerOptions) -> Optimizer:
    """The optimizer named by `options.name` over what is not frozen of `encoder` and `inner`.

    Raises:
        ValueError: an unknown name.
    """
    if options.name not in OPTIMIZERS:
        raise ValueError(f"optimizer '{options.name}' is not one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[options.name](model, options)


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


def learning_rate(
    step: int, *, lr: float, warmup_steps: int, total_steps: int, min_ratio: float, decay_share: float = 1.0
) -> float:
    """Linear warm-up, then half a cosine down to `min_ratio` · lr at `total_steps`. `step` counts from 0.

    Args:
        decay_share: of the steps after the warm-up, the last, in which the rate falls; before them it is constant.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    falls_from = warmup_steps + (1 - decay_share) * max(0, total_steps - warmup_steps)
    progress = min(1.0, max(0.0, (step - falls_from) / max(1, total_steps - falls_from)))
    return lr * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
