"""What a batch is: tensors by name, the first axis of each its samples; the demonstrations in it; reading ahead."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from jaxtyping import Bool, Int64, Integer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset.loading import outlive_signals, watched

Batch = dict[str, Tensor]
DEMONSTRATION_KEYS = ("demo_inputs", "demo_labels", "demo_mask")


class Demonstrations(NamedTuple):
    """The demonstration pairs of a batch as tokens; `mask` says which of the K slots hold a pair."""

    inputs: Integer[Tensor, "batch demos 900"]
    labels: Integer[Tensor, "batch demos 900"]
    mask: Bool[Tensor, "batch demos"]

    @classmethod
    def of(cls, batch: Batch) -> "Demonstrations":
        """Those of a batch, by its `DEMONSTRATION_KEYS`."""
        return cls(*(batch[key] for key in DEMONSTRATION_KEYS))


class Conditions(Protocol):
    """What else the samples of a data set bring along, by their numbers in its table of queries or tasks."""

    def of(self, samples: Int64[np.ndarray, " batch"]) -> Batch: ...


class NumberedBatches(Protocol):
    """Batches by number, for training or evaluation."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Batch: ...


def iterate(
    batches: NumberedBatches,
    *,
    start: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
    what: str = "the training batches",
) -> Iterator[Batch]:
    """Batches `start`, `start + 1`, ... in order, made ahead by worker processes where `workers` > 0.

    Args:
        what: they are, for a message.

    Raises:
        DataSourceError: the workers are dead, stuck, or cannot be started.
    """
    loader = DataLoader(
        cast(Dataset[Batch], batches),
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=outlive_signals,
        generator=torch.Generator(),  # its own: reading data takes no number from the training's generator
    )
    return watched(loader, what)
