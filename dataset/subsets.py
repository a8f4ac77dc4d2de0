"""Where the builder's subsets come from: a path given for one, files under a common prefix, or arckit."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dataset.arc_tasks import ARCKIT_SUBSETS, Task, TaskError, parse_task
from dataset.task_files import load_challenges, read_tasks, shipped_tasks
from dataset.task_paths import CHALLENGES, PACKED, SPLIT_FOLDERS, is_json_name, solutions_beside, stem_of
from utils.path_kinds import names_in, near_names


def load_subset(
    subset: str, input_file_prefix: str | None = None, *, source: str | None = None, half_asked: bool = True
) -> tuple[list[Task], str]:
    """All tasks of a subset, in their files' order, and the name of the source they came from.

    `source` is read where it is given; else what `input_file_prefix` has for the subset (see `under_prefix`); else the
    subset must be one that arckit ships.

    Args:
        half_asked: of a bare list of pairs the second half is asked for (to train on), not just the last pair.

    Raises:
        TaskError: none of them exists, or a file is malformed.
    """
    if source is not None:
        _refuse_split_folder(subset, Path(source).expanduser())
        return read_tasks([source], subset=subset, half_asked=half_asked), source
    found = None if input_file_prefix is None else under_prefix(subset, input_file_prefix)
    if found is not None and stem_of(found).endswith(f"{subset}_{CHALLENGES}"):
        return load_challenges(found, solutions_beside(found), subset, half_asked), str(found)
    if found is not None:
        return read_tasks([found], subset=subset, half_asked=half_asked), str(found)
    if input_file_prefix is not None:
        _refuse_near_miss(subset, input_file_prefix)
    if subset not in ARCKIT_SUBSETS:
        raise TaskError(_unknown(subset, input_file_prefix))
    source = f"arckit {ARCKIT_SUBSETS[subset][0]}"
    return [parse_task(i, value, subset, source) for i, value in shipped_tasks(subset).items()], source


def under_prefix(subset: str, prefix: str) -> Path | None:
    """What a prefix has for a subset.

    That is `PREFIX_SUBSET_challenges.json`, or where the prefix is a folder, in it or in its folder `data`: a folder
    or file called SUBSET, or a file `*_SUBSET_challenges.json`. Files may be packed by gzip.
    """
    kaggle = [Path(f"{_expanded(prefix)}_{subset}_{CHALLENGES}.json{packed}") for packed in ("", PACKED)]
    existing = [path for path in kaggle if os.path.lexists(path)]  # a link to nothing is an error, not an absent file
    if existing:
        return existing[0]
    for folder in (Path(_expanded(prefix)), Path(_expanded(prefix), "data")):
        names = names_in(folder)
        matching = [name for name in names if _is_named(name, subset, folder)]
        if len(matching) > 1:
            raise TaskError(
                f"subset '{subset}': {folder} has several for it, {', '.join(matching)}; choose one: "
                f"--source {subset}={folder / matching[0]}"
            )
        if matching:
            return folder / matching[0]
    return None


def check_sources(subsets: Sequence[str], prefix: str | None, sources: Mapping[str, str]) -> None:
    """Refuse a prefix or a source that no subset is read from.

    Raises:
        TaskError: what was looked for and what is near it.
    """
    unused = sorted(set(sources) - set(subsets))
    if unused:
        raise TaskError(f"--source {unused[0]}=...: '{unused[0]}' is not one of --subsets {' '.join(subsets)}")
    rest = [subset for subset in subsets if subset not in sources]
    if prefix is None or any(under_prefix(subset, prefix) is not None for subset in rest):
        return
    if not rest:
        raise TaskError(f"--input-file-prefix {prefix}: each subset has a --source, so nothing is read from there")
    for subset in rest:
        _refuse_near_miss(subset, prefix)
    path = Path(_expanded(prefix))
    expected = Path(f"{path}_{rest[0]}_{CHALLENGES}.json")
    raise TaskError(
        f"--input-file-prefix {prefix}: no file of the subsets {', '.join(rest)}; {expected} does not exist"
        + near_names(expected)
        + (_source_hint(rest[0], path) if os.path.lexists(path) else "")
    )


def _is_named(name: str, subset: str, folder: Path) -> bool:
    if os.path.isdir(folder / name):
        return name == subset
    kaggle = f"{subset}_{CHALLENGES}"
    stem = stem_of(Path(name))
    return is_json_name(name) and (stem in (subset, kaggle) or stem.endswith(f"_{kaggle}"))


def _expanded(prefix: str) -> str:
    return os.path.expanduser(prefix) if prefix.startswith("~") else prefix


def _refuse_near_miss(subset: str, prefix: str) -> None:
    """Refuse a file that was surely meant for a subset, but is called otherwise."""
    expected = Path(f"{_expanded(prefix)}_{subset}_{CHALLENGES}.json")
    begins = re.compile(re.escape(Path(f"{_expanded(prefix)}_{subset}").name) + r"(?![A-Za-z0-9])", re.IGNORECASE)
    near = [str(expected.with_name(name)) for name in names_in(expected.parent) if begins.match(name)]
    if near:
        raise TaskError(f"subset '{subset}': {expected} does not exist; near it: {', '.join(near[:3])}")


def _refuse_split_folder(subset: str, path: Path) -> None:
    """A folder of training and evaluation tasks would mix the two."""
    for folder in (path, path / "data"):
        if all(os.path.isdir(folder / name) for name in SPLIT_FOLDERS):
            raise TaskError(
                f"--source {subset}={path}: holds {' and '.join(SPLIT_FOLDERS)}; name one of them, "
                f"--source {subset}={folder / SPLIT_FOLDERS[0]}, or give --input-file-prefix {path} with "
                f"--subsets {' '.join(SPLIT_FOLDERS)}"
            )


def _source_hint(subset: str, path: Path) -> str:
    return f"; to read all of {path} as one subset: --source {subset}={path}"


def _unknown(subset: str, prefix: str | None) -> str:
    close = difflib.get_close_matches(subset, ARCKIT_SUBSETS, n=1)
    near = f" (nearest: {close[0]})" if close else ""
    message = f"unknown subset '{subset}'{near}: arckit has {', '.join(ARCKIT_SUBSETS)}"
    if prefix is None:
        return f"{message}; files need --input-file-prefix PREFIX or --source {subset}=PATH"
    path = Path(_expanded(prefix))
    expected = Path(f"{path}_{subset}_{CHALLENGES}.json")
    hint = _source_hint(subset, path) if os.path.lexists(path) else ""
    return f"{message}; {expected} does not exist{near_names(expected)}{hint}"
