"""What can be told of a run with given options: its first steps in memory, or a whole run and its folder."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from checkpoints.checkpoint import open_checkpoint
from config.schema import TrainConfig, run_folder
from inference.evaluation import Evaluation
from reports.observers import RUN_OBSERVERS
from training.loop import batches_of, fit
from training.metric_window import MetricWindow
from training.setup import create_trainer
from utils.distributed import Ranks

NUM_STEPS = 3  # what acts on the second update shows in the third loss
# Four steps on 8 puzzles; one evaluation, of two queries, at the end.
BASE = (
    "log_interval=1",
    "epochs=2",
    "eval_interval=1000",
    "max_eval_groups=2",
    "max_eval_augmentations=1",
    "log_predictions_every=0",
    "arch.H_cycles=1",
    "arch.L_cycles=1",
    "arch.halt_max_steps=2",
    "lr=1e-2",
    "lr_warmup_steps=0",
    "+run_name=run",
)


def fingerprint(state: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes, dtypes and bits."""
    return hashlib.sha256(safetensors.torch.save({k: v.contiguous() for k, v in state.items()})).hexdigest()


def without_clock(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if "per_second" not in key}


class FirstSteps:
    """The first training steps of a run, in memory; evaluated when first asked."""

    def __init__(self, config: TrainConfig, ranks: Ranks):
        self.trainer = create_trainer(config, ranks)
        self.trainer.model.train()
        lines = [self._step(batch) for batch in itertools.islice(batches_of(self.trainer), NUM_STEPS)]
        self.losses = [line["train/loss"] for line in lines]
        self.halted_steps = [line.get("train/steps") for line in lines]
        self.weights = fingerprint(self.trainer.model.state_dict())
        self.parameters = {name: value.shape for name, value in self.trainer.model.state_dict().items()}
        self.total_steps = self.trainer.total_steps

    def _step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        window = MetricWindow()
        window.add(self.trainer.train_step(batch)[0])
        return window.read(self.trainer.ranks, self.trainer.config.global_batch_size)

    @cached_property
    def _evaluation(self) -> Evaluation:
        return self.trainer.evaluate()

    @property
    def evaluation(self) -> dict[str, float]:
        return without_clock(self._evaluation.metrics)

    @property
    def submission(self) -> Any:
        return self._evaluation.submission


class WholeRun:
    """A finished run, as its folder tells it."""

    def __init__(self, config: TrainConfig, ranks: Ranks):
        fit(config, ranks, observers=RUN_OBSERVERS)
        self.path = run_folder(config).resolve()
        lines = [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]
        trained = [line for line in lines if "train/loss" in line]
        evaluated = [line for line in lines if "eval/lm_loss" in line]
        self.folder = (self.path.parent.name, self.path.name)
        self.files = {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()}
        self.log_lines = [line["step"] for line in trained]
        self.evaluated_at = [line["step"] for line in evaluated]
        self.losses = [line["train/loss"] for line in trained]
        self.evaluation = without_clock(evaluated[-1])
        state = open_checkpoint(self.path).model_state()
        self.weights = fingerprint(state)
        self.parameters = {name: value.shape for name, value in state.items()}

    @property
    def submission(self) -> Any:
        return json.loads((self.path / "submission.json").read_text())


IN_A_FOLDER = frozenset(("folder", "files", "log_lines", "evaluated_at"))


class Outcomes:
    """Makes outcomes, each in a directory of its own; one that was made already is not made again."""

    def __init__(self, config_of: Callable[..., TrainConfig], ranks: Ranks, new_folder: Callable[[], Path]):
        self.config_of, self.ranks, self.new_folder = config_of, ranks, new_folder
        self.made: dict[tuple[Any, ...], FirstSteps | WholeRun] = {}

    def of(self, *overrides: str, config_name: str, kind: type[FirstSteps | WholeRun]) -> FirstSteps | WholeRun:
        """The outcome with the given overrides, the later of which win."""
        settings = dict(override.split("=", 1) for override in (*BASE, *overrides))
        key = (kind, config_name, *sorted(settings.items()))
        if key not in self.made:
            config = self.config_of(*(f"{k}={v}" for k, v in settings.items()), config_name=config_name)
            with contextlib.chdir(self.new_folder()):
                torch.manual_seed(0)
                self.made[key] = kind(config, self.ranks)
        return self.made[key]
