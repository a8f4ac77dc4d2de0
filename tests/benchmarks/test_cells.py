"""Training steps of what keeps the demonstrations' cells, against ETRM's: at the smallest sizes."""

import pytest

from benchmarks import cells
from benchmarks.pages import Row
from benchmarks.systems import System
from dataset.store import PuzzleStore

TINY = ("arch.hidden_size=32", "arch.num_heads=1", "arch.H_cycles=1", "arch.L_cycles=1", "arch.L_layers=1")
TINY += ("arch.halt_max_steps=1",)


def test_every_system_has_its_ratios_to_etrm_on_the_same_batches(store: PuzzleStore) -> None:
    text = cells.report(store, 1, TINY)
    rows: list[Row] = [tuple(line.strip("| ").split(" | ")) for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == [*cells.SYSTEMS]
    etrm = System("ETRM", store, size=TINY)
    batch = etrm.batch_of(1)  # the first one warms up
    for name, *times, operations in rows:
        assert all(float(time.split()[0]) > 0 for time in times)
        system = System(name, store, size=TINY)
        assert float(operations) == pytest.approx(
            cells.useful(system, [batch]) / cells.useful(etrm, [batch]), abs=0.006
        )
