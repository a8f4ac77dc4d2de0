"""Rules of colours alone: a permutation, one colour that becomes another, two that are exchanged; and with a turn."""

from collections.abc import Hashable, Sequence
from functools import cache
from itertools import permutations

import numpy as np
from jaxtyping import UInt8

from dataset.augment import NUM_DIHEDRAL, apply_dihedral
from dataset.grids import NUM_COLORS, Grid
from dataset.known_rules.family import (
    Family,
    Pairs,
    Rule,
    RuleError,
    RuleSplit,
    TaskSettings,
    draw_grid,
    draw_shape,
    random_grid,
    redrawn,
)

# Lengths of the cycles of two and more colours. Exchanging two colours, (2,), is a family of its own.
HELD_OUT_CYCLES = frozenset(((2, 2), (2, 3), (6,), (3, 4), (4, 5), (3, 3, 3), (2, 3, 4)))
EXCHANGE = (2,)


def cycle_lengths(images: Sequence[int]) -> tuple[int, ...]:
    """The cycle type of a permutation of 0 to n - 1, without its fixed points: no renaming of colours changes it."""
    lengths, seen = [], set()
    for start in range(len(images)):
        length, color = 0, start
        while color not in seen:
            seen.add(color)
            length, color = length + 1, images[color]
        if length > 1:
            lengths.append(length)
    return tuple(sorted(lengths))


