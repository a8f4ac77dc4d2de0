"""AdamATan2 against its formula, parameter groups, schedule, clipping; then the same things in a real training step."""

import io
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from learning.adam_atan2 import AdamATan2
from learning.groups import (
    GroupOptions,
    clip_gradients,
    drop_frozen_gradients,
    gradient_norms,
    parameter_groups,
    set_learning_rates,
)
from learning.optim import learning_rate
from models.losses import create_loss_head
from training.loop import Trainer

MakeTrainer = Callable[..., Trainer]


def scalar_adam_atan2(
    start: float, gradients: list[float], lr: float, beta1: float, beta2: float, weight_decay: float
) -> list[float]:
    """The update rule for one number, as it is written down."""
    p, m, v = start, 0.0, 0.0
    values = []
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p *= 1 - lr * weight_decay
        p -= lr / (1 - beta1**t) * math.atan2(m, math.sqrt(v) / math.sqrt(1 - beta2**t))
        values.append(p)
    return values


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """Names of the parameters that differ from `before` in any bit."""
    return {name for name, p in module.named_parameters() if not torch.equal(before[name], p)}


@pytest.mark.parametrize(
    ("lr", "betas", "weight_decay"),
    [(1e-2, (0.9, 0.95), 0.1), (0.3, (0.0, 0.0), 0.0), (1e-3, (0.5, 0.999), 2.0)],
)
def test_adam_atan2_follows_the_formula(lr: float, betas: tuple[float, float], weight_decay: float) -> None:
    shapes, steps = [(3, 2), (4,), ()], 7
    params = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    starts = [p.detach().clone() for p in params]
    # Scales from 1e-8 to 1e8, and zeros, where other Adams need an epsilon.
    gradients = [
        [torch.randn(shape, dtype=torch.float64) * 10.0 ** (4 * (step % 5) - 8) for shape in shapes]
        for step in range(steps)
    ]
    gradients[3] = [torch.zeros_like(g) for g in gradients[3]]
    optimizer = AdamATan2(params, lr=lr, betas=betas, weight_decay=weight_decay)
    for step in range(steps):
        for p, g in zip(params, gradients[step], strict=True):
            p.grad = g.clone()
        optimizer.step()
        for i, p in enumerate(params):
            histories = torch.stack([gradients[s][i].flatten() for s in range(step + 1)], dim=1).tolist()
            expected = [
                scalar_adam_atan2(start, history, lr, *betas, weight_decay)[-1]
                for start, history in zip(starts[i].flatten().tolist(), histories, strict=True)
            ]
            torch.testing.assert_close(p.detach().flatten().tolist(), expected, rtol=1e-12, atol=1e-14)


def test_adam_atan2_is_finite_where_all_gradients_are_zero() -> None:
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    p.grad = torch.zeros(2)
    AdamATan2([p], lr=0.1, weight_decay=0.0).step()
    assert p.tolist() == [1.0, -2.0]


def test_scaling_all_gradients_changes_no_adam_atan2_step() -> None:
    gradients = torch.randn(5, 6, dtype=torch.float64)
    ends = []
    for scale in (1.0, 1e-6, 1e6):
        p = nn.Parameter(torch.ones(6, dtype=torch.float64))
        optimizer = AdamATan2([p], lr=0.1)
        for gradient in gradients:
            p.grad = gradient * scale
            optimizer.step()
        ends.append(p.detach().clone())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-9, atol=0)


def test_the_state_of_adam_atan2_has_the_published_keys() -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = AdamATan2([p])
    optimizer.step()
    assert set(optimizer.state[p]) == {"step", "exp_avg", "exp_avg_sq"}
    assert float(optimizer.state[p]["step"]) == 1


