"""Fixtures for whole runs: `train` runs `fit`, `make_trainer` builds a trainer that a test steps by hand."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from config.schema import TrainConfig, dump_config, load_config
from utils.distributed import Ranks
from utils.run_logger import run_folder
from utils.train_loop import Trainer, create_trainer, fit


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """At this size threads cost more than they bring, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def ranks() -> Ranks:
    """A single process, without a process group."""
    return Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="session")
def train(
    shrunk_config: Callable[..., TrainConfig], ranks: Ranks, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`train("key=value", ...)`: a whole run at test size in a directory of its own; returns the run folder."""

    def run(*overrides: str) -> Path:
        config = shrunk_config(*overrides)
        with contextlib.chdir(tmp_path_factory.mktemp("run")):
            fit(config, ranks)
            return run_folder(config).resolve()

    return run


@pytest.fixture(scope="session")
def finished_run(train: Callable[..., Path]) -> Path:
    """The folder of a run of 8 steps: 8 puzzles, 4 samples a step, a log line each step, evaluation at 4 and 8."""
    return train("log_interval=1", "eval_interval=2")


@pytest.fixture(scope="session")
def metrics_of() -> Callable[[Path], list[dict[str, float]]]:
    """The lines of a run folder's `metrics.jsonl`; a value that is not finite is an error."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} in metrics.jsonl")

    def read(folder: Path) -> list[dict[str, float]]:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line, parse_constant=refuse) for line in lines]

    return read


@pytest.fixture
def make_trainer(shrunk_config: Callable[..., TrainConfig], ranks: Ranks) -> Callable[..., Trainer]:
    """`make_trainer("key=value", ...)`: a trainer in training mode, with a run folder of its own in this directory."""
    numbers = itertools.count()

    def make(*overrides: str) -> Trainer:
        trainer = create_trainer(shrunk_config(f"+run_name=run-{next(numbers)}", *overrides), ranks)
        trainer.model.train()
        return trainer

    return make


@pytest.fixture(scope="session")
def eager_decoder(
    shrunk_config: Callable[..., TrainConfig], ranks: Ranks, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint whose decoder wants to halt at once, so that exploration decides how long it goes on."""
    with contextlib.chdir(tmp_path_factory.mktemp("eager")):
        trainer = create_trainer(shrunk_config("ema=false"), ranks)
        trainer.train_step(trainer.train_data[0])
        torch.nn.init.constant_(trainer.model.inner.q_head.bias, 5.0)
        path = trainer.save_checkpoint()
        assert path is not None
        return path.resolve()


@pytest.fixture(scope="session")
def as_overrides() -> Callable[[TrainConfig, str], list[str]]:
    """`as_overrides(config, config_name)`: the command-line overrides that make the named config into this one."""

    def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        leaves: dict[str, Any] = {}
        for key, value in section.items():
            leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return leaves

    def overrides(config: TrainConfig, config_name: str) -> list[str]:
        base, wanted = flat(dump_config(load_config(config_name))), flat(dump_config(config))
        changed = {key: value for key, value in wanted.items() if value != base[key]}
        return [f"{'+' * key.endswith('_name')}{key}={json.dumps(value)}" for key, value in changed.items()]

    return overrides
