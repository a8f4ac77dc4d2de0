"""Sources of training batches: the registry, and one that never ends, with a state that follows the training."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from checkpoints.checkpoint import open_checkpoint
from config.data_schema import AnyData, DataConfig
from config.fields import Positive
from config.schema import ConfigError, TrainConfig, dump_config, run_folder
from dataset.batches import Batch
from dataset.grids import place_grid
from dataset.puzzle_dataset import PuzzleTrainDataset
from dataset.sources import SampleResults, TrainSource
from dataset.store import PuzzleStore
from dataset.trained_on import TrainedOn
from tests.processes import hashes, log_lines
from training.loop import Trainer, fit
from training.sources import SOURCES, create_train_source
from utils.distributed import Ranks
from utils.files import sha256_of, sha256_of_json

Config = Callable[..., TrainConfig]


class MirrorsData(DataConfig):
    """Options of the source below."""

    name: Literal["mirrors"]
    num_batches: Positive


class MirrorsConfig(TrainConfig):
    """A config with the source below among those that `data` may name."""

    data: MirrorsData  # pyright: ignore[reportIncompatibleVariableOverride]


class Mirrors(TrainSource):
    """Puzzles made on the fly, each answer the mirrored input; how large they are follows from the losses so far."""

    def __init__(self, config: TrainConfig, ranks: Ranks):
        assert isinstance(config.data, MirrorsData)
        self.num_batches, self.config = config.data.num_batches, config
        self.slots = range(config.global_batch_size)[ranks.local_slots(config.global_batch_size)]
        self.total_loss = 0.0

    @property
    def side(self) -> int:
        return 2 + int(self.total_loss / 10)

    def _sample(self, number: int, slot: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.config.seed, number, slot])
        grids = rng.integers(0, 10, (3, self.side, self.side), dtype=np.uint8)
        inputs, labels = (np.stack([place_grid(grid) for grid in part]) for part in (grids, grids[:, :, ::-1]))
        return {"demo_inputs": inputs[1:], "demo_labels": labels[1:], "inputs": inputs[0], "labels": labels[0]}

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, number: int) -> Batch:
        samples = [self._sample(number, slot) for slot in self.slots]
        batch = {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}
        batch["demo_mask"] = torch.ones(batch["demo_inputs"].shape[:2], dtype=torch.bool)
        batch["puzzle_identifiers"] = torch.zeros(len(samples), dtype=torch.int32)
        batch["puzzle_groups"] = torch.tensor(self.slots, dtype=torch.int32)
        return batch

    def epoch_of(self, num_batches: int) -> int:
        return num_batches // 2

    def trained_on(self) -> TrainedOn:
        return TrainedOn()

    @property
    def description(self) -> str:
        return "mirrored grids without end"

    def observe(self, step: int, sums: dict[str, Tensor], samples: SampleResults) -> None:
        self.total_loss += float(sums["loss"])

    def state_dict(self) -> dict[str, Any]:
        return {"total_loss": self.total_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total_loss = state["total_loss"]


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch, shrunk_config: Config) -> Config:
    """`mirrors("key=value", ...)`: the config of a run of ten batches of mirrors, the source registered."""
    monkeypatch.setitem(SOURCES, "mirrors", lambda config, store, ranks: Mirrors(config, ranks))

    def config(*overrides: str) -> TrainConfig:
        short = ("eval_interval=3", "log_interval=1", "checkpoint_interval=5", "checkpoint_keep=null", "lr=1e-2")
        values = dump_config(
            shrunk_config(*short, "max_eval_groups=2", "log_predictions_every=0", "arch.halt_max_steps=1", *overrides)
        )
        return MirrorsConfig.model_validate({**values, "data": {"name": "mirrors", "num_batches": 10}})

    return config


def cut_back(run: Path, step: int) -> None:
    for path in (run / "checkpoints").glob("step_*"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)


def test_the_registry_has_every_source_that_a_config_can_name() -> None:
    names = [get_args(section.model_fields["name"].annotation) for section in get_args(AnyData)]
    assert sorted(SOURCES) == sorted(name for (name,) in names)


def test_a_source_without_end_trains_for_as_many_batches_as_the_config_says(mirrors: Config, ranks: Ranks) -> None:
    config = mirrors()
    fit(config, ranks)
    lines = log_lines(run_folder(config))
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 11))
    assert [line["step"] for line in lines if "eval/accuracy" in line] == [6, 10]
    assert open_checkpoint(run_folder(config)).trained_on == TrainedOn()


def test_a_source_goes_on_bit_for_bit_with_its_state(mirrors: Config, ranks: Ranks, tmp_path: Path) -> None:
    config = mirrors()
    run, straight = run_folder(config), tmp_path / "straight"
    fit(config, ranks)
    shutil.copytree(run, straight, symlinks=True)
    cut_back(run, 5)
    saved = open_checkpoint(run).rank_state(0)["source"]
    assert saved["mirrors"]["total_loss"] > 0
    fit(config, ranks)
    assert log_lines(run) == log_lines(straight)
    assert hashes(open_checkpoint(run).path) == hashes(open_checkpoint(straight).path)


def test_workers_do_not_make_batches_of_an_old_state(mirrors: Config, ranks: Ranks) -> None:
    runs = []
    for workers in (0, 2):
        config = mirrors(f"data_workers={workers}", f"+run_name=workers-{workers}")
        fit(config, ranks)
        runs.append([line["train/loss"] for line in log_lines(run_folder(config)) if "train/loss" in line])
    assert runs[0] == runs[1]


def test_a_run_may_go_on_with_another_source(mirrors: Config, shrunk_config: Config, ranks: Ranks) -> None:
    """With the new source's own state, when asked for by name and not otherwise."""
    fit(mirrors("+run_name=before"), ranks)
    taken_up = ("resume=runs/etrm-arc/before", "+run_name=after", "log_predictions_every=0", "arch.halt_max_steps=1")
    with pytest.raises(ConfigError, match=r"data\.name was mirrors and is fewshot"):
        fit(shrunk_config(*taken_up), ranks)
    keys = ("data.name", "data.num_batches", "data.translate", "data.versions", "eval_interval", "lr", "epochs")
    config = shrunk_config(*taken_up, "epochs=8").model_copy(update={"resume_override": keys})
    fit(config, ranks)
    assert open_checkpoint(run_folder(config)).step == 16


