"""`python -m benchmarks.breakdown`: where the time of a training step goes, in shares that add up.

Self time of every operator of one profiled step, in groups by what it is for.
"""

import re
import sys

from torch.profiler import ProfilerActivity, profile

from benchmarks.bench import DATA, table
from benchmarks.systems import System
from dataset.store import load_store

# The first pattern that fits takes an operator.
GROUPS = {
    "projections (matrix products)": r"aten::(mm|addmm|linear)$",
    "attention": r"etrm::|aten::_scaled_dot_product|aten::(bmm|_softmax)|attend_runs|aten::baddbmm",
    "activation, norms, rotary positions, sums": (
        r"aten::(mul|add|sub|cat|silu|silu_backward|pow|rsqrt|mean|neg|div|sum|square|chunk|expand|sqrt)_?$"
    ),
    "gathers, scatters, copies, casts": r"aten::(copy_|index|embedding|where|clone|_to_copy)",
}


def group_of(name: str) -> str:
    """The group of an operator."""
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, name)), "everything else")


def shares(system: System) -> dict[str, float]:
    """Each group's share of one training step's self time."""
    system.train_step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        system.train_step()
    spent = dict.fromkeys([*GROUPS, "everything else"], 0.0)
    for event in profiled.key_averages():
        spent[group_of(event.key)] += event.self_cpu_time_total
    total = sum(spent.values())
    return {group: value / total for group, value in spent.items()}


def main() -> None:
    store = load_store(DATA)
    forms = {
        "TRM, float32": System("TRM", store),
        "ETRM, float32": System("ETRM", store),
        "ETRM, bfloat16": System("ETRM", store, dtype="bfloat16"),
    }
    found = {name: shares(system) for name, system in forms.items()}
    rows = [(group, *(f"{100 * found[name][group]:.0f} %" for name in forms)) for group in [*GROUPS, "everything else"]]
    sys.stdout.write(table(("share of a training step", *forms), rows) + "\n")


if __name__ == "__main__":
    main()
