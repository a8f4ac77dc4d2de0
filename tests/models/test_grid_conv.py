"""`arch.grid_conv`: a convolution over the cells of each grid on packed rows, and that nothing leaves a grid."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from config.schema import TrainConfig
from dataset.batches import Batch
from dataset.store import PuzzleStore
from models import create_model
from models.grid_conv import GridConv, with_neighbours
from models.layers import SelfAttention
from models.losses import create_loss_head
from models.packing import pack
from tests.models.test_in_context import naive_context

Load = Callable[..., TrainConfig]
CONV = "arch.grid_conv=true"
ETRM, ETRMTRM, TRM, HYBRID = (
    f"cfg_pretrain_{name}" for name in ("etrm_arc_agi_1", "etrmtrm_arc_agi_1", "trm_arc_agi_1", "trm_hybrid")
)
IN_CONTEXT = "arch.encoder_type=in_context"
READ = (IN_CONTEXT, "arch.context_mode=read", "arch.context_attention=pair")
SYSTEMS = [
    pytest.param(TRM, (), id="trm"),
    pytest.param(ETRM, ("arch.canvas=full", "arch.forward_dtype=bfloat16"), id="full canvas, bfloat16"),
    pytest.param(ETRM, (IN_CONTEXT, "arch.context_tokens=two"), id="in_context"),
    pytest.param(ETRM, (IN_CONTEXT, "arch.context_attention=alternate", "arch.L_layers=2"), id="alternate"),
    pytest.param(ETRM, READ, id="read"),
    pytest.param(ETRM, (*READ, "arch.targets=all_pairs"), id="all pairs"),
    pytest.param(ETRMTRM, ("arch.recurrent_encoder_type=trm_style",), id="B"),
    pytest.param(ETRMTRM, ("arch.recurrent_encoder_type=in_context",), id="C"),
    pytest.param(HYBRID, ("arch.text_hidden_size=24",), id="hybrid"),
]
# Those whose demonstrations' cells are rows of a network with convolutions.
WITH_CELLS = [SYSTEMS[number] for number in (2, 3, 4, 7)]


def made(load: Load, store: PuzzleStore, name: str, *overrides: str) -> tuple[Any, Any]:
    """A model of random weights, the same whatever the option says, and its loss head."""
    torch.manual_seed(0)
    config = load(*overrides, "arch.halt_exploration_prob=0", config_name=name)
    model = create_model(config.arch, store.metadata)
    torch.nn.init.normal_(model.inner.q_head.weight)
    return model.train(), create_loss_head(config.arch, model)


def convolving(model: Any) -> Any:
    """The model in float64, with convolutions that do something."""
    for module in model.double().modules():
        if isinstance(module, GridConv):
            torch.nn.init.normal_(module.weight, std=0.3)
        if hasattr(module, "dtype"):
            module.dtype = torch.float64
    return model


def given(batch: Batch, name: str) -> Batch:
    return batch | {"z_init": torch.randn(len(batch["inputs"]), 24)} if name == HYBRID else batch


@pytest.mark.parametrize("by_view", [True, False])
def test_it_equals_the_convolution_of_each_padded_grid_with_gradients(by_view: bool) -> None:
    """Rows of no cell pass, what fills a run up passes no gradient, and an empty sequence does no harm."""
    sequences, grids, hidden = 4, 2, 5
    mask = torch.rand(sequences, 1 + grids * 900).argsort() < torch.tensor([[700], [690], [0], [0]])
    mask[:, 0] = True
    mask[2, 1:] = torch.arange(grids * 900) % 900 < 40
    mask[3] = False
    cells = torch.arange(-1, grids * 900).expand(sequences, -1)
    packing = with_neighbours(pack(mask, by_view=by_view), cells, grids)
    conv = GridConv(hidden).double()
    torch.nn.init.normal_(conv.weight)
    padded = torch.randn(*mask.shape, hidden, dtype=torch.float64)
    rows = packing.gather(padded).requires_grad_()
    found = packing.scatter(conv(rows, packing), torch.zeros_like(padded))

    plain = (padded * mask[..., None]).requires_grad_()
    weight = conv.weight.detach().t().reshape(hidden, 1, 3, 3).requires_grad_()
    images = plain[:, 1:].reshape(-1, 30, 30, hidden).permute(0, 3, 1, 2)
    convolved = F.conv2d(images, weight, padding=1, groups=hidden).permute(0, 2, 3, 1)
    after = plain + F.pad(convolved.reshape(sequences, -1, hidden), (0, 0, 1, 0))
    expected = torch.where(mask[..., None], after, 0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)

    signs = torch.randn_like(found)
    (found * signs).sum().backward()
    (expected * signs).sum().backward()
    assert conv.weight.grad is not None
    assert weight.grad is not None
    assert rows.grad is not None
    torch.testing.assert_close(conv.weight.grad, weight.grad.reshape(hidden, 9).t(), atol=1e-10, rtol=1e-10)
    ours = packing.scatter(rows.grad, torch.zeros_like(padded))
    assert plain.grad is not None
    torch.testing.assert_close(ours, torch.where(mask[..., None], plain.grad, 0), atol=1e-12, rtol=1e-12)
    dead = torch.ones(len(packing.rows), dtype=torch.bool).index_fill(0, packing.live_rows, False)
    assert dead.any() == by_view
    assert not rows.grad[dead].any()


@pytest.mark.parametrize(("name", "overrides"), SYSTEMS)
def test_at_the_start_logits_are_those_without_it_bit_for_bit_and_it_gets_a_gradient(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, name: str, overrides: tuple[str, ...]
) -> None:
    batch = given(batch, name)
    seen = []
    for option in ("arch.grid_conv=false", CONV):
        model, head = made(shrunk_config, store, name, *overrides, option)
        torch.manual_seed(1)
        carry, _, _, _ = head(model.initial_carry(batch), batch)
        _, loss, _, outputs = head(carry, batch)
        loss.backward()
        seen.append(outputs)
    assert torch.equal(seen[0]["logits"], seen[1]["logits"])
    assert torch.equal(seen[0]["q_halt_logits"], seen[1]["q_halt_logits"])
    convs = {n: p for n, p in model.named_parameters() if ".grid_conv." in n}
    assert convs
    for weight in convs.values():
        assert weight.grad is not None
        assert (weight.grad != 0).any(1).all()


@pytest.mark.parametrize(("name", "overrides"), WITH_CELLS)
def test_every_block_over_cells_has_it_and_gains_of_its_heads(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, name: str, overrides: tuple[str, ...]
) -> None:
    model, head = made(shrunk_config, store, name, *overrides, CONV, "arch.qk_norm_gain=true")
    torch.manual_seed(1)
    carry, _, _, _ = head(model.initial_carry(batch), batch)
    _, loss, _, _ = head(carry, batch)
    loss.backward()
    blocks = {n.removesuffix(".self_attn") for n, m in model.named_modules() if isinstance(m, SelfAttention)}
    own = dict(model.named_parameters())
    for block in blocks:
        for part in ("self_attn.gain", "grid_conv.weight"):
            grad = own[f"{block}.{part}"].grad
            assert grad is not None, (block, part)
            assert grad.any(), (block, part)


def naive_neighbours(places: list[tuple[int, ...] | None]) -> list[list[tuple[int, ...] | None]]:
    """For each token's (grid..., cell), those of the nine around it that there are."""
    there = set(places)
    around = []
    for place in places:
        shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        row, column = (0, 0) if place is None else divmod(place[-1], 30)
        found = [
            (*place[:-1], 30 * (row + down) + column + right)
            if place is not None and 0 <= row + down < 30 and 0 <= column + right < 30
            else None
            for down, right in shifts
        ]
        around.append([one if one in there else None for one in found])
    return around


