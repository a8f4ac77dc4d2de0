"""Rules about what stands on a background of colour 0."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from jaxtyping import Bool

from dataset.grids import Grid
from dataset.known_rules.color_families import colors_of, is_held_out_couple
from dataset.known_rules.family import (
    Family,
    Pairs,
    Rule,
    RuleSplit,
    TaskSettings,
    draw_grid,
    draw_shape,
    enclosing,
    random_grid,
)

MAX_UNMARKED = 3  # colours of objects in a task besides the marked one, at most
MAX_OBJECT_SIDE = 3
Mask = Bool[np.ndarray, "rows cols"]


def sprinkled(rng: np.random.Generator, shape: tuple[int, int], palette: Sequence[int], share: float) -> Grid:
    """A share of the cells in any colour of the palette, on the background."""
    return np.where(rng.random(shape) < share, random_grid(rng, shape, palette), np.uint8(0))


def beside(mask: Mask, *, diagonally: bool) -> Mask:
    """The true cells with those that touch them."""
    height = len(mask)
    padded = np.pad(mask, 1)
    grown = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]  # (height + 2, width)
    rows = grown if diagonally else padded[:, 1:-1]
    return rows[:height] | rows[2:] | grown[1 : height + 1]


def enclosed(is_free: Mask) -> Mask:
    """The free cells from which no way over free cells, by their sides, leads out of the grid."""
    outside = is_free.copy()
    outside[1:-1, 1:-1] = False
    while True:
        grown = beside(outside, diagonally=False) & is_free
        if (grown == outside).all():
            return is_free & ~outside
        outside = grown


def random_box(rng: np.random.Generator, shape: tuple[int, int], least: int = 1) -> tuple[slice, slice]:
    """A rectangle inside a grid, its sides `least` or longer."""
    slices = []
    for side in shape:
        length = int(rng.integers(least, side + 1))
        start = int(rng.integers(0, side - length + 1))
        slices.append(slice(start, start + length))
    return slices[0], slices[1]


def objects(rng: np.random.Generator, shape: tuple[int, int], palette: Sequence[int]) -> Grid:
    """An object of each colour on the background; they may touch, and none covers another. Each needs a cell."""
    grid = np.zeros(shape, dtype=np.uint8)
    corners = rng.permutation(grid.size)[: len(palette)]
    grid.reshape(-1)[corners] = palette
    for corner, color in zip(corners.tolist(), palette, strict=True):
        row, column = divmod(corner, shape[1])
        height, width = rng.integers(1, MAX_OBJECT_SIDE + 1, 2)
        box = grid[row : row + height, column : column + width]
        box[(box == 0) & (rng.random(box.shape) < 0.7)] = color
    return grid


class CoupleFamily(Family):
    """Objects of one colour, to which cells of another are added: a rule is both colours, split by them."""

    holds_out = "rules"

    def rules(self, settings: TaskSettings) -> Sequence[Rule]:
        colors = range(1, settings.colors + 1)
        return [(old, new) for old in colors for new in colors if old != new]

    def is_held_out(self, rule: Rule) -> bool:
        return is_held_out_couple(rule)

    def rules_on(self, settings: TaskSettings, split: RuleSplit, inputs: Sequence[Grid]) -> Sequence[Rule]:
        """Those of objects of the colour that the inputs have."""
        objects = colors_of(inputs)
        return [rule for rule in self.choices(settings, split) if rule[0] in objects]

    def visible_rule(self, pairs: Pairs) -> Hashable:
        changed = [output[grid != output] for grid, output in pairs]
        objects = [color for color in colors_of([grid for grid, _ in pairs]) if color]
        return tuple(objects), tuple(colors_of(changed))

    def is_well_posed(self, settings: TaskSettings, rule: Rule, pairs: Pairs) -> bool:
        """A change in a demonstration shows both colours."""
        return True


class Fill(CoupleFamily):
    """Background that walls enclose is filled."""

    name = "fill"
    min_side = 3

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        return np.where(enclosed(grid == 0), np.uint8(rule[1]), grid)

    def draw_input(self, rng: np.random.Generator, settings: TaskSettings, rule: Rule) -> Grid:
        shape = draw_shape(rng, settings, self.min_side)
        grid = sprinkled(rng, shape, rule[:1], 0.1)
        for _ in range(int(rng.integers(1, 3))):
            rows, columns = random_box(rng, shape, least=3)
            grid[rows, columns] = rule[0]
            grid[rows.start + 1 : rows.stop - 1, columns.start + 1 : columns.stop - 1] = 0
        return grid


class Outline(CoupleFamily):
    """Background that touches an object, diagonally too, takes the outline's colour."""

    name = "outline"
    min_side = 3

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        objects = grid == rule[0]
        return np.where(beside(objects, diagonally=True) & ~objects, np.uint8(rule[1]), grid)

    def draw_input(self, rng: np.random.Generator, settings: TaskSettings, rule: Rule) -> Grid:
        grid = np.zeros(draw_shape(rng, settings, self.min_side), dtype=np.uint8)
        for _ in range(int(rng.integers(1, 3))):
            row, column = (int(rng.integers(side)) for side in grid.shape)
            height, width = rng.integers(1, 3, 2)
            grid[row : row + height, column : column + width] = rule[0]
        return grid


