"""`make bench-targets`: a training step that asks for every pair of a task, against one that asks for its query alone.

Both are `in_context read` with `context_attention=pair`, and take the same batches in turn, as in `benchmarks.cells`;
the first samples of each stand for all. `--write` puts the table into docs/performance.md, between its marks.
"""

import statistics
import time
from collections.abc import Sequence

from benchmarks.cells import DTYPES, of_ratios, steps, useful
from benchmarks.measure import in_turn
from benchmarks.pages import Row, show_or_write
from benchmarks.systems import DATA, SIZE, System
from dataset.batches import Batch
from dataset.store import PuzzleStore, load_store
from models.recursive_reasoning.targets import Targets

SYSTEM = "in_context read"
QUERY, EVERY = "query", "all_pairs"
SAMPLES = 4  # of a batch


def targets_of(batch: Batch) -> float:
    """Targets of a task, the query among them: the mean over a batch."""
    return len(Targets.of(batch).number) / len(batch["inputs"])


def against_query(store: PuzzleStore, rounds: int, dtype: str, size: Sequence[str] = SIZE) -> Row:
    """The time of a step, as a multiple of that of a step which asks for the query; targets a task; time and useful
    operations a target."""
    systems = {
        targets: System(
            SYSTEM,
            store,
            dtype=dtype,
            size=size,
            samples=SAMPLES,
            overrides=("arch.context_attention=pair", f"arch.targets={targets}"),
        )
        for targets in (QUERY, EVERY)
    }
    batches = [systems[QUERY].batch_of(number) for number in range(1 + rounds)]
    timed = in_turn({n: steps(system, batches) for n, system in systems.items()}, rounds, clock=time.process_time)
    ratio, targets = timed.ratio(EVERY, QUERY), statistics.median(map(targets_of, batches[1:]))
    operations = useful(systems[EVERY], batches[1:]) / useful(systems[QUERY], batches[1:])
    return dtype, str(ratio), f"{targets:.2f}", f"{ratio.median / targets:.2f}", f"{operations / targets:.2f}"


def report(store: PuzzleStore, rounds: int, size: Sequence[str] = SIZE) -> str:
    """The table, and what it was measured on."""
    head = (
        "`targets=all_pairs`, training step",
        "time / the query's alone",
        "targets a task",
        "time a target",
        "useful FLOP a target",
    )
    rows = [against_query(store, rounds, dtype, size) for dtype in DTYPES]
    return of_ratios(head, rows, f"{rounds} batches of {SAMPLES} tasks")


def main() -> None:
    show_or_write("bench-targets", __doc__, lambda rounds: report(load_store(DATA), rounds), rounds=10)


if __name__ == "__main__":
    main()
