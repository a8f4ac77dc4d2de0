"""RE-ARC: pairs by number, what is excluded and held out, and the data sets that are built."""

import importlib.util
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from dataset.arc_tasks import Pair, Task
from dataset.augment import apply_dihedral
from dataset.build_rearc import RearcSettings, build_rearc, main
from dataset.rearc.exclusions import Exclusions, is_held_out, read_exclusions
from dataset.rearc.package import PACKAGE, Rearc, load_rearc
from dataset.rearc.pairs import as_tuples, numbered_pair
from dataset.rearc.scan import Scanner, overlaps, sample_pairs
from dataset.rearc.solving import Problem
from dataset.store import ARRAY_FIELDS, DatasetError, PuzzleStore, load_store
from dataset.subsets import load_subset
from dataset.trained_on import HELD_OUT_GENERATORS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="make rearc installs RE-ARC")
SMALL = RearcSettings(pairs=6, tasks=1, demos=2, num_aug=3)
TRAINED = ("67a3c6ac", "6150a2bd", "c8f0f002", "0d3d703e")
HELD_OUT = ("ba97ae07", "94f9d214")
EXCLUDED = ("40853293", "caa06a1f")


@pytest.fixture(scope="module")
def rearc() -> Rearc:
    return load_rearc()


def some(rearc: Rearc, *ids: str) -> Rearc:
    return Rearc({i: rearc.generators[i] for i in ids}, {i: rearc.verifiers[i] for i in ids})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rearc") / "rearc"
    build_rearc(folder, SMALL, (*TRAINED, *HELD_OUT, *EXCLUDED))
    return folder


def pair_of(rearc: Rearc, generator_id: str, number: int, seed: int = 0) -> Pair | None:
    generate, verify = rearc.generators[generator_id], rearc.verifiers[generator_id]
    return numbered_pair(generator_id, generate, verify, seed=seed, number=number, max_side=10)


def same(one: Pair | None, other: Pair | None) -> bool:
    if one is None or other is None:
        return one is other
    assert one.output is not None
    assert other.output is not None
    return np.array_equal(one.input, other.input) and np.array_equal(one.output, other.output)


def test_every_training_task_has_a_generator_and_a_verifier(rearc: Rearc) -> None:
    ids = sorted(task.id for task in load_subset("training")[0])
    assert list(rearc.generators) == list(rearc.verifiers) == ids
    assert "reasoning_gym" not in sys.modules


def test_without_the_package_the_error_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, PACKAGE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["--output-dir", str(tmp_path / "rearc")])
    assert ended.value.code == 2
    assert "pip install --no-deps --require-hashes -r requirements-rearc.txt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_pair_is_a_function_of_seed_generator_and_number(rearc: Rearc) -> None:
    alone = [pair_of(rearc, "67a3c6ac", number) for number in range(8)]
    Random(3).random()
    again = [pair_of(rearc, "67a3c6ac", number) for number in reversed(range(8))]
    assert all(same(one, other) for one, other in zip(alone, reversed(again), strict=True))
    others = [pair_of(rearc, "67a3c6ac", number, seed=1) for number in range(8)]
    assert not any(same(one, other) for one, other in zip(alone, others, strict=True) if one is not None)


@pytest.mark.parametrize("generator_id", ["6150a2bd", "c8f0f002", "d511f180", "0d3d703e"])
def test_a_pair_is_confirmed_by_the_verifier_and_as_small_as_asked_for(rearc: Rearc, generator_id: str) -> None:
    pairs = [pair for number in range(60) if (pair := pair_of(rearc, generator_id, number)) is not None]
    assert pairs
    for pair in pairs:
        assert pair.output is not None
        assert max(*pair.input.shape, *pair.output.shape) <= 10
        assert rearc.verifiers[generator_id](as_tuples(pair.input)) == as_tuples(pair.output)


def test_what_a_verifier_does_not_confirm_is_no_pair() -> None:
    def generate(rng: Random, low: float, high: float) -> dict[str, tuple[tuple[int, ...], ...]]:
        return {"input": ((1, 2),), "output": ((2, 1),)}

    options = {"seed": 0, "number": 0, "max_side": 10}
    assert numbered_pair("a", generate, lambda grid: ((2, 1),), **options) is not None
    assert numbered_pair("a", generate, lambda grid: ((2, 2),), **options) is None
    assert numbered_pair("a", generate, lambda grid: ((2, 1),), **options | {"max_side": 1}) is None


def test_a_generator_that_goes_around_in_circles_is_given_up() -> None:
    def generate(rng: Random, low: float, high: float) -> dict[str, tuple[tuple[int, ...], ...]]:
        while rng.choice((1, 2)):
            pass
        raise AssertionError

    assert numbered_pair("a", generate, lambda grid: grid, seed=0, number=0, max_side=10) is None


