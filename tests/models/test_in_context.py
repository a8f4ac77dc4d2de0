"""The demonstrations' cells as context tokens: which there are, what each sees, and that nothing else matters."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from config.schema import ConfigError, TrainConfig
from dataset.arc_tasks import Pair, Task
from dataset.batches import Batch
from dataset.grids import PAD, place_grid
from dataset.store import PuzzleStore
from inference.solver import Solver
from models import create_model
from models.encoders import EncoderOutput, create_encoder
from models.encoders.cells import where_valid
from models.losses import create_loss_head
from tests.conftest import small_batch
from tests.reference import decoder_step, grid_embedding, numbers_in_grid, post_norm_block, within_parts

Load = Callable[..., TrainConfig]
IN_CONTEXT = "arch.encoder_type=in_context"
ONE, TWO = "arch.context_tokens=one", "arch.context_tokens=two"
ALTERNATE = ("arch.context_attention=alternate", "arch.L_layers=2")
VARIANTS = [
    (ONE,),
    (TWO,),
    (ONE, "arch.grid_coordinates=both"),
    (TWO, "arch.grid_coordinates=both"),
    (ONE, "arch.grid_coordinates=corner", *ALTERNATE),
    (ONE, *ALTERNATE),
    (TWO, *ALTERNATE),
    (ONE, "arch.query_as_context=true", "arch.grid_coordinates=both"),
    (TWO, "arch.query_as_context=true"),
]
READ = "arch.context_mode=read"
READERS = [
    (ONE, READ, "arch.context_attention=all"),
    (TWO, READ, "arch.context_attention=pair", "arch.grid_coordinates=both"),
    (ONE, READ, "arch.context_attention=alternate"),
]


def encode(encoder: torch.nn.Module, batch: Batch) -> EncoderOutput:
    return encoder(batch["demo_inputs"], batch["demo_labels"], batch["demo_mask"])


def naive_context(encoder: Any, batch: Batch, sample: int) -> tuple[Tensor, list[tuple[int, ...]]]:
    """One sample's tokens, cell by cell, and of each but the first its (pair, role, cell)."""
    colour, aligned = encoder.colour_embedding.embedding_weight, encoder.aligned_embedding.embedding_weight
    tokens, cells = [encoder.first], []
    for pair in torch.nonzero(batch["demo_mask"][sample]).flatten().tolist():
        for role in range(2 if encoder.has_roles else 1):
            grids = [batch[key][sample, pair].tolist() for key in ("demo_inputs", "demo_labels")]
            own, other = grids if role == 0 else reversed(grids)
            for cell in range(900):
                if own[cell] == PAD and (encoder.has_roles or other[cell] == PAD):
                    continue
                token = colour[own[cell]] + aligned[other[cell]]
                if encoder.has_roles:
                    token = token + encoder.role_embedding.embedding_weight[role]
                tokens.append(token)
                cells.append((pair, role, cell))
    return torch.stack(tokens), cells


def query_tokens(encoder: Any, colours: Tensor) -> Tensor:
    """Cells as those of an input whose output is not known."""
    tokens = encoder.colour_embedding.embedding_weight[colours] + encoder.aligned_embedding.embedding_weight[PAD]
    if encoder.has_roles:
        tokens = tokens + encoder.role_embedding.embedding_weight[0]
    return tokens


@pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)
def test_every_sample_has_the_tokens_of_its_own_cells(
    shrunk_config: Load, batch: Batch, overrides: tuple[str, ...]
) -> None:
    """With places on the canvas that are the decoder's own, and lengths that differ."""
    encoder = create_encoder(shrunk_config(IN_CONTEXT, *overrides).arch)
    found = encode(encoder, batch)
    lengths = found.mask.sum(1)
    assert len(set(lengths.tolist())) > 1
    assert found.context.shape[1] == lengths.max()
    for sample, length in enumerate(lengths.tolist()):
        expected, cells = naive_context(encoder, batch, sample)
        assert found.mask[sample, :length].all()
        torch.testing.assert_close(found.context[sample, :length], expected)
        places = torch.tensor([cell for _, _, cell in cells])
        assert found.positions[sample, 0] == 0
        assert torch.equal(found.positions[sample, 1:length], 16 + places)
        assert found.coordinates is not None
        assert torch.equal(found.coordinates[sample, 0], torch.tensor([-1, 0]))
        assert torch.equal(found.coordinates[sample, 1:length], torch.stack([places // 30, places % 30], -1))


@pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)
def test_packed_steps_and_gradients_equal_a_naive_loop_over_samples(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, overrides: tuple[str, ...]
) -> None:
    """Two ACT steps with carry; in float64, for the recursion of untrained weights magnifies rounding."""
    config = shrunk_config(IN_CONTEXT, *overrides, "arch.halt_exploration_prob=0").arch
    model = create_model(config, store.metadata).double()
    inner, encoder = model.inner, model.encoder
    inner.dtype = encoder.dtype = torch.float64
    torch.nn.init.normal_(inner.q_head.weight)
    torch.nn.init.constant_(inner.q_head.bias, -100.0)  # nothing halts
    batch = {key: value[:3] for key, value in batch.items()}
    active = model.active_cells(batch)
    carry, latents = model.initial_carry(batch), [(inner.H_init[None], inner.L_init[None])] * 3
    for _ in range(2):
        carry, outputs = model(carry, batch)
        naive_loss: Tensor | float = 0.0
        for i in range(3):
            context, places = naive_context(encoder, batch, i)
            cells = torch.nonzero(active[i]).squeeze(-1)
            z_H, z_L = (z.expand(len(context) + len(cells), -1) for z in latents[i])
            positions = torch.tensor([0, *(16 + cell for _, _, cell in places)])
            parts = torch.tensor([-1, *(pair for pair, *_ in places), *([-1] * len(cells))])
            z_H, z_L, logits, q = decoder_step(
                inner,
                z_H,
                z_L,
                batch["inputs"][i],
                context,
                cells,
                config,
                context_positions=positions,
                parts=parts if config.context_attention == "alternate" else None,
                context_in_grid=[None, *in_grids(batch, i, places)],
                added=query_tokens(encoder, batch["inputs"][i].long()[cells]) if config.query_as_context else 0.0,
            )
            latents[i] = z_H.detach(), z_L.detach()
            torch.testing.assert_close(outputs["logits"][i][cells], logits.float(), atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(outputs["q_halt_logits"][i], q[0], atol=1e-6, rtol=1e-6)
            naive_loss = naive_loss + logits.square().sum() + q[0]
        loss = torch.where(active[..., None], outputs["logits"], 0).double().square().sum()
        loss = loss + outputs["q_halt_logits"].sum()
        variables = list(encoder.parameters())
        ours, naive = (torch.autograd.grad(value, variables) for value in (loss, naive_loss))
        for (name, _), grad, expected in zip(encoder.named_parameters(), ours, naive, strict=True):
            assert expected.any(), name
            scale = expected.abs().max()
            torch.testing.assert_close(grad / scale, expected / scale, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("overrides", READERS, ids=" ".join)
def test_what_is_read_equals_a_naive_loop_over_samples(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, overrides: tuple[str, ...]
) -> None:
    """The encoder's blocks, whose attention has the scope asked for, and two ACT steps with carry, with gradients."""
    config = shrunk_config(IN_CONTEXT, *overrides, "arch.halt_exploration_prob=0").arch
    model = create_model(config, store.metadata).double()
    inner, encoder = model.inner, model.encoder
    inner.dtype = encoder.dtype = torch.float64
    torch.nn.init.normal_(inner.q_head.weight)
    torch.nn.init.constant_(inner.q_head.bias, -100.0)  # nothing halts
    batch = {key: value[:3] for key, value in batch.items()}
    active = model.active_cells(batch)
    carry, latents = model.initial_carry(batch), [(inner.H_init[None], inner.L_init[None])] * 3
    for _ in range(2):
        carry, outputs = model(carry, batch)
        naive_loss: Tensor | float = 0.0
        for i in range(3):
            first, evidence, places = naive_evidence(encoder, batch, i, config)
            torch.testing.assert_close(outputs["context"][i, 1 : 1 + len(evidence)], evidence, atol=1e-8, rtol=1e-6)
            cells = torch.nonzero(active[i]).squeeze(-1)
            z_H, z_L = (z.expand(1 + len(cells), -1) for z in latents[i])
            z_H, z_L, logits, q = decoder_step(
                inner, z_H, z_L, batch["inputs"][i], first, cells, config, evidence=(evidence, places)
            )
            latents[i] = z_H.detach(), z_L.detach()
            torch.testing.assert_close(outputs["logits"][i][cells], logits.float(), atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(outputs["q_halt_logits"][i], q[0], atol=1e-6, rtol=1e-6)
            naive_loss = naive_loss + logits.square().sum() + q[0]
        loss = torch.where(active[..., None], outputs["logits"], 0).double().square().sum()
        loss = loss + outputs["q_halt_logits"].sum()
        variables = list(encoder.parameters())
        ours, naive = (torch.autograd.grad(value, variables) for value in (loss, naive_loss))
        for (name, _), grad, expected in zip(encoder.named_parameters(), ours, naive, strict=True):
            scale = expected.abs().max()
            assert scale > 0, name
            torch.testing.assert_close(grad / scale, expected / scale, atol=1e-5, rtol=1e-4, msg=name)


def in_grids(batch: Batch, sample: int, cells: Iterable[tuple[int, ...]]) -> list[list[int]]:
    """The numbers of each (pair, role, cell) in the pair's input grid."""
    return [numbers_in_grid(batch["demo_inputs"][sample, pair], cell) for pair, _, cell in cells]


def naive_evidence(encoder: Any, batch: Batch, sample: int, config: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The first token (1, hidden); what the encoder's blocks make of the others, and where these stand."""
    tokens, cells = naive_context(encoder, batch, sample)
    pairs, places = (torch.tensor([cell[i] for cell in cells]) for i in (0, 2))
    places = 16 + places
    x = tokens[1:]
    if (own := encoder.blocks.coordinates) is not None:
        x = x + torch.stack([grid_embedding(own, numbers) for numbers in in_grids(batch, sample, cells)])
    x = config.hidden_size**0.5 * x
    for number, block in enumerate(encoder.blocks.layers):
        in_pairs = config.context_attention == "pair" or (config.context_attention == "alternate" and number % 2 == 0)
        x = within_parts(x, block, places, pairs) if in_pairs else post_norm_block(x, block, places)
    return tokens[:1], x, places


@pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)
@pytest.mark.parametrize("changed", ["demo_inputs", "demo_labels"])
def test_a_changed_cell_changes_exactly_the_tokens_that_see_it(
    shrunk_config: Load, batch: Batch, overrides: tuple[str, ...], changed: str
) -> None:
    """Its own and, with two tokens a place, that of the aligned cell, where the other grid has one."""
    encoder = create_encoder(shrunk_config(IN_CONTEXT, *overrides).arch)
    _, cells = naive_context(encoder, batch, 0)
    before = encode(encoder, batch).context
    for cell in torch.nonzero(batch[changed][0, 1] > 1).flatten()[:8].tolist():
        other = batch[changed].clone()
        other[0, 1, cell] = 2 + (other[0, 1, cell] - 1) % 10
        differs = (encode(encoder, batch | {changed: other}).context != before).any(-1)
        expected = [i for i, (pair, _, place) in enumerate(cells, start=1) if (pair, place) == (1, cell)]
        assert torch.nonzero(differs).tolist() == [[0, i] for i in expected]
        assert len(expected) in ((1, 2) if TWO in overrides else (1,))


def pair_of(given: np.ndarray, wanted: np.ndarray) -> Batch:
    """A sample with one demonstration."""
    return {
        "demo_inputs": torch.from_numpy(place_grid(given))[None, None],
        "demo_labels": torch.from_numpy(place_grid(wanted))[None, None],
        "demo_mask": torch.ones(1, 1, dtype=torch.bool),
    }


@pytest.mark.parametrize(("tokens", "length"), [(ONE, 14), (TWO, 14 + 3)])
def test_grids_of_other_sizes_are_aligned_from_the_corner(shrunk_config: Load, tokens: str, length: int) -> None:
    """A 2 × 4 input has 14 tokens with its border, a 1 × 1 output three, at places where the input has tokens too."""
    batch = pair_of(np.zeros((2, 4), dtype=np.uint8), np.full((1, 1), 3, dtype=np.uint8))
    found = encode(create_encoder(shrunk_config(IN_CONTEXT, tokens).arch), batch)
    assert int(found.mask.sum()) == 1 + length


def rolled_out(model: Any, batch: Batch, num_steps: int = 2) -> list[dict[str, Tensor]]:
    return list(islice(model.rollout(batch), num_steps))


@pytest.mark.parametrize("encoding", ["rope", "rope2d", "learned"])
@pytest.mark.parametrize("overrides", [*VARIANTS, *READERS], ids=" ".join)
def test_the_order_of_pairs_has_no_influence_on_answer_and_halting(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, overrides: tuple[str, ...], encoding: str
) -> None:
    config = shrunk_config(IN_CONTEXT, f"arch.pos_encodings={encoding}", *overrides)
    model = create_model(config.arch, store.metadata).eval()
    torch.nn.init.normal_(model.inner.q_head.weight)
    order = torch.tensor([3, 1, 0, 2])
    permuted = batch | {key: batch[key][:, order] for key in ("demo_inputs", "demo_labels", "demo_mask")}
    for one, other in zip(rolled_out(model, batch), rolled_out(model, permuted), strict=True):
        torch.testing.assert_close(one["logits"], other["logits"], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(one["q_halt_logits"], other["q_halt_logits"], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("overrides", [*VARIANTS, *READERS], ids=" ".join)
def test_no_sample_reads_anothers_demonstrations(
    shrunk_config: Load, store: PuzzleStore, overrides: tuple[str, ...]
) -> None:
    """Over three ACT steps, in which the neighbour is replaced by one with other and more demonstrations."""
    model = create_model(shrunk_config(IN_CONTEXT, *overrides, "arch.halt_exploration_prob=0").arch, store.metadata)
    batches = [small_batch(store, 3, number=number) for number in range(3)]
    courses = []
    for demos in (slice(None), slice(0, 1)):
        carry: Any = model.initial_carry(batches[0])
        course = []
        for batch in batches:
            mask = batch["demo_mask"].clone()
            mask[1] = mask[1] & torch.arange(4).lt(demos.stop or 4)
            carry, outputs = model(carry, batch | {"demo_mask": mask})
            carry = replace(carry, halted=torch.tensor([False, True, False]))
            course.append(outputs)
        courses.append(course)
    for one, other in zip(*courses, strict=True):
        torch.testing.assert_close(one["logits"][[0, 2]], other["logits"][[0, 2]], atol=1e-4, rtol=1e-4)
        assert (one["logits"][1] - other["logits"][1]).abs().max() > 1e-3


@pytest.mark.parametrize("overrides", [*VARIANTS, *READERS], ids=" ".join)
def test_the_loss_reaches_every_parameter_and_every_valid_token(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, overrides: tuple[str, ...]
) -> None:
    """What fills contexts up to the longest has no gradient."""
    config = shrunk_config(IN_CONTEXT, *overrides).arch
    model = create_model(config, store.metadata)
    seen: list[EncoderOutput] = []
    model.encoder.register_forward_hook(lambda *call: seen.append(call[2]) or call[2].context.retain_grad())
    create_loss_head(config, model)(model.initial_carry(batch), batch)[1].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    grad = seen[0].context.grad
    assert grad is not None
    assert torch.equal((grad != 0).any(-1), seen[0].mask)


def test_valid_slots_come_in_their_order() -> None:
    valid = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    index, there = where_valid(valid)
    assert index.tolist() == [[1, 3, 4], [0, 0, 0], [0, 0, 0]]
    assert there.tolist() == [[True, True, True], [False, False, False], [True, False, False]]


def test_alternating_attention_needs_a_layer_that_reads(shrunk_config: Load) -> None:
    with pytest.raises(ConfigError, match=r"context_attention=pair.*needs arch\.context_mode=read"):
        shrunk_config(IN_CONTEXT, "arch.context_attention=pair")
    with pytest.raises(ConfigError, match=r"context_attention=alternate.*L_layers=1.*2 or more"):
        shrunk_config(IN_CONTEXT, "arch.context_attention=alternate", "arch.L_layers=1")


def test_fixed_slots_are_refused_before_anything_starts(shrunk_config: Load) -> None:
    with pytest.raises(ConfigError, match=r"arch\.encoder_type=in_context.*needs arch\.mlp_t=false"):
        shrunk_config(IN_CONTEXT, "arch.mlp_t=true", "arch.canvas=full")


@pytest.mark.parametrize("tokens", [ONE, TWO])
def test_a_solver_answers_alike_in_any_order_of_the_demonstrations(untrained: Callable[..., Path], tokens: str) -> None:
    solver = Solver.load(untrained(IN_CONTEXT, tokens, "arch.halt_max_steps=2"), device="cpu")
    rng = np.random.default_rng(0)
    pairs = tuple(Pair(*(rng.integers(0, 10, size, dtype=np.uint8) for size in ((2, 3), (3, 2)))) for _ in range(3))
    tests = (Pair(rng.integers(0, 10, (3, 3), dtype=np.uint8), None),)
    answers = [
        solver.predict(Task("task", "task", demos, tests), votes=3)[0].attempts for demos in (pairs, pairs[::-1])
    ]
    assert [a.grid.tolist() for a in answers[0]] == [a.grid.tolist() for a in answers[1]]