@pytest.mark.parametrize("overrides", [(), ("arch.context_tokens=two",), SYSTEMS[3].values[1][1:]], ids=" ".join)
def test_neighbours_are_those_of_ones_own_grid_sample_and_role(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, overrides: tuple[str, ...]
) -> None:
    model, _ = made(shrunk_config, store, ETRM, IN_CONTEXT, CONV, *overrides)
    context, active = model.encode(batch), model.active_cells(batch)
    is_last = context.pair_lengths is not None
    packing, _ = model.inner._packed(context.first_token_last() if is_last else context, active)
    for sample in range(len(batch["inputs"])):
        _, cells = naive_context(model.encoder, batch, sample)
        canvas = [("query", cell) for cell in torch.nonzero(active[sample]).flatten().tolist()]
        places: list[Any] = [*cells, None, *canvas] if is_last else [None, *cells, *canvas]
        first = int(packing.first_row[sample])
        row_of = {place: first + number for number, place in enumerate(places)}
        assert packing.neighbours is not None
        found = packing.neighbours[:, first : first + len(places)].t().tolist()
        nobody = len(packing.rows)
        expected = [[nobody if one is None else row_of[one] for one in nine] for nine in naive_neighbours(places)]
        assert found == expected


@pytest.mark.parametrize(("name", "overrides"), WITH_CELLS)
def test_a_sample_alone_is_as_beside_others_in_any_order_of_its_pairs(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, name: str, overrides: tuple[str, ...]
) -> None:
    model, _ = made(shrunk_config, store, name, *overrides, CONV)
    convolving(model)

    def answer(asked: Batch) -> Tensor:
        carry, _ = model(model.initial_carry(asked), asked)
        return model(carry, asked)[1]["logits"]

    beside = answer(batch)
    alone = torch.cat([answer({key: value[i : i + 1] for key, value in batch.items()}) for i in range(3)])
    torch.testing.assert_close(beside[:3], alone, atol=1e-5, rtol=1e-5)
    turned = {key: value.flip(1) if key.startswith("demo_") else value for key, value in batch.items()}
    torch.testing.assert_close(beside, answer(turned), atol=1e-5, rtol=1e-5)
    for module in model.modules():
        if isinstance(module, GridConv):
            torch.nn.init.zeros_(module.weight)
    assert (answer(batch) - beside).abs().max() > 1e-3


def test_in_bfloat16_it_is_close_to_float32() -> None:
    packing = with_neighbours(
        pack(torch.ones(2, 900, dtype=torch.bool), by_view=True), torch.arange(900).expand(2, -1), 1
    )
    conv = GridConv(8)
    torch.nn.init.normal_(conv.weight)
    x, found = torch.randn(1800, 8), []
    for dtype in (torch.float32, torch.bfloat16):
        conv.weight.grad = None
        rows = x.to(dtype, copy=True).requires_grad_()
        out = conv(rows, packing)
        assert out.dtype == dtype
        out.float().square().sum().backward()
        assert rows.grad is not None
        assert conv.weight.grad is not None
        found.append((out.float(), rows.grad.float(), conv.weight.grad.clone()))
    for exact, rough in zip(*found, strict=True):
        assert (exact - rough).norm() < 0.02 * exact.norm()
