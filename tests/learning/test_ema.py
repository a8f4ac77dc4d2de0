"""The average of the weights: its recursion, swapping it in and out, and that evaluating leaves no trace."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from learning.ema import EMA
from training.loop import Trainer

MakeTrainer = Callable[..., Trainer]


def small_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    return model


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    for p in model.parameters():
        p.add_(torch.randn_like(p))


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.999])
def test_the_average_follows_its_recursion(rate: float) -> None:
    model = small_model()
    ema = EMA(model, rate)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(5):
        disturb(model)
        ema.update()
        for name, p in model.named_parameters():
            expected[name] = rate * expected[name] + (1 - rate) * p.detach()
    assert set(ema.state_dict()) == set(expected)
    for name, average in ema.state_dict().items():
        torch.testing.assert_close(average, expected[name], rtol=1e-12, atol=1e-14)


def test_the_average_starts_at_the_parameters_and_does_not_share_their_memory() -> None:
    model = small_model()
    ema = EMA(model, 0.9)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    disturb(model)
    assert all(torch.equal(average, start[name]) for name, average in ema.state_dict().items())


def test_swapping_in_uses_the_average_and_restores_every_bit() -> None:
    model = small_model()
    ema = EMA(model, 0.7)
    disturb(model)
    ema.update()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    average = {name: value.clone() for name, value in ema.state_dict().items()}
    addresses = [p.data_ptr() for p in model.parameters()]
    with ema.swapped_in():
        for name, value in model.state_dict().items():
            assert torch.equal(value, average.get(name, own[name]))  # buffers stay the model's
        assert any(not torch.equal(p, own[name]) for name, p in model.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in ema.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == addresses


def test_an_error_inside_the_block_restores_the_weights_too() -> None:
    model = small_model()
    ema = EMA(model, 0.7)
    disturb(model)
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), ema.swapped_in():
        raise KeyboardInterrupt
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())


def test_a_reloaded_average_continues_bit_for_bit() -> None:
    model = small_model()
    ema = EMA(model, 0.7)
    disturb(model)
    ema.update()
    other = EMA(model, 0.7)
    other.load_state_dict({name: value.clone() for name, value in ema.state_dict().items()})
    disturb(model)
    ema.update()
    other.update()
    for name, value in ema.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_training_updates_the_average_once_a_step(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("ema_rate=0.75", "lr=1e-2")
    assert trainer.learner.ema is not None
    expected = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for number in range(2):
        trainer.train_step(trainer.train_data[number])
        for name, p in trainer.model.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * p.detach()
    for name, average in trainer.learner.ema.state_dict().items():
        torch.testing.assert_close(average, expected[name])


def test_evaluation_leaves_weights_average_and_further_training_as_they_were(make_trainer: MakeTrainer) -> None:
    def everything(trainer: Trainer) -> dict[str, Tensor]:
        assert trainer.learner.ema is not None
        averages = {f"ema.{name}": value for name, value in trainer.learner.ema.state_dict().items()}
        return {**trainer.model.state_dict(), **averages}

    states = []
    for evaluates in (False, True):
        trainer = make_trainer("lr=1e-2", "ema_rate=0.5")
        for number in range(4):
            trainer.train_step(trainer.train_data[number])
            if evaluates and number in (1, 2):
                before = {name: value.clone() for name, value in everything(trainer).items()}
                trainer.evaluate()
                assert all(torch.equal(value, before[name]) for name, value in everything(trainer).items())
                assert trainer.model.training
        states.append(everything(trainer))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_evaluation_is_that_of_the_averaged_weights(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("lr=1e-2", "ema_rate=0.9", "max_eval_groups=2")
    for number in range(3):
        trainer.train_step(trainer.train_data[number])
    assert trainer.learner.ema is not None
    found = trainer.evaluate().metrics["eval/lm_loss"]
    plain = make_trainer("ema=false", "max_eval_groups=2")
    plain.model.load_state_dict({**trainer.model.state_dict(), **trainer.learner.ema.state_dict()})
    assert plain.evaluate().metrics["eval/lm_loss"] == found
    plain.model.load_state_dict(trainer.model.state_dict())
    assert plain.evaluate().metrics["eval/lm_loss"] != found
