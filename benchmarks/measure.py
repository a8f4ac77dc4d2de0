"""Measuring on a noisy machine: pairs run in turn, medians of ratios, peaks of memory, the rate of a matrix product."""

import ctypes
import re
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F

from models.layers import swiglu_width

PRODUCTS_A_CALL = 40  # so that one call takes long enough to be timed


@dataclass(frozen=True)
class Ratio:
    """How many times longer the second of two took than the first: the median, and the extremes over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 1 if self.median >= 10 else 2
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def seconds(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    function()
    return clock() - began


@dataclass(frozen=True)
class Rounds:
    """Seconds of each variant in each round, and ratios of two variants round by round."""

    times: dict[str, list[float]]

    def ratio(self, slow: str, fast: str) -> Ratio:
        """How many times longer `slow` takes than `fast`."""
        values = [a / b for a, b in zip(self.times[slow], self.times[fast], strict=True)]
        return Ratio(statistics.median(values), min(values), max(values))

    def share(self, name: str, operations: float, product: str, product_operations: float) -> float:
        """The rate of a variant over that of a matrix product in the same rounds: the median."""
        return self.ratio(product, name).median * operations / product_operations


def in_turn(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    cold: Collection[str] = (),
    once: Collection[str] = (),
    stands_for: Mapping[str, float] = MappingProxyType({}),
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Run the variants one after another, `rounds` times; each but those in `cold` is called once before.

    Args:
        once: those that run in the first round alone; their time counts for the others too.
        stands_for: of a variant that does a part of the work, how many times that is the whole.
    """
    for name, function in variants.items():
        if name not in cold:
            function()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, function in variants.items():
            is_known = number and name in once
            times[name].append(times[name][0] if is_known else seconds(function, clock) * stands_for.get(name, 1.0))
    return Rounds(times)


class Peaks:
    """How far the resident memory of this process rises above its level while a function runs (Linux); as text that of
    `padded` against `packed`."""

    def __init__(self) -> None:
        self.megabytes: dict[str, float] = {}

    def __str__(self) -> str:
        packed, padded = self.megabytes["packed"], self.megabytes["padded"]
        return f"{padded / packed:.1f} ({padded:.0f} / {packed:.0f} MB)"

    def watched(self, name: str, function: Callable[[], object]) -> Callable[[], object]:
        """The function, with its peak noted at each call."""

        def call() -> None:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present level
            before = _status("VmRSS")
            function()
            self.megabytes[name] = (_status("VmHWM") - before) / 1024

        return call


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1))


def matrix_products(rows: int, hidden: int, expansion: float, dtype: torch.dtype) -> tuple[Callable[[], None], float]:
    """The four projections of a block as plain matrix products, each of its own shape, and their operations."""
    inner = swiglu_width(hidden, expansion)
    shapes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]
    pairs = [(torch.randn(rows, i).to(dtype), torch.randn(o, i).to(dtype)) for i, o in shapes]

    def products() -> None:
        for _ in range(PRODUCTS_A_CALL):
            for x, weight in pairs:
                F.linear(x, weight)

    return products, PRODUCTS_A_CALL * sum(2.0 * rows * i * o for i, o in shapes)
