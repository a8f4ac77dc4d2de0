"""Training batches of several sources: each gives its share of every batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.batches import DEMONSTRATION_KEYS, Batch
from dataset.sources import LESSONS_READ, SampleResults, TrainSource
from dataset.store import DatasetError
from dataset.trained_on import TrainedOn


@dataclass(frozen=True)
class Shares:
    """Samples of each source in a global batch: they go evenly from `first` to `last` over `over` batches, and are
    whole numbers for each of `world_size` ranks.

    Raises:
        DatasetError: they are not, or do not make up a batch; the message says what would be right.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]
    over: int
    global_batch_size: int
    world_size: int

    def __post_init__(self) -> None:
        for shares in {self.first: None, self.last: None}:
            if sum(shares) != self.global_batch_size:
                raise DatasetError(
                    f"data.sources: the shares {', '.join(map(str, shares))} are {sum(shares)} samples, but a batch "
                    f"has global_batch_size={self.global_batch_size}"
                )
            for number, share in enumerate(shares):
                if share % self.world_size:
                    fitting = max(share // self.world_size, 1) * self.world_size
                    raise DatasetError(
                        f"data.sources.{number}.share={share}: {self.world_size} ranks cannot share it evenly; "
                        f"it must be a multiple of {self.world_size}, such as {fitting}"
                    )

    def of_rank(self, batch: int) -> list[int]:
        """Samples of each source in each rank's part of a batch."""
        done, unit = min(batch, self.over), self.over * self.world_size
        bounds, total = [0], 0
        for first, last in zip(self.first, self.last, strict=True):
            total += first * self.over + (last - first) * done
            bounds.append((2 * total + unit) // (2 * unit))  # rounded sums: a share that does not change stays exact
        return [end - start for start, end in pairwise(bounds)]

    def most(self) -> list[int]:
        """The largest share that each source ever has, of a global batch."""
        is_constant = self.first == self.last
        parts = [self.of_rank(batch) for batch in range(1 if is_constant else self.over + 1)]
        return [max(column) * self.world_size for column in zip(*parts, strict=True)]


class MixtureSource(TrainSource):
    """The batches of several sources, one after the other in each batch; a rank has its part of each.

    The `puzzle_groups` of a source are counted on from those of the sources before it.

    Args:
        sources: each makes batches of its largest share (`Shares.most`), of which evenly spread ones are taken.
        num_batches: of the run; an epoch has `epoch_batches`.
    """

    def __init__(self, sources: Sequence[TrainSource], shares: Shares, num_batches: int, epoch_batches: int):
        self.sources = list(sources)
        self.shares, self.num_batches, self.epoch_batches = shares, num_batches, epoch_batches
        self.first_group = [0]
        for source in self.sources:
            self.first_group.append(self.first_group[-1] + source.num_groups)

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        parts = []
        for share, source, group in zip(self.shares.of_rank(number), self.sources, self.first_group[:-1], strict=True):
            if share:
                part = _some_of(source[number], share)
                parts.append(part | {"puzzle_groups": part["puzzle_groups"] + group})
        slots = max(part["demo_mask"].shape[1] for part in parts)
        padded = [_with_slots(part, slots) for part in parts]
        return {key: torch.cat([part[key] for part in padded]) for key in padded[0]}

    def epoch_of(self, num_batches: int) -> int:
        return num_batches // self.epoch_batches

    @property
    def num_groups(self) -> int:
        return self.first_group[-1]

    def trained_on(self) -> TrainedOn:
        seen = TrainedOn()
        for source in self.sources:
            seen = seen.joined(source.trained_on())
        return seen

    @property
    def description(self) -> str:
        shares = zip(self.shares.first, self.shares.last, strict=True)
        shown = (str(first) if first == last else f"{first} to {last}" for first, last in shares)
        described = (source.description for source in self.sources)
        return "; ".join(f"{share} a batch of {what}" for share, what in zip(shown, described, strict=True))

    def observe(self, step: int, sums: dict[str, Tensor], samples: SampleResults) -> None:
        """Each source hears of its own samples; the others are there as not halted, so that no device is waited for."""
        groups = samples.data["puzzle_groups"]
        for source, first, end in zip(self.sources, self.first_group[:-1], self.first_group[1:], strict=True):
            is_own = (groups >= first) & (groups < end)
            own_groups = torch.where(is_own, groups - first, 0)
            own = replace(
                samples,
                data={**samples.data, "puzzle_groups": own_groups},
                halted=samples.halted * is_own,
                exact=samples.exact * is_own,
            )
            source.observe(step, sums, own)

    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for source in self.sources:
            for key, value in source.metrics().items():
                found[key] = value + (found.get(key, 0.0) if key == LESSONS_READ else 0.0)
        return found

    def state_dict(self) -> dict[str, Any]:
        states = {str(number): source.state_dict() for number, source in enumerate(self.sources)}
        return {number: state for number, state in states.items() if state}

    def joined_states(self, states: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
        parts = {number: [state[number] for state in states] for number in states[0]}
        return {number: self.sources[int(number)].joined_states(part, rank) for number, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for number, part in state.items():
            self.sources[int(number)].load_state_dict(part)


def _some_of(batch: Batch, count: int) -> Batch:
    """As many samples of a batch, evenly spread: of all ranks together they are those that one rank would take."""
    chosen = torch.arange(count) * len(batch["inputs"]) // count
    return {key: value[chosen] for key, value in batch.items()}


def _with_slots(batch: Batch, slots: int) -> Batch:
    """The batch with as many slots for demonstrations, the last of them empty."""
    padded = {}
    for key in DEMONSTRATION_KEYS:
        missing = slots - batch[key].shape[1]
        padded[key] = F.pad(batch[key], (0, 0) * (batch[key].dim() - 2) + (0, missing))
    return {**batch, **padded}
