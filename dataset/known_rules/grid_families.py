"""Rules that move or repeat a whole grid. They have few rules: instances are held out."""

from collections.abc import Sequence

import numpy as np

from dataset.augment import NUM_DIHEDRAL, apply_dihedral
from dataset.grids import CANVAS_SIDE, Grid
from dataset.known_rules.family import Family, Rule, TaskSettings, draw_grid

LONGEST_SHIFT = 2
FACTORS = (1, 2, 3)


class GridFamily(Family):
    """Any grid will do."""

    def draw_input(self, rng: np.random.Generator, settings: TaskSettings, rule: Rule) -> Grid:
        return draw_grid(rng, settings, self.min_side)


class Dihedral(GridFamily):
    """One of the seven dihedral transforms but the identity."""

    name = "dihedral"

    def rules(self, settings: TaskSettings) -> Sequence[Rule]:
        return [(transform,) for transform in range(1, NUM_DIHEDRAL)]

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        return apply_dihedral(grid, rule[0])


class Shift(GridFamily):
    """All cells move by as many rows and columns; what leaves on one side comes in on the other."""

    name = "shift"
    min_side = 2

    def rules(self, settings: TaskSettings) -> Sequence[Rule]:
        steps = range(-LONGEST_SHIFT, LONGEST_SHIFT + 1)
        return [(down, right) for down in steps for right in steps if down or right]

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        rows, columns = (np.arange(side) - step for side, step in zip(grid.shape, rule, strict=True))
        return grid.take(rows, axis=0, mode="wrap").take(columns, axis=1, mode="wrap")


class Mirror(GridFamily):
    """The mirrored grid is put on one side of it: 0 right, 1 left, 2 below, 3 above."""

    name = "mirror"
    growth = 2

    def rules(self, settings: TaskSettings) -> Sequence[Rule]:
        return [(side,) for side in range(4)]

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        axis = 1 if rule[0] < 2 else 0
        parts = (grid, np.flip(grid, axis))
        return np.concatenate(parts if rule[0] % 2 == 0 else parts[::-1], axis=axis)


class Tile(GridFamily):
    """The grid stands several times, one below the other and side by side; a rule is how many times."""

    name = "tile"
    growth = 2

    def rules(self, settings: TaskSettings) -> Sequence[Rule]:
        fitting = [factor for factor in FACTORS if factor * settings.sides[1] <= CANVAS_SIDE]
        return [(rows, columns) for rows in fitting for columns in fitting if rows * columns > 1]

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        rows = np.concatenate([grid] * rule[0], axis=0)
        return np.concatenate([rows] * rule[1], axis=1)


class Scale(Tile):
    """Every cell becomes a block; a rule is the block's height and width."""

    name = "scale"

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        return grid.repeat(rule[0], axis=0).repeat(rule[1], axis=1)
