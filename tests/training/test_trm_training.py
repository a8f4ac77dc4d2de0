"""TRM and ETRM-FCT in the training loop: sign-SGD on touched rows, what was seen, steps for each batch."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from checkpoints.checkpoint import open_checkpoint
from config.schema import ConfigError, TrainConfig, load_config
from tests.processes import Launch
from training.loop import Trainer

ROOT = Path(__file__).parents[2]
TRM_CONFIG = "cfg_pretrain_trm_arc_agi_1"
MakeTrainer = Callable[..., Trainer]
Train = Callable[..., Path]
MetricsOf = Callable[[Path], list[dict[str, float]]]


def test_touched_rows_follow_sign_sgd_and_the_others_stay(make_trainer: MakeTrainer) -> None:
    """row · (1 - lr·wd) - lr · sign(sum of the gradients of the row), by hand over several steps."""
    trainer = make_trainer(
        "global_batch_size=16",
        "max_train_groups=3",
        "max_eval_groups=1",
        "puzzle_emb_lr=0.1",
        "puzzle_emb_weight_decay=0.5",
        "lr_warmup_steps=0",
        config_name=TRM_CONFIG,
    )
    embedding = trainer.model.inner.puzzle_emb
    torch.nn.init.normal_(embedding.weights)
    expected = embedding.weights.clone()
    seen: list[tuple[Tensor, Tensor]] = []
    embedding.register_forward_hook(lambda module, _, __: seen.append(module.touched))
    repeated = 0
    for step in range(3):
        trainer.train_step(trainer.train_data[step % len(trainer.train_data)])
        identifiers, rows = seen[step]
        assert rows.grad is not None
        for row in set(identifiers.tolist()):
            grads = rows.grad[identifiers == row]
            repeated += len(grads) > 1
            expected[row] = expected[row] * (1 - 0.1 * 0.5) - 0.1 * torch.sign(grads.sum(0))
        torch.testing.assert_close(embedding.weights, expected, atol=1e-5, rtol=0)
    assert repeated, "the test needs a puzzle that stands twice in a batch"


def test_the_embeddings_follow_the_schedule(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        "puzzle_emb_lr=0.1", "puzzle_emb_weight_decay=0", "lr=1e-3", "lr_warmup_steps=2", config_name=TRM_CONFIG
    )
    weights = trainer.model.inner.puzzle_emb.weights
    torch.nn.init.normal_(weights)
    for step, rate in enumerate((0.05, 0.1)):
        before = weights.clone()
        trainer.train_step(trainer.train_data[step])
        moved = (weights - before).abs()
        torch.testing.assert_close(moved.max(), torch.tensor(rate), atol=1e-4, rtol=0)


def test_evaluation_leaves_the_embeddings_alone(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(config_name=TRM_CONFIG)
    trainer.train_step(trainer.train_data[0])
    before = trainer.model.inner.puzzle_emb.weights.clone()
    trainer.evaluate()
    assert torch.equal(trainer.model.inner.puzzle_emb.weights, before)


def test_the_published_protocol_is_recorded_and_names_its_figures_contaminated(
    train: Train, metrics_of: MetricsOf
) -> None:
    run = train("epochs=2", "log_predictions_every=0", config_name=TRM_CONFIG)
    trained_on = open_checkpoint(run).trained_on
    assert len(trained_on.held_out_demonstrations) == 4
    assert set(trained_on.held_out_demonstrations) < set(trained_on.puzzle_ids)
    last = metrics_of(run)[-1]
    assert last["ARC/num_contaminated_puzzles"] == 4
    assert "ARC/contaminated_pass@1" in last
    assert "ARC/pass@1" not in last


def test_without_held_out_demonstrations_nothing_is_contaminated(train: Train, metrics_of: MetricsOf) -> None:
    run = train("train_on_held_out_demonstrations=false", "epochs=2", "log_predictions_every=0", config_name=TRM_CONFIG)
    assert open_checkpoint(run).trained_on.held_out_demonstrations == ()
    assert "ARC/pass@1" in metrics_of(run)[-1]


def test_a_reading_system_cannot_train_on_held_out_demonstrations() -> None:
    with pytest.raises(ConfigError, match="train_on_held_out_demonstrations=true is for TRM"):
        load_config("cfg_pretrain_etrm_arc_agi_1", ["train_on_held_out_demonstrations=true"])


def test_two_ranks_train_the_embeddings_as_one_does(
    shrunk_config: Callable[..., TrainConfig],
    as_overrides: Callable[[TrainConfig, str], list[str]],
    tmp_path: Path,
) -> None:
    config = shrunk_config(
        *("max_train_groups=3", "max_eval_groups=1", "epochs=16", "eval_interval=1000", "log_predictions_every=0"),
        *("arch.halt_exploration_prob=0", "lr_warmup_steps=0"),
        config_name=TRM_CONFIG,
    )
    tables = []
    for world_size in (1, 2):
        arguments = ("--config-name", TRM_CONFIG, *as_overrides(config, TRM_CONFIG), f"+run_name=ranks-{world_size}")
        launch = Launch(tmp_path, arguments, ranks=world_size, script="pretrain_trm.py", log=f"log-{world_size}")
        assert launch.wait(300) == [0] * world_size, launch.output()[-2000:]
        state = open_checkpoint(tmp_path / f"runs/etrm-arc/ranks-{world_size}").model_state()
        tables.append(state["inner.puzzle_emb.weights"])
    one, two = tables
    touched = one.any(1)
    assert touched.sum() > 10
    assert torch.equal(touched, two.any(1))
    # A sum of gradients near zero may change its sign with the order of addition: rare, and one step of 2 · lr.
    assert ((one - two)[touched].abs() > 1e-5).float().mean() < 0.02


@pytest.mark.parametrize("steps", [1, 4])
def test_fixed_computation_time_takes_that_many_optimizer_steps_for_each_batch(
    train: Train, metrics_of: MetricsOf, steps: int
) -> None:
    run = train(
        *("arch.halting=fixed", f"arch.num_act_steps={steps}", "epochs=2", "eval_interval=1"),
        *("log_interval=1", "log_predictions_every=0"),
    )
    batches = 2 * 8 // 4
    assert open_checkpoint(run).step == batches * steps
    optimizer_steps = {int(s["step"]) for s in open_checkpoint(run).optimizer_state()["state"].values()}
    assert optimizer_steps == {batches * steps}
    lines = metrics_of(run)
    trained = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in trained] == list(range(1, batches * steps + 1))
    # Samples halt, all together, at the last step of their batch and nowhere else.
    assert [line["train/halted_per_step"] for line in trained] == ([0.0] * (steps - 1) + [4.0]) * batches
    assert {line["train/steps"] for line in trained if "train/steps" in line} == {float(steps)}
    evaluated = [line["step"] for line in lines if "eval/steps" in line]
    assert evaluated == [2 * steps, 4 * steps]
    assert lines[-1]["eval/steps"] == steps
    table = json.loads((run / "act_steps.jsonl").read_text().splitlines()[-1])
    assert len(table["act_steps"]) == steps


def test_fixed_computation_time_starts_each_batch_from_a_fresh_carry(make_trainer: MakeTrainer) -> None:
    """The step after a batch's last is what a new carry gives; inside a batch the latents go on."""
    trainer = make_trainer("arch.halting=fixed", "arch.num_act_steps=3", "lr=1e-3", "lr_warmup_steps=0")
    first, second = trainer.train_data[0], trainer.train_data[1]
    for step in range(3):
        trainer.train_step(first)
        assert trainer.carry.steps.tolist() == [step + 1] * 4
        assert torch.equal(trainer.carry.current_data["inputs"], first["inputs"])
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    ended = trainer.carry
    with torch.no_grad():
        _, _, sums, outputs = trainer.head(ended, second)
        fresh, _, _, expected = trainer.head(trainer.model.initial_carry(second), second)
    assert torch.equal(outputs["logits"], expected["logits"])
    trainer.train_step(second)
    assert torch.equal(trainer.carry.inner_carry.z_H, fresh.inner_carry.z_H)
    assert trainer.carry.steps.tolist() == [1] * 4
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert sums["count"] == 0


def test_options_of_the_other_halting_are_refused_or_said(caplog: pytest.LogCaptureFixture) -> None:
    name = "cfg_pretrain_etrm_arc_agi_1"
    with pytest.raises(ConfigError, match=r"arch\.halting=fixed reads it"):
        load_config(name, ["arch.num_act_steps=3"])
    assert caplog.text == ""
    config = load_config(name, ["arch.halting=fixed", "arch.halt_max_steps=3"])
    assert config.arch.max_steps == config.arch.num_act_steps != 3
    assert "arch.halt_max_steps has no say" in caplog.text
