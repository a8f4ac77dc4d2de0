"""Ratios of things run in turn."""

import time

import pytest

from benchmarks.measure import Ratio, Rounds, in_turn


def test_variants_run_in_turn_and_each_but_cold_ones_once_before() -> None:
    ran: list[str] = []
    variants = {name: (lambda name=name: ran.append(name)) for name in ("warm", "cold", "single")}
    timed = in_turn(variants, 3, cold=["cold"], once=["single"])
    assert ran == ["warm", "single", "warm", "cold", "single", "warm", "cold", "warm", "cold"]
    assert {name: len(times) for name, times in timed.times.items()} == {"warm": 3, "cold": 3, "single": 3}
    assert len(set(timed.times["single"])) == 1


def test_a_part_stands_for_the_whole() -> None:
    timed = in_turn({"part": lambda: time.sleep(0.02), "whole": lambda: None}, 1, stands_for={"part": 1000.0})
    assert timed.times["part"][0] >= 20
    assert timed.times["whole"][0] < 20


def test_ratios_are_taken_round_by_round() -> None:
    rounds = Rounds({"slow": [2.0, 12.0, 5.0], "fast": [1.0, 2.0, 5.0]})
    assert rounds.ratio("slow", "fast") == Ratio(median=2.0, low=1.0, high=6.0)
    # Half the operations in twice the time of the product: a quarter of its rate.
    shares = Rounds({"step": [4.0], "product": [2.0]})
    assert shares.share("step", 50.0, "product", 100.0) == pytest.approx(0.25)
