"""CUDA against the CPU, the packed kernel against a loop over sequences, compiled against eager."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from config.schema import TrainConfig
from dataset.batches import Batch
from dataset.store import PuzzleStore
from models import create_model
from models.attention import attend
from models.losses import create_loss_head
from models.machine import compile_blocks
from models.segments import Segments, ends_of
from tests.reference import softmax_attention

Load = Callable[..., TrainConfig]
ETRM, ETRMTRM, TRM = (f"cfg_pretrain_{name}_arc_agi_1" for name in ("etrm", "etrmtrm", "trm"))
SYSTEMS = [
    pytest.param(TRM, (), id="TRM"),
    pytest.param(ETRM, (), id="ETRM"),
    pytest.param(ETRM, ("arch.encoder_pooling_method=attention",), id="ETRM-attention"),
    pytest.param(ETRM, ("arch.encoder_type=hybrid_standard",), id="hybrid_standard"),
    pytest.param(ETRM, ("arch.encoder_type=lpn_standard",), id="lpn_standard"),
    pytest.param(ETRM, ("arch.encoder_type=in_context", "arch.grid_coordinates=both"), id="in_context"),
    pytest.param(ETRMTRM, (), id="A"),
    pytest.param(ETRMTRM, ("arch.recurrent_encoder_type=trm_style",), id="B"),
]
SIZE = ("arch.hidden_size=128", "arch.num_heads=2", "arch.L_layers=2")  # the head width of the full size
Step = tuple[Tensor, Tensor, dict[str, Tensor]]


@pytest.fixture(autouse=True)
def _without_tf32() -> Iterator[None]:
    """Products in float32 as on the CPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def make(shrunk_config: Load, store: PuzzleStore, name: str, *overrides: str) -> tuple[Any, Any]:
    """A model with random weights, the same at each call, and its config."""
    config = shrunk_config(*SIZE, *overrides, config_name=name).arch
    torch.manual_seed(0)
    return create_model(config, store.metadata), config


def step(model: Any, config: Any, batch: Batch, device: torch.device) -> Step:
    """One ACT step: logits, loss, gradients, on the CPU in float32."""
    model = model.to(device).train()
    model.zero_grad()
    batch = {key: value.to(device) for key, value in batch.items()}
    _, loss, _, outputs = create_loss_head(config, model)(model.initial_carry(batch), batch)
    loss.backward()
    grads = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return outputs["logits"].detach().float().cpu(), loss.detach().float().cpu(), grads


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def assert_gradients_point_the_same_way(found: dict[str, Tensor], expected: dict[str, Tensor], least: float) -> None:
    assert set(found) == set(expected)
    for name, grad in expected.items():
        if grad.norm() > 1e-6:
            assert cosine(found[name], grad) > least, name


