"""Evaluating a checkpoint by itself: the same figures as in training, and the shuffled control."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.checkpoint import CheckpointError
from dataset.batches import DEMONSTRATION_KEYS
from dataset.build_arc_dataset import build_dataset
from dataset.controls import ShuffledConditions
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.store import DatasetError, PuzzleStore
from inference.evaluate_cli import evaluate_checkpoint
from tests.processes import ROOT, call

Train = Callable[..., Path]
MetricsOf = Callable[[Path], list[dict[str, float]]]
CONFIGS = ["cfg_pretrain_etrm_arc_agi_1", "cfg_pretrain_etrmtrm_arc_agi_1", "cfg_pretrain_trm_arc_agi_1"]


@pytest.fixture(scope="module", params=CONFIGS)
def run(request: pytest.FixtureRequest, train: Train) -> Path:
    """Short runs with large steps, so that shuffling has something to spoil."""
    return train("epochs=4", "lr=1e-2", "lr_warmup_steps=0", "log_predictions_every=0", config_name=request.param)


def test_a_data_set_without_held_out_puzzles_is_refused_with_the_remedy(
    untrained: Callable[..., Path], tmp_path: Path
) -> None:
    rows = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]], "output": [[4]]}]}
    (tmp_path / "own.json").write_text(json.dumps(rows))
    build_dataset(tmp_path / "set", ["own"], num_aug=0, sources={"own": "own.json"})
    with pytest.raises(DatasetError, match=r"set: no held-out puzzle .* --test-set-name SUBSET, .* --split train"):
        evaluate_checkpoint(untrained(), data_paths=["set"], device="cpu")


def test_a_checkpoint_gives_the_figures_of_its_run(run: Path, metrics_of: MetricsOf) -> None:
    found = evaluate_checkpoint(run, device="cpu").metrics
    logged = metrics_of(run)[-1]
    assert {key for key in found if "per_second" not in key} < logged.keys()
    for key, value in found.items():
        if "per_second" not in key:
            assert logged[key] == pytest.approx(value, abs=1e-6), key


def test_puzzles_that_are_named_are_asked_alone(run: Path, store: PuzzleStore) -> None:
    wanted = [store.metadata.puzzle_ids[puzzle] for puzzle in store.puzzles_of("test")[[3, 1]]]
    found = evaluate_checkpoint(run, puzzles=wanted, max_augmentations=2, device="cpu")
    assert set(found.submission) == set(wanted)
    assert found.metrics["ARC/num_puzzles"] == 2
    with pytest.raises(DatasetError, match="--puzzles: 'nobody' is not in the test split"):
        evaluate_checkpoint(run, puzzles=["nobody"], device="cpu")


def test_averaged_and_raw_weights_differ(run: Path) -> None:
    averaged, raw = (evaluate_checkpoint(run, averaged=flag, device="cpu").metrics for flag in (True, False))
    assert averaged["eval/lm_loss"] != raw["eval/lm_loss"]


def test_shuffling_changes_the_loss_and_nothing_else_of_the_queries(run: Path) -> None:
    plain, shuffled = (
        evaluate_checkpoint(run, split="train", shuffle=flag, max_augmentations=2, device="cpu").metrics
        for flag in (False, True)
    )
    assert plain["eval/num_queries"] == shuffled["eval/num_queries"] > 8
    assert plain["eval/lm_loss"] != shuffled["eval/lm_loss"]


def test_shuffled_queries_have_another_puzzles_demonstrations(store: PuzzleStore) -> None:
    options = {"batch_size": 64, "max_groups": 7, "max_augmentations": 3}
    shuffled = ShuffledConditions(store, keys=DEMONSTRATION_KEYS, **options)
    plain = FewshotEvalDataset(store, **options)
    donors = plain.query_row[shuffled.donor]
    assert (donors != plain.query_row).all()
    assert sorted(set(donors.tolist())) == list(range(7))
    indices = np.arange(len(plain.query_row))
    one, other = plain.queries(indices), shuffled.queries(indices)
    donated = plain.queries(shuffled.donor)
    for key, value in other.items():
        assert torch.equal(value, donated[key] if key in DEMONSTRATION_KEYS else one[key]), key


def test_a_single_puzzle_cannot_be_shuffled(store: PuzzleStore) -> None:
    with pytest.raises(DatasetError, match="needs two puzzles"):
        ShuffledConditions(store, keys=DEMONSTRATION_KEYS, batch_size=4, max_groups=1)


def test_a_trm_refuses_another_data_set_and_a_reading_model_takes_it(
    train: Train, toy_dataset: Callable[..., Path]
) -> None:
    other = str(toy_dataset())
    small = ("epochs=1", "log_predictions_every=0")
    reads = train(*small)
    assert evaluate_checkpoint(reads, data_paths=[other], device="cpu").metrics["ARC/num_puzzles"] == 4
    memorises = train(*small, config_name=CONFIGS[2])
    with pytest.raises(CheckpointError):
        evaluate_checkpoint(memorises, data_paths=[other], device="cpu")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--checkpoint", "nowhere"], "nowhere"), (["--checkpoint", "x", "--max-groups", "0"], "--max-groups 0")],
)
def test_faults_are_one_message_and_status_2(arguments: list[str], named: str, tmp_path: Path) -> None:
    done = call("evaluate.py", *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_prints_the_metrics_as_json(train: Train, tmp_path: Path) -> None:
    run = train("epochs=1", "log_predictions_every=0")
    done = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), "--checkpoint", str(run), "--max-groups", "2", "--device", "cpu"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["ARC/num_puzzles"] == 2
