"""`python -m benchmarks.breakdown`: where the time of a training step goes, in shares that add up.

Self time of every operator of one profiled step, in groups by what it is for.
"""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.pages import table
from benchmarks.systems import DATA, System
from dataset.store import load_store

LONGEST = 12
# The first pattern that fits takes an operator.
GROUPS = {
    "projections (matrix products)": r"aten::(mm|addmm|linear)$",
    "attention": r"etrm::|aten::_scaled_dot_product|aten::(bmm|_softmax)|attend_runs|aten::baddbmm",
    "activation, norms, rotary positions, sums": (
        r"aten::(mul|add|sub|cat|silu|silu_backward|pow|rsqrt|mean|neg|div|sum|square|chunk|expand|sqrt)_?$"
    ),
    "gathers, scatters, copies, casts": r"aten::(copy_|index|embedding|where|clone|_to_copy)",
}


# Of kernels on CUDA; compiled ones (triton) are fused elementwise work, whatever else their name says.
KERNELS = {
    "attention": r"flash|fmha|attention",
    "matrix products": r"gemm|cutlass|cublas|nvjet|xmma|wgmma|splitK",
    "elementwise, norms, rotary positions, sums": r"^triton|elementwise(?!.*copy)|rms_norm|layer_norm|reduce|softmax",
    "gathers, scatters, copies, casts": r"[Mm]em(cpy|set)|[Cc]opy|Cat|index|gather|scatter|embedding|sort|scan|select",
}
REST = "everything else"


def group_of(name: str, groups: Mapping[str, str] = MappingProxyType(GROUPS)) -> str:
    """The group of an operator or kernel."""
    return next((group for group, pattern in groups.items() if re.search(pattern, name)), REST)


@dataclass(frozen=True)
class Breakdown:
    """One step: each group's time in µs, how many operators (on CUDA: kernels) ran, and the longest of them."""

    spent: dict[str, float]
    count: int
    longest: list[tuple[str, float]]

    @property
    def shares(self) -> dict[str, float]:
        """Each group's share of the whole time."""
        total = sum(self.spent.values())
        return {group: value / total for group, value in self.spent.items()}


def broken_down(step: Callable[[], object], device: torch.device) -> Breakdown:
    """Where the time of a step goes that has been run before."""
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as profiled:
        step()
        if is_cuda:
            torch.cuda.synchronize()
    events = [event for event in profiled.key_averages() if (event.device_type == DeviceType.CUDA) == is_cuda]
    times = {event.key: event.self_device_time_total if is_cuda else event.self_cpu_time_total for event in events}
    groups = KERNELS if is_cuda else GROUPS
    spent = dict.fromkeys([*groups, REST], 0.0)
    for name, microseconds in times.items():
        spent[group_of(name, groups)] += microseconds
    longest = sorted(times.items(), key=lambda item: -item[1])[:LONGEST]
    return Breakdown(spent, sum(event.count for event in events), longest)


def shares(system: System) -> dict[str, float]:
    """Each group's share of one training step's self time."""
    system.train_step()
    return broken_down(system.train_step, system.device).shares


def main() -> None:
    store = load_store(DATA)
    forms = {
        "TRM, float32": System("TRM", store),
        "ETRM, float32": System("ETRM", store),
        "ETRM, bfloat16": System("ETRM", store, dtype="bfloat16"),
        "ETRMTRM C, float32": System("ETRMTRM C", store),
        "in_context read, float32": System("in_context read", store),
    }
    found = {name: shares(system) for name, system in forms.items()}
    rows = [(group, *(f"{100 * found[name][group]:.0f} %" for name in forms)) for group in [*GROUPS, REST]]
    sys.stdout.write(table(("share of a training step", *forms), rows) + "\n")


if __name__ == "__main__":
    main()
