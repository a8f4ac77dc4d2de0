"""`max_context_tokens`: whole demonstrations are left out, in training, in evaluation and when solving, and counted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.schema import ConfigError, TrainConfig, run_folder
from dataset.batches import Batch
from dataset.build_known_rules import build_known_rules
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset, FewshotTrainDataset
from dataset.known_rules.family import TaskSettings
from dataset.store import DatasetError, PuzzleStore, load_store
from tests.processes import log_lines
from training.loop import fit
from training.setup import create_trainer
from utils.distributed import Ranks

MOST = 1000
Config = Callable[..., TrainConfig]
OPTIONS: dict[str, Any] = {"global_batch_size": 6, "epochs": 12, "seed": 0, "max_demos": 4, "max_groups": 7}


def cells(batch: Batch) -> torch.Tensor:
    """Cells of each sample's demonstrations, inputs and outputs."""
    return (batch["demo_inputs"] >= 2).sum(dim=(1, 2)) + (batch["demo_labels"] >= 2).sum(dim=(1, 2))


def demonstrations(batch: Batch, sample: int) -> list[bytes]:
    mask = batch["demo_mask"][sample]
    both = torch.stack([batch["demo_inputs"], batch["demo_labels"]], dim=2)[sample][mask]
    return [pair.numpy().tobytes() for pair in both]


@pytest.mark.parametrize("query_sampling", ["test", "leave_one_out"])
def test_training_leaves_out_whole_demonstrations_and_counts_them(store: PuzzleStore, query_sampling: str) -> None:
    plain, limited = (
        FewshotTrainDataset(store, **OPTIONS, query_sampling=query_sampling, max_context_tokens=most, translate=False)
        for most in (None, MOST)
    )
    num_left_out = 0
    for number in range(len(plain)):
        whole, batch = plain[number], limited[number]
        assert (cells(batch) <= MOST).all()
        assert batch["demo_mask"].any(dim=1).all()
        assert torch.equal(batch["inputs"], whole["inputs"])
        assert torch.equal(batch["labels"], whole["labels"])
        assert torch.equal(whole["demo_mask"].sum(1) - batch["demo_mask"].sum(1), batch["demos_left_out"])
        num_left_out += int(batch["demos_left_out"].sum())
        for sample in range(len(batch["inputs"])):
            if not batch["demos_left_out"][sample]:
                assert demonstrations(batch, sample) == demonstrations(whole, sample)
    assert num_left_out


def test_evaluation_shows_in_order_what_fits(store: PuzzleStore) -> None:
    options: dict[str, Any] = {"batch_size": 99, "max_augmentations": 1, "split": "train", "max_groups": 7}
    plain = FewshotEvalDataset(store, **options)[0]
    dataset = FewshotEvalDataset(store, **options, max_context_tokens=MOST)
    batch = dataset[0]
    assert (cells(batch) <= MOST).all()
    for sample in range(len(batch["inputs"])):
        shown, whole = demonstrations(batch, sample), demonstrations(plain, sample)
        assert [pair for pair in whole if pair in shown] == shown
        assert len(whole) - len(shown) == int(batch["demos_left_out"][sample])
    counts = zip(batch["puzzle_groups"].tolist(), batch["demos_left_out"].tolist(), strict=True)
    assert {store.metadata.puzzle_ids[puzzle]: count for puzzle, count in counts if count} == dataset.left_out()


def test_without_a_limit_nothing_is_counted(store: PuzzleStore) -> None:
    assert "demos_left_out" not in FewshotTrainDataset(store, **OPTIONS)[0]
    assert not FewshotEvalDataset(store, batch_size=4).left_out()


def test_a_limit_that_leaves_no_demonstration_is_refused_with_the_least_that_does(store: PuzzleStore) -> None:
    puzzle = store.puzzles_of("train")[0]
    first, last = store.puzzle_pairs[puzzle], store.puzzle_pairs[puzzle] + store.puzzle_demos[puzzle]
    shapes = store.grid_shapes.astype(np.int64).prod(axis=1).reshape(-1, 2).sum(axis=1)
    least = int(shapes[first:last].min())
    options: dict[str, Any] = {"batch_size": 4, "split": "train", "max_groups": 1}
    FewshotEvalDataset(store, **options, max_context_tokens=least)
    with pytest.raises(DatasetError, match=rf"max_context_tokens={least - 1} leaves puzzle .* it needs {least},"):
        FewshotEvalDataset(store, **options, max_context_tokens=least - 1)


def test_known_rules_are_not_shortened(shrunk_config: Config, ranks: Ranks) -> None:
    rules = ("data=known_rules", "data.num_batches=4", "data.families=[permutation]", "data.sides=[2,3]")
    config = shrunk_config(*rules, "data.demos=[2,3]", "max_context_tokens=53", "max_eval_groups=1")
    with pytest.raises(DatasetError, match=r"have up to 54 cells, and none .* or max_context_tokens=54"):
        create_trainer(config, ranks)


def test_nor_are_those_that_a_run_evaluates(
    shrunk_config: Callable[..., TrainConfig], ranks: Ranks, tmp_path: Path
) -> None:
    settings = TaskSettings(("permutation",), (3, 3), demos=(3, 3))
    build_known_rules(tmp_path / "data", settings, train=0, held_out=2, seed=0)
    dataset = FewshotEvalDataset(load_store(tmp_path / "data"), batch_size=2, max_demos=3, max_context_tokens=54)
    assert dataset.shortened_rule() is None
    rules = ("data=known_rules", "data.num_batches=4", "data.families=[permutation]", "data.sides=[2,2]")
    options = (*rules, "data.demos=[2,2]", f"data_paths=[{tmp_path / 'data'}]", "max_eval_groups=2")
    for limit, said in (
        ("max_context_tokens=53", "max_context_tokens=53: puzzle .* none of them may be left out"),
        ("max_demos=2", "max_demos=2: .* which are 3; none of them"),
    ):
        with pytest.raises(DatasetError, match=said):
            create_trainer(shrunk_config(*options, limit), ranks)


def test_training_and_evaluation_say_how_many_are_left_out(shrunk_config: Config, ranks: Ranks) -> None:
    config = shrunk_config(
        f"max_context_tokens={MOST}", "max_train_groups=7", "log_interval=1", "log_predictions_every=0"
    )
    fit(config, ranks)
    lines = log_lines(run_folder(config))
    assert any(line.get("train/demos_left_out", 0) > 0 for line in lines)
    assert any("eval/demos_left_out" in line for line in lines)


def test_it_is_for_systems_that_read_demonstrations(shrunk_config: Config) -> None:
    with pytest.raises(ConfigError, match="max_context_tokens=700 is for systems that read demonstrations"):
        shrunk_config("max_context_tokens=700", config_name="cfg_pretrain_trm_arc_agi_1")