def test_a_reloaded_optimizer_continues_bit_for_bit() -> None:
    gradients = torch.randn(6, 4)

    def run(reload_at: int | None) -> Tensor:
        p = nn.Parameter(torch.ones(4))
        optimizer = AdamATan2([{"params": [p], "name": "all", "lr_scale": 1.0, "frozen_steps": 0}], lr=0.1)
        for i, gradient in enumerate(gradients):
            if i == reload_at:
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                optimizer = AdamATan2([{"params": [p], "name": "?", "lr_scale": 9.0, "frozen_steps": 9}], lr=0.7)
                optimizer.load_state_dict(torch.load(file, weights_only=True))
            p.grad = gradient.clone()
            optimizer.step()
        return p.detach()

    assert torch.equal(run(None), run(3))


def test_an_inactive_group_keeps_its_parameters_and_moments() -> None:
    """What it does after it is switched on is what it would do had it not been there before."""
    gradients = torch.randn(5, 3)
    sleeper, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = AdamATan2([{"params": [sleeper]}, {"params": [other]}], lr=0.1, weight_decay=0.5)
    for i, gradient in enumerate(gradients):
        optimizer.param_groups[0]["active"] = i >= 3
        sleeper.grad, other.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        if i < 3:
            assert sleeper.tolist() == [1.0, 1.0, 1.0]
            assert not optimizer.state[sleeper]
            assert other.tolist() != [1.0, 1.0, 1.0]
    late = nn.Parameter(torch.ones(3))
    fresh = AdamATan2([late], lr=0.1, weight_decay=0.5)
    for gradient in gradients[3:]:
        late.grad = gradient.clone()
        fresh.step()
    assert torch.equal(sleeper, late)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    used.grad = torch.ones(2)
    AdamATan2([used, unused], lr=0.1, weight_decay=0.5).step()
    assert unused.tolist() == [1.0, 1.0]
    assert used.tolist() != [1.0, 1.0]


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"weight_decay": -0.1}, {"betas": (1.0, 0.9)}])
def test_hyperparameters_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        AdamATan2([nn.Parameter(torch.ones(1))], **options)  # pyright: ignore[reportArgumentType]


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 3)
        self.inner = nn.Linear(3, 1)


def test_parameter_groups_partition_the_parameters() -> None:
    model = TwoParts()
    groups = parameter_groups(model, {"encoder": GroupOptions(lr_scale=0.5), "inner": GroupOptions(frozen_steps=7)})
    assert [(g["name"], g["lr_scale"], g["frozen_steps"]) for g in groups] == [("encoder", 0.5, 0), ("inner", 1.0, 7)]
    placed = [id(p) for g in groups for p in g["params"]]
    assert sorted(placed) == sorted(id(p) for p in model.parameters())


def test_a_parameter_outside_the_submodules_trips_the_assertion() -> None:
    model = TwoParts()
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    with pytest.raises(AssertionError, match="partition"):
        parameter_groups(model, {})


def test_a_parameter_in_two_submodules_trips_the_assertion() -> None:
    model = TwoParts()
    model.inner.bias = model.encoder.bias
    with pytest.raises(AssertionError, match="partition"):
        parameter_groups(model, {})


def test_frozen_submodules_get_no_group_and_no_gradient() -> None:
    model = TwoParts()
    groups = parameter_groups(model, {"encoder": GroupOptions(frozen=True)})
    assert [g["name"] for g in groups] == ["inner"]
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.inner.parameters())


schedules = st.fixed_dictionaries(
    {
        "lr": st.floats(1e-6, 1.0),
        "warmup_steps": st.integers(0, 50),
        "total_steps": st.integers(1, 200),
        "min_ratio": st.floats(0.0, 1.0),
        "decay_share": st.floats(0.01, 1.0),
    }
)


@settings(deadline=None, derandomize=True)
@given(schedules)
def test_the_rate_rises_to_lr_and_never_rises_again(schedule: dict[str, float]) -> None:
    rates = [learning_rate(step, **schedule) for step in range(260)]  # pyright: ignore[reportArgumentType]
    lr, warmup = schedule["lr"], int(schedule["warmup_steps"])
    tolerance = lr * 1e-12
    assert 0 < rates[0] <= lr + tolerance
    rises = [b - a for a, b in itertools.pairwise(rates[: warmup + 1])]
    assert all(rise >= -tolerance for rise in rises)
    assert max(rates) == pytest.approx(lr)
    assert all(b <= a + tolerance for a, b in itertools.pairwise(rates[warmup:]))
    assert all(rate >= lr * schedule["min_ratio"] - tolerance for rate in rates[warmup:])


