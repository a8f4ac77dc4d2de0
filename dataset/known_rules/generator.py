"""Tasks by their key: which seed, batch and slot they are of decides every cell of them."""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from dataset.arc_tasks import Pair, Task
from dataset.grids import CANVAS_SIDE, NUM_COLORS, Grid
from dataset.known_rules.color_families import DihedralPermutation, Permutation, Recolor, Swap
from dataset.known_rules.family import Family, Rule, RuleError, RuleSplit, TaskSettings, changes, same, shows
from dataset.known_rules.grid_families import Dihedral, Mirror, Scale, Shift, Tile
from dataset.known_rules.object_families import Count, Crop, Fill, Gravity, Lines, Outline

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(Permutation(), Recolor(), Swap(), Fill(), Dihedral(), DihedralPermutation(), Shift(), Mirror(), Tile()),
        *(Scale(), Gravity(), Crop(), Outline(), Count(), Lines()),
    )
}
MAX_ATTEMPTS = 500
MAX_DONORS = 100
STREAMS: dict[RuleSplit, int] = {"train": 0, "held_out": 1}


@dataclass(frozen=True)
class KnownTask:
    """Pairs by one rule of a family: demonstrations, and last the query."""

    family: str
    rule: Rule
    pairs: tuple[tuple[Grid, Grid], ...]

    def as_arc(self, task_id: str, subset: str) -> Task:
        """The task in the form that data sets are built of."""
        *demos, query = (Pair(grid, output) for grid, output in self.pairs)
        return Task(task_id, subset, tuple(demos), (query,))


def visible_rule(task: KnownTask) -> Hashable:
    """The family and the rule as the task shows it, from its cells alone."""
    return task.family, FAMILIES[task.family].visible_rule(task.pairs)


def check_settings(settings: TaskSettings, split: RuleSplit) -> None:
    """Refuse settings that leave a family without rules.

    Raises:
        RuleError: says which, and what is wrong.
    """
    for name in settings.families:
        if name not in FAMILIES:
            raise RuleError(f"the family '{name}' is not one of {', '.join(FAMILIES)}")
    for what, (low, high), most in (("sides", settings.sides, CANVAS_SIDE), ("demos", settings.demos, CANVAS_SIDE)):
        if not 1 <= low <= high <= most:
            raise RuleError(f"{what}={low}-{high}: must be from 1 to {most}, the smaller number first")
    if not settings.families or not 1 <= settings.colors < NUM_COLORS:
        raise RuleError(f"there must be a family, and colors={settings.colors} must be 1 to {NUM_COLORS - 1}")
    for name in settings.families:
        FAMILIES[name].check(settings, split)


def generator_of(seed: int, number: int, slot: int, split: RuleSplit = "train") -> np.random.Generator:
    """A fresh generator for one task; no two keys share a number."""
    key, counter = np.array([seed, number], dtype=np.uint64), np.array([0, 0, slot, STREAMS[split]], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def draw_task(
    rng: np.random.Generator, settings: TaskSettings, split: RuleSplit = "train", family: str | None = None
) -> KnownTask:
    """A well-posed task: the query's answer follows from the demonstrations, and no output is its input.

    Args:
        family: None draws one of the settings'.

    Raises:
        RuleError: the settings leave none, or so few that none was found.
    """
    name = settings.families[int(rng.integers(len(settings.families)))] if family is None else family
    rules = FAMILIES[name]
    for _ in range(MAX_ATTEMPTS):
        count = int(rng.integers(settings.demos[0], settings.demos[1] + 1)) + 1
        drawn = rules.draw(rng, settings, split, count)
        if drawn is None:
            continue
        rule, inputs = drawn
        pairs = tuple((grid, np.ascontiguousarray(rules.apply(rule, grid))) for grid in inputs)
        if all(changes(pairs)) and rules.is_well_posed(settings, rule, pairs):
            return KnownTask(name, rule, pairs)
    raise RuleError(f"no well-posed task of the family '{name}' in {MAX_ATTEMPTS} attempts with {settings}")


def draw_donor(rng: np.random.Generator, settings: TaskSettings, split: RuleSplit, task: KnownTask) -> Rule | None:
    """Another rule of the family and split that makes a well-posed task of the same inputs, with another answer to the
    query: one whose outputs have the sizes of the task's own where there is any; None where none of MAX_DONORS drawings
    does."""
    rules, inputs = FAMILIES[task.family], [grid for grid, _ in task.pairs]
    shapes = [output.shape for _, output in task.pairs]
    tried, of_other_sizes = {task.rule}, None
    for _ in range(MAX_DONORS):
        donor = rules.draw_rule(rng, settings, split, inputs)
        if donor is None or donor in tried:
            continue
        tried.add(donor)
        pairs = tuple((grid, np.ascontiguousarray(rules.apply(donor, grid))) for grid in inputs)
        of_its_sizes = [output.shape for _, output in pairs] == shapes
        if of_other_sizes is not None and not of_its_sizes:
            continue
        is_other = not same(pairs[-1][1], task.pairs[-1][1])
        if is_other and shows(pairs) and rules.is_well_posed(settings, donor, pairs):
            if of_its_sizes:
                return donor
            of_other_sizes = donor
    return of_other_sizes