def moved_colors(pairs: Pairs) -> tuple[tuple[int, int], ...]:
    """Each colour of an input with what stands in its place in the output, where that is another."""
    codes = np.concatenate([grid.ravel().astype(np.int64) * NUM_COLORS + output.ravel() for grid, output in pairs])
    return tuple((int(c) // NUM_COLORS, int(c) % NUM_COLORS) for c in np.unique(codes) if c % (NUM_COLORS + 1))


def color_map(pairs: Pairs) -> tuple[int, ...] | None:
    """The image of each colour, itself where none is seen; None where one has several, or a shape changes."""
    images = np.arange(NUM_COLORS, dtype=np.uint8)
    for grid, output in pairs:
        if grid.shape != output.shape:
            return None
        images[grid] = output
    is_map = all((images[grid] == output).all() for grid, output in pairs)
    return tuple(images.tolist()) if is_map else None


def colors_of(grids: Sequence[Grid]) -> list[int]:
    """The colours that occur, in order."""
    return np.flatnonzero(np.bincount(np.concatenate([grid.ravel() for grid in grids]), minlength=NUM_COLORS)).tolist()


def is_drawn(lengths: tuple[int, ...], split: RuleSplit) -> bool:
    """Whether a split has permutations of this cycle type."""
    return bool(lengths) and lengths != EXCHANGE and (lengths in HELD_OUT_CYCLES) == (split == "held_out")


@cache
def drawn_permutations(count: int, split: RuleSplit) -> UInt8[np.ndarray, "permutations count"]:
    """All permutations of 0 to `count` - 1 that a split has. The fixed points of a permutation's powers tell its cycle
    type, so that one of each type is looked at."""
    images = np.array(list(permutations(range(count))), dtype=np.uint8)
    power, fixed_points = images, np.zeros(len(images), dtype=np.int64)
    for _ in range(count):
        fixed_points = (count + 1) * fixed_points + (power == np.arange(count)).sum(axis=1)
        power = np.take_along_axis(images, power.astype(np.intp), axis=1)
    _, first, kind = np.unique(fixed_points, return_index=True, return_inverse=True)
    is_kept = np.array([is_drawn(cycle_lengths(images[index].tolist()), split) for index in first], dtype=bool)
    return images[is_kept[kind]]


def share_that_maps(palette: Sequence[int], split: RuleSplit, grid: Grid, answer: Grid) -> float:
    """Of the permutations of a palette that a split has, the share that makes the answer of the grid."""
    images = color_map([(grid, answer)])
    colors = colors_of([grid])
    if images is None or not {*colors, *(images[color] for color in colors)} <= set(palette):
        return 0.0
    place = {color: index for index, color in enumerate(palette)}
    allowed = drawn_permutations(len(palette), split)
    wanted = np.array([place[images[color]] for color in colors], dtype=np.uint8)
    return float((allowed[:, [place[color] for color in colors]] == wanted).all(axis=1).mean()) if len(allowed) else 0.0


class Permutation(Family):
    """A permutation of the colours that the demonstrations have: split by cycle type, so that no renaming of colours
    makes a trained rule of a held-out one. A rule is the image of each colour."""

    name = "permutation"
    holds_out = "rules"

    def rules(self, settings: TaskSettings) -> Sequence[Rule]:
        """Too many to be listed: they are drawn."""
        return ()

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        return np.array(rule, dtype=np.uint8)[grid]

    def draw_input(self, rng: np.random.Generator, settings: TaskSettings, rule: Rule) -> Grid:
        return draw_grid(rng, settings)

    def is_held_out(self, rule: Rule) -> bool:
        return cycle_lengths(rule[-NUM_COLORS:]) in HELD_OUT_CYCLES

    def visible_rule(self, pairs: Pairs) -> Hashable:
        images = color_map(pairs)
        return None if images is None else cycle_lengths(images)

    def check(self, settings: TaskSettings, split: RuleSplit) -> None:
        if settings.rules is not None:
            raise RuleError(
                f"the family '{self.name}' draws its rules, it lists none: rules={settings.rules} is not for it"
            )
        self._check_colors(settings, split)

    def _check_colors(self, settings: TaskSettings, split: RuleSplit) -> None:
        fewest = 4 if split == "held_out" else 3
        if settings.colors < fewest:
            raise RuleError(f"the family '{self.name}' needs colors={fewest} or more for split={split}")

    def draw(
        self, rng: np.random.Generator, settings: TaskSettings, split: RuleSplit, count: int
    ) -> tuple[Rule, list[Grid]] | None:
        inputs = [draw_grid(rng, settings) for _ in range(count - 1)]
        palette = colors_of(inputs)

        rule = self._draw_permutation(rng, palette, split)
        if rule is None:
            return None
        return rule, [*inputs, random_grid(rng, draw_shape(rng, settings), palette, distinct=settings.distinct)]

    def draw_rule(
        self, rng: np.random.Generator, settings: TaskSettings, split: RuleSplit, inputs: Sequence[Grid]
    ) -> Rule | None:
        return self._draw_permutation(rng, colors_of(inputs[:-1]), split)

    def chance(self, settings: TaskSettings, split: RuleSplit, pairs: Pairs) -> float:
        """Over all permutations of the demonstrations' colours that the split may have."""
        palette = colors_of([grid for grid, _ in pairs[:-1]])
        return share_that_maps(palette, split, *pairs[-1])

    def _draw_permutation(self, rng: np.random.Generator, palette: list[int], split: RuleSplit) -> Rule | None:
        return redrawn(lambda: self._permutation(rng, palette), lambda rule: is_drawn(cycle_lengths(rule), split))

    def _permutation(self, rng: np.random.Generator, palette: list[int]) -> Rule:
        images = np.arange(NUM_COLORS)
        images[palette] = rng.permutation(palette)
        return tuple(images.tolist())


class DihedralPermutation(Permutation):
    """A dihedral transform but the identity, and a permutation of colours; a rule is the transform and the images."""

    name = "dihedral_permutation"

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        return super().apply(rule[1:], apply_dihedral(grid, rule[0]))

    def check(self, settings: TaskSettings, split: RuleSplit) -> None:
        self._check_colors(settings, split)

    def visible_rule(self, pairs: Pairs) -> Hashable:
        found = [(t, color_map(turned(pairs, t))) for t in range(NUM_DIHEDRAL)]
        return tuple((t, cycle_lengths(images)) for t, images in found if images is not None)

    def draw(
        self, rng: np.random.Generator, settings: TaskSettings, split: RuleSplit, count: int
    ) -> tuple[Rule, list[Grid]] | None:
        drawn = super().draw(rng, settings, split, count)
        return None if drawn is None else ((_draw_transform(rng, settings), *drawn[0]), drawn[1])

    def draw_rule(
        self, rng: np.random.Generator, settings: TaskSettings, split: RuleSplit, inputs: Sequence[Grid]
    ) -> Rule | None:
        images = super().draw_rule(rng, settings, split, inputs)
        return None if images is None else (_draw_transform(rng, settings), *images)

    def chance(self, settings: TaskSettings, split: RuleSplit, pairs: Pairs) -> float:
        palette = colors_of([grid for grid, _ in pairs[:-1]])
        grid, answer = pairs[-1]
        shares = [
            share_that_maps(palette, split, apply_dihedral(grid, transform), answer)
            for transform in _transforms(settings)
        ]
        return sum(shares) / len(shares)

    def is_well_posed(self, settings: TaskSettings, rule: Rule, pairs: Pairs) -> bool:
        """Under no other transform are the demonstrations' colours permuted at all."""
        demos = pairs[:-1]
        return all(t == rule[0] or color_map(turned(demos, t)) is None for t in range(NUM_DIHEDRAL))


def _transforms(settings: TaskSettings) -> range:
    """Those that a task may have, without the identity."""
    return range(1, NUM_DIHEDRAL if settings.rules is None else min(NUM_DIHEDRAL, 1 + settings.rules))


def _draw_transform(rng: np.random.Generator, settings: TaskSettings) -> int:
    transforms = _transforms(settings)
    return int(rng.integers(transforms.start, transforms.stop))


def turned(pairs: Pairs, transform: int) -> Pairs:
    """Pairs with their inputs under a dihedral transform."""
    return [(apply_dihedral(grid, transform), output) for grid, output in pairs]


class Recolor(Family):
    """One colour becomes another; a rule is both, split by them."""

    name = "recolor"
    holds_out = "rules"

    def rules(self, settings: TaskSettings) -> Sequence[Rule]:
        colors = range(1, settings.colors + 1)
        return [(old, new) for old in colors for new in colors if old != new]

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        return np.where(grid == rule[0], np.uint8(rule[1]), grid)

    def draw_input(self, rng: np.random.Generator, settings: TaskSettings, rule: Rule) -> Grid:
        return draw_grid(rng, settings)

    def is_held_out(self, rule: Rule) -> bool:
        return is_held_out_couple(rule)

    def visible_rule(self, pairs: Pairs) -> Hashable:
        return moved_colors(pairs)

    def is_well_posed(self, settings: TaskSettings, rule: Rule, pairs: Pairs) -> bool:
        """A change in a demonstration shows both colours."""
        return True


class Swap(Recolor):
    """Two colours are exchanged; a rule is both, the smaller first, split by them. Both stand in the demonstrations."""

    name = "swap"

    def rules(self, settings: TaskSettings) -> Sequence[Rule]:
        return [(one, other) for one, other in super().rules(settings) if one < other]

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        images = np.arange(NUM_COLORS, dtype=np.uint8)
        images[list(rule)] = rule[::-1]
        return images[grid]

    def is_held_out(self, rule: Rule) -> bool:
        return sum(rule) % 5 == 0

    def is_well_posed(self, settings: TaskSettings, rule: Rule, pairs: Pairs) -> bool:
        return len(moved_colors(pairs[:-1])) == len(rule)


def is_held_out_couple(couple: Rule) -> bool:
    """Of ordered pairs of two colours: a fifth, each colour first in one and last in another."""
    return (couple[0] + 2 * couple[1]) % 5 == 0
