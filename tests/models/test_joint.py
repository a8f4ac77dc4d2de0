"""Variant C: demonstrations and answer reason in one recursion, each with networks and latents of its own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoints.carry_state import carry_tensors, filled_carry
from config.schema import ConfigError, TrainConfig
from dataset.batches import Batch
from dataset.store import PuzzleStore
from models import create_model
from models.encoders.recurrent_in_context import CellLatent
from models.losses import create_loss_head
from tests.conftest import small_batch
from tests.models.test_in_context import in_grids, naive_context
from tests.reference import (
    found_in,
    grid_embedding,
    keys_and_values,
    numbers_in_grid,
    reading_block,
    rms,
    self_attention,
    swiglu,
)

Load = Callable[..., TrainConfig]
CONFIG = "cfg_pretrain_etrmtrm_arc_agi_1"
CHOICE = ("arch.recurrent_encoder_type=in_context", "arch.halt_exploration_prob=0")


def naive_step(
    model: Any, batch: Batch, i: int, cells: Tensor, config: Any, latents: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """One ACT step of one sample, from the definition: the latents z_e, z_H, z_L, logits and q."""
    encoder, inner, scale = model.encoder, model.inner, config.hidden_size**0.5
    tokens, made_of = naive_context(encoder, batch, i)
    pairs, places = (torch.tensor([cell[n] for cell in made_of]) for n in (0, 2))
    places = 16 + places
    x = scale * torch.cat([tokens[:1], inner.embed_tokens.embedding_weight[batch["inputs"][i].long()[cells]]])
    x_e = scale * tokens[1:]
    if inner.coordinates is not None:
        query = batch["inputs"][i]
        own = [None, *(numbers_in_grid(query, cell) for cell in cells.tolist())]
        x = x + scale * torch.stack([grid_embedding(inner.coordinates, numbers) for numbers in own])
        shown = in_grids(batch, i, made_of)
        x_e = x_e + scale * torch.stack([grid_embedding(encoder.coordinates, numbers) for numbers in shown])
    positions = torch.cat([torch.zeros(1, dtype=torch.long), 16 + cells])

    def attend(z_e: Tensor, block: Any, number: int) -> Tensor:
        in_pairs = config.context_attention == "pair" or (config.context_attention == "alternate" and number % 2 == 0)
        if not in_pairs:
            return self_attention(z_e, block.self_attn, places)
        found = torch.zeros_like(z_e)
        for pair in pairs.unique():
            rows = torch.nonzero(pairs == pair).squeeze(-1)
            found = found.index_copy(0, rows, self_attention(z_e[rows], block.self_attn, places[rows]))
        return found

    z_e, z_H, z_L = latents
    for cycle in range(config.H_cycles):
        with torch.set_grad_enabled(cycle == config.H_cycles - 1):
            before = z_e
            answer = [keys_and_values(z_H, block.cross_attn, positions) for block in encoder.L_enc]
            for _ in range(config.encoder_l_cycles):
                z_e = z_e + x_e
                for number, block in enumerate(encoder.L_enc):
                    z_e = rms(z_e + attend(z_e, block, number))
                    z_e = rms(z_e + found_in(z_e, answer[number], block.cross_attn, places))
                    z_e = rms(z_e + swiglu(z_e, block.mlp))
            z_e = config.encoder_state_ema * before + (1 - config.encoder_state_ema) * z_e

            layers = inner.L_level.layers
            read = [keys_and_values(z_e, block.self_attn, places) for block in layers]
            for number in range(config.L_cycles + 1):
                h = z_L + (z_H + x) if number < config.L_cycles else z_H + z_L
                for block, evidence in zip(layers, read, strict=True):
                    h = reading_block(h, block, positions, evidence)
                z_H, z_L = (z_H, h) if number < config.L_cycles else (h, z_L)
    logits = z_H[1:] @ inner.lm_head.weight.T
    return (z_e, z_H, z_L), logits, inner.q_head.weight @ z_H[0] + inner.q_head.bias


@pytest.mark.parametrize(
    "overrides",
    [
        ("arch.context_attention=all",),
        ("arch.context_attention=pair", "arch.context_tokens=two", "arch.grid_coordinates=both"),
        ("arch.context_attention=alternate", "arch.encoder_l_cycles=2", "arch.encoder_state_ema=0.25"),
    ],
    ids=" ".join,
)
def test_the_joint_recursion_equals_a_naive_loop_over_samples_with_gradients(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, overrides: tuple[str, ...]
) -> None:
    """Two ACT steps, both latents carried; in float64, for untrained recursion magnifies rounding."""
    config = shrunk_config(*CHOICE, *overrides, config_name=CONFIG).arch
    model = create_model(config, store.metadata).double()
    inner, encoder = model.inner, model.encoder
    inner.dtype = encoder.dtype = torch.float64
    torch.nn.init.normal_(inner.q_head.weight, std=0.1)  # nobody wants to halt
    batch = {key: value[:2] for key, value in batch.items()}
    active = model.active_cells(batch)
    carry: Any = model.initial_carry(batch)
    latents = [tuple(z[None] for z in (encoder.E_init, inner.H_init, inner.L_init))] * 2
    for _ in range(2):
        carry, outputs = model(carry, batch)
        naive_loss: Tensor | float = 0.0
        lengths = outputs["context_mask"].sum(1) - 1
        for i in range(2):
            cells = torch.nonzero(active[i]).squeeze(-1)
            start = tuple(z.expand(n, -1) for z, n in zip(latents[i], (lengths[i], *[1 + len(cells)] * 2), strict=True))
            moved, logits, q = naive_step(model, batch, i, cells, config, start)
            latents[i] = tuple(z.detach() for z in moved)
            torch.testing.assert_close(carry.encoder_carry.get_context()[i, : lengths[i]], latents[i][0])
            torch.testing.assert_close(outputs["context"][i, 1 : 1 + lengths[i]], latents[i][0])
            torch.testing.assert_close(outputs["logits"][i][cells], logits.float(), atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(outputs["q_halt_logits"][i], q[0], atol=1e-6, rtol=1e-6)
            naive_loss = naive_loss + logits.square().sum() + q[0]
        loss = torch.where(active[..., None], outputs["logits"], 0).double().square().sum()
        variables = list(model.parameters())
        ours = torch.autograd.grad(loss + outputs["q_halt_logits"].sum(), variables)
        naive = torch.autograd.grad(naive_loss, variables)
        for (name, _), grad, expected in zip(model.named_parameters(), ours, naive, strict=True):
            scale = expected.abs().max()
            assert scale > 0, name
            torch.testing.assert_close(grad / scale, expected / scale, atol=1e-5, rtol=1e-4, msg=name)


def test_a_detach_inside_the_recursion_is_noticed(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the encoder but the q head's token loses its gradient where the decoder reads a detached latent."""
    config = shrunk_config(*CHOICE, config_name=CONFIG).arch
    model = create_model(config, store.metadata)
    monkeypatch.setattr(CellLatent, "shown", property(lambda self: self.z_e.detach()))
    create_loss_head(config, model)(model.initial_carry(batch), batch)[1].backward()
    missing = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert missing == {n for n, _ in model.encoder.named_parameters(prefix="encoder")} - {"encoder.first"}


