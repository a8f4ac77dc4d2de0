"""Measuring on CUDA: times by events, peaks of memory, the rate of large products, graphs that were compiled.

Everything runs on the CPU too, by its clock and without a peak of memory.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.measure import seconds
from benchmarks.systems import System

GIB = 1 << 30


class Clock:
    """Seconds that a function takes on a device, from an idle one to an idle one."""

    def __init__(self, device: torch.device):
        self.is_cuda = device.type == "cuda"

    def seconds(self, function: Callable[[], object]) -> float:
        if not self.is_cuda:
            return seconds(function)
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        began.record()
        function()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1e3


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """The most memory that tensors have held since `forget_peak`; None where nobody counts."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def compiled_graphs() -> int:
    """How many graphs have been compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def rate_of_products(side: int, dtype: torch.dtype, device: torch.device, times: int = 10) -> float:
    """Operations a second of a product of two square matrices: the best of three."""
    x, weight = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def products() -> None:
        for _ in range(times):
            F.linear(x, weight)

    products()
    return times * 2.0 * side**3 / min(Clock(device).seconds(products) for _ in range(3))


@dataclass(frozen=True)
class Training:
    """Training steps of a system: forward and backward pass of one ACT step of each of several batches.

    Attributes:
        first: seconds of the first step, with what is compiled in it.
        step: seconds of one step, the median.
        operations: useful ones in a second.
        recompiled: graphs compiled after the warm-up.
        peak: GiB.
    """

    first: float
    step: float
    samples: float
    operations: float
    recompiled: int
    peak: float | None


def measure_training(system: System, warm: int, timed: int) -> Training:
    """`warm` steps, then `timed` ones, each on a batch of its own."""
    clock = Clock(system.device)
    batches = [system.batch_of(number) for number in range(warm + timed)]
    forget_peak(system.device)
    times: list[float] = []
    useful, graphs = 0.0, 0
    for number, batch in enumerate(batches):
        if number == warm:
            graphs = compiled_graphs()
        system.take(batch)
        times.append(clock.seconds(system.train_step))
        useful += system.training_flops() if number >= warm else 0
    spent = sum(times[warm:])
    return Training(
        first=times[0],
        step=statistics.median(times[warm:]),
        samples=timed * len(batches[0]["inputs"]) / spent,
        operations=useful / spent,
        recompiled=compiled_graphs() - graphs,
        peak=peak_gib(system.device),
    )


@dataclass(frozen=True)
class Vote:
    """One vote of every query of a batch: seconds, useful operations a second, GiB."""

    seconds: float
    operations: float
    peak: float | None


def measure_vote(system: System) -> Vote:
    """A vote after another that warms up."""
    steps = system.config.max_steps
    system.vote(steps)
    forget_peak(system.device)
    spent = Clock(system.device).seconds(lambda: system.vote(steps))
    return Vote(spent, system.vote_flops(steps) / spent, peak_gib(system.device))
