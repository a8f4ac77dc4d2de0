"""ETRM's ACT step: the decoder against the paper's pseudocode, halting, replacement, gradients."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from config.schema import TrainConfig
from dataset.fewshot_puzzle_dataset import Batch, FewshotTrainDataset
from dataset.grids import PAD
from dataset.store import PuzzleStore
from models import create_model
from models.act import EXPLORATION_KEY, decide_halting, exploration_draws
from models.canvas import task_canvas
from models.encoders.base import fixed_length_output
from models.losses import create_loss_head
from models.recursive_reasoning.decoder import TRMEncoderInner
from tests.reference import decoder_step, standard_context

Load = Callable[..., TrainConfig]


def batches(store: PuzzleStore, size: int = 6) -> FewshotTrainDataset:
    return FewshotTrainDataset(store, global_batch_size=size, epochs=100, seed=0, max_demos=4, max_groups=12)


@pytest.mark.parametrize(
    "overrides",
    [
        ("arch.L_layers=2",),
        ("arch.H_cycles=3", "arch.grad_cycles=2", "arch.qk_norm_gain=true"),
        ("arch.canvas=full", "arch.L_layers=1"),
        ("arch.canvas=full", "arch.L_layers=1", "arch.mlp_t=true", "arch.expansion=1"),
    ],
    ids=" ".join,
)
def test_decoder_equals_the_papers_pseudocode_over_four_steps_with_gradients(
    shrunk_config: Load, batch: Batch, overrides: tuple[str, ...]
) -> None:
    config = shrunk_config(*overrides).arch
    # In float64: the recursion of untrained weights is chaotic, so that float32 tells rounding from error badly.
    inner = TRMEncoderInner(config).double()
    inner.dtype = torch.float64
    torch.nn.init.normal_(inner.q_head.weight)
    for name, parameter in inner.named_parameters():
        if name.endswith(".gain"):
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    batch = {key: value[:2] for key, value in batch.items()}
    context = torch.randn(2, config.puzzle_emb_len, config.hidden_size, requires_grad=True, dtype=torch.float64)
    active = (
        task_canvas(batch, include_labels=True) if config.canvas == "task" else torch.ones(2, 900, dtype=torch.bool)
    )
    carry = inner.initial_carry(2, torch.device("cpu"))
    naive = [(inner.H_init.expand(16 + int(n), -1), inner.L_init.expand(16 + int(n), -1)) for n in active.sum(1)]
    for step in range(4):
        carry, logits, (q_halt, q_continue) = inner(carry, batch, fixed_length_output(context), active)
        naive_loss: Tensor | float = 0.0
        for i in range(2):
            cells = torch.nonzero(active[i]).squeeze(-1)
            z_H, z_L, expected, q = decoder_step(inner, *naive[i], batch["inputs"][i], context[i], cells, config)
            torch.testing.assert_close(logits[i][cells], expected.float(), atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(torch.stack([q_halt[i], q_continue[i]]), q, atol=1e-6, rtol=1e-6)
            computed = torch.cat([torch.arange(16), 16 + cells])
            torch.testing.assert_close(carry.z_H[i][computed], z_H, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(carry.z_L[i][computed], z_L, atol=1e-6, rtol=1e-6)
            naive[i] = (z_H.detach(), z_L.detach())
            naive_loss = naive_loss + expected.square().mean() + q.sum()
            assert (logits[i][~active[i]].argmax(-1) == PAD).all()
        loss = sum(logits[i][active[i]].square().mean() + q_halt[i] + q_continue[i] for i in range(2))
        variables = [context, *inner.parameters()]
        for ours, reference in zip(
            torch.autograd.grad(loss, variables), torch.autograd.grad(naive_loss, variables), strict=True
        ):
            torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4, msg=lambda m, s=step: f"step {s}: {m}")


def test_decoder_parameters_at_the_size_of_the_spec(shrunk_config: Load) -> None:
    inner = TRMEncoderInner(shrunk_config("arch.hidden_size=512", "arch.num_heads=8", "arch.L_layers=2").arch)
    assert sum(p.numel() for p in inner.parameters()) == 6_829_058


@pytest.mark.parametrize("canvas", ["task", "full"])
def test_every_parameter_gets_a_gradient_from_one_step(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, canvas: str
) -> None:
    config = shrunk_config(f"arch.canvas={canvas}").arch
    model = create_model(config, store.metadata)
    _, loss, _, _ = create_loss_head(config, model)(model.initial_carry(batch), batch)
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_the_encoder_gets_a_gradient_at_every_step_for_every_sample(
    shrunk_config: Load, store: PuzzleStore, batch: Batch
) -> None:
    """The context is attached at each step, also for samples that go on with data they were given earlier."""
    config = shrunk_config("arch.halt_exploration_prob=0").arch
    model = create_model(config, store.metadata)
    head = create_loss_head(config, model)
    seen: list[Tensor] = []
    model.encoder.register_forward_hook(lambda *call: seen.append(call[2].context) or call[2].context.retain_grad())
    carry = model.initial_carry(batch)
    for step in range(3):
        carry, loss, _, _ = head(carry, batch)
        loss.backward()
        grad = seen[step].grad
        assert grad is not None
        assert (grad.abs().amax((1, 2)) > 0).all()


def test_no_gradient_crosses_a_step(shrunk_config: Load, store: PuzzleStore, batch: Batch) -> None:
    config = shrunk_config().arch
    model = create_model(config, store.metadata)
    carry, _ = model(model.initial_carry(batch), batch)
    assert not carry.inner_carry.z_H.requires_grad
    assert not carry.inner_carry.z_L.requires_grad


def test_halted_samples_restart_with_new_data_while_neighbours_go_on(shrunk_config: Load, store: PuzzleStore) -> None:
    config = shrunk_config().arch
    model = create_model(config, store.metadata)
    data = batches(store)
    first, second = data[0], data[1]
    carry, _ = model(model.initial_carry(first), first)
    halted = torch.tensor([True, False, True, False, False, True])
    carry = replace(carry, halted=halted)
    before = carry
    carry, outputs = model(carry, second)
    fresh, fresh_outputs = model(model.initial_carry(second), second)
    continuing, continuing_outputs = model(replace(before, halted=torch.zeros(6, dtype=torch.bool)), second)
    for i in range(6):
        expected_carry, expected = (fresh, fresh_outputs) if halted[i] else (continuing, continuing_outputs)
        torch.testing.assert_close(outputs["logits"][i], expected["logits"][i], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(carry.inner_carry.z_H[i], expected_carry.inner_carry.z_H[i], atol=1e-5, rtol=1e-4)
        assert int(carry.steps[i]) == (1 if halted[i] else 2)
        for key in first:
            own = second if halted[i] else first
            assert torch.equal(carry.current_data[key][i], own[key][i])


def test_the_loss_of_a_continuing_sample_uses_its_own_labels(shrunk_config: Load, store: PuzzleStore) -> None:
    config = shrunk_config("arch.halt_exploration_prob=0", "arch.canvas=full").arch
    model = create_model(config, store.metadata)
    head = create_loss_head(config, model)
    data = batches(store)
    carry, _, _, _ = head(model.initial_carry(data[0]), data[0])
    own = head(carry, data[0])[1]
    assert torch.equal(own, head(carry, data[1])[1]), "no sample halted, so the new batch must not matter"
    assert not torch.equal(own, head(replace(carry, halted=torch.ones(6, dtype=torch.bool)), data[1])[1])


def test_halting_follows_the_rule() -> None:
    """Halt when q_halt > 0 or at the limit, but not before a minimum that exploration draws from 2..limit."""
    limit, size = 5, 4000
    draws = torch.rand(size, 2)
    steps = torch.randint(1, limit + 1, (size,), dtype=torch.int32)
    q = torch.randn(size)
    halted = decide_halting(steps, q, draws, limit, 0.4)
    explores = draws[:, 0] < 0.4
    wants = (q > 0) | (steps == limit)
    assert torch.equal(halted[~explores], wants[~explores])
    assert halted[steps == limit].all()
    assert not halted[explores & (steps == 1)].any()
    minimum = 2 + (draws[:, 1] * (limit - 1)).long()
    assert set(minimum.tolist()) == {2, 3, 4, 5}
    assert torch.equal(halted[explores], (wants & (steps >= minimum))[explores])
    assert torch.equal(decide_halting(steps, q, draws, limit, 0.0), wants)
    assert decide_halting(torch.ones(8, dtype=torch.int32), -torch.ones(8), draws[:8], 1, 1.0).all()


def test_exploration_draws_do_not_depend_on_the_number_of_ranks() -> None:
    whole = exploration_draws(3, 17, 8, slice(0, 8))
    parts = [exploration_draws(3, 17, 8, slice(i, i + 2)) for i in range(0, 8, 2)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, exploration_draws(3, 18, 8, slice(0, 8)))
    assert not torch.equal(whole, exploration_draws(4, 17, 8, slice(0, 8)))


def test_exploration_acts_in_training_and_not_in_evaluation(
    shrunk_config: Load, store: PuzzleStore, batch: Batch
) -> None:
    config = shrunk_config("arch.halt_exploration_prob=1").arch
    model = create_model(config, store.metadata)
    torch.nn.init.constant_(model.inner.q_head.bias, 5.0)
    batch = {**batch, EXPLORATION_KEY: torch.tensor([[0.5, 0.0]] * 3 + [[0.5, 0.99]] * 3)}
    carry, _ = model(model.initial_carry(batch), batch)
    assert not carry.halted.any(), "the minimum is at least 2"
    carry, _ = model(carry, batch)
    assert carry.halted.tolist() == [True] * 3 + [False] * 3
    assert EXPLORATION_KEY not in carry.current_data
    model.eval()
    carry = model.initial_carry(batch)
    for _ in range(config.halt_max_steps):
        assert carry.halted.all() or not carry.halted.any()
        carry, _ = model(carry, batch)
    assert carry.steps.tolist() == [config.halt_max_steps] * 6


def test_rollout_equals_stepping_with_the_encoder_at_every_step(
    shrunk_config: Load, store: PuzzleStore, batch: Batch
) -> None:
    config = shrunk_config().arch
    model = create_model(config, store.metadata).eval()
    carry = model.initial_carry(batch)
    rolled = list(model.rollout(batch))
    assert len(rolled) == config.halt_max_steps
    with torch.no_grad():
        for outputs in rolled:
            carry, stepped = model(carry, batch)
            assert torch.equal(outputs["logits"], stepped["logits"])
            assert torch.equal(outputs["q_halt_logits"], stepped["q_halt_logits"])


def test_rollout_refuses_training_mode(shrunk_config: Load, store: PuzzleStore, batch: Batch) -> None:
    model = create_model(shrunk_config().arch, store.metadata)
    with pytest.raises(RuntimeError, match="eval"):
        list(model.rollout(batch))


def test_evaluation_ignores_labels_and_training_enlarges_the_canvas_for_them(
    shrunk_config: Load, store: PuzzleStore, batch: Batch
) -> None:
    model = create_model(shrunk_config().arch, store.metadata)
    large = {**batch, "labels": torch.full_like(batch["labels"], 3)}
    assert model.active_cells(large).all()
    model.eval()
    assert torch.equal(model.active_cells(large), model.active_cells(batch))
    outputs = [next(iter(model.rollout(b)))["logits"] for b in (batch, large)]
    assert torch.equal(*outputs)


def test_whole_model_equals_naive_encoder_and_decoder(shrunk_config: Load, store: PuzzleStore, batch: Batch) -> None:
    config = shrunk_config("arch.canvas=full").arch
    model = create_model(config, store.metadata).eval()
    outputs = next(iter(model.rollout(batch)))
    inner = model.inner
    with torch.no_grad():
        context = standard_context(model.encoder, batch, 0, config)
        start = (inner.H_init.expand(916, -1), inner.L_init.expand(916, -1))
        _, _, logits, q = decoder_step(inner, *start, batch["inputs"][0], context, torch.arange(900), config)
    torch.testing.assert_close(outputs["logits"][0], logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs["q_halt_logits"][0], q[0], atol=1e-4, rtol=1e-4)


def test_the_demonstrations_decide_the_answer(shrunk_config: Load, store: PuzzleStore, batch: Batch) -> None:
    """Other demonstrations, same query: other logits. An encoder that nobody listens to would fail here."""
    model = create_model(shrunk_config("arch.canvas=full").arch, store.metadata).eval()
    swapped = dict(batch)
    for key in ("demo_inputs", "demo_labels", "demo_mask"):
        swapped[key] = batch[key].roll(1, 0)
    ours, theirs = (next(iter(model.rollout(b)))["logits"] for b in (batch, swapped))
    assert (ours - theirs).abs().amax((1, 2)).min() > 1e-3
