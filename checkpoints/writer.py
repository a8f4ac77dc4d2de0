"""Writes a checkpoint under a temporary name, hashes every file and renames it: it is there whole or not at all."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from checkpoints.checkpoint import CHECKPOINT_FORMAT, MANIFEST_FILE, PROGRESS_FILE, Checkpoint
from dataset.trained_on import TrainedOn
from utils.files import sha256_of, sha256_of_json


class SaveError(RuntimeError):
    """A checkpoint could not be written; those before it are as they were."""


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, would survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _save(value: Any, path: Path) -> None:
    with path.open("wb") as file:  # given a path, torch would not say why it could not write
        torch.save(value, file)


def write_manifest(folder: Path, step: int) -> None:
    """Make a folder of files a checkpoint: name the hash of each."""
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    manifest = {"format": CHECKPOINT_FORMAT, "step": step, "sha256": hashes}
    manifest["sha256_of_the_above"] = sha256_of_json(manifest)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1))


def write_weights(folder: Path, checkpoint: Checkpoint, *, ema: bool = True) -> None:
    """Write a checkpoint that can be asked, adapted and started from, but not gone on with: no optimizer, no carry.

    Args:
        ema: the averaged weights, where there are any.

    Raises:
        SaveError: the folder is there already, or cannot be written.
    """
    try:
        folder.mkdir(parents=True)
        save_file(checkpoint.model_state(ema=ema), folder / "model.safetensors")
        for name in ("config.yaml", "trained_on.json", PROGRESS_FILE):
            shutil.copyfile(checkpoint.path / name, folder / name)
        write_manifest(folder, checkpoint.step)
    except OSError as error:
        raise SaveError(f"{folder}: cannot be written ({error.strerror})") from error


def _interned(value: Any) -> Any:
    """The same value with one object for each string, so that pickled bytes depend on the content alone."""
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {_interned(key): _interned(part) for key, part in value.items()}
    return [_interned(part) for part in value] if isinstance(value, list) else value


class CheckpointWriter:
    """Writes one checkpoint. Every rank calls `save_rank`; then, after a barrier, rank 0 calls `save_shared`.

    Raises:
        SaveError: from both: the disk is full, or anything else that the file system refuses.
    """

    def __init__(self, folder: Path, step: int):
        self.final = folder / f"step_{step:08d}"
        self.temporary = folder / f".step_{step:08d}.tmp"
        self.step = step

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            first: BaseException = error
            while first.__context__ is not None:
                first = first.__context__
            why = first.strerror if isinstance(first, OSError) and first.strerror else error
            raise SaveError(
                f"the checkpoint of step {self.step} could not be written to {self.final.parent}: {why}; the "
                "checkpoints before it are as they were"
            ) from error

    def save_rank(self, rank: int, state: dict[str, Any]) -> None:
        """What differs between ranks: carry and random state."""
        with self._explained():
            self.temporary.mkdir(parents=True, exist_ok=True)
            _save(state, self.temporary / f"rank_{rank}.pt")

    def save_shared(
        self,
        model: nn.Module,
        ema_state: dict[str, Tensor] | None,
        optimizer_state: dict[str, Any],
        config: dict[str, Any],
        trained_on: TrainedOn,
        progress: dict[str, Any],
    ) -> Path:
        """Everything else, then the hashes, then the rename."""
        folder = self.temporary
        with self._explained():
            save_file({k: v.detach().contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
            if ema_state is not None:
                save_file({k: v.contiguous() for k, v in ema_state.items()}, folder / "ema.safetensors")
            _save(_interned(optimizer_state), folder / "optim.pt")
            (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            (folder / "trained_on.json").write_text(trained_on.model_dump_json())
            (folder / PROGRESS_FILE).write_text(json.dumps(progress))
            write_manifest(folder, self.step)
            for path in (*folder.iterdir(), folder):
                _to_disk(path)
            self._put_in_place()
        return self.final

    def _put_in_place(self) -> None:
        """Two renames where the step was saved before; `checkpoint_folder.tidy` undoes the first one alone."""
        replaced = self.final.with_name(f".{self.final.name}.replaced")
        if self.final.exists():
            self.final.rename(replaced)
        self.temporary.rename(self.final)
        _to_disk(self.final.parent)
        if replaced.exists():
            shutil.rmtree(replaced)

    def discard(self) -> None:
        """Remove what an attempt that failed has written."""
        shutil.rmtree(self.temporary, ignore_errors=True)
