"""Exponential moving average of the parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """shadow = rate · shadow + (1 - rate) · parameter after each optimizer step; buffers are not averaged."""

    def __init__(self, model: nn.Module, rate: float):
        self.rate = rate
        self.names = [name for name, _ in model.named_parameters()]
        self.params = [p for _, p in model.named_parameters()]
        self.shadow = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the current parameters."""
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.params], 1 - self.rate)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model with averaged weights inside the block, with its own again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for param, average in zip(self.params, self.shadow, strict=True):
            kept = param.detach().clone()
            param.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by parameter name."""
        return dict(zip(self.names, self.shadow, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take averages by parameter name, all of them."""
        for name, average in zip(self.names, self.shadow, strict=True):
            average.copy_(state[name])
