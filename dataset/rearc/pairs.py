"""Pairs of RE-ARC's generators: each is a function of seed, generator and number, whatever was drawn before it."""

from random import Random
from typing import Any

import numpy as np

from dataset.arc_tasks import Pair
from dataset.grids import CANVAS_SIDE, NUM_COLORS
from dataset.rearc.package import Generator, RearcGrid, Verifier

MAX_DRAWS = 200_000  # random numbers of one pair: a generator that takes more is going around in circles
# What a generator or a verifier raises where its own assumptions do not hold.
OWN_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
    UnboundLocalError,
)


class TooManyDraws(RuntimeError):
    """A generator has taken more random numbers than a pair may need."""


class CountedRandom(Random):
    """Random numbers that end: a loop of rejections is given up by their number, so by the same one everywhere."""

    drawn = 0

    def _count(self) -> None:
        self.drawn += 1
        if self.drawn > MAX_DRAWS:
            raise TooManyDraws(f"more than {MAX_DRAWS} random numbers")

    def random(self) -> float:
        self._count()
        return super().random()

    def getrandbits(self, k: int, /) -> int:
        self._count()
        return super().getrandbits(k)


def numbered_pair(
    generator_id: str, generate: Generator, verify: Verifier, *, seed: int, number: int, max_side: int
) -> Pair | None:
    """The pair of a number; None where it is too large, or the verifier does not confirm it.

    Difficulty is drawn up to what gives sides of about `max_side`, for most generators' sides grow with it to 30.
    """
    rng = CountedRandom(f"{seed}/{generator_id}/{number}")
    try:
        made = generate(rng, 0.0, rng.random() * max_side / CANVAS_SIDE)
        given, answer = made["input"], made["output"]
        if not (_fits(given, max_side) and _fits(answer, max_side)) or given == answer or verify(given) != answer:
            return None
    except OWN_FAULTS:
        return None
    return Pair(np.array(given, dtype=np.uint8), np.array(answer, dtype=np.uint8))


def as_tuples(grid: np.ndarray) -> RearcGrid:
    """The grid as a verifier takes it."""
    return tuple(tuple(row) for row in grid.tolist())


def _fits(grid: Any, max_side: int) -> bool:
    """Whether it is a grid of colours with no longer side."""
    return (
        isinstance(grid, tuple)
        and 1 <= len(grid) <= max_side
        and isinstance(grid[0], tuple)
        and 1 <= len(grid[0]) <= max_side
        and all(isinstance(row, tuple) and len(row) == len(grid[0]) for row in grid)
        and all(type(cell) is int and 0 <= cell < NUM_COLORS for row in grid for cell in row)
    )
