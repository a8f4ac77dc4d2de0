"""Shared fixtures: real ARC-AGI-1 puzzles in a small data set, and the real config shrunk."""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

os.environ["WANDB_MODE"] = "disabled"

from config.schema import TrainConfig, load_config
from dataset.build_arc_dataset import build_dataset
from dataset.fewshot_puzzle_dataset import Batch, FewshotTrainDataset
from dataset.store import PuzzleStore, load_store
from tests.tiny_llama import save_tiny_llama
from training.setup import create_trainer
from utils.distributed import Ranks

pytest_plugins = ["tests.run_fixtures"]

SHRUNK = (
    "arch.hidden_size=32",
    "arch.num_heads=2",
    "arch.H_cycles=2",
    "arch.L_cycles=2",
    "arch.L_layers=1",
    "arch.forward_dtype=float32",
    "arch.halt_max_steps=4",
    "global_batch_size=4",
    "max_demos=4",
    "max_train_groups=8",
    "max_eval_groups=4",
    "max_eval_augmentations=2",
    "eval_batch_size=8",
    "eval_controls=false",  # eight more evaluations of each query; the tests of controls ask for them
    "epochs=4",
    "eval_interval=4",
    "lr_warmup_steps=2",
    "data_workers=0",
    "device=cpu",
)


if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # one worker a core; processes that tests start inherit the variable
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that workers that take tests from one another end together."""
    items.sort(key=lambda item: item.get_closest_marker("torture") is None)


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ARC-AGI-1 with 12 augmentations a puzzle, evaluation held out."""
    folder = tmp_path_factory.mktemp("data") / "arc1"
    build_dataset(folder, ["training", "evaluation"], test_set_name="evaluation", num_aug=12, seed=0)
    return folder


@pytest.fixture(scope="session")
def store(dataset_folder: Path) -> PuzzleStore:
    return load_store(dataset_folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random two-layer Llama, without chat template."""
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def shrunk_config(dataset_folder: Path) -> Callable[..., TrainConfig]:
    """`shrunk_config("key=value", ..., config_name=...)`: a run config at test size; later overrides win.

    Configs cannot be changed, so one that was composed already is not composed again.
    """

    @functools.cache
    def load(*overrides: str, config_name: str = "cfg_pretrain_etrm_arc_agi_1") -> TrainConfig:
        shrunk = [*SHRUNK, f"data_paths=[{dataset_folder}]", *overrides]
        if {"data=known_rules", "data=rearc", "data=mixture"} & {*overrides}:  # which have a number of batches instead
            shrunk = [override for override in shrunk if not override.startswith("epochs=")]
        return load_config(config_name, shrunk)

    return load


@pytest.fixture(scope="session")
def untrained(
    shrunk_config: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`untrained("key=value", ..., config_name=...)`: a checkpoint of random weights, made in a moment. In its averages
    the confidence differs from query to query; in its raw weights it is always the same."""

    def save(*overrides: str, **options: str) -> Path:
        with contextlib.chdir(tmp_path_factory.mktemp("untrained")):
            trainer = create_trainer(shrunk_config(*overrides, **options), Ranks(0, 1, torch.device("cpu")))
            with trainer.averaged_weights():
                torch.nn.init.normal_(trainer.model.inner.q_head.weight)
            path = trainer.save_checkpoint()
            assert path is not None
            return path.resolve()

    return save


@pytest.fixture
def batch(store: PuzzleStore) -> Batch:
    """Six augmented, translated training samples of six small puzzles."""
    return small_batch(store, 6)


def small_batch(store: PuzzleStore, size: int, max_demos: int = 4, number: int = 0) -> Batch:
    data = FewshotTrainDataset(
        store, global_batch_size=size, epochs=100, seed=0, max_demos=max_demos, max_groups=max(size, 6)
    )
    return data[number]


@pytest.fixture(autouse=True)
def _seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts from one seed, in a folder of its own."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)


def shrunk_overrides(*overrides: str) -> Sequence[str]:
    return (*SHRUNK, *overrides)
