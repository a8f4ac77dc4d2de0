"""What a family of rules is: which rules it has, on which grids they show, and what is held out of training."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import ClassVar, Literal, TypeVar

import numpy as np
from jaxtyping import Bool

from dataset.augment import NUM_DIHEDRAL, apply_dihedral
from dataset.grids import CANVAS_SIDE, Grid
from dataset.store import DatasetError

RuleSplit = Literal["train", "held_out"]
Review = Literal["even", "forgotten"]
Rule = tuple[int, ...]
Pairs = Sequence[tuple[Grid, Grid]]
T = TypeVar("T")
MAX_REDRAWS = 64
INSTANCE_SHARE = 5  # one class of grids in five is held out


class RuleError(DatasetError):
    """Settings with which a family has no rule, or no well-posed task."""


@dataclass(frozen=True)
class TaskSettings:
    """What the tasks are like.

    families: their names in `FAMILIES`.
    sides: the shortest and the longest side of an input.
    colors: inputs have the colours 1 to this; families of objects have 0 as background.
    demos: the fewest and the most demonstrations.
    distinct: each colour at most once in an input that has no more cells than there are colours.
    rules: training has the first so many of a family's rules alone, in the order in which it lists them (None: all).
    """

    families: tuple[str, ...]
    sides: tuple[int, int] = (3, 6)
    colors: int = 9
    demos: tuple[int, int] = (3, 4)
    distinct: bool = False
    rules: int | None = None


@dataclass(frozen=True)
class Lesson:
    """Tasks of one family and one difficulty.

    threshold: the share of exactly right answers with which it is read.
    """

    settings: TaskSettings
    threshold: float

    @property
    def family(self) -> str:
        return self.settings.families[0]


class Family(ABC):
    """Rules of one kind.

    holds_out: "rules": those of `is_held_out` occur in no training task. "instances": the family has few rules, all of
        which are trained; grids of one class in five occur in no training task, and held-out tasks ask for such a grid.
    growth: how many times an input's side the output's is, at least.
    """

    name: ClassVar[str]
    holds_out: ClassVar[Literal["rules", "instances"]] = "instances"
    growth: ClassVar[int] = 1
    min_side: ClassVar[int] = 1

    @abstractmethod
    def rules(self, settings: TaskSettings) -> Sequence[Rule]:
        """All of its rules that fit the settings."""

    @abstractmethod
    def apply(self, rule: Rule, grid: Grid) -> Grid:
        """What the rule makes of an input."""

    @abstractmethod
    def draw_input(self, rng: np.random.Generator, settings: TaskSettings, rule: Rule) -> Grid:
        """A grid on which the rule may show."""

    def inputs(self, rng: np.random.Generator, settings: TaskSettings, rule: Rule) -> Callable[[], Grid]:
        """What draws the inputs of one task, one after another."""
        return partial(self.draw_input, rng, settings, rule)

    def is_held_out(self, rule: Rule) -> bool:
        """Whether no training task has the rule; never in families that hold out instances."""
        return False

    def visible_rule(self, pairs: Pairs) -> Hashable:
        """The rule as the pairs show it, from their cells alone. No two rules of both splits look the same."""
        sides = [side for grid, _ in pairs for side in grid.shape]
        settings = TaskSettings((), sides=(min(sides), max(sides)))
        return tuple(rule for rule in self.rules(settings) if self.fits(rule, pairs))

    def fits(self, rule: Rule, pairs: Pairs) -> bool:
        """Whether the rule makes every output of its input."""
        return all(same(self.apply(rule, grid), output) for grid, output in pairs)

    def choices(self, settings: TaskSettings, split: RuleSplit) -> Sequence[Rule]:
        """The rules that a split's tasks may have."""
        return _choices(self, settings, split)

    def check(self, settings: TaskSettings, split: RuleSplit) -> None:
        """Raise a `RuleError` where the settings leave the family no rule."""
        if not self.choices(settings, split):
            low, high = settings.sides
            raise RuleError(
                f"the family '{self.name}' has no rule for split={split} with sides={low}-{high} and "
                f"colors={settings.colors}"
            )

    def draw(
        self, rng: np.random.Generator, settings: TaskSettings, split: RuleSplit, count: int
    ) -> tuple[Rule, list[Grid]] | None:
        """A rule and `count` inputs, the query's last; None where that did not succeed."""
        rules = self.choices(settings, split)
        rule = rules[int(rng.integers(len(rules)))]
        draw_input, inputs = self.inputs(rng, settings, rule), []
        for index in range(count):
            asks_held_out = self.holds_out == "instances" and split == "held_out" and index == count - 1

            def is_allowed(grid: Grid, asked: bool = asks_held_out) -> bool:
                if self.holds_out == "instances" and asked != is_held_out_grid(grid):
                    return False
                return not same(self.apply(rule, grid), grid)

            grid = redrawn(draw_input, is_allowed)
            if grid is None:
                return None
            inputs.append(grid)
        return rule, inputs

    def rules_on(self, settings: TaskSettings, split: RuleSplit, inputs: Sequence[Grid]) -> Sequence[Rule]:
        """The rules of a split that may show on given inputs."""
        return self.choices(settings, split)

    def draw_rule(
        self, rng: np.random.Generator, settings: TaskSettings, split: RuleSplit, inputs: Sequence[Grid]
    ) -> Rule | None:
        """A rule of a split for given inputs, the query's last; None where there is none."""
        rules = self.rules_on(settings, split, inputs)
        return rules[int(rng.integers(len(rules)))] if rules else None

    def chance(self, settings: TaskSettings, split: RuleSplit, pairs: Pairs) -> float:
        """Exact match of a random rule: of those that could have made a task of the inputs, for they change all of
        them, the share that gives the query's answer."""
        inputs, answer = [grid for grid, _ in pairs], pairs[-1][1]
        made = ([self.apply(rule, grid) for grid in inputs] for rule in self.rules_on(settings, split, inputs))
        answers = [outputs[-1] for outputs in made if all(changes(list(zip(inputs, outputs, strict=True))))]
        return sum(same(one, answer) for one in answers) / max(len(answers), 1)

    def is_well_posed(self, settings: TaskSettings, rule: Rule, pairs: Pairs) -> bool:
        """Whether the query's answer follows from the demonstrations: every other rule that fits them gives it too."""
        *demos, (grid, answer) = pairs
        others = (other for other in self.rules(settings) if other != rule)
        return not any(self.fits(other, demos) and not same(self.apply(other, grid), answer) for other in others)


