"""A run's `checkpoints/`: what is kept, what is set aside, and the link to the best."""

import logging
import shutil
from pathlib import Path

from checkpoints.checkpoint import saved_checkpoints
from utils.files import replacing

log = logging.getLogger(__name__)
BEST_LINK = "best"


def tidy(folder: Path) -> None:
    """Remove what a process that was killed left half-written, half-removed or half-replaced."""
    for path in folder.glob(".step_*.replaced"):
        original = folder / path.name.removeprefix(".").removesuffix(".replaced")
        if not original.exists():
            path.rename(original)
    for path in folder.glob(".step_*"):
        shutil.rmtree(path)


def set_aside(folder: Path, resumed_step: int) -> None:
    """Move checkpoints that are newer than the resumed one to where no restart finds them: they are damaged, or belong
    to a course that the run no longer takes."""
    newer = [path for step, path in saved_checkpoints(folder) if step > resumed_step]
    if newer:
        number = 1
        while (aside := folder / f"set-aside-{number}").exists():
            number += 1
        aside.mkdir()
        for path in newer:
            path.rename(aside / path.name)
        log.warning("%s: moved to %s", ", ".join(path.name for path in newer), aside)


def link_best(folder: Path, checkpoint: Path) -> None:
    """Let `checkpoints/best` lead to a checkpoint, in one move."""
    with replacing(folder / BEST_LINK) as temporary:
        temporary.symlink_to(checkpoint.name)


def prune(folder: Path, keep: int | None, best_step: int | None) -> None:
    """Remove all but the newest `keep` checkpoints (None: all are kept) and the best one."""
    if keep is None:
        return
    for step, path in saved_checkpoints(folder)[:-keep]:
        if step != best_step:
            removed = path.with_name(f".{path.name}.removed")
            path.rename(removed)
            shutil.rmtree(removed)
