"""The order of the folders: each imports those below it, none above, and no modules form a circle."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.processes import ROOT

LINTER = Path(sys.executable).with_name("lint-imports")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
LAYERS = SETTINGS["contracts"][0]["layers"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages."""
    for package in LAYERS:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LINTER, "--no-cache", "--no-logo"], cwd=tree, capture_output=True, text=True, check=False)


def test_the_folders_keep_their_order(tree: Path) -> None:
    done = lint(tree)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("utils/files.py", "from dataset import grids"),
        ("training/loop.py", "from reports import pages"),
        ("checkpoints/checkpoint.py", "from jobs import file"),
        ("dataset/grids.py", "from dataset import store"),
    ],
)
def test_one_import_upwards_or_in_a_circle_is_refused(tree: Path, module: str, line: str) -> None:
    path = tree / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    done = lint(tree)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout


def test_every_package_is_in_the_order_and_says_what_it_is_for() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages == set(LAYERS) == set(SETTINGS["root_packages"])
    for package in packages:
        assert (ROOT / package / "__init__.py").read_text().startswith('"""'), package


def test_tests_mirror_the_packages() -> None:
    """A folder of tests for each package, and no test of a module that is not there."""
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("test_*.py"))}
    assert set(LAYERS) <= folders
