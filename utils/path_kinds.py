"""What stands at a path, in words: for messages about a path of the wrong kind."""

import difflib
import os
import re
from pathlib import Path

EMPTY = "an empty folder"
RUN, RUN_CHECKPOINTS, CHECKPOINT = "a run folder", "the folder of a run's checkpoints", "a checkpoint of a run"
DATA_SET, TASK_FILES = "a data set", "a folder of JSON files"
LIGHTNING_LOG, HUGGING_FACE = "a log folder of PyTorch Lightning", "a Hugging Face model"
PUBLISHED_RUN = "a folder of HRM's or TRM's own training"
TRAINED = (RUN, RUN_CHECKPOINTS, CHECKPOINT, LIGHTNING_LOG, HUGGING_FACE, PUBLISHED_RUN)

# A folder is the first of these all of whose names it has.
KINDS = (
    (("manifest.json", "model.safetensors"), CHECKPOINT),
    (("metadata.json", "data.safetensors"), DATA_SET),
    (("config.yaml", "checkpoints"), RUN),
    (("config.yaml", "metrics.jsonl"), RUN),
    (("config.yaml", "status.json"), RUN),
    (("hparams.yaml",), LIGHTNING_LOG),
    (("lightning_logs",), LIGHTNING_LOG),
    (("all_config.yaml",), PUBLISHED_RUN),
    (("adapter_config.json",), HUGGING_FACE),
    (("config.json", "model.safetensors"), HUGGING_FACE),
    (("config.json", "model.safetensors.index.json"), HUGGING_FACE),
    (("config.json", "pytorch_model.bin"), HUGGING_FACE),
    (("config.json", "pytorch_model.bin.index.json"), HUGGING_FACE),
)
SHOWN = 3


def kind_of(path: Path) -> str:
    """E.g. `a run folder`, `an empty folder`, `a file`, `no such file or folder; near it: ...`."""
    if path.is_dir():
        return _kind_of_folder(path, names_in(path))
    if not os.path.lexists(path):
        return f"no such file or folder{near_names(path)}"
    folder = path.parent
    whole = _kind_of_folder(folder, names_in(folder))
    return f"a file of {whole}, {folder}" if whole in (CHECKPOINT, DATA_SET, RUN) else "a file"


def _kind_of_folder(folder: Path, names: list[str]) -> str:
    if not names:
        return EMPTY
    for needed, kind in KINDS:
        if set(needed) <= set(names):
            return kind
    if any(re.fullmatch(r"step_\d+", name) and (folder / name).is_dir() for name in names):
        return RUN_CHECKPOINTS
    runs = [name for name in names if (folder / name / "config.yaml").exists()]
    if runs:
        return f"a folder of runs ({_some(runs)})"
    if any(name.endswith((".json", ".jsonl")) for name in names):
        return TASK_FILES
    return f"a folder of other things ({_some(names)})"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def names_in(folder: Path) -> list[str]:
    """What is in a folder; nothing where that cannot be said."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []


def near_names(path: Path) -> str:
    """For a message: what stands nearby under a similar name, or which folder on the way is missing."""
    close = difflib.get_close_matches(path.name, names_in(path.parent), n=3, cutoff=0.75)
    if close:
        return f"; near it: {', '.join(str(path.with_name(name)) for name in close)}"
    missing = next((parent for parent in reversed(path.parents) if not os.path.isdir(parent)), None)
    return f"; there is no folder {missing}" if missing else f" (looked in {path.parent.absolute()})"
