"""Fixtures for whole runs: `train` runs `fit`, `make_trainer` builds a trainer that a test steps by hand."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.schema import TrainConfig, dump_config, load_config, run_folder
from dataset.build_arc_dataset import build_dataset
from dataset.build_known_rules import build_known_rules
from dataset.known_rules.family import TaskSettings
from reports.observers import RUN_OBSERVERS
from training.loop import fit
from training.setup import create_trainer
from training.trainer import Trainer
from utils.distributed import Ranks
from utils.run_folder import create_run_folder


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """At this size threads cost more than they bring, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def new_run_folder(config: TrainConfig) -> Path:
    """The run folder of a config, empty but for its `config.yaml`."""
    return create_run_folder(run_folder(config), dump_config(config))


Rows = list[list[int]]
FIVES: Rows = [[5, 5], [5, 5]]


def write_tasks(folder: Path, subset: str, copies: dict[str, list[bool]], with_solutions: bool) -> None:
    """Kaggle-style files: each output is a copy of its input, but for the test outputs that are 2 × 2 fives."""
    rng = np.random.default_rng(len(subset))

    def grid() -> Rows:
        return rng.integers(1, 10, size=rng.integers(3, 6, size=2)).tolist()

    challenges, solutions = {}, {}
    for task, tests in copies.items():
        demos, queries = [grid() for _ in range(3)], [grid() for _ in tests]
        challenges[task] = {
            "train": [{"input": g, "output": g} for g in demos],
            "test": [{"input": g} for g in queries],
        }
        solutions[task] = [g if copy else FIVES for g, copy in zip(queries, tests, strict=True)]
    (folder / f"toy_{subset}_challenges.json").write_text(json.dumps(challenges))
    if with_solutions:
        (folder / f"toy_{subset}_solutions.json").write_text(json.dumps(solutions))


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`toy_dataset()`: 8 training and 4 held-out puzzles of small grids, each answer a copy of the input.

    But for the held-out puzzle `other`, and for the second of the two inputs of `half`. With
    `with_solutions=False` the held-out answers are unknown; `prefix` goes in front of the puzzles' names.
    """

    def build(*, with_solutions: bool = True, num_aug: int = 4, seed: int = 0, prefix: str = "") -> Path:
        folder = tmp_path_factory.mktemp("toy")
        write_tasks(folder, "easy", {f"{prefix}easy{i}": [True] for i in range(8)}, True)
        held_out = {"same1": [True], "same2": [True], "other": [False], "half": [True, False]}
        write_tasks(folder, "heldout", {prefix + task: tests for task, tests in held_out.items()}, with_solutions)
        files = str(folder / "toy")
        subsets = ["easy", "heldout"]
        data = folder / "data"
        build_dataset(data, subsets, test_set_name="heldout", num_aug=num_aug, seed=seed, input_file_prefix=files)
        return data

    return build


RULES_OPTIONS = TaskSettings(("permutation", "dihedral"), sides=(2, 3))


@pytest.fixture(scope="session")
def rules_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training tasks of known rules of two families, six held-out ones."""
    folder = tmp_path_factory.mktemp("rules") / "data"
    build_known_rules(folder, RULES_OPTIONS, train=12, held_out=6, seed=1)
    return folder


@pytest.fixture(scope="session")
def ranks() -> Ranks:
    """A single process, without a process group."""
    return Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="session")
def train(
    shrunk_config: Callable[..., TrainConfig], ranks: Ranks, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`train("key=value", ..., config_name=...)`: a run at test size in a directory of its own; its run folder."""

    def run(*overrides: str, **options: str) -> Path:
        config = shrunk_config(*overrides, **options)
        with contextlib.chdir(tmp_path_factory.mktemp("run")):
            fit(config, ranks, observers=RUN_OBSERVERS)
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
    """`make_trainer("key=value", ..., config_name=...)`: a trainer in training mode; its run folder is in cwd."""
    numbers = itertools.count()

    def make(*overrides: str, **options: str) -> Trainer:
        trainer = create_trainer(shrunk_config(f"+run_name=run-{next(numbers)}", *overrides, **options), ranks)
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