def test_the_built_sets_train_on_no_pair_that_they_hold_out(built: Path) -> None:
    store, whole = load_store(built), load_store(built.with_name("rearc-generators"))
    trained = {value for puzzle in store.manifest.puzzles if puzzle.split == "train" for value in puzzle.pair_hashes}
    asked = {value for puzzle in store.manifest.puzzles if puzzle.split == "test" for value in puzzle.pair_hashes}
    asked |= {value for puzzle in whole.manifest.puzzles for value in puzzle.pair_hashes}
    assert len(trained) == SMALL.pairs * len(TRAINED)
    assert len(asked) == (SMALL.demos + 1) * len(TRAINED + HELD_OUT)
    assert not trained & asked


def ids_of(store: PuzzleStore, subset: str) -> list[str]:
    both = zip(store.metadata.puzzle_ids, store.metadata.puzzle_subsets, strict=True)
    return [puzzle_id.split("/")[1] for puzzle_id, of in both if of == subset]


def test_new_instances_and_held_out_generators_are_data_sets_of_their_own(built: Path) -> None:
    store, whole = load_store(built), load_store(built.with_name("rearc-generators"))
    assert ids_of(store, "rearc") == ids_of(store, "rearc_new_instances") == list(TRAINED)
    assert ids_of(whole, "held_out_generators") == list(HELD_OUT)
    assert set(whole.metadata.puzzle_splits) == {"test"}


def test_a_set_is_built_again_bit_for_bit(built: Path, tmp_path: Path) -> None:
    build_rearc(tmp_path / "rearc", SMALL, (*TRAINED, *HELD_OUT))
    one, other = load_store(built), load_store(tmp_path / "rearc")
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAY_FIELDS)


def test_an_exam_that_was_never_scanned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"--exams mine: never scanned .* python -m dataset\.rearc\.scan"):
        build_rearc(tmp_path / "rearc", RearcSettings(exams=("mine",)))


def test_the_share_of_held_out_generators_is_about_a_tenth(rearc: Rearc) -> None:
    assert 30 <= sum(is_held_out(generator_id) for generator_id in rearc.generators) <= 50


@pytest.mark.parametrize("subset", ["evaluation", "evaluation2"])
def test_the_committed_list_has_the_generators_whose_tasks_overlap(subset: str) -> None:
    committed = [e for e in read_exclusions().excluded if e.subset == subset and e.reason == "overlap"]
    assert sorted(committed, key=str) == sorted(overlaps(subset, load_subset(subset)[0]), key=str)
    if subset == "evaluation":
        assert {e.id: e.tasks for e in committed} == {"40853293": ("070dd51e",), "caa06a1f": ("50a16a69",)}


def test_the_committed_list_tells_what_its_verifiers_solve(rearc: Rearc) -> None:
    tasks = {task.id: task for subset in ("evaluation", "evaluation2") for task in load_subset(subset)[0]}
    exams = ("evaluation", "evaluation2")
    found = [e for e in read_exclusions().excluded if e.reason == "solves" and e.subset in exams]
    for exclusion in found:
        task = tasks[exclusion.tasks[0]]
        assert Problem.of(task.id, (*task.train, *task.test)).solved_by(rearc.verifiers[exclusion.id]), exclusion


def test_no_trained_generator_is_one_of_a_held_out_one(rearc: Rearc) -> None:
    excluded = read_exclusions().of_subsets([HELD_OUT_GENERATORS])
    assert excluded
    assert not any(is_held_out(generator_id) for generator_id in excluded)
    assert "67e8384a" in excluded  # mirrors to four sides, as the held-out 3af2c5a8 does


def test_a_scan_finds_a_rule_under_a_dihedral_transform(rearc: Rearc) -> None:
    few = some(rearc, "a699fb00", "d511f180", "67a3c6ac")
    turned = [Pair(apply_dihedral(p.input, 1), apply_dihedral(p.output, 1)) for p in sample_pairs(few, "a699fb00")[:4]]
    excluded, undecided = Scanner(few, seconds=5).against_tasks("mine", [Task("x", "mine", tuple(turned), ())])
    assert [(e.id, e.subset, e.reason, e.tasks) for e in excluded] == [("a699fb00", "mine", "solves", ("x",))]
    assert not undecided


def test_what_takes_too_long_is_undecided(rearc: Rearc) -> None:
    def endless(grid: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        while True:
            pass

    few = some(rearc, "a699fb00")
    scanner = Scanner(few, seconds=0.1)
    few.verifiers["a699fb00"] = endless
    pairs = tuple(sample_pairs(rearc, "a699fb00")[:2])
    assert scanner.against_tasks("mine", [Task("x", "mine", pairs, ())]) == ([], {"a699fb00": ("x",)})


def test_a_new_scan_of_a_subset_takes_the_place_of_what_was_found_before() -> None:
    before = Exclusions.model_validate(
        {
            "scanned": {"a": 10, "b": 30},
            "excluded": [{"id": "1", "subset": s, "reason": "solves", "tasks": ["x"]} for s in ("a", "b")],
            "undecided": {"a": {"2": ["y"]}},
        }
    )
    after = before.with_subset("a", [], {})
    assert [e.subset for e in after.excluded] == ["b"]
    assert after.scanned == {"a": 30, "b": 30}
    assert not after.undecided
