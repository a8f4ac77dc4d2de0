"""Checkpoints: a folder with a hash of every file, checked when it is read.

model.safetensors   parameters and buffers        ema.safetensors   averages of the parameters
optim.pt            optimizer state               rank_<r>.pt       carry and random state of each rank
config.yaml         the run's config              trained_on.json   what the weights have seen
progress.json       evaluations, best so far, ...  manifest.json    step and the SHA-256 of every other file and of
                                                                     itself, written last

`checkpoints/writer.py` writes them, `checkpoints/folder.py` decides which are kept.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from checkpoints.pickles import program_of, strings_of
from dataset.trained_on import TrainedOn
from utils.files import sha256_of, sha256_of_json
from utils.path_kinds import CHECKPOINT, DATA_SET, LIGHTNING_LOG, RUN, RUN_CHECKPOINTS, kind_of
from utils.run_status import read_status

log = logging.getLogger(__name__)
CHECKPOINT_FORMAT = 1
MANIFEST_FILE = "manifest.json"
PROGRESS_FILE = "progress.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or does not fit; the message says which and where."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    path: Path
    step: int
    config: dict[str, Any]
    trained_on: TrainedOn
    progress: dict[str, Any]

    def model_state(self, *, ema: bool = False) -> dict[str, Tensor]:
        """The model's tensors; with `ema` the averaged parameters, where there are any."""
        state = load_file(self.path / "model.safetensors")
        averages = self.path / "ema.safetensors"
        if ema and averages.exists():
            state.update(load_file(averages))
        return state

    def optimizer_state(self) -> dict[str, Any]:
        return _load_plain(self.path / "optim.pt")

    def rank_state(self, rank: int) -> dict[str, Any]:
        return _load_plain(self.path / f"rank_{rank}.pt")

    @property
    def world_size(self) -> int:
        """How many ranks wrote it."""
        return int(self.progress.get("world_size", len(list(self.path.glob("rank_*.pt")))))


def _load_plain(path: Path) -> dict[str, Any]:
    """A `torch.save` of a dict of tensors and plain values; code in it is refused, not run.

    Raises:
        CheckpointError: missing, damaged, or it holds anything else.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(
            f"{path}: refused, and nothing of it was run: it holds code, objects other than tensors and plain values, "
            "or is damaged"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: it holds a {type(state).__name__} instead of a dict")
    return state


def verified_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint folder, each file checked against its hash.

    Raises:
        CheckpointError: missing, incomplete or damaged.
    """
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text())
        if not isinstance(manifest, dict) or manifest.get("format") != CHECKPOINT_FORMAT:
            raise CheckpointError(f"{path}: {MANIFEST_FILE} is not of format {CHECKPOINT_FORMAT}")
        own_hash = manifest.pop("sha256_of_the_above", None)
        if own_hash != sha256_of_json(manifest):
            raise CheckpointError(f"{path / MANIFEST_FILE}: damaged (it does not match its own hash)")
        for name, expected in manifest["sha256"].items():
            if sha256_of(path / name) != expected:
                raise CheckpointError(f"{path / name}: damaged (its SHA-256 is not that of {MANIFEST_FILE})")
        config = yaml.safe_load((path / "config.yaml").read_text())
        trained_on = TrainedOn.model_validate_json((path / "trained_on.json").read_text())
        has_progress = PROGRESS_FILE in manifest["sha256"]
        progress = json.loads((path / PROGRESS_FILE).read_text()) if has_progress else {}
        return Checkpoint(path, manifest["step"], config, trained_on, progress)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not a complete checkpoint ({error.filename} is missing)") from error
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        yaml.YAMLError,
        ValidationError,
    ) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: damaged checkpoint ({error})") from error


def saved_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of each checkpoint in a run's `checkpoints/`, oldest first, unverified."""
    found = [(re.fullmatch(r"step_(\d+)", path.name), path) for path in folder.glob("step_*")]
    return sorted((int(match[1]), path) for match, path in found if match)


def newest_good(folder: Path) -> tuple[Checkpoint, list[CheckpointError]]:
    """The newest undamaged checkpoint in a run's `checkpoints/`, and what is wrong with newer ones.

    Raises:
        CheckpointError: there is none, or every one is damaged; names each.
    """
    faults: list[CheckpointError] = []
    for _, path in reversed(saved_checkpoints(folder)):
        try:
            return verified_checkpoint(path), faults
        except CheckpointError as error:
            faults.append(error)
    if not faults:
        status = read_status(folder.parent)
        state = f" (its status: {status['state']} at step {status.get('step')})" if "state" in status else ""
        raise CheckpointError(
            f"{folder.parent}: {RUN} without a checkpoint{state}; a run saves one at evaluations, by "
            "checkpoint_interval and checkpoint_minutes, and when it is asked to stop"
        )
    raise CheckpointError(
        f"{folder.parent}: every checkpoint is damaged: {'; '.join(map(str, faults))}. resume=never starts anew"
    )


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint folder, each file checked against its hash.

    Args:
        path: a checkpoint folder, or a run folder, whose newest undamaged checkpoint is taken; newer ones that are
            damaged are named in the log.

    Raises:
        CheckpointError: missing, incomplete or damaged.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind != RUN and (kind == LIGHTNING_LOG or not (path / "checkpoints").is_dir()):
        _refuse_other_kinds(path, kind)
        return verified_checkpoint(path)
    checkpoint, faults = newest_good(path / "checkpoints")
    for fault in faults:
        log.warning("%s; taking %s instead", fault, checkpoint.path)
    return checkpoint


def _refuse_other_kinds(path: Path, kind: str) -> None:
    """Raises a CheckpointError that says what stands there, where nothing of a checkpoint does."""
    if kind == CHECKPOINT or (path / "trained_on.json").exists():
        return
    right = "expected a run folder (runs/PROJECT/RUN) or a checkpoint of one (RUN/checkpoints/step_...)"
    if kind == RUN_CHECKPOINTS:
        right = f"name the run, {path.parent}, or one of its checkpoints"
    elif kind == DATA_SET:
        right += "; a data set is named by data_paths, to evaluate.py by --data-paths"
    elif kind.startswith(f"a file of {CHECKPOINT}"):
        right = "name that folder"
    elif path.is_file():
        program = program_of(strings_of(path))
        kind += f" of {program}" if program else ""
        right += "; weights alone are read by load_pretrained_decoder=FILE and by python -m checkpoints inspect FILE"
    raise CheckpointError(f"{path}: {kind}; {right}")


def load_matching(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict that must fit name for name and shape for shape.

    Raises:
        CheckpointError: names what is missing, what is too many, and what differs in shape.
    """
    own = module.state_dict()
    faults = [f"missing {name}" for name in own if name not in state]
    faults += [f"unexpected {name}" for name in state if name not in own]
    faults += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{source}: does not fit the model: {'; '.join(faults[:5])}{more}")
    module.load_state_dict(state)
