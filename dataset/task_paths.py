"""From what a user names to files: folders, glob patterns, standard input, and names that were nearly right."""

import glob
import os
from pathlib import Path

from dataset.arc_tasks import TaskError
from dataset.json_files import STDIN
from utils.path_kinds import DATA_SET, TRAINED, kind_of, near_names

PACKED = ".gz"
SUFFIXES = (".json", ".jsonl", ".ndjson")  # what is looked for in a folder; a file that is named may have any
CHALLENGES, SOLUTIONS = "challenges", "solutions"
SPLIT_FOLDERS = ("training", "evaluation")


def expand(named: str | Path) -> list[tuple[Path, bool]]:
    """The files that a path stands for, each with whether it was named itself: only then it has to hold tasks.

    Raises:
        TaskError: nothing there, or a folder without JSON files.
    """
    path = Path(named).expanduser()
    if path == STDIN:
        return [(path, True)]
    if os.path.isdir(path):
        return [(file, False) for file in json_files(path)]
    if os.path.lexists(path):
        return [(path, True)]
    if not glob.has_magic(str(path)):
        raise TaskError(f"{path}: No such file or folder{near_names(path)}")
    matches = sorted(glob.glob(str(path), recursive=True))
    if not matches:
        raise TaskError(f"{path}: no file matches the pattern")
    return [found for match in matches for found in expand(match)]


def json_files(folder: Path) -> list[Path]:
    """All JSON files under a folder, hidden ones apart, by path.

    Raises:
        TaskError: there is none, or it is a data set that was built, or of a training.
    """
    kind = kind_of(folder)
    if kind == DATA_SET:
        raise TaskError(f"{folder}: a data set that dataset.build_arc_dataset wrote, not a folder of task files")
    if kind in TRAINED:
        raise TaskError(f"{folder}: {kind}, not a folder of task files (a model is named by --checkpoint)")
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(parent, name) for name in sorted(names) if is_json_name(name)]
    if not files:
        raise TaskError(f"{folder}: a folder without JSON files ({', '.join(SUFFIXES)}, or one of these with {PACKED})")
    return files


def is_json_name(name: str) -> bool:
    """Whether a file in a folder is taken for JSON."""
    return not name.startswith(".") and name.lower().removesuffix(PACKED).endswith(SUFFIXES)


def stem_of(path: Path) -> str:
    """A file's name without its suffix, and without `.gz` before that."""
    return "stdin" if path == STDIN else Path(path.name.removesuffix(PACKED)).stem


def solutions_beside(path: Path) -> Path | None:
    """The file beside a challenges file that has its name with `solutions` in place of `challenges`, packed or not."""
    head, found, tail = path.name.removesuffix(PACKED).rpartition(CHALLENGES)
    if not found:
        return None
    beside = path.with_name(head + SOLUTIONS + tail)
    return next((file for file in (beside, beside.with_name(beside.name + PACKED)) if os.path.lexists(file)), None)
