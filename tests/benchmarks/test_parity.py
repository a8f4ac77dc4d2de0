"""The padded form that benchmarks compare with computes the same numbers as the packed one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.padded import padded_form
from config.schema import TrainConfig
from dataset.batches import Batch
from dataset.store import PuzzleStore
from models import create_model
from models.act import RecursiveReasoner
from models.losses import create_loss_head
from tests.conftest import small_batch

Load = Callable[..., TrainConfig]
ETRM, ETRMTRM, TRM = (f"cfg_pretrain_{name}_arc_agi_1" for name in ("etrm", "etrmtrm", "trm"))
SYSTEMS = [
    pytest.param(TRM, (), id="TRM"),
    pytest.param(ETRM, (), id="ETRM"),
    pytest.param(ETRM, ("arch.encoder_pooling_method=weighted", "arch.encoder_norm_style=pre"), id="ETRM-pre"),
    pytest.param(ETRMTRM, (), id="A"),
    pytest.param(ETRMTRM, ("arch.recurrent_encoder_type=trm_style",), id="B"),
]
READERS = [
    pytest.param(ETRM, ("arch.encoder_type=in_context",), id="in_context"),
    pytest.param(ETRM, ("arch.encoder_type=in_context", "arch.context_mode=read"), id="in_context read"),
    pytest.param(ETRMTRM, ("arch.recurrent_encoder_type=in_context",), id="C"),
]


@pytest.fixture(params=[(2, 1), (3, 3), (5, 2)], ids=["2x1", "3x3", "5x2"])
def shaped_batch(request: pytest.FixtureRequest, store: PuzzleStore) -> Batch:
    size, demos = request.param
    return small_batch(store, size, max_demos=demos, number=size)


def contexts_and_logits(model: RecursiveReasoner, batch: Batch, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """The first context, and the logits on it or on the one given: recursion magnifies any rounding of it."""
    model.eval()
    with torch.no_grad():
        carry = model.initial_carry(batch)
        if context is None:
            context = model.advance_context(carry, model.encode(batch))[0].context
        _, logits, _ = model.inner(carry.inner_carry, batch, context, model.active_cells(batch))
    return context, logits


@pytest.mark.parametrize(("name", "overrides"), SYSTEMS)
def test_contexts_and_full_canvas_logits_of_the_packed_form_are_those_of_the_padded_one(
    shrunk_config: Load, store: PuzzleStore, shaped_batch: Batch, name: str, overrides: tuple[str, ...]
) -> None:
    config = shrunk_config("arch.canvas=full", *overrides, config_name=name).arch
    model = create_model(config, store.metadata)
    packed = contexts_and_logits(model, shaped_batch, None)
    with padded_form():
        padded = contexts_and_logits(model, shaped_batch, packed[0])
        context, _ = contexts_and_logits(model, shaped_batch, None)
    torch.testing.assert_close(packed[0], context, atol=1e-5, rtol=0)
    torch.testing.assert_close(packed[1], padded[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "overrides"), READERS)
def test_steps_on_the_cells_of_demonstrations_are_those_of_the_padded_form(
    shrunk_config: Load, store: PuzzleStore, shaped_batch: Batch, name: str, overrides: tuple[str, ...]
) -> None:
    config = shrunk_config("arch.canvas=full", *overrides, config_name=name).arch
    model = create_model(config, store.metadata).eval()
    with torch.no_grad():
        carry = model.initial_carry(shaped_batch)
        packed = model(carry, shaped_batch)[1]["logits"]
        with padded_form():
            padded = model(carry, shaped_batch)[1]["logits"]
    torch.testing.assert_close(packed, padded, atol=1e-3, rtol=0)


@pytest.mark.parametrize("canvas", ["task", "full"])
def test_a_training_step_of_the_packed_form_has_the_loss_and_gradients_of_the_padded_one(
    shrunk_config: Load, store: PuzzleStore, canvas: str
) -> None:
    config = shrunk_config(f"arch.canvas={canvas}", "arch.H_cycles=1", "arch.L_cycles=1").arch
    model = create_model(config, store.metadata).train()
    batch = small_batch(store, 3, max_demos=2)
    found: list[tuple[Tensor, list[Tensor]]] = []
    for form in (False, True):
        model.zero_grad()
        if form:
            with padded_form():
                _, loss, _, _ = create_loss_head(config, model)(model.initial_carry(batch), batch)
                loss.backward()
        else:
            _, loss, _, _ = create_loss_head(config, model)(model.initial_carry(batch), batch)
            loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (packed_loss, packed), (padded_loss, padded) = found
    torch.testing.assert_close(packed_loss, padded_loss, atol=1e-4, rtol=1e-5)
    assert len(packed) == len(padded) == len(list(model.parameters()))
    for ours, theirs in zip(packed, padded, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-2)