@pytest.mark.parametrize(("name", "overrides"), SYSTEMS)
def test_a_step_in_float32_is_the_cpus(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, device: torch.device, name: str, overrides: tuple[str, ...]
) -> None:
    cpu, there = (
        step(*make(shrunk_config, store, name, *overrides), batch, where) for where in (torch.device("cpu"), device)
    )
    torch.testing.assert_close(there[0], cpu[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(there[1], cpu[1], atol=1e-4, rtol=1e-5)
    for key, grad in cpu[2].items():
        scale = max(float(grad.abs().max()), 1e-6)
        torch.testing.assert_close(there[2][key] / scale, grad / scale, atol=1e-3, rtol=1e-2, msg=key)


@pytest.mark.parametrize(("name", "overrides"), SYSTEMS)
def test_a_step_in_bfloat16_has_the_gradients_of_float32(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, device: torch.device, name: str, overrides: tuple[str, ...]
) -> None:
    """Through the packed kernel, which float32 does not take."""
    shallow = ("arch.H_cycles=1", "arch.L_cycles=1")  # the recursion of untrained weights magnifies rounding
    half, full = (
        step(*make(shrunk_config, store, name, *shallow, *overrides, f"arch.forward_dtype={dtype}"), batch, device)
        for dtype in ("bfloat16", "float32")
    )
    assert cosine(half[0], full[0]) > 0.99
    # Where the CPU stands in, half precision rounds inside attention too: gradients that nearly cancel turn further.
    assert_gradients_point_the_same_way(half[2], full[2], 0.99 if device.type == "cuda" else 0.85)


@pytest.mark.parametrize(("name", "overrides"), [*SYSTEMS[:2], *SYSTEMS[-3:-1]])
def test_steps_replayed_as_graphs_are_the_eager_ones(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, device: torch.device, name: str, overrides: tuple[str, ...]
) -> None:
    """Several with the carry of the one before, and batches of other sizes, which are recorded anew."""
    torch._dynamo.reset()
    shallow = ("arch.H_cycles=2", "arch.L_cycles=1", "arch.forward_dtype=bfloat16", "arch.halt_exploration_prob=0")
    (eager, config), (replayed, _) = (make(shrunk_config, store, name, *shallow, *overrides) for _ in range(2))
    compile_blocks(replayed, "inductor" if device.type == "cuda" else "aot_eager", graphs=True)
    for size in (6, 3, 6):
        some = {key: value[:size].to(device) for key, value in batch.items()}
        models = [model.to(device).train() for model in (replayed, eager)]
        carries = [model.initial_carry(some) for model in models]
        for _ in range(3):
            found = []
            for number, model in enumerate(models):
                model.zero_grad()
                carries[number], loss, _, outputs = create_loss_head(config, model)(carries[number], some)
                loss.backward()
                grads = {key: p.grad.float().cpu() for key, p in model.named_parameters() if p.grad is not None}
                found.append((outputs["logits"].detach().float().cpu(), grads))
            assert cosine(found[0][0], found[1][0]) > 0.99
            assert_gradients_point_the_same_way(found[0][1], found[1][1], 0.95)


@pytest.mark.parametrize("lengths", [[5, 7, 8, 40], [1], [900, 16, 333], [1, 1, 2]], ids=str)
def test_attention_over_packed_sequences_is_a_loop_over_them(device: torch.device, lengths: list[int]) -> None:
    ends = ends_of(torch.tensor(lengths)).to(device)
    q, k, v = (torch.randn(sum(lengths), 2, 64, device=device, dtype=torch.bfloat16) for _ in range(3))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = attend(q, k, v, Segments(ends, ends, max(lengths), max(lengths)))
    parts = [[x.float()[a:b] for x in (q, k, v)] for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
    naive = torch.cat([torch.stack([softmax_attention(*(x[:, h] for x in p)) for h in range(2)], 1) for p in parts])
    torch.testing.assert_close(out.float(), naive, atol=2e-2, rtol=2e-2)
    weight = torch.randn_like(naive)
    ours = torch.autograd.grad(out, (q, k, v), weight.to(out.dtype))
    theirs = torch.autograd.grad(naive, (q, k, v), weight)
    for grad, expected in zip(ours, theirs, strict=True):
        if expected.norm() > 1e-6:
            assert cosine(grad.cpu(), expected.cpu()) > 0.999


def test_a_query_without_keys_gets_zeros(device: torch.device) -> None:
    cu_q, cu_k = ends_of(torch.tensor([2, 2, 2])).to(device), ends_of(torch.tensor([3, 0, 1])).to(device)
    q, k = (torch.randn(n, 2, 64, device=device, dtype=torch.bfloat16) for n in (6, 4))
    out = attend(q, k, k, Segments(cu_q, cu_k, 2, 3))
    assert not out[2:4].any()
    assert out[:2].abs().sum(-1).all()
    assert torch.equal(out[4:], k[3:].expand(2, -1, -1))


@pytest.mark.parametrize(("name", "overrides"), [*SYSTEMS[:2], *SYSTEMS[-3:]])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_steps_are_the_eager_ones_and_compile_once(
    shrunk_config: Load,
    store: PuzzleStore,
    batch: Batch,
    device: torch.device,
    name: str,
    overrides: tuple[str, ...],
    dtype: str,
) -> None:
    torch._dynamo.reset()
    shallow = ("arch.H_cycles=2", "arch.L_cycles=1", f"arch.forward_dtype={dtype}")
    (eager, config), (compiled, _) = (make(shrunk_config, store, name, *shallow, *overrides) for _ in range(2))
    compile_blocks(compiled, "inductor" if device.type == "cuda" else "aot_eager")
    graphs = []
    for size in (6, 5, 4, 3):
        some = {key: value[:size] for key, value in batch.items()}
        ours, theirs = step(compiled, config, some, device), step(eager, config, some, device)
        assert cosine(ours[0], theirs[0]) > (0.9999 if dtype == "float32" else 0.99)
        assert_gradients_point_the_same_way(ours[2], theirs[2], 0.999 if dtype == "float32" else 0.95)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[0]