def test_warm_up_is_linear() -> None:
    rates = [learning_rate(s, lr=0.8, warmup_steps=8, total_steps=100, min_ratio=0.1) for s in range(9)]
    assert rates[:8] == pytest.approx([0.1 * (s + 1) for s in range(8)])
    assert rates[8] == pytest.approx(0.8)


def test_the_cosine_ends_at_the_minimal_rate_and_is_half_way_in_the_middle() -> None:
    def rate(step: int) -> float:
        return learning_rate(step, lr=1.0, warmup_steps=10, total_steps=110, min_ratio=0.2)

    assert rate(10) == pytest.approx(1.0)
    assert rate(60) == pytest.approx((1.0 + 0.2) / 2)
    assert rate(110) == pytest.approx(0.2)
    assert rate(10_000) == pytest.approx(0.2)
    for distance in (5, 20, 45):  # symmetric about the middle
        assert rate(60 - distance) + rate(60 + distance) == pytest.approx(1.2)


def test_the_rate_is_constant_until_the_share_in_which_it_falls() -> None:
    schedule = {"lr": 0.8, "warmup_steps": 10, "min_ratio": 0.1}
    rates = [learning_rate(step, total_steps=110, decay_share=0.25, **schedule) for step in range(111)]
    alone = [learning_rate(step, total_steps=35, **schedule) for step in range(10, 36)]
    assert rates[10:86] == [0.8] * 76
    assert rates[85:] == pytest.approx(alone)  # the last quarter is a whole cosine


def test_each_group_gets_its_rate_and_wakes_up_in_time() -> None:
    model = TwoParts()
    options = {"encoder": GroupOptions(lr_scale=0.5), "inner": GroupOptions(frozen_steps=3)}
    optimizer = AdamATan2(parameter_groups(model, options))
    for step in range(5):
        set_learning_rates(optimizer, 0.2, step)
        encoder, inner = optimizer.param_groups
        assert (encoder["lr"], encoder["active"]) == (0.1, True)
        assert (inner["lr"], inner["active"]) == ((0.2, True) if step >= 3 else (0.0, False))


def with_gradients(scale: float) -> tuple[AdamATan2, Tensor]:
    """An optimizer over two groups with random gradients, and a copy of all of these in one vector."""
    model = TwoParts()
    for p in model.parameters():
        p.grad = torch.randn_like(p) * scale
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return AdamATan2(parameter_groups(model, {})), flat.clone()


def all_gradients(optimizer: AdamATan2) -> Tensor:
    return torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]])


def test_gradient_norms_are_those_of_the_groups_and_of_everything() -> None:
    optimizer, flat = with_gradients(3.0)
    norms = gradient_norms(optimizer)
    assert set(norms) == {"encoder", "inner", "total"}
    torch.testing.assert_close(norms["total"], flat.norm())
    torch.testing.assert_close(norms["encoder"], flat[: 2 * 3 + 3].norm())
    torch.testing.assert_close(norms["inner"], flat[2 * 3 + 3 :].norm())


def test_the_gradient_of_what_is_still_frozen_has_no_say_in_the_clipping() -> None:
    optimizer, flat = with_gradients(3.0)
    encoder, inner = optimizer.param_groups
    inner["frozen_steps"] = 1
    set_learning_rates(optimizer, 0.1, step=0)
    norms = gradient_norms(optimizer)
    torch.testing.assert_close(norms["total"], norms["encoder"])
    torch.testing.assert_close(norms["inner"], flat[2 * 3 + 3 :].norm())
    drop_frozen_gradients(optimizer)
    assert all(p.grad is None for p in inner["params"])
    assert all(p.grad is not None for p in encoder["params"])


