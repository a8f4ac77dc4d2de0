"""Sums of training metrics between two lines of the log; a checkpoint keeps them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from utils import distributed
from utils.distributed import Ranks


def ends_window(step: int, total_steps: int, interval: int) -> bool:
    """Whether a line of the log is due: every `interval` steps, whatever else happens between them. The last window
    takes in what is left to the end of the run, so that no window is shorter than `interval` where the run is not."""
    return step == total_steps or (step % interval == 0 and total_steps - step >= interval)


class MetricWindow:
    """Sums since the last log, kept on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.began = time.perf_counter()
        self.paused_at: float | None = None

    def add(self, sums: dict[str, Tensor]) -> None:
        """Add a step's sums over this rank's samples."""
        for key, value in sums.items():
            if not key.startswith("grad/"):
                value = value.double()
                self.sums[key] = self.sums[key] + value if key in self.sums else value
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside the block is not the window's, also in a checkpoint that is written there."""
        self.paused_at = time.perf_counter()
        try:
            yield
        finally:
            self.began += time.perf_counter() - self.paused_at
            self.paused_at = None

    @property
    def seconds(self) -> float:
        """How long the window has taken so far."""
        return (time.perf_counter() if self.paused_at is None else self.paused_at) - self.began

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run logs the same lines."""
        return {"sums": self.sums, "steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on with the sums of `state_dict`."""
        self.sums = {key: value.to(device) for key, value in state["sums"].items()}
        self.steps = state["steps"]
        self.began = time.perf_counter() - state["seconds"]

    def read(self, ranks: Ranks, global_batch_size: int) -> dict[str, float]:
        """Means over ranks and steps as `train/` metrics; those over halted samples only where any has halted."""
        if not self.steps:
            return {}
        names = list(self.sums)
        values = [self.sums[name].clone() for name in names]
        distributed.sum_over_ranks(values, ranks)
        sums = dict(zip(names, torch.stack(values).tolist(), strict=True))
        samples = self.steps * global_batch_size
        losses = ("loss", "lm_loss", "q_halt_loss", "kl_loss", "pair_loss")
        metrics = {f"train/{key}": sums[key] / samples for key in losses if key in sums}
        for prefix in ("", "inflight_"):
            count = sums[f"{prefix}count"]
            if count:
                for key in ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps"):
                    metrics[f"train/{prefix}{key}"] = sums[prefix + key] / count
        metrics["train/halted_per_step"] = sums["count"] / self.steps
        metrics["train/samples_per_second"] = samples / self.seconds
        return metrics


def joined_windows(states: list[dict[str, Any]], rank: int) -> dict[str, Any]:
    """The state for a rank of a run that goes on with another number of ranks: the first has all sums."""
    totals = {key: torch.stack([state["sums"][key] for state in states]).sum(0) for key in states[0]["sums"]}
    if rank:
        totals = {key: torch.zeros_like(value) for key, value in totals.items()}
    return {**states[0], "sums": totals}