def as_written_before_sources(checkpoint: Path) -> None:
    """Take what came with sources out of a checkpoint, and set its hashes right."""
    config = yaml.safe_load((checkpoint / "config.yaml").read_text())
    assert config.pop("data") == {"name": "fewshot", "translate": True, "versions": 1}
    (checkpoint / "config.yaml").write_text(yaml.safe_dump(config))
    state = torch.load(checkpoint / "rank_0.pt", weights_only=True)
    assert state.pop("source") == {"fewshot": {}}
    torch.save(state, checkpoint / "rank_0.pt")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["sha256_of_the_above"]
    manifest["sha256"] |= {name: sha256_of(checkpoint / name) for name in ("config.yaml", "rank_0.pt")}
    manifest["sha256_of_the_above"] = sha256_of_json(manifest)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_from_before_there_were_sources_goes_on_bit_for_bit(
    shrunk_config: Config, ranks: Ranks, tmp_path: Path
) -> None:
    config = shrunk_config("checkpoint_interval=5", "checkpoint_keep=null", "log_predictions_every=0", "log_interval=1")
    fit(config, ranks)
    run, straight = run_folder(config), tmp_path / "straight"
    shutil.copytree(run, straight, symlinks=True)
    cut_back(run, 5)
    as_written_before_sources(open_checkpoint(run).path)
    fit(config, ranks)
    assert log_lines(run) == log_lines(straight)
    weights = [open_checkpoint(folder).path / "model.safetensors" for folder in (run, straight)]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in weights}) == 1


@pytest.mark.parametrize("name", ["cfg_pretrain_etrm_arc_agi_1", "cfg_pretrain_trm_arc_agi_1"])
def test_what_was_trained_on_names_the_data_set_by_its_path(
    make_trainer: Callable[..., Trainer], dataset_folder: Path, name: str
) -> None:
    seen = make_trainer(config_name=name).trained_on
    assert {Path(path).parent for path in seen.datasets} == {dataset_folder}


def test_a_store_source_says_what_it_draws_from(store: PuzzleStore, shrunk_config: Config, ranks: Ranks) -> None:
    config = shrunk_config(config_name="cfg_pretrain_trm_arc_agi_1")
    source = create_train_source(config, store, ranks)
    assert isinstance(source, PuzzleTrainDataset)
    assert source.description == "12 training puzzles"
    assert not source.state_dict()
