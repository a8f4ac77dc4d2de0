"""`make bench-cells`: training steps of the systems that keep the demonstrations' cells, against ETRM's, whose standard
encoder makes one vector of each pair.

All take the same batches in turn, each round one of its own. Times are those that the process spends on its CPUs: other
processes disturb them less than the clock. `--write` puts the table into docs/performance.md, between its marks.
"""

import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.measure import in_turn
from benchmarks.pages import Row, show_or_write, table
from benchmarks.systems import DATA, SIZE, System
from dataset.batches import Batch
from dataset.store import PuzzleStore, load_store

STANDARD = "ETRM"
SYSTEMS = ("in_context read", "in_context", "ETRMTRM C")
DTYPES = ("float32", "bfloat16")


def steps(system: System, batches: Sequence[Batch]) -> Callable[[], None]:
    """A training step on the next of the batches, at each call."""
    coming = iter(batches)

    def step() -> None:
        system.take(next(coming))
        system.train_step()

    return step


def useful(system: System, batches: Sequence[Batch]) -> float:
    """Operations of a training step on each of the batches."""
    total = 0.0
    for batch in batches:
        system.take(batch)
        total += system.training_flops()
    return total


def against_standard(store: PuzzleStore, rounds: int, dtype: str, size: Sequence[str] = SIZE) -> dict[str, Row]:
    """For each system its time and its useful operations, as multiples of ETRM's."""
    systems = {name: System(name, store, dtype=dtype, size=size) for name in (STANDARD, *SYSTEMS)}
    batches = [systems[STANDARD].batch_of(number) for number in range(1 + rounds)]
    timed = in_turn({n: steps(system, batches) for n, system in systems.items()}, rounds, clock=time.process_time)
    operations = {name: useful(system, batches[1:]) for name, system in systems.items()}
    return {
        name: (str(timed.ratio(name, STANDARD)), f"{operations[name] / operations[STANDARD]:.2f}") for name in SYSTEMS
    }


def of_ratios(head: Row, rows: list[Row], what: str) -> str:
    """A table of ratios, and what it was measured on."""
    return (
        f"Torch {torch.__version__}, {torch.get_num_threads()} thread(s), eager, on the CPU: medians of {what}, "
        f"with their extremes.\n\n{table(head, rows)}"
    )


def report(store: PuzzleStore, rounds: int, size: Sequence[str] = SIZE) -> str:
    """The table, and what it was measured on."""
    found = {dtype: against_standard(store, rounds, dtype, size) for dtype in DTYPES}
    rows = [(name, *(found[dtype][name][0] for dtype in DTYPES), found[DTYPES[0]][name][1]) for name in SYSTEMS]
    head = ("training step", *(f"time / {STANDARD}'s, {dtype}" for dtype in DTYPES), f"useful FLOP / {STANDARD}'s")
    return of_ratios(head, rows, f"{rounds} batches")


def main() -> None:
    show_or_write("bench-cells", __doc__, lambda rounds: report(load_store(DATA), rounds), rounds=10)


if __name__ == "__main__":
    main()