def test_both_latents_are_carried_and_each_takes_part_in_the_next_step(
    shrunk_config: Load, store: PuzzleStore, batch: Batch
) -> None:
    model = create_model(shrunk_config(*CHOICE, config_name=CONFIG).arch, store.metadata)
    carry, _ = model(model.initial_carry(batch), batch)
    going_on = model(carry, batch)[1]["logits"]
    for part in ("encoder_carry", "inner_carry"):
        cut = replace(carry, **{part: getattr(model.initial_carry(batch), part)})
        assert (model(cut, batch)[1]["logits"] - going_on).abs().amax((1, 2)).min() > 1e-3


def test_a_samples_course_is_the_same_alone_and_beside_others(shrunk_config: Load, store: PuzzleStore) -> None:
    """Neighbours are replaced at other steps, and have other numbers of demonstration cells."""
    model = create_model(shrunk_config(*CHOICE, config_name=CONFIG).arch, store.metadata)
    torch.nn.init.normal_(model.inner.q_head.weight)
    batches = [small_batch(store, 3, number=number) for number in range(4)]
    halted = [[False, True, False], [True, False, False], [False, True, True], [False, False, False]]

    def course(samples: slice) -> list[dict[str, Tensor]]:
        carry: Any = model.initial_carry({key: value[samples] for key, value in batches[0].items()})
        steps = []
        for batch, flags in zip(batches, halted, strict=True):
            carry, outputs = model(carry, {key: value[samples] for key, value in batch.items()})
            carry = replace(carry, halted=torch.tensor(flags[samples]))
            steps.append(outputs)
        return steps

    with torch.no_grad():
        together = course(slice(0, 3))
        for sample in range(3):
            for beside, alone in zip(together, course(slice(sample, sample + 1)), strict=True):
                for key in ("logits", "q_halt_logits"):
                    torch.testing.assert_close(beside[key][sample], alone[key][0], rtol=0, atol=1e-4)


def test_a_checkpoint_holds_both_latents(shrunk_config: Load, store: PuzzleStore) -> None:
    model = create_model(shrunk_config(*CHOICE, config_name=CONFIG).arch, store.metadata)
    batches = [small_batch(store, 3, number=number) for number in range(3)]
    carry: Any = model.initial_carry(batches[0])
    for batch in batches[:2]:
        carry, _ = model(carry, batch)
        carry = replace(carry, halted=torch.tensor([False, True, False]))
    resumed = filled_carry(model.initial_carry(batches[2]), carry_tensors(carry))
    assert torch.equal(model(resumed, batches[2])[1]["logits"], model(carry, batches[2])[1]["logits"])


def test_fixed_slots_are_refused(shrunk_config: Load) -> None:
    with pytest.raises(ConfigError, match=r"recurrent_encoder_type=in_context.*needs arch\.mlp_t=false"):
        shrunk_config(*CHOICE, "arch.mlp_t=true", "arch.canvas=full", config_name=CONFIG)
