"""Subsets that overlap or repeat each other: what is held out goes first, then what stands twice."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset.arc_tasks import Pair, Task, TaskError
from dataset.build_arc_dataset import build_dataset, main
from dataset.splits import split_tasks
from dataset.store import DroppedPuzzle, PuzzleStore, load_store


def pair(*cells: int) -> Pair:
    return Pair(np.array([cells], dtype=np.uint8), np.array([cells, cells], dtype=np.uint8))


P = [pair(*range(n)) for n in range(2, 9)]


def task(name: str, subset: str, train: list[Pair], test: list[Pair]) -> Task:
    return Task(name, subset, tuple(train), tuple(test))


def outcome(
    tasks: list[Task], held_out: tuple[str, ...] = (), **options: str
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str, str | None]]]:
    chosen, dropped = split_tasks(tasks, held_out, **options)
    return [(t.id, t.subset, split) for t, split, _ in chosen], [
        (d.id, d.subset, d.reason, d.kept_from) for d in dropped
    ]


FIRST = task("a", "one", P[:2], [P[2]])


@pytest.mark.parametrize("train", [P[:2], P[1::-1]])
def test_a_puzzle_with_the_same_pairs_in_any_order_is_kept_once(train: list[Pair]) -> None:
    again = task("a", "two", train, [P[2]])
    assert outcome([FIRST, again]) == ([("a", "one", "train")], [("a", "two", "identical", "one")])
    with pytest.raises(TaskError, match=r"puzzle a \(two\) is in one too, with the same pairs; --on-duplicate drop"):
        outcome([FIRST, again], on_duplicate="fail")


@pytest.mark.parametrize(
    ("train", "test"), [([P[0], P[3]], [P[2]]), (P[:2], [P[3]]), ([P[0], P[2]], [P[1]]), (P[:1], [P[2]])]
)
def test_another_version_of_a_puzzle_is_dropped_as_contradicting(
    train: list[Pair], test: list[Pair], caplog: pytest.LogCaptureFixture
) -> None:
    other = task("a", "two", train, test)
    assert outcome([FIRST, other]) == ([("a", "one", "train")], [("a", "two", "contradicting", "one")])
    assert any(r.levelname == "WARNING" and "puzzle a (two)" in r.message for r in caplog.records)
    with pytest.raises(TaskError, match="with other pairs besides common ones"):
        outcome([FIRST, other], on_duplicate="fail")


def test_different_puzzles_of_one_id_are_refused() -> None:
    with pytest.raises(TaskError, match="'a' stands twice: in subset 'one' and in 'two', without a common pair"):
        outcome([FIRST, task("a", "two", P[3:5], [P[5]])])


def test_a_list_of_pairs_is_kept_beside_the_puzzle_of_its_id_under_an_id_of_its_own() -> None:
    """RE-ARC's lists are called after the puzzles of ARC-AGI-1 whose rules they follow."""
    group = replace(task("a", "rearc", P[3:5], [P[5]]), is_group=True)
    with_common_pair = replace(task("a", "more", P[:1], [P[5]]), is_group=True)
    for tasks in ([FIRST, group, with_common_pair], [group, replace(FIRST, subset="one"), with_common_pair]):
        chosen, dropped = outcome(tasks, on_duplicate="fail")
        assert [name for name, _, _ in chosen] == ["a", f"{tasks[1].subset}/a", "more/a"]
        assert not dropped
    assert outcome([group, replace(group, subset="again")])[1] == [("a", "again", "identical", "rearc")]
    held = replace(FIRST, subset="held")
    assert outcome([group, held], ("held",)) == ([("a", "held", "test")], [("a", "rearc", "held_out", None)])
    with pytest.raises(TaskError, match="'a' stands twice"):
        outcome([FIRST, group, replace(group, train=tuple(P[4:6]))])


def test_what_is_held_out_goes_before_anything_that_stands_twice_is_looked_at() -> None:
    """Two versions that contradict each other, or have nothing in common, are no fault where their id is held out."""
    held = task("a", "held", P[3:5], [P[5]])
    also_held = task("b", "more", [P[6]], [P[0]])
    by_id = task("a", "two", [P[1]], [P[2]])
    by_pair = task("c", "one", [P[1]], [P[4]])
    kept = task("d", "one", [P[1]], [P[2]])
    tasks = [by_id, by_pair, FIRST, kept, held, also_held]
    for options in ({}, {"on_duplicate": "fail"}):
        chosen, dropped = outcome(tasks, ("held", "more"), **options)
        assert chosen == [("d", "one", "train"), ("a", "held", "test"), ("b", "more", "test")]
        assert {(name, subset, reason) for name, subset, reason, _ in dropped} == {
            ("a", "two", "held_out"),
            ("c", "one", "held_out"),
            ("a", "one", "held_out"),
        }


def test_a_puzzle_of_two_held_out_sets_is_asked_once() -> None:
    held = [task("a", "held", P[:2], [P[2]]), task("a", "more", P[:2], [P[2]])]
    chosen, dropped = outcome(held, ("held", "more"))
    assert chosen == [("a", "held", "test")]
    assert dropped == [("a", "more", "identical", "held")]


def test_both_arc_agi_sets_train_together_with_both_evaluations_held_out(tmp_path: Path) -> None:
    subsets = ["training", "training2", "evaluation", "evaluation2"]
    main(f"--output-dir out --num-aug 0 --subsets {' '.join(subsets)} --test-set-name evaluation evaluation2".split())
    built = load_store(tmp_path / "out")
    assert built.metadata.build["test_set_name"] == ["evaluation", "evaluation2"]
    reasons = Counter((d.reason, d.subset) for d in built.manifest.dropped)
    assert reasons["identical", "evaluation2"] == 6
    assert sum(reasons.values()) + len(built.metadata.puzzle_ids) == 400 + 1000 + 400 + 120
    hashes = {s: {h for p in built.manifest.puzzles if p.split == s for h in p.pair_hashes} for s in ("train", "test")}
    assert hashes["train"].isdisjoint(hashes["test"])
    assert len(built.puzzles_of("test")) == 514
    assert len(built.puzzles_of("train")) == 631


def test_of_773_ids_in_both_arc_agi_sets_772_hold_the_same_pairs(tmp_path: Path) -> None:
    build_dataset(tmp_path / "out", ["training", "evaluation", "training2", "evaluation2"], num_aug=0)
    dropped = load_store(tmp_path / "out").manifest.dropped
    assert Counter(d.reason for d in dropped) == {"identical": 772, "contradicting": 1}
    assert [d.id for d in dropped if d.reason == "contradicting"] == ["ac0c5833"]


def test_one_held_out_name_is_recorded_as_before_and_old_manifests_load(
    build_store: Callable[..., PuzzleStore], tmp_path: Path
) -> None:
    rows = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3, 4]], "output": [[5]]}]}
    built = build_store({"own": {"a": rows}}, test_set_name="own")
    assert built.metadata.build["test_set_name"] == "own"
    old: dict[str, Any] = {"id": "a", "subset": "own", "shares_pairs_with": ["b"]}
    found = DroppedPuzzle.model_validate_json(json.dumps(old))
    assert (found.reason, found.kept_from) == ("held_out", None)


def test_without_a_held_out_set_the_remedy_is_said(
    build_store: Callable[..., PuzzleStore], caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3, 4]], "output": [[5]]}]}
    build_store({"own": {"a": rows}})
    assert "no puzzle is held out, so nothing can be evaluated: name a subset by --test-set-name" in caplog.text
