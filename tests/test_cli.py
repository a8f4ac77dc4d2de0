"""The entry script as a user calls it: a process of its own, in a directory of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from config.schema import TrainConfig, dump_config, load_config
from tests.processes import ETRM, ROOT, call

NAME = "cfg_pretrain_etrm_arc_agi_1"
TINY = (
    "arch.hidden_size=32",
    "arch.num_heads=2",
    "arch.H_cycles=1",
    "arch.L_cycles=2",
    "arch.forward_dtype=float32",
    "arch.halt_max_steps=2",
    "global_batch_size=4",
    "max_train_groups=8",
    "max_eval_groups=2",
    "max_eval_augmentations=2",
    "epochs=1",
    "eval_interval=1",
    "device=cpu",
    "seed=7",
)
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """`cli("argument", ...)`: `python pretrain_etrm.py argument ...` in this test's directory."""
    return partial(call, ETRM, folder=tmp_path)


def test_training_ends_with_the_table_of_results(dataset_folder: Path, tmp_path: Path) -> None:
    """In a plain process, whose Python has imported nothing before."""
    overrides = (*TINY, f"data_paths=[{dataset_folder}]", "+project_name=cli", "+run_name=E0a seed 7")
    done = subprocess.run(
        [sys.executable, str(ROOT / ETRM), "--config-name", NAME, *overrides],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in done.stdout.strip().splitlines())
    folder = tmp_path / rows["run folder"]
    assert folder == tmp_path / "runs" / "cli" / "E0a seed 7"
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "submission.json",
        "predictions.html",
        "checkpoints",
    }
    assert re.fullmatch(r"\d+\.\d %", rows["train token accuracy"])
    assert float(rows["mean ACT steps"]) == 2
    for k in (1, 2):
        assert re.search(r"\d+\.\d % \([\d.]+/2, 95 %: [\d.]+-[\d.]+ %\)", rows[f"held-out pass@{k}"])
    assert "Traceback" not in done.stderr
    config = TrainConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text()))
    assert (config.seed, config.arch.hidden_size) == (7, 32)


def assert_refused(done: subprocess.CompletedProcess[str], folder: Path, *words: str) -> None:
    """Status 2, one line that holds all words, and nothing written."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["arch.encoder_num_layer=4"], ["arch.encoder_num_layer", "arch.encoder_num_layers"]),
        (["lr=fast"], ["lr=fast"]),
        (["data_paths=[nowhere]", "device=cpu"], ["nowhere", "dataset.build_arc_dataset"]),
        pytest.param(
            ["device=cuda"],
            ["device=cuda", "device=cpu"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
    ids=lambda value: value[0],
)
def test_a_fault_of_the_user_ends_in_one_line_and_status_2(
    cli: Cli, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    assert_refused(cli(*arguments), tmp_path, *words)


def test_cfg_prints_the_composed_config_and_trains_nothing(cli: Cli, tmp_path: Path) -> None:
    """Options may stand before, between and after the overrides."""
    done = cli("lr=3e-4", "--cfg", "arch.hidden_size=64", "--config-name", NAME, "+run_name=here")
    assert done.returncode == 0, done.stderr
    expected = load_config(NAME, ["lr=3e-4", "arch.hidden_size=64", "+run_name=here"])
    assert yaml.safe_load(done.stdout) == dump_config(expected)
    assert not list(tmp_path.iterdir())