@pytest.mark.parametrize("max_norm", [0.01, 1.0])
def test_clipping_bounds_the_norm_and_keeps_the_direction(max_norm: float) -> None:
    optimizer, before = with_gradients(30.0)
    clip_gradients(optimizer, gradient_norms(optimizer)["total"], max_norm)
    after = all_gradients(optimizer)
    assert float(after.norm()) <= max_norm * (1 + 1e-6)
    assert float(after.norm()) == pytest.approx(max_norm, rel=1e-3)
    assert float(torch.cosine_similarity(before, after, dim=0)) == pytest.approx(1.0, abs=1e-6)


def test_gradients_below_the_bound_are_not_touched() -> None:
    optimizer, before = with_gradients(1e-3)
    clip_gradients(optimizer, gradient_norms(optimizer)["total"], 1.0)
    assert torch.equal(all_gradients(optimizer), before)


def test_clipping_zero_gradients_gives_zeros() -> None:
    optimizer, _ = with_gradients(0.0)
    clip_gradients(optimizer, gradient_norms(optimizer)["total"], 1.0)
    assert all_gradients(optimizer).abs().sum() == 0


# In the training loop


def test_a_frozen_encoder_does_not_change_in_any_bit(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("freeze_encoder=true", "lr=1e-2", "weight_decay=0.5", "lr_warmup_steps=0")
    encoder, decoder = snapshot(trainer.model.encoder), snapshot(trainer.model.inner)
    for number in range(3):
        sums, _ = trainer.train_step(trainer.train_data[number])
    assert not changed(encoder, trainer.model.encoder)
    assert changed(decoder, trainer.model.inner) == set(decoder)
    assert "grad/encoder_norm" not in sums


def test_a_frozen_decoder_changes_after_exactly_the_given_steps(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("freeze_decoder_steps=2", "lr=1e-2", "weight_decay=0.5", "lr_warmup_steps=0")
    decoder = snapshot(trainer.model.inner)
    for number in range(3):
        encoder = snapshot(trainer.model.encoder)
        trainer.train_step(trainer.train_data[number])
        assert changed(encoder, trainer.model.encoder) == set(encoder)
        assert changed(decoder, trainer.model.inner) == (set(decoder) if number == 2 else set())


def test_encoder_lr_scale_scales_the_encoders_step_alone(make_trainer: MakeTrainer) -> None:
    steps = {}
    for scale in (0.0, 0.5):
        trainer = make_trainer(
            f"encoder_lr_scale={scale}", "lr=0.1", "weight_decay=0", "lr_warmup_steps=0", "grad_clip_norm=0"
        )
        before = snapshot(trainer.model)
        trainer.train_step(trainer.train_data[0])
        steps[scale] = {name: p.detach() - before[name] for name, p in trainer.model.named_parameters()}
    for name, whole in steps[0.0].items():
        expected = whole * (0.5 if name.startswith("encoder.") else 1.0)
        torch.testing.assert_close(steps[0.5][name], expected, rtol=1e-4, atol=1e-6)


def test_the_update_is_made_of_the_loss_over_the_global_batch_and_norms_are_logged_before_clipping(
    make_trainer: MakeTrainer,
) -> None:
    trainer, reference = make_trainer("grad_clip_norm=1e-3"), make_trainer()
    batch = trainer.train_data[0]
    sums, _ = trainer.train_step(batch)

    model = reference.model
    head = create_loss_head(reference.config.arch, model)
    _, loss, _, _ = head(model.initial_carry(batch), batch)
    (loss / len(batch["inputs"])).backward()
    naive = {
        name: math.sqrt(sum(float(p.grad.double().square().sum()) for p in part.parameters()))
        for name, part in (("encoder", model.encoder), ("inner", model.inner), ("total", model))
    }
    assert naive["total"] > 1e-3
    assert {name: float(sums[f"grad/{name}_norm"]) for name in naive} == pytest.approx(naive, rel=1e-5)
