"""Training batches of known-rule tasks: each sample is made from its key, which is seed, batch and slot."""

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from dataset.assemble import assemble
from dataset.augment import IDENTITY_COLORS
from dataset.batches import Batch
from dataset.context_limit import LEFT_OUT_KEY
from dataset.grids import CANVAS_SIDE
from dataset.known_rules.curriculum import Curriculum
from dataset.known_rules.family import Lesson
from dataset.known_rules.generator import FAMILIES, KnownTask, draw_task, generator_of
from dataset.sources import SampleResults, TrainSource
from dataset.store import DatasetError
from dataset.store_train_dataset import leave_one_in_place
from dataset.trained_on import TrainedOn

MOST_GROWTH = 3  # of an output's side, where a family's outputs are larger
UNTURNED = np.zeros(1, dtype=np.uint8)


@dataclass(frozen=True)
class TaskGrids:
    """The grids of tasks as flat arrays, with the identity as only augmentation; see `dataset.assemble`."""

    cells: UInt8[np.ndarray, " cells"]
    grid_starts: Int64[np.ndarray, " grids+1"]
    grid_shapes: UInt8[np.ndarray, "grids 2"]
    dihedral: UInt8[np.ndarray, " 1"]
    colors: UInt8[np.ndarray, "1 10"]

    @classmethod
    def of(cls, tasks: Sequence[KnownTask]) -> "TaskGrids":
        """The pairs of the tasks, one after the other, each task's query last."""
        grids = [grid for task in tasks for pair in task.pairs for grid in pair]
        starts = np.concatenate([[0], np.cumsum([grid.size for grid in grids])])
        shapes = np.array([grid.shape for grid in grids], dtype=np.uint8)
        return cls(np.concatenate([grid.ravel() for grid in grids]), starts, shapes, UNTURNED, IDENTITY_COLORS[None])


def draw_batch(
    tasks: Sequence[KnownTask],
    groups: Sequence[int],
    num_slots: int,
    translation: Float64[np.ndarray, "batch examples 2"] | None = None,
) -> Batch:
    """The tasks as a batch; their puzzle identifier, below zero, is a number of their rule.

    Args:
        groups: `puzzle_groups` of the tasks.
        translation: see `assemble`.
    """
    counts = np.array([len(task.pairs) for task in tasks])
    query = np.cumsum(counts) - 1
    slots = np.arange(num_slots)
    demos = np.where(slots < counts[:, None] - 1, (query - counts + 1)[:, None] + slots, -1)
    numbers = np.array(groups)
    batch = assemble(TaskGrids.of(tasks), numbers, np.zeros_like(numbers), demos, query, translation)
    return batch | {"puzzle_identifiers": torch.tensor([_number_of(task) for task in tasks], dtype=torch.int32)}


def _number_of(task: KnownTask) -> int:
    """-1 to -2^31, the same of the same family and rule."""
    rule = f"{task.family} {[int(part) for part in task.rule]}"
    return -1 - (zlib.crc32(rule.encode()) >> 1)


