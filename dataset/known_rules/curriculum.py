"""Easy tasks first: an ordered list of stages, each left when it is measured as read, or has taken long enough."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.known_rules.family import Stage, TaskSettings
from utils import distributed
from utils.distributed import Ranks


class Curriculum:
    """Which stage each batch is of; the same on all ranks, and for a batch that is made again.

    Exact match is measured over blocks of `measure_steps` optimizer steps, of all samples that halted in them: those of
    earlier stages that stay in the mix are among them.

    Args:
        earlier_share: probability that a sample is of an earlier stage, each of these being as likely.
    """

    def __init__(self, stages: Sequence[Stage], earlier_share: float, measure_steps: int, ranks: Ranks):
        self.stages, self.earlier_share, self.measure_steps = tuple(stages), earlier_share, measure_steps
        self.ranks = ranks
        self.began = [0]
        self.steps = 0
        self.totals = torch.zeros(2, dtype=torch.float64)  # exactly right, halted: this rank's
        self.exact_match = 0.0

    def stage_of(self, number: int) -> int:
        """The stage of a batch."""
        return bisect_right(self.began, number) - 1

    def settings_of(self, number: int, rng: np.random.Generator) -> TaskSettings:
        """What a sample of a batch is like."""
        stage = self.stage_of(number)
        if stage and rng.random() < self.earlier_share:
            stage = int(rng.integers(stage))
        return self.stages[stage].settings

    def observe(self, number: int, sums: dict[str, Tensor]) -> None:
        """Heed an optimizer step on a batch; the device is waited for at the end of a block alone."""
        if number < self.began[-1]:  # the batch in which the last stage ended
            return
        totals = torch.stack([sums["exact_accuracy"], sums["count"]]).double()
        self.totals = self.totals.to(totals.device) + totals
        self.steps += 1
        stage = self.stages[len(self.began) - 1]
        is_over = stage.max_batches is not None and number + 1 - self.began[-1] >= stage.max_batches
        if self.steps < self.measure_steps and not is_over:
            return
        is_read = self._measured() and self.exact_match >= stage.threshold
        if len(self.began) < len(self.stages) and (is_over or is_read):
            self.began.append(number + 1)

    def _measured(self) -> bool:
        """End a block; whether any sample halted in it on any rank."""
        totals = self.totals.clone()
        distributed.sum_over_ranks([totals], self.ranks)
        exact, count = totals.tolist()
        self.exact_match = exact / count if count else self.exact_match
        self.steps, self.totals = 0, torch.zeros_like(totals)
        return bool(count)

    def metrics(self) -> dict[str, float]:
        """The stage of the next batch, and the exact match of the last block."""
        return {"train/stage": len(self.began) - 1, "train/stage_exact_accuracy": self.exact_match}

    def state_dict(self) -> dict[str, Any]:
        return {
            "began": list(self.began),
            "steps": self.steps,
            "totals": self.totals.clone(),
            "exact_match": self.exact_match,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.began, self.steps = list(state["began"]), state["steps"]
        self.totals, self.exact_match = state["totals"].clone(), state["exact_match"]
