"""Fixtures for the data set's tests: task files and data sets made of a few hand-made puzzles."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset.build_arc_dataset import build_dataset
from dataset.store import PuzzleStore, load_store


@pytest.fixture
def task_files(tmp_path: Path) -> Callable[..., str]:
    """`task_files(subset, challenges, solutions)` writes Kaggle-style files and gives their prefix.

    A string is written as it stands, anything else as JSON; without solutions there is no such file.
    """

    def write(subset: str, challenges: Any, solutions: Any = None) -> str:
        for kind, content in (("challenges", challenges), ("solutions", solutions)):
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (tmp_path / f"arc_{subset}_{kind}.json").write_text(text, encoding="utf-8")
        return str(tmp_path / "arc")

    return write


@pytest.fixture
def build_store(tmp_path: Path, task_files: Callable[..., str]) -> Callable[..., PuzzleStore]:
    """`build_store({"subset": tasks}, test_set_name=..., num_aug=...)`: a data set of hand-made tasks."""

    def build(subsets: dict[str, Any], **options: Any) -> PuzzleStore:
        (prefix,) = {task_files(subset, tasks) for subset, tasks in subsets.items()}
        folder = tmp_path / "built"
        build_dataset(folder, list(subsets), input_file_prefix=prefix, **{"num_aug": 0, "seed": 0, **options})
        return load_store(folder)

    return build
