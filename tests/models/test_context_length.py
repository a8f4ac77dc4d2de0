"""Contexts of any length: what a sample keeps between steps is its own, whatever its neighbours are and do."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoints.carry_state import carry_tensors, filled_carry
from checkpoints.checkpoint import CheckpointError
from config.schema import TrainConfig
from dataset.batches import Batch, Demonstrations
from dataset.grids import PAD
from dataset.store import PuzzleStore
from models import create_model
from models.act import RecursiveReasoner
from models.encoders.base import DemoEncoder, EncoderOutput, fixed_length_output
from models.recursive_reasoning.carry import RaggedInnerCarry, TRMEncoderInnerCarry
from tests.conftest import small_batch

HIDDEN = 32
LENGTHS = (1, 5, 16, 40, None)  # None: a token for each demonstration cell


class CellContext(DemoEncoder):
    """A token in front, then one for each cell of the demonstrations, `num_tokens` at most (None: all of them)."""

    def __init__(self, num_tokens: int | None):
        super().__init__(num_tokens)
        self.embedding = torch.nn.Embedding(24, HIDDEN)
        self.first = torch.nn.Parameter(torch.randn(HIDDEN))

    def encode(self, demonstrations: Demonstrations) -> EncoderOutput:
        cells = torch.cat([demonstrations.inputs, demonstrations.labels], -1).flatten(1).int()
        tokens = torch.cat([self.first.expand(len(cells), 1, -1), self.embedding(cells)], dim=1)
        if self.num_tokens is not None:
            return fixed_length_output(tokens[:, : self.num_tokens])
        mask = torch.cat([torch.ones_like(cells[:, :1], dtype=torch.bool), cells != PAD], dim=1)
        longest = int(mask.sum(1).max())
        order = torch.argsort((~mask).int(), dim=1, stable=True)[:, :longest]
        mask = mask.gather(1, order)
        positions = order % 900
        coordinates = torch.stack([positions // 30, positions % 30], dim=-1)
        context = tokens.gather(1, order[..., None].expand(-1, -1, HIDDEN))
        context = torch.where(mask[..., None], context, float("nan"))  # what is not valid is never read
        return EncoderOutput(context, mask, positions, tokens.new_zeros(len(cells)), coordinates)


@pytest.fixture
def make_model(shrunk_config: Callable[..., TrainConfig], store: PuzzleStore) -> Callable[..., RecursiveReasoner]:
    """`make_model(T, "key=value", ...)`: an ETRM whose encoder is a `CellContext`."""

    def make(num_tokens: int | None, *overrides: str) -> RecursiveReasoner:
        torch.manual_seed(0)
        config = shrunk_config("arch.halt_max_steps=3", "arch.halt_exploration_prob=0", *overrides)
        model = create_model(config.arch, store.metadata)
        model.encoder = CellContext(num_tokens)
        torch.nn.init.normal_(model.inner.q_head.weight)
        return model.train()

    return make


def steps(
    model: RecursiveReasoner, batches: list[Batch], halted: list[list[bool]] | None = None
) -> list[dict[str, Tensor]]:
    """The outputs of a step for each batch; `halted` says who is replaced after each."""
    carry: Any = model.initial_carry(batches[0])
    outputs = []
    for number, batch in enumerate(batches):
        carry, out = model(carry, batch)
        if halted is not None:
            carry = replace(carry, halted=torch.tensor(halted[number]))
        outputs.append(out)
    return outputs


def of_sample(batch: Batch, index: int) -> Batch:
    return {key: value[index : index + 1] for key, value in batch.items()}


# Who is replaced after each of four steps: neighbours halt at different steps.
REPLACED = [[False, True, False], [True, False, False], [False, True, True], [False, False, False]]


@pytest.mark.parametrize("encoding", ["rope", "rope2d", "learned"])
@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_a_samples_course_is_the_same_alone_and_beside_others(
    make_model: Callable[..., RecursiveReasoner], store: PuzzleStore, num_tokens: int | None, encoding: str
) -> None:
    """The batches differ in their demonstrations, so a replacement changes the length of a ragged context."""
    model = make_model(num_tokens, f"arch.pos_encodings={encoding}")
    batches = [small_batch(store, 3, number=number) for number in range(4)]
    with torch.no_grad():
        together = steps(model, batches, REPLACED)
        for sample in range(3):
            alone = steps(model, [of_sample(b, sample) for b in batches], [[row[sample]] for row in REPLACED])
            for number, (beside, by_itself) in enumerate(zip(together, alone, strict=True)):
                for key in ("logits", "q_halt_logits"):
                    difference = (beside[key][sample] - by_itself[key][0]).abs().max()
                    assert difference < 1e-5, (sample, number, key, difference)


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_permuting_the_samples_permutes_the_outputs(
    make_model: Callable[..., RecursiveReasoner], store: PuzzleStore, num_tokens: int | None
) -> None:
    model = make_model(num_tokens)
    batches = [small_batch(store, 3, number=number) for number in range(4)]
    order = torch.tensor([2, 0, 1])
    permuted = [{key: value[order] for key, value in batch.items()} for batch in batches]
    with torch.no_grad():
        straight = steps(model, batches, REPLACED)
        other = steps(model, permuted, [[row[i] for i in order.tolist()] for row in REPLACED])
    for one, two in zip(straight, other, strict=True):
        torch.testing.assert_close(one["logits"][order], two["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_a_continuing_sample_goes_on_with_its_latents(
    make_model: Callable[..., RecursiveReasoner], store: PuzzleStore, num_tokens: int | None
) -> None:
    """A second step on the same data is another than the first, and a replaced sample is at its first step again."""
    model = make_model(num_tokens)
    batch = small_batch(store, 3)
    with torch.no_grad():
        first, second = steps(model, [batch, batch], [[False, True, False]] * 2)
    changed = [(first["logits"][i] - second["logits"][i]).abs().max() > 1e-3 for i in range(3)]
    assert changed == [True, False, True]
    torch.testing.assert_close(first["logits"][1], second["logits"][1], rtol=0, atol=1e-5)


def test_memory_of_a_ragged_carry_follows_the_real_tokens(
    make_model: Callable[..., RecursiveReasoner], store: PuzzleStore
) -> None:
    model = make_model(None)
    batch = small_batch(store, 3)
    carry, outputs = model(model.initial_carry(batch), batch)
    inner = carry.inner_carry
    assert isinstance(inner, RaggedInnerCarry)
    tokens = outputs["context_mask"].sum() + model.active_cells(carry.current_data).sum()
    assert inner.lengths.sum() == tokens
    assert tokens < len(inner.z_H) <= 1.1 * int(tokens) + 25  # rows that fill runs up, and the initial latent
    assert not inner.z_H.requires_grad


def test_encoders_of_fixed_slots_keep_the_padded_carry(
    shrunk_config: Callable[..., TrainConfig], store: PuzzleStore
) -> None:
    model = create_model(shrunk_config().arch, store.metadata)
    carry, outputs = model(model.initial_carry(small_batch(store, 3)), small_batch(store, 3))
    assert isinstance(carry.inner_carry, TRMEncoderInnerCarry)
    assert carry.inner_carry.z_H.shape == (3, 916, HIDDEN)
    assert "context_mask" not in outputs


@pytest.mark.parametrize("num_tokens", [1, 5, 40])
def test_the_decoder_takes_plain_contexts_of_any_length(
    make_model: Callable[..., RecursiveReasoner], store: PuzzleStore, num_tokens: int
) -> None:
    """Given its padded initial carry; what the context says reaches the answer, and slot 0 the q head."""
    model = make_model(num_tokens)
    inner, batch = model.inner, small_batch(store, 3)
    context = torch.randn(3, num_tokens, HIDDEN, requires_grad=True)
    carry, logits, (q_halt, _) = inner(inner.initial_carry(3, context.device), batch, context)
    carry, logits, (q_halt, _) = inner(inner.reset_carry(torch.tensor([True, False, False]), carry), batch, context)
    assert logits.shape == (3, 900, 12)
    (gradient,) = torch.autograd.grad(logits.sum() + q_halt.sum(), context)
    assert (gradient.abs().sum(-1) > 0).all()


def test_cells_keep_their_positions_whatever_the_context_is(make_model: Callable[..., RecursiveReasoner]) -> None:
    """`rope` counts the cells from `puzzle_emb_len`, the other encodings by row and column."""
    cells = torch.arange(900)
    rope, rope2d = (make_model(5, f"arch.pos_encodings={e}").inner.position_encoding for e in ("rope", "rope2d"))
    assert torch.equal(rope.of_cells(cells, 16), cells + 16)
    assert torch.equal(rope2d.of_cells(cells, 16), torch.stack([cells // 30, cells % 30], -1))


def test_a_checkpoint_holds_a_ragged_carry_of_other_lengths_than_a_fresh_one(
    make_model: Callable[..., RecursiveReasoner], store: PuzzleStore
) -> None:
    """Across a replacement that changes the context's length: the resumed carry goes on bit for bit."""
    model = make_model(None)
    batches = [small_batch(store, 3, number=number) for number in range(3)]
    carry = model.initial_carry(batches[0])
    for batch in batches[:2]:
        carry, _ = model(carry, batch)
        carry = replace(carry, halted=torch.tensor([False, True, False]))
    resumed = filled_carry(model.initial_carry(batches[2]), carry_tensors(carry))
    assert torch.equal(model(resumed, batches[2])[1]["logits"], model(carry, batches[2])[1]["logits"])
    saved = carry_tensors(carry)
    saved["inner_carry"]["z_H"] = saved["inner_carry"]["z_H"][:, :16]
    with pytest.raises(CheckpointError, match=r"inner_carry\.z_H"):
        filled_carry(model.initial_carry(batches[2]), saved)
