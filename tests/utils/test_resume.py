"""A run that goes on ends as one that was never interrupted: bit for bit, line for line."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from config.schema import ConfigError, TrainConfig
from utils.checkpoint import CheckpointError, open_checkpoint
from utils.distributed import Ranks
from utils.run_folder import run_folder
from utils.run_status import read_status
from utils.signals import StopRequest
from utils.train_loop import Preempted, create_trainer, fit

Config = Callable[..., TrainConfig]
HASHED = ("model.safetensors", "ema.safetensors", "optim.pt", "trained_on.json", "config.yaml")
# 10 steps of 4 samples on 8 puzzles; log lines at 4, 8, 10, evaluations at 6 and 10, checkpoints at 5, 6 and 10.
SHORT = (
    "epochs=5",
    "eval_interval=3",
    "log_interval=4",
    "checkpoint_interval=5",
    "checkpoint_keep=null",
    "max_eval_groups=2",
    "max_eval_augmentations=1",
    "log_predictions_every=0",
    "lr=1e-2",
    "+run_name=run",
)
SYSTEMS = {
    "etrm": ("cfg_pretrain_etrm_arc_agi_1", ()),
    "variational": ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_type=hybrid_variational",)),
    "etrmtrm A": ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=recurrent_standard",)),
    "etrmtrm B": ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=trm_style",)),
    "trm": ("cfg_pretrain_trm_arc_agi_1", ("max_eval_groups=2", "epochs=4")),
    # 4 batches, 3 steps each: the checkpoint of step 5 lies inside the second.
    "fixed": ("cfg_pretrain_etrm_arc_agi_1", ("arch.halting=fixed", "arch.num_act_steps=3", "epochs=2")),
    "without average": ("cfg_pretrain_etrm_arc_agi_1", ("ema=false", "freeze_decoder_steps=7")),
}


def hashes(run: Path) -> dict[str, str]:
    manifest = json.loads((open_checkpoint(run).path / "manifest.json").read_text())
    return {name: value for name, value in manifest["sha256"].items() if name in HASHED}


def log_lines(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a log without times."""
    lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if "per_second" not in key} for line in lines]


def assert_same_run(found: Path, expected: Path) -> None:
    assert log_lines(found) == log_lines(expected)
    assert log_lines(found, "act_steps.jsonl") == log_lines(expected, "act_steps.jsonl")
    assert hashes(found) == hashes(expected)


def cut_back(run: Path, step: int) -> None:
    """Leave what a process that was killed leaves behind some time after its checkpoint of a step."""
    for path in (run / "checkpoints").glob("step_*"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    (run / "checkpoints" / f".step_{step + 1:08d}.tmp").mkdir()
    (run / "checkpoints" / f".step_{step + 1:08d}.tmp" / "rank_1.pt").write_bytes(b"half")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "train/lo')


@pytest.fixture
def straight(shrunk_config: Config, ranks: Ranks, tmp_path: Path) -> Iterator[Callable[..., tuple[TrainConfig, Path]]]:
    """`straight("key=value", ...)`: config and folder of a finished run, and beside it a copy named `copy`."""

    def run(*overrides: str, config_name: str = "cfg_pretrain_etrm_arc_agi_1") -> tuple[TrainConfig, Path]:
        config = shrunk_config(*SHORT, *overrides, config_name=config_name)
        fit(config, ranks)
        shutil.copytree(run_folder(config), tmp_path / "copy", symlinks=True)
        return config, run_folder(config)

    yield run


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_goes_on_bit_for_bit(system: str, straight: Callable[..., Any], ranks: Ranks) -> None:
    """Between two log lines, with averages, carries and exploration in flight."""
    config_name, overrides = SYSTEMS[system]
    config, run = straight(*overrides, config_name=config_name)
    cut_back(run, 5)
    assert open_checkpoint(run).step == 5
    fit(config, ranks)
    assert_same_run(run, Path("copy"))
    assert not list((run / "checkpoints").glob(".step_*"))