class KnownRulesSource(TrainSource):
    """Batches of training tasks, without end; `puzzle_groups` is the number of a sample's lesson.

    Args:
        num_batches: of the run; an epoch has `epoch_batches`.
        translate: places grids anywhere on their canvases, one of each task at (0, 0); else all of them there.
        has_curriculum: whether families begin one after another; else all at once, and there is no state.
        steps_per_batch: optimizer steps on one batch.

    Raises:
        DatasetError: the ranks cannot share a batch evenly.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        *,
        num_batches: int,
        epoch_batches: int,
        translate: bool,
        global_batch_size: int,
        seed: int,
        has_curriculum: bool = False,
        steps_per_batch: int = 1,
        max_context_tokens: int | None = None,
    ):
        ranks = curriculum.ranks
        if global_batch_size % ranks.world_size:
            raise DatasetError(f"global_batch_size={global_batch_size} is not a multiple of {ranks.world_size} ranks")
        self.curriculum, self.num_batches, self.epoch_batches = curriculum, num_batches, epoch_batches
        self.translate, self.seed, self.steps_per_batch = translate, seed, steps_per_batch
        self.has_curriculum = has_curriculum
        self.slots = range(global_batch_size)[ranks.local_slots(global_batch_size)]
        self.max_context_tokens = max_context_tokens
        for lesson in curriculum.lessons:
            _check_length(lesson, max_context_tokens)
        self.num_slots = max(lesson.settings.demos[1] for lesson in curriculum.lessons)

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        tasks, lessons, uniform = [], [], []
        for slot in self.slots:
            rng = generator_of(self.seed, number, slot)
            lessons.append(self.curriculum.lesson_of(number, rng))
            tasks.append(draw_task(rng, self.curriculum.lessons[lessons[-1]].settings))
            if self.translate:
                uniform.append(rng.random(1 + 2 * (self.num_slots + 1)))
        translation = self._translation(tasks, uniform) if self.translate else None
        batch = draw_batch(tasks, lessons, self.num_slots, translation)
        if self.max_context_tokens is not None:  # which no task exceeds
            batch[LEFT_OUT_KEY] = torch.zeros(len(tasks), dtype=torch.int32)
        return batch

    def _translation(
        self, tasks: Sequence[KnownTask], uniform: Sequence[Float64[np.ndarray, " draws"]]
    ) -> Float64[np.ndarray, "batch examples 2"]:
        table = np.stack(uniform)
        shown = np.arange(self.num_slots) < np.array([len(task.pairs) - 1 for task in tasks])[:, None]
        return leave_one_in_place(table[:, 1:].reshape(len(table), self.num_slots + 1, 2), shown, table[:, 0])

    def epoch_of(self, num_batches: int) -> int:
        return num_batches // self.epoch_batches

    def trained_on(self) -> TrainedOn:
        """The generator's settings: which rules are held out follows from them."""
        settings = (asdict(lesson.settings) for lesson in self.curriculum.lessons)
        shown = (", ".join(f"{key}={value}" for key, value in one.items()) for one in settings)
        return TrainedOn(generators=tuple(f"known_rules(split=train, seed={self.seed}, {text})" for text in shown))

    @property
    def description(self) -> str:
        ladders = self.curriculum.ladders
        return f"tasks without end of {len(ladders)} families of known rules in {len(self.curriculum.lessons)} lessons"

    @property
    def num_groups(self) -> int:
        return len(self.curriculum.lessons)

    def observe(self, step: int, sums: dict[str, Tensor], samples: SampleResults) -> None:
        if self.has_curriculum:
            batch = (step - 1) // self.steps_per_batch
            self.curriculum.observe(batch, samples.data["puzzle_groups"], samples.halted, samples.exact)

    def metrics(self) -> dict[str, float]:
        return self.curriculum.metrics() if self.has_curriculum else {}

    def state_dict(self) -> dict[str, Any]:
        return self.curriculum.state_dict() if self.has_curriculum else {}

    def joined_states(self, states: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
        """The first rank takes over what all have counted since the last measurement."""
        if not states[0]:
            return states[0]
        totals = torch.stack([state["totals"].cpu() for state in states]).sum(dim=0)
        return {**states[0], "totals": totals if rank == 0 else torch.zeros_like(totals)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curriculum.load_state_dict(state)


def _check_length(lesson: Lesson, most: int | None) -> None:
    """Refuse tasks that could be longer than the limit: with a demonstration left out, a rule might not be seen.

    Raises:
        DatasetError: says how long they can be.
    """
    side, (_, demos) = lesson.settings.sides[1], lesson.settings.demos
    growing = any(FAMILIES[name].growth > 1 for name in lesson.settings.families)
    output = min(CANVAS_SIDE, MOST_GROWTH * side) if growing else side
    longest = demos * (side**2 + output**2)
    if most is not None and longest > most:
        raise DatasetError(
            f"max_context_tokens={most}: tasks of {lesson.family} with {demos} demonstrations and sides up to {side} "
            f"have up to {longest} cells, and none of a known rule's demonstrations may be left out; take shorter ones "
            f"or max_context_tokens={longest}"
        )
