"""Easy tasks first, family by family: each has a ladder of lessons, climbed as they are measured as read.

Families are learned in their order, a few at a time. A family whose lesson takes longer than `patience` batches stays,
and lets the next one begin beside it. What is read stays in the mix.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.known_rules.family import Lesson, Review
from dataset.sources import LESSONS_READ
from dataset.store import DatasetError
from utils import distributed
from utils.distributed import Ranks

# What is wholly known is still asked for, or its loss would not be seen.
LEAST_WEIGHT = 0.05


@dataclass(frozen=True)
class Place:
    """How far a curriculum is, from a batch on.

    read: lessons behind each ladder.
    since: the batch at which each ladder's present lesson began.
    opened: ladders that have begun, in their order.
    weights: of each lesson among those that are read; empty where they are alike.
    """

    batch: int
    read: tuple[int, ...]
    since: tuple[int, ...]
    opened: int
    weights: tuple[float, ...] = ()


class Curriculum:
    """Which lesson each sample is of; the same on all ranks, and for a batch that is made again.

    A sample knows its lesson by number. Exact match is measured by lesson over blocks of `measure_steps` optimizer
    steps, of all samples that halted in them.

    Args:
        ladders: of each family, lessons in the order of difficulty.
        at_once: families that are learned at a time.
        earlier_share: probability that a sample is of a lesson that is read.
        review: which of these: "even", each as likely; "forgotten", in proportion to 1 - exact match as measured last.
        patience: in batches.
        settle_after: batches after which no lesson begins, those that have begun are asked for like those that are
            read, and families of which none is read are left out.
        measure_samples: of a lesson, before its exact match is believed.
    """

    def __init__(
        self,
        ladders: Sequence[Sequence[Lesson]],
        ranks: Ranks,
        *,
        at_once: int = 1,
        earlier_share: float = 0.3,
        review: Review = "even",
        patience: int = 1000,
        settle_after: int | None = None,
        measure_steps: int = 100,
        measure_samples: int = 64,
    ):
        self.ladders = tuple(tuple(ladder) for ladder in ladders)
        self.lessons = tuple(lesson for ladder in self.ladders for lesson in ladder)
        self.first_of = np.cumsum([0, *(len(ladder) for ladder in self.ladders)])[:-1].tolist()
        self.ranks, self.at_once, self.earlier_share, self.review = ranks, at_once, earlier_share, review
        self.patience, self.measure_steps, self.measure_samples = patience, measure_steps, measure_samples
        self.settle_after = settle_after
        none = (0,) * len(self.ladders)
        self.places = [Place(0, none, none, min(at_once, len(self.ladders)))]
        self.steps = 0
        self.totals = torch.zeros(len(self.lessons), 2, dtype=torch.float64)  # exactly right, halted: this rank's
        self.exact_match: dict[int, float] = {}

    def place_at(self, batch: int) -> Place:
        """How far the curriculum was at a batch."""
        return self.places[bisect_right(self.places, batch, key=lambda place: place.batch) - 1]

    def lesson_of(self, batch: int, rng: np.random.Generator) -> int:
        """The number of the lesson that a sample of a batch is of."""
        place = self.place_at(batch)
        learning, known = self._choices(place)
        if self._is_settled(batch, place):
            known, learning = [*known, *(number for number in learning if number not in self.first_of)], []
        from_known = known and (not learning or rng.random() < self.earlier_share)
        choices = known if from_known else learning
        if from_known and place.weights:
            weights = np.array([place.weights[number] for number in known])
            return known[int(rng.choice(len(known), p=weights / weights.sum()))]
        return choices[int(rng.integers(len(choices)))]

    def _choices(self, place: Place) -> tuple[list[int], list[int]]:
        """The lessons that are being learned, and of each ladder the last one that is read."""
        learning, known = [], []
        for number, read in self._opened(place):
            if read < len(self.ladders[number]):
                learning.append(self.first_of[number] + read)
            if read:
                known.append(self.first_of[number] + read - 1)
        return learning, known

    def _is_settled(self, batch: int, place: Place) -> bool:
        """Whether no lesson begins any more; not before one is read."""
        return self.settle_after is not None and batch >= self.settle_after and any(place.read)

    @staticmethod
    def _opened(place: Place) -> Iterator[tuple[int, int]]:
        return enumerate(place.read[: place.opened])

    def observe(self, batch: int, lessons: Tensor, halted: Tensor, exact: Tensor) -> None:
        """Heed an optimizer step on a batch; the device is waited for at the end of a block alone.

        Args:
            lessons, halted, exact: (B) of this rank's samples.
        """
        counted = torch.stack([exact * halted, halted], dim=1).double()
        self.totals = self.totals.to(counted.device).index_add(0, lessons.long(), counted)
        self.steps += 1
        if self.steps < self.measure_steps:
            return
        self.steps = 0
        place = self._next_place(batch + 1, self._measured())
        last = self.places[-1]
        if (place.read, place.opened, place.weights) != (last.read, last.opened, last.weights):
            self.places.append(place)

    def _measured(self) -> set[int]:
        """End a block: the lessons that are measured by enough samples, whose count begins anew."""
        totals = self.totals.clone()
        distributed.sum_over_ranks([totals], self.ranks)
        rows = totals.tolist()
        measured = {number for number, (_, count) in enumerate(rows) if count >= self.measure_samples}
        self.exact_match |= {number: rows[number][0] / rows[number][1] for number in measured}
        self.totals[sorted(measured)] = 0
        return measured

    def _next_place(self, batch: int, measured: set[int]) -> Place:
        """Where the curriculum stands after a block."""
        place = self.places[-1]
        if self._is_settled(batch, place):
            return replace(place, batch=batch, weights=self._weights())
        read, since = list(place.read), list(place.since)
        for number in self._choices(place)[0]:
            if number in measured and self.exact_match[number] >= self.lessons[number].threshold:
                ladder = bisect_right(self.first_of, number) - 1
                read[ladder], since[ladder] = read[ladder] + 1, batch
        opened = place.opened
        busy = sum(self._is_busy(number, read[number], batch - since[number]) for number in range(opened))
        while busy < self.at_once and opened < len(self.ladders):
            since[opened], opened, busy = batch, opened + 1, busy + 1
        return Place(batch, tuple(read), tuple(since), opened, self._weights())

    def _weights(self) -> tuple[float, ...]:
        if self.review == "even":
            return ()
        return tuple(max(1 - self.exact_match.get(number, 0), LEAST_WEIGHT) for number in range(len(self.lessons)))

    def _is_busy(self, number: int, read: int, batches: int) -> bool:
        return read < len(self.ladders[number]) and batches < self.patience

    def metrics(self) -> dict[str, float]:
        """Lessons that are read: of all families, and of each with the exact match last measured in its present one."""
        place = self.places[-1]
        found = {LESSONS_READ: float(sum(place.read))}
        for number, read in enumerate(place.read):
            name = self.ladders[number][0].family
            present = self.first_of[number] + min(read, len(self.ladders[number]) - 1)
            found[f"{LESSONS_READ}/{name}"] = float(read)
            if present in self.exact_match:
                found[f"train/lesson_exact_accuracy/{name}"] = self.exact_match[present]
        return found

    @property
    def _contents(self) -> list[list[str]]:
        """What each lesson of each ladder asks for."""
        return [[repr(lesson.settings) for lesson in ladder] for ladder in self.ladders]

    def state_dict(self) -> dict[str, Any]:
        return {
            "lessons": self._contents,
            "places": [
                [place.batch, list(place.read), list(place.since), place.opened, list(place.weights)]
                for place in self.places
            ],
            "steps": self.steps,
            "totals": self.totals.clone(),
            "exact_match": dict(self.exact_match),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place.

        Raises:
            DatasetError: it is a place among other lessons.
        """
        known = state.get("lessons", self._contents)  # older checkpoints name none
        if known != self._contents or len(state["totals"]) != len(self.lessons):
            differ = next((one[0] for one, own in zip(known, self._contents, strict=False) if one != own), None)
            where = "there are more or fewer of them" if differ is None else f"the first that differ: {differ}"
            raise DatasetError(
                f"the checkpoint's curriculum is of other lessons ({where}); go on with the same data.families, "
                "data.sides ... and levels of data.curriculum (thresholds may differ), or begin a new run"
            )
        self.places = [
            Place(batch, tuple(read), tuple(since), opened, *map(tuple, weights))  # none in older checkpoints
            for batch, read, since, opened, *weights in state["places"]
        ]
        self.steps, self.totals = state["steps"], state["totals"].clone()
        self.exact_match = {int(number): value for number, value in state["exact_match"].items()}
