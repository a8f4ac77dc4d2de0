"""A path is named as what stands there, wherever a run, a checkpoint or a data set is wanted."""

import shutil
from pathlib import Path

import pytest

from checkpoints.checkpoint import CheckpointError, open_checkpoint
from dataset.arc_tasks import TaskError
from dataset.store import DatasetError, load_store
from dataset.task_files import load_tasks
from reports.run_reader import load_run
from utils.path_kinds import kind_of
from utils.run_status import main as run_status

KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing in it": ((), "an empty folder"),
    "Lightning": (("hparams.yaml", "checkpoints/epoch=1.ckpt"), "a log folder of PyTorch Lightning"),
    "Hugging Face": (("config.json", "model.safetensors", "tokenizer.json"), "a Hugging Face model"),
    "an adapter": (("adapter_config.json",), "a Hugging Face model"),
    "published": (("all_config.yaml", "step_7"), "a folder of HRM's or TRM's own training"),
    "tasks": (("a.json", "b.json"), "a folder of JSON files"),
    "photographs": (("1.jpg", "2.jpg", "3.jpg", "4.jpg"), "a folder of other things (1.jpg, 2.jpg, 3.jpg and 1 more)"),
}


@pytest.fixture
def places(finished_run: Path, dataset_folder: Path, tmp_path: Path) -> dict[str, Path]:
    """A place of each kind."""
    run = Path(shutil.copytree(finished_run, tmp_path / "p/run", symlinks=True))
    places = {
        "run": run,
        "checkpoints": run / "checkpoints",
        "checkpoint": open_checkpoint(run).path,
        "project": run.parent,
        "data": dataset_folder,
        "data file": dataset_folder / "metadata.json",
        "nowhere": tmp_path / "p/runn",
    }
    places["weights file"] = places["checkpoint"] / "model.safetensors"
    for name, (files, _) in KINDS.items():
        places[name] = tmp_path / "k" / name
        places[name].mkdir(parents=True)
        for file in files:
            (places[name] / file).parent.mkdir(exist_ok=True)
            (places[name] / file).write_text("{}")
    return places


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_is_named_as_what_is_in_it(places: dict[str, Path], name: str) -> None:
    assert kind_of(places[name]) == KINDS[name][1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", ["no such file or folder; near it: ", "p/run", "runs/PROJECT/RUN"]),
        ("checkpoints", ["the folder of a run's checkpoints", "name the run", "p/run"]),
        ("project", ["a folder of runs (run)", "runs/PROJECT/RUN"]),
        ("data", ["a data set;", "--data-paths"]),
        ("weights file", ["a file of a checkpoint of a run", "name that folder"]),
        ("data file", ["a file of a data set", "runs/PROJECT/RUN"]),
        *((name, [words]) for name, (_, words) in KINDS.items()),
    ],
)
def test_what_stands_in_the_place_of_a_checkpoint_is_named(
    places: dict[str, Path], name: str, words: list[str]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(places[name])
    assert str(caught.value).startswith(f"{places[name]}: ")
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_run_without_a_checkpoint_says_so_and_how_it_stands(places: dict[str, Path]) -> None:
    for gone in (lambda path: shutil.rmtree(path) or path.mkdir(), shutil.rmtree):
        gone(places["checkpoints"])
        with pytest.raises(CheckpointError, match=r"a run folder without a checkpoint \(its status: done at step 8\)"):
            open_checkpoint(places["run"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run", ["(a run folder); data_paths names a folder that dataset.build_arc_dataset wrote"]),
        ("checkpoint", ["(a checkpoint of a run);"]),
        ("Hugging Face", ["(a Hugging Face model);"]),
        ("data file", ["(a file of a data set, ", "name that folder"]),
        ("weights file", ["(a file of a checkpoint of a run, "]),
        ("nothing in it", ["(an empty folder without metadata.json)", "dataset.build_arc_dataset --output-dir"]),
        ("nowhere", ["no such file or folder; near it: "]),
        ("tasks", ["(a folder of JSON files without metadata.json)", "--source SUBSET="]),
    ],
)
def test_what_stands_in_the_place_of_a_data_set_is_named(places: dict[str, Path], name: str, words: list[str]) -> None:
    with pytest.raises(DatasetError) as caught:
        load_store(places[name])
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("name", ["checkpoint", "data", "project", "nothing in it"])
def test_what_stands_in_the_place_of_a_run_is_named(
    places: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"not a run folder \([a-z.]+ is missing\), but ") as caught:
        load_run(places[name])
    assert kind_of(places[name]) in str(caught.value)
    with pytest.raises(SystemExit):
        run_status([str(places[name])])
    assert kind_of(places[name]) in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run", "checkpoint", "data"])
def test_a_model_or_a_data_set_in_the_place_of_tasks_is_named(places: dict[str, Path], name: str) -> None:
    with pytest.raises(TaskError, match=f"{places[name]}: {kind_of(places[name])}"):
        load_tasks([str(places[name])])
