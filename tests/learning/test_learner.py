"""A learner by itself: one training step without a run, what the reduction sees, what a bad step leaves behind."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from config.schema import TrainConfig
from dataset.fewshot_puzzle_dataset import Batch
from dataset.store import PuzzleStore
from learning.groups import GroupOptions
from learning.learner import Learner, LearnerOptions, create_learner
from learning.optim import OptimizerOptions
from models import create_model
from models.act import EXPLORATION_KEY, exploration_draws
from models.losses import create_loss_head
from training.loop import Trainer
from utils.distributed import Ranks

MakeLearner = Callable[..., Learner]
OPTIONS = LearnerOptions(OptimizerOptions(lr=1e-2), global_batch_size=6, grad_clip_norm=1e-2, ema_rate=0.75)
SYSTEMS = {
    "etrm": "cfg_pretrain_etrm_arc_agi_1",
    "etrmtrm": "cfg_pretrain_etrmtrm_arc_agi_1",
    "trm": "cfg_pretrain_trm_arc_agi_1",
}


@pytest.fixture
def make_learner(shrunk_config: Callable[..., TrainConfig], store: PuzzleStore) -> MakeLearner:
    """`make_learner(key=value, ...)`: a learner of the same tiny model each time, with these options."""

    def make(config_name: str = SYSTEMS["etrm"], **options: Any) -> Learner:
        torch.manual_seed(0)
        arch = shrunk_config(config_name=config_name).arch
        head = create_loss_head(arch, create_model(arch, store.metadata))
        torch.manual_seed(1)
        return create_learner(head, replace(OPTIONS, **options))

    return make


def state_of(learner: Learner) -> dict[str, Tensor]:
    """Weights, averages and moments, copied."""
    state = {name: value.clone() for name, value in learner.model.state_dict().items()}
    if learner.ema is not None:
        state |= {f"average {name}": value.clone() for name, value in learner.ema.state_dict().items()}
    for i, moments in learner.optimizer.state_dict()["state"].items():
        state |= {f"moment {i} {name}": value.clone() for name, value in moments.items()}
    return state


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("optimizer", ["adam_atan2", "muon"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_learner_steps_without_a_run_and_writes_nothing(
    system: str, optimizer: str, make_learner: MakeLearner, batch: Batch, tmp_path: Path
) -> None:
    learner = make_learner(SYSTEMS[system], optimizer=OptimizerOptions(optimizer, lr=3e-3))
    batch = {"puzzle_identifiers": batch["puzzle_groups"], **batch}
    carry, losses = None, []
    for number in range(12):
        result = learner.step(carry, batch, number, lr=3e-3)
        assert result.fault is None
        carry = result.carry
        losses.append(float(result.sums["lm_loss"]))
    assert min(losses[-4:]) < losses[0]
    assert Path.cwd() == tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [(), ("optimizer=muon", "encoder_lr_scale=0.5", "freeze_decoder_steps=2")])
def test_a_trainers_step_is_that_of_a_learner_built_by_hand(
    options: tuple[str, ...], make_trainer: Callable[..., Trainer], store: PuzzleStore
) -> None:
    trainer = make_trainer(*options, "ema_rate=0.75", "grad_clip_norm=0.01")
    config = trainer.config
    torch.manual_seed(config.seed)
    model = create_model(config.arch, store.metadata)
    optimizer = OptimizerOptions(
        config.optimizer,
        lr=config.lr,
        muon_lr=config.muon_lr,
        weight_decay=config.weight_decay,
        encoder=GroupOptions(lr_scale=config.encoder_lr_scale or 1.0),
        inner=GroupOptions(frozen_steps=config.freeze_decoder_steps),
    )
    head = create_loss_head(config.arch, model)
    learner = create_learner(head, LearnerOptions(optimizer, config.global_batch_size, 0.01, ema_rate=0.75))
    assert same(state_of(learner), state_of(trainer.learner))
    carry = None
    for number in range(4):
        data, lr = trainer.train_data[number], trainer.base_lr
        sums, outputs = trainer.train_step(data)
        draws = exploration_draws(config.seed, number, config.global_batch_size, slice(None))
        result = learner.step(carry, {**data, EXPLORATION_KEY: draws}, number, lr)
        carry = result.carry
        assert same(result.sums, sums)
        assert torch.equal(result.outputs["logits"], outputs["logits"])
        assert same(state_of(learner), state_of(trainer.learner))


def test_the_reduction_sees_gradients_before_they_are_clipped(make_learner: MakeLearner, batch: Batch) -> None:
    def doubled(tensors: list[Tensor], ranks: Ranks) -> None:
        for tensor in tensors:
            tensor.mul_(2)

    plain, hooked = make_learner(), make_learner()
    hooked.reduce = doubled
    one, two = plain.step(None, batch, 0, lr=1e-2), hooked.step(None, batch, 0, lr=1e-2, flags=lambda: (True, False))
    assert float(one.sums["grad/total_norm"]) > OPTIONS.grad_clip_norm
    for key in ("grad/encoder_norm", "grad/inner_norm", "grad/total_norm"):
        torch.testing.assert_close(two.sums[key], 2 * one.sums[key])
    assert (one.flags, two.flags) == ([], [2.0, 0.0])
    # Both are clipped to the same norm.
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(hooked.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_the_average_follows_each_step(make_learner: MakeLearner, batch: Batch) -> None:
    learner = make_learner()
    assert learner.ema is not None
    expected = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    carry = None
    for number in range(3):
        carry = learner.step(carry, batch, number, lr=1e-2).carry
        for name, p in learner.model.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * p.detach()
    own = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    with learner.averaged_weights():
        for name, p in learner.model.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name])
    assert all(torch.equal(p, own[name]) for name, p in learner.model.named_parameters())


@pytest.mark.parametrize("optimizer", ["adam_atan2", "muon"])
@pytest.mark.parametrize(
    ("place", "words"), [("loss", "train/loss is nan"), ("gradient", "the gradient of inner.q_head.bias")]
)
def test_a_step_that_is_not_finite_changes_nothing_and_is_named(
    place: str, words: str, optimizer: str, make_learner: MakeLearner, batch: Batch
) -> None:
    def poison(tensors: list[Tensor], ranks: Ranks) -> None:
        tensors[-2].view(-1)[0] = math.inf  # the last gradient; numbers to agree on come after it

    learner = make_learner(optimizer=OptimizerOptions(optimizer, lr=1e-2))
    carry = learner.step(None, batch, 0, lr=1e-2).carry
    before, token_loss, reduce = state_of(learner), learner.head.token_loss, learner.reduce
    if place == "loss":
        learner.head.token_loss = lambda logits, labels: token_loss(logits, labels) * math.nan
    else:
        learner.reduce = poison
    result = learner.step(carry, batch, 1, lr=1e-2)
    assert result.fault is not None
    assert words in result.fault
    assert (result.carry, result.sums) == (None, {})
    assert same(state_of(learner), before)
    assert all(p.grad is None for p in learner.model.parameters())
    learner.head.token_loss, learner.reduce = token_loss, reduce
    assert learner.step(result.carry, batch, 2, lr=1e-2).fault is None
    assert not same(state_of(learner), before)


def test_two_learners_of_one_model_adapt_their_own_copies(make_learner: MakeLearner, batch: Batch) -> None:
    """As the adaptation of a trained model to one task does: other rates, other averages, the model untouched."""
    trained = make_learner()
    carry = trained.step(None, batch, 0, lr=1e-2).carry
    before = state_of(trained)
    copy = make_learner(optimizer=OptimizerOptions("muon", lr=1e-3, weight_decay=0.0), ema_rate=0.5)
    copy.model.load_state_dict(trained.model.state_dict())
    for number in range(2):
        copy.step(None, {key: value[:1] for key, value in batch.items()}, number, lr=1e-3)
    assert same(state_of(trained), before)
    assert trained.step(carry, batch, 1, lr=1e-2).fault is None


def test_an_unknown_optimizer_is_refused_with_the_known_ones(make_learner: MakeLearner) -> None:
    with pytest.raises(ValueError, match=r"optimizer 'adam' is not one of adam_atan2, muon"):
        make_learner(optimizer=OptimizerOptions("adam"))