@cache
def _choices(family: Family, settings: TaskSettings, split: RuleSplit) -> tuple[Rule, ...]:
    if family.growth * settings.sides[1] > CANVAS_SIDE or settings.sides[1] < family.min_side:
        return ()
    by_rule = family.holds_out == "rules"
    wanted = split == "held_out"
    rules = (rule for rule in family.rules(settings) if not by_rule or family.is_held_out(rule) == wanted)
    return tuple(islice(rules, settings.rules))


def redrawn(draw: Callable[[], T], is_allowed: Callable[[T], bool]) -> T | None:
    """The first drawing that is allowed; None where none of MAX_REDRAWS is."""
    for _ in range(MAX_REDRAWS):
        if is_allowed(found := draw()):
            return found
    return None


def same(one: Grid, other: Grid) -> bool:
    """Whether two grids have the same shape and cells."""
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def changes(pairs: Pairs) -> list[bool]:
    """Of each pair, whether its output is another grid than its input."""
    return [not same(grid, output) for grid, output in pairs]


def shows(pairs: Pairs) -> bool:
    """Whether something changes in the query, which is the last, and in a demonstration. So much is asked of a donor's
    rule, whose inputs are another's."""
    changed = changes(pairs)
    return changed[-1] and any(changed[:-1])


def is_held_out_grid(grid: Grid) -> bool:
    """Whether a grid is of a held-out class; its eight dihedral versions are of one class."""
    versions = (apply_dihedral(grid, transform) for transform in range(NUM_DIHEDRAL))
    smallest = min(bytes(version.shape) + version.tobytes() for version in versions)
    return zlib.crc32(smallest) % INSTANCE_SHARE == 0


def draw_shape(rng: np.random.Generator, settings: TaskSettings, min_side: int = 1) -> tuple[int, int]:
    """Height and width."""
    low, high = settings.sides
    height, width = rng.integers(max(low, min_side), high + 1, 2)
    return int(height), int(width)


def random_grid(
    rng: np.random.Generator, shape: tuple[int, int], palette: Sequence[int], *, distinct: bool = False
) -> Grid:
    """Cells of any colour of the palette, each at most once where that is asked for and possible."""
    colors = np.array(palette, dtype=np.uint8)
    cells = shape[0] * shape[1]
    if distinct and cells <= len(colors):
        return rng.permutation(colors)[:cells].reshape(shape)
    return colors[rng.integers(0, len(colors), shape)]


def draw_grid(rng: np.random.Generator, settings: TaskSettings, min_side: int = 1) -> Grid:
    """A grid of the settings' shapes and colours, without background."""
    shape = draw_shape(rng, settings, min_side)
    return random_grid(rng, shape, range(1, settings.colors + 1), distinct=settings.distinct)


def enclosing(mask: Bool[np.ndarray, "rows cols"]) -> tuple[slice, slice]:
    """The smallest rectangle that holds all true cells."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
