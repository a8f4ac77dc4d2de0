"""A data set that is not there: the path that was looked at, where there is one of that path, and what builds it."""

import re
import shutil
from pathlib import Path

import pytest

from config.schema import config_names, load_config
from dataset import whereabouts
from dataset.store import DatasetError, load_store, load_stores
from dataset.whereabouts import build_command
from tests.processes import ROOT


def said_of(path: str) -> str:
    with pytest.raises(DatasetError) as caught:
        load_stores([path])
    return str(caught.value)


@pytest.fixture
def folders(tmp_path: Path, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder with data/arc1, and another one, which is the working directory."""
    (tmp_path / "here" / "deeper").mkdir(parents=True)
    shutil.copytree(dataset_folder, tmp_path / "there" / "data" / "arc1")
    monkeypatch.chdir(tmp_path / "here" / "deeper")
    return tmp_path / "there", tmp_path / "here" / "deeper"


def test_a_relative_path_is_named_with_the_folder_that_it_is_relative_to(folders: tuple[Path, Path]) -> None:
    _, here = folders
    message = said_of("data/arc1")
    assert f"no such folder in {here}: {here / 'data/arc1'}" in message
    assert "there is one at" not in message
    assert "python -m dataset.build_arc_dataset --output-dir data/arc1 --subsets" in message


def test_a_data_set_of_that_path_in_the_checkout_is_named(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = folders
    monkeypatch.setattr(whereabouts, "CHECKOUT", there)
    found = re.search(r"there is one at ([^;)]+)", said_of("data/arc1"))
    assert found
    assert Path(found.group(1)) == there / "data/arc1"
    assert load_store(found.group(1)).metadata
    (here / "data" / "arc1").mkdir(parents=True)  # an empty one does not hide it
    assert f"there is one at {there / 'data/arc1'}" in said_of("data/arc1")


def test_a_data_set_of_that_path_above_the_working_directory_is_named(folders: tuple[Path, Path]) -> None:
    there, here = folders
    shutil.move(there / "data", here.parent / "data")
    assert f"there is one at {here.parent / 'data/arc1'}" in said_of("data/arc1")


def test_an_absolute_path_is_told_alone(folders: tuple[Path, Path]) -> None:
    there, here = folders
    message = said_of(str(there / "data/none"))
    assert str(here) not in message
    assert "no such folder" in message
    assert "there is one at" not in message


def test_generators_that_are_held_out_are_built_with_the_others() -> None:
    assert build_command(Path("data/rearc-generators")) == build_command(Path("data/rearc"))


@pytest.mark.parametrize("path", [".", "/", "data/.."])
def test_any_path_may_be_named(path: str) -> None:
    assert "dataset.build_arc_dataset" in build_command(Path(path))


@pytest.mark.parametrize("name", config_names())
def test_what_builds_the_data_of_a_config_is_what_the_makefile_and_the_readme_have(name: str) -> None:
    known = " ".join((ROOT / "Makefile").read_text().split() + (ROOT / "README.md").read_text().split())
    known = known.replace("\\ ", "").replace("$(PY)", "python")
    (path,) = load_config(name).data_paths
    assert build_command(Path(path)) in known
