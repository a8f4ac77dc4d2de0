"""A total of seconds divided among tasks: whatever is used of it, and by how many processes, its end is kept to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.adapt_options import Budget
from inference.shares import Shares


@given(
    total=st.floats(1, 1000),
    jobs=st.integers(1, 8),
    taken=st.lists(st.floats(0, 1), min_size=1, max_size=20),
    used=st.floats(0, 0.9),
)
def test_all_processes_end_within_the_total(total: float, jobs: int, taken: list[float], used: float) -> None:
    """Each task takes a share, drawn, of what it is given."""
    now = 50.0
    shares = Shares(None, total, len(taken), jobs=jobs, used=used * total, clock=lambda: now)
    free, ends = [now] * jobs, []
    for part in taken:
        now = free.pop(free.index(min(free)))
        given_seconds = shares.next().seconds
        assert given_seconds is not None
        free.append(now + part * given_seconds)
        ends.append(free[-1])
    assert max(ends) <= 50.0 + (1 - used) * total + 0.01 * len(taken)
    if all(part == 1 for part in taken) and len(taken) % min(jobs, len(taken)) == 0:
        assert max(ends) == pytest.approx(50.0 + (1 - used) * total, abs=0.1)


def test_two_processes_share_three_tasks_and_end_together() -> None:
    now = 0.0
    shares, given_seconds = Shares(None, 60.0, 3, jobs=2, clock=lambda: now), []
    for begins in (0.0, 0.0, 40.0):
        now = begins
        given_seconds.append(shares.next().seconds)
    assert given_seconds == pytest.approx([40.0, 40.0, 20.0])


def test_what_a_task_leaves_of_its_time_is_divided_among_those_after_it() -> None:
    """16 s for four tasks, of which each takes half of what it is given."""
    now, given_seconds = 100.0, []
    shares = Shares(None, 16.0, 4, clock=lambda: now)
    for _ in range(4):
        seconds = shares.next().seconds
        assert seconds is not None
        given_seconds.append(seconds)
        now += seconds / 2
    assert given_seconds == pytest.approx([4.0, 14 / 3, 35 / 6, 8.75])


def test_seconds_of_calls_before_and_a_cap_bound_what_a_task_is_given() -> None:
    assert Shares(Budget(seconds=3.0), 16.0, 4, jobs=2, clock=lambda: 0.0).next().seconds == 3.0
    assert Shares(None, 16.0, 4, jobs=2, used=6.0, clock=lambda: 0.0).next().seconds == pytest.approx(5.0)
    assert Shares(Budget(updates=7), None, 4, clock=lambda: 0.0).next().updates == 7
