"""What a training run asks of its data: a finite data set on disk and a generator that never ends are both sources."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from dataset.batches import Batch
from dataset.trained_on import TrainedOn

LESSONS_READ = "train/lessons_read"  # of all curricula together


@dataclass(frozen=True)
class SampleResults:
    """What a step did with each of its samples.

    data: the batch's keys, of the samples that were worked on.
    halted: 1 where the sample is done with, else 0.
    exact: 1 where the prediction is exactly right, else 0.
    """

    data: Batch
    halted: Float[Tensor, " batch"]
    exact: Float[Tensor, " batch"]


class TrainSource(Dataset[Batch], ABC):
    """Training batches by number: `source[number]` is this rank's part of a global batch.

    A batch is a function of its number and of the source's state, and reading it changes nothing: so any batch can be
    made again, in any order, and a run goes on where it was. A source without a state may be read by worker processes.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Batches of the whole run."""

    @abstractmethod
    def __getitem__(self, number: int) -> Batch:
        """A batch, by its number from 0."""

    @abstractmethod
    def epoch_of(self, num_batches: int) -> int:
        """How many epochs are complete after this many batches; evaluations are counted in these."""

    @abstractmethod
    def trained_on(self) -> TrainedOn:
        """What weights have seen that train on all of it."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What it draws from, in a few words for the log."""

    @property
    def num_groups(self) -> int:
        """The `puzzle_groups` of its batches are below this; a mixture counts those of the next source on from here."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many groups its batches have")

    def observe(self, step: int, sums: dict[str, Tensor], samples: SampleResults) -> None:
        """Learn how training goes, after each optimizer step that was not skipped; a curriculum may heed it.

        Args:
            sums: the loss head's, over this rank's samples, still on the device: reading them waits for it, and what
                the ranks must agree on is summed over them first.
            samples: of this rank, on the device as well.
        """

    def metrics(self) -> dict[str, float]:
        """What there is to log of its state; the same on every rank."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What else than its number decides a batch, as tensors and plain values; empty where nothing does.

        A source says from the start whether it has a state: its keys stay the same.
        """
        return {}

    def joined_states(self, states: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
        """Of the states of all ranks, the one with which a rank of another number of them goes on."""
        return states[0]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the state of `state_dict`; never called for a source without one."""
