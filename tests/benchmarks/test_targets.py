"""What every pair as a target costs: at the smallest sizes."""

import pytest

from benchmarks import targets
from benchmarks.systems import System
from dataset.store import PuzzleStore
from tests.benchmarks.test_cells import TINY


def test_the_targets_of_a_task_are_its_query_and_the_pairs_that_others_are_left_for(store: PuzzleStore) -> None:
    batch = System(targets.SYSTEM, store, size=TINY, samples=targets.SAMPLES).batch_of(1)
    pairs = [int(shown.sum()) for shown in batch["demo_mask"]]
    expected = sum(1 + (count if count > 1 else 0) for count in pairs) / len(pairs)
    assert targets.targets_of(batch) == pytest.approx(expected)
    for dtype, ratio, number, each, operations in [
        targets.against_query(store, 1, dtype, TINY) for dtype in targets.DTYPES
    ]:
        assert float(number) == pytest.approx(expected, abs=0.006), dtype
        assert float(each) == pytest.approx(float(ratio.split()[0]) / expected, abs=0.02)
        assert 0.1 < float(operations) <= 1
