"""Checkpoints: a folder written under a temporary name and renamed, every file hashed.

model.safetensors   parameters and buffers        ema.safetensors   averages of the parameters
optim.pt            optimizer state               rank_<r>.pt       carry and random state of each rank
config.yaml         the run's config              trained_on.json   what the weights have seen
manifest.json       step and the SHA-256 of every other file and of itself, written last

`python -m utils.checkpoint inspect PATH` and `... export PATH --to trm` are in `utils/checkpoint_cli.py`.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CHECKPOINT_FORMAT = 1
MANIFEST_FILE = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or does not fit; the message says which and where."""


class TrainedOn(BaseModel):
    """What weights have seen, with what the decoder they started from had seen.

    puzzle_ids, pair_hashes: the puzzles of the training split, and all their pairs.
    held_out_demonstrations: ids of held-out puzzles whose demonstrations were trained on.
    unknown_origin: files of weights whose training data nobody wrote down.
    datasets: path of each data set to the SHA-256 of its metadata.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    puzzle_ids: tuple[str, ...] = ()
    pair_hashes: tuple[str, ...] = ()
    held_out_demonstrations: tuple[str, ...] = ()
    unknown_origin: tuple[str, ...] = ()
    datasets: dict[str, str] = {}

    def joined(self, other: "TrainedOn") -> "TrainedOn":
        """Both, each entry once; where both name a data set of one path, the hash is that of `self`."""
        return TrainedOn(
            puzzle_ids=tuple(dict.fromkeys((*self.puzzle_ids, *other.puzzle_ids))),
            pair_hashes=tuple(dict.fromkeys((*self.pair_hashes, *other.pair_hashes))),
            held_out_demonstrations=tuple(
                dict.fromkeys((*self.held_out_demonstrations, *other.held_out_demonstrations))
            ),
            unknown_origin=tuple(dict.fromkeys((*self.unknown_origin, *other.unknown_origin))),
            datasets={**other.datasets, **self.datasets},
        )


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    path: Path
    step: int
    config: dict[str, Any]
    trained_on: TrainedOn

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


def _load_plain(path: Path) -> dict[str, Any]:
    """A `torch.save` of a dict of tensors and plain values; code in it is refused, not run.

    Raises:
        CheckpointError: missing, damaged, or it holds anything else.
    """
    try:
        state = torch.load(path, weights_only=True)
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_sha256(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_folder_file(path: Path, text: str) -> None:
    """Replace a text file in one move, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


class CheckpointWriter:
    """Writes one checkpoint. Every rank calls `save_rank`; then, after a barrier, rank 0 calls `save_shared`."""

    def __init__(self, folder: Path, step: int):
        self.final = folder / f"step_{step:08d}"
        self.temporary = folder / f".step_{step:08d}.tmp"
        self.step = step

    def save_rank(self, rank: int, state: dict[str, Any]) -> None:
        """What differs between ranks: carry and random state."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.temporary / f"rank_{rank}.pt")

    def save_shared(
        self,
        model: nn.Module,
        ema_state: dict[str, Tensor] | None,
        optimizer_state: dict[str, Any],
        config: dict[str, Any],
        trained_on: TrainedOn,
    ) -> Path:
        """Everything else, then the hashes, then the rename."""
        folder = self.temporary
        save_file({k: v.detach().contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
        if ema_state is not None:
            save_file({k: v.contiguous() for k, v in ema_state.items()}, folder / "ema.safetensors")
        torch.save(optimizer_state, folder / "optim.pt")
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (folder / "trained_on.json").write_text(trained_on.model_dump_json())
        hashes = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
        manifest = {"format": CHECKPOINT_FORMAT, "step": self.step, "sha256": hashes}
        manifest["sha256_of_the_above"] = _json_sha256(manifest)
        (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1))
        if self.final.exists():
            shutil.rmtree(self.final)
        folder.rename(self.final)
        return self.final


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint folder, each file checked against its hash.

    Args:
        path: a checkpoint folder, or a run folder, whose newest checkpoint is taken.

    Raises:
        CheckpointError: missing, incomplete or damaged.
    """
    path = Path(path)
    if (path / "checkpoints").is_dir():
        steps = sorted((path / "checkpoints").glob("step_*"))
        if not steps:
            raise CheckpointError(f"{path}: the run has no checkpoint")
        path = steps[-1]
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text())
        if not isinstance(manifest, dict) or manifest.get("format") != CHECKPOINT_FORMAT:
            raise CheckpointError(f"{path}: {MANIFEST_FILE} is not of format {CHECKPOINT_FORMAT}")
        own_hash = manifest.pop("sha256_of_the_above", None)
        if own_hash != _json_sha256(manifest):
            raise CheckpointError(f"{path / MANIFEST_FILE}: damaged (it does not match its own hash)")
        for name, expected in manifest["sha256"].items():
            if _sha256(path / name) != expected:
                raise CheckpointError(f"{path / name}: damaged (its SHA-256 is not that of {MANIFEST_FILE})")
        config = yaml.safe_load((path / "config.yaml").read_text())
        trained_on = TrainedOn.model_validate_json((path / "trained_on.json").read_text())
        return Checkpoint(path, manifest["step"], config, trained_on)
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


if __name__ == "__main__":
    from utils.checkpoint_cli import main

    main()
