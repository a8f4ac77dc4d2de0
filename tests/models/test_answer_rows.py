"""Where nobody reads what a step leaves of the demonstrations' cells, its last block computes the answer alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from config.schema import TrainConfig
from dataset.batches import Batch
from dataset.store import PuzzleStore
from models import create_model
from models.act import RecursiveReasoner
from tests.conftest import small_batch

Load = Callable[..., TrainConfig]
EVOLVE = ("arch.encoder_type=in_context", "arch.context_attention=alternate", "arch.halt_max_steps=1")
SIZES = [
    ("arch.L_layers=2",),  # the last block attends to everything
    ("arch.L_layers=3", "arch.H_cycles=2", "arch.grad_cycles=2"),  # within the answer
    ("arch.L_layers=2", "arch.grid_conv=true", "arch.qk_norm_gain=true"),
]


def make(load: Load, store: PuzzleStore, *overrides: str) -> RecursiveReasoner:
    model = create_model(load(*EVOLVE, "arch.forward_dtype=float32", *overrides).arch, store.metadata).double()
    for module in model.modules():
        if "dtype" in vars(module):
            module.dtype = torch.float64
    torch.nn.init.normal_(model.inner.q_head.weight)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def stepped(model: RecursiveReasoner, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Logits, halting logit and gradients of one step in training."""
    carry, outputs = model(model.initial_carry(batch), batch)
    assert carry.halted.all()
    loss = (
        outputs["logits"].double() * torch.linspace(-1, 1, outputs["logits"].numel()).view_as(outputs["logits"])
    ).sum()
    grads = torch.autograd.grad(loss + outputs["q_halt_logits"].sum(), list(model.parameters()), allow_unused=True)
    return outputs["logits"].detach(), outputs["q_halt_logits"].detach(), list(grads)


@pytest.mark.parametrize("size", SIZES)
def test_the_answer_alone_is_what_it_is_beside_everything(shrunk_config: Load, store: PuzzleStore, size: tuple) -> None:
    model, batch = make(shrunk_config, store, *size), small_batch(store, 5)
    batch["demo_mask"][1, 1:] = False  # contexts of different lengths, one of a single pair
    assert model.inner.answers_alone
    alone = stepped(model, batch)
    model.inner.answers_alone = False
    whole = stepped(model, batch)
    torch.testing.assert_close(alone[:2], whole[:2], rtol=0, atol=1e-6)
    for found, expected in zip(alone[2], whole[2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert sum(grad is not None and bool(grad.abs().sum() > 0) for grad in alone[2]) > 10


def test_the_last_block_computes_no_other_row(shrunk_config: Load, store: PuzzleStore) -> None:
    model, batch = make(shrunk_config, store, "arch.L_layers=2").eval(), small_batch(store, 3)
    rows: list[list[int]] = [[], []]
    for number, block in enumerate(model.inner.L_level.layers):
        block.mlp.register_forward_hook(lambda _m, inputs, _o, number=number: rows[number].append(len(inputs[0])))
    next(iter(model.rollout(batch)))
    first, last = rows
    assert last[:-1] == first[:-1]
    assert last[-1] == len(batch["inputs"]) + int(model.active_cells(batch).sum()) < first[-1]


@pytest.mark.parametrize(
    "options", [("arch.halt_max_steps=2",), ("arch.loss.pair_weight=0.1",)], ids=["steps", "pairs"]
)
def test_what_is_read_later_is_computed(shrunk_config: Load, store: PuzzleStore, options: tuple) -> None:
    assert not create_model(
        shrunk_config(*EVOLVE, "arch.L_layers=2", *options).arch, store.metadata
    ).inner.answers_alone