class Gravity(Family):
    """Cells fall to one side, and keep their order: 0 down, 1 right, 2 up, 3 left."""

    name = "gravity"
    min_side = 2

    def rules(self, settings: TaskSettings) -> Sequence[Rule]:
        return [(side,) for side in range(4)]

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        turned = np.rot90(grid, -rule[0])
        order = np.argsort(turned != 0, axis=0, kind="stable")
        return np.rot90(np.take_along_axis(turned, order, axis=0), rule[0])

    def draw_input(self, rng: np.random.Generator, settings: TaskSettings, rule: Rule) -> Grid:
        grid = draw_grid(rng, settings, self.min_side)
        grid[rng.random(grid.shape) < 0.5] = 0
        return grid


class MarkedColor(Family):
    """A rule is one of the colours of the objects. All inputs of a task have the same few of them, drawn alike, so that
    which is meant is nowhere but in the outputs (and never one whose rectangle is all of an input of crop)."""

    min_side = 2

    def rules(self, settings: TaskSettings) -> Sequence[Rule]:
        return [(color,) for color in range(1, settings.colors + 1)] if settings.colors > 1 else []

    def rules_on(self, settings: TaskSettings, split: RuleSplit, inputs: Sequence[Grid]) -> Sequence[Rule]:
        """The colours that every input has."""
        common = set(colors_of(inputs[:1])).intersection(*(colors_of([grid]) for grid in inputs))
        return [rule for rule in self.choices(settings, split) if rule[0] in common]

    def inputs(self, rng: np.random.Generator, settings: TaskSettings, rule: Rule) -> Callable[[], Grid]:
        others = [color for color in range(1, settings.colors + 1) if color != rule[0]]
        palette = [rule[0], *rng.permutation(others)[: int(rng.integers(1, MAX_UNMARKED + 1))]]
        return lambda: objects(rng, draw_shape(rng, settings, self.min_side), rng.permutation(palette).tolist())

    def draw_input(self, rng: np.random.Generator, settings: TaskSettings, rule: Rule) -> Grid:
        return self.inputs(rng, settings, rule)()


class Crop(MarkedColor):
    """What is left is the smallest rectangle that holds all cells of the marked colour."""

    name = "crop"

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        mask = grid == rule[0]
        return grid[enclosing(mask)] if mask.any() else grid


class Count(MarkedColor):
    """The answer is one row, as long as the marked colour has cells, in that colour."""

    name = "count"

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        count = int((grid == rule[0]).sum())
        return np.full((1, count), rule[0], dtype=np.uint8) if count else np.zeros((1, 1), dtype=np.uint8)


class Lines(Family):
    """Each seed draws a line: 0 right, 1 left, 2 down, 3 up, 4 right and left, 5 down and up."""

    name = "lines"
    min_side = 2

    def rules(self, settings: TaskSettings) -> Sequence[Rule]:
        return [(way,) for way in range(6)]

    def apply(self, rule: Rule, grid: Grid) -> Grid:
        axis = 1 if rule[0] in (0, 1, 4) else 0
        if rule[0] > 3:
            return np.maximum(grid, grid.max(axis=axis, keepdims=True))
        ahead = grid if rule[0] % 2 == 0 else np.flip(grid, axis)
        drawn = np.maximum.accumulate(ahead, axis=axis)
        return drawn if rule[0] % 2 == 0 else np.flip(drawn, axis)

    def draw_input(self, rng: np.random.Generator, settings: TaskSettings, rule: Rule) -> Grid:
        """No two seeds stand in one row or column, so no line meets another seed."""
        shape = draw_shape(rng, settings, self.min_side)
        count = int(rng.integers(1, min(3, *shape) + 1))
        rows, columns = (rng.permutation(side)[:count] for side in shape)
        grid = np.zeros(shape, dtype=np.uint8)
        grid[rows, columns] = rng.integers(1, settings.colors + 1, count)
        return grid
