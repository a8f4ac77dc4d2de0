"""What can be checked of the CUDA path without a GPU, and of compiling without a compiler's back end.

The meta device takes the packed path of CUDA in half precision, forward and backward. It has no data: whatever asked
for a value (`.item()`, `.cpu()`, a branch on a tensor) would be an error there. `nonzero`, whose size is data, is
answered by the test and counted. (Fake CUDA tensors cannot be differentiated by a build of torch without CUDA.)
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from config.schema import TrainConfig
from dataset.fewshot_puzzle_dataset import Batch
from dataset.store import PuzzleStore
from models import create_model
from models.encoders.base import fixed_length_output
from models.layers import TransformerBlock
from models.losses import create_loss_head
from models.machine import best_dtype, compile_blocks, wants_compiling
from models.packing import Packing, pack
from models.recursive_reasoning.carry import RaggedInnerCarry
from tests.conftest import small_batch

Load = Callable[..., TrainConfig]
ETRM, ETRMTRM, TRM = (f"cfg_pretrain_{name}_arc_agi_1" for name in ("etrm", "etrmtrm", "trm"))
HYBRID, TEXT_WIDTH = "cfg_pretrain_trm_hybrid", 24
ALTERNATE = ("arch.encoder_type=in_context", "arch.context_attention=alternate", "arch.L_layers=2")
READ = ("arch.encoder_type=in_context", "arch.context_mode=read", "arch.context_attention=alternate")
ALL_PAIRS = (*READ[:2], "arch.context_attention=pair", "arch.targets=all_pairs", "arch.query_as_context=true")
# Synchronisations of a step: packing the encoder's and the decoder's tokens, and picking the valid pairs; for
# `in_context` the length of the longest context, and packing it; where it is read, encoder and decoder pack it;
# which pairs are targets, and what each of them reads.
MODELS = [
    pytest.param(TRM, (), 1, id="trm"),
    pytest.param(ETRM, ("arch.encoder_type=standard",), 3, id="standard"),
    pytest.param(ETRM, ("arch.encoder_type=hybrid_standard",), 3, id="hybrid_standard"),
    pytest.param(ETRM, ("arch.encoder_type=hybrid_variational",), 3, id="hybrid_variational"),
    pytest.param(ETRM, ("arch.encoder_type=lpn_standard",), 2, id="lpn_standard"),
    pytest.param(ETRM, ("arch.encoder_type=lpn_variational",), 2, id="lpn_variational"),
    pytest.param(ETRM, ("arch.encoder_type=in_context", "arch.grid_coordinates=both"), 2, id="in_context"),
    pytest.param(ETRM, ALTERNATE, 2, id="in_context, alternating"),
    pytest.param(ETRM, (*ALTERNATE, "arch.grid_conv=true"), 2, id="in_context, convolving"),
    pytest.param(ETRM, READ, 4, id="in_context, read"),
    pytest.param(ETRM, ALL_PAIRS, 6, id="in_context, all pairs"),
    pytest.param(ETRMTRM, ("arch.recurrent_encoder_type=recurrent_standard",), 3, id="A"),
    pytest.param(ETRMTRM, ("arch.recurrent_encoder_type=trm_style",), 2, id="B"),
    pytest.param(ETRMTRM, ("arch.recurrent_encoder_type=in_context",), 3, id="C"),
    pytest.param(ETRMTRM, ("arch.recurrent_encoder_type=in_context", "arch.grid_conv=true"), 3, id="C, convolving"),
    pytest.param(HYBRID, (f"arch.text_hidden_size={TEXT_WIDTH}",), 1, id="hybrid"),
]


class CountedSizes(TorchDispatchMode):
    """Answers `nonzero` (and a boolean index, which calls it) with half of the elements, what else is copied to the
    host with sevens, and counts such questions."""

    def __init__(self) -> None:
        super().__init__()
        self.questions = 0
        self.values_asked = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:
            self.questions += 1
            return torch.empty(args[0].numel() // 2, args[0].dim(), dtype=torch.int64, device="meta")
        if func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.questions += 1
            (mask,) = args[1]
            return args[0].new_empty(mask.numel() // 2, *args[0].shape[mask.dim() :])
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("device") == torch.device("cpu"):
            self.questions += 1
            return torch.full(args[0].shape, 7, dtype=args[0].dtype)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            self.values_asked += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "overrides", "synchronisations"), MODELS)
def test_a_training_step_on_cudas_path_asks_for_no_value_beyond_what_packing_needs(
    shrunk_config: Load,
    store: PuzzleStore,
    batch: Batch,
    name: str,
    overrides: tuple[str, ...],
    synchronisations: int,
) -> None:
    config = shrunk_config("arch.forward_dtype=bfloat16", *overrides, config_name=name)
    model = create_model(config.arch, store.metadata).to("meta").train()
    head = create_loss_head(config.arch, model)
    latents = {"z_init": torch.randn(6, TEXT_WIDTH)} if name == HYBRID else {}
    on_meta = {key: value.to("meta") for key, value in (batch | latents).items()}
    carry = model.initial_carry(on_meta)
    with CountedSizes() as counted:
        carry, loss, sums, _ = head(carry, on_meta)
        loss.backward()
    assert loss.device.type == "meta"
    assert (counted.questions, counted.values_asked) == (synchronisations, 0)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(value.dim() == 0 for value in sums.values())
    if isinstance(carry.inner_carry, RaggedInnerCarry):
        assert carry.inner_carry.z_H.shape[1:] == (32,)
    else:
        assert carry.inner_carry.z_H.shape == (6, 900 if name == HYBRID else 916, 32)


def test_asking_for_a_value_is_noticed() -> None:
    with pytest.raises(RuntimeError), CountedSizes():
        float(torch.ones(3, device="meta").sum())


def compiled_packing(store: PuzzleStore, number: int, inner: Any) -> tuple[Packing, Tensor, Any]:
    batch = small_batch(store, 6, number=number)
    active = inner.active_cells(batch)
    packing, _ = inner.inner._packed(fixed_length_output(torch.zeros(6, 16, 32)), active)
    x = torch.randn(len(packing.rows), 32)
    return packing, x, inner.inner.position_encoding.rotary(packing.positions)


@pytest.mark.parametrize("overrides", [(), ("arch.grid_conv=true",)])
def test_the_recursion_compiles_as_one_graph_and_never_again(
    shrunk_config: Load, store: PuzzleStore, overrides: tuple[str, ...]
) -> None:
    """All H and L cycles, over batches of other lengths and other groups."""
    model = create_model(shrunk_config(*overrides).arch, store.metadata)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    reason = torch.compile(model.inner._reason, backend="aot_eager", fullgraph=True, dynamic=True)
    graphs = []
    for number in range(4):
        packing, x, rotary = compiled_packing(store, number, model)
        z_H, z_L = torch.randn_like(x), torch.randn_like(x)
        found = reason(z_H, z_L, x, packing, rotary)
        expected = model.inner._reason(z_H, z_L, x, packing, rotary)
        for ours, plain in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == [1] * 4


@pytest.mark.parametrize(
    ("name", "overrides"), [(TRM, ()), (ETRM, ()), (ETRMTRM, ()), (ETRM, ("arch.grid_conv=true",))]
)
def test_compiled_blocks_train_as_plain_ones_and_compile_no_further(
    shrunk_config: Load, store: PuzzleStore, name: str, overrides: tuple[str, ...]
) -> None:
    config = shrunk_config(*overrides, config_name=name)
    plain = create_model(config.arch, store.metadata)
    compiled = create_model(config.arch, store.metadata)
    compiled.load_state_dict(plain.state_dict())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(compiled, backend="aot_eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    graphs = []
    for number in range(4):
        batch = small_batch(store, 6, number=number)
        losses = []
        for model in (plain, compiled):
            model.zero_grad()
            _, loss, _, _ = create_loss_head(config.arch, model)(model.initial_carry(batch), batch)
            loss.backward()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)
        for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-2)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[1:] == graphs[:1] * 3
    assert not torch._dynamo.utils.counters["graph_break"]


def test_what_auto_means() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [wants_compiling(c, d) for c in ("auto", "on", "off") for d in (cpu, cuda)] == [
        *(False, True),
        *(True, True),
        *(False, False),
    ]
    assert best_dtype(cpu) in ("bfloat16", "float32")


def test_a_model_made_with_dtype_auto_computes_in_the_machines_best(shrunk_config: Load, store: PuzzleStore) -> None:
    model = create_model(shrunk_config("arch.forward_dtype=auto").arch, store.metadata)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert str(model.inner.dtype) == f"torch.{best_dtype(device)}"


@pytest.mark.parametrize("lengths", [[5, 7, 8, 40], [30], [1, 1, 2]])
def test_bfloat16_attention_has_the_gradients_of_float32(lengths: list[int]) -> None:
    """On lengths that share a padded group."""
    mask = torch.arange(40) < torch.tensor(lengths)[:, None]
    packing = pack(mask, by_view=True)
    block = TransformerBlock(32, 2, 4)
    rotary = tuple(torch.ones(len(packing.rows), 1, 8) * 0.7 for _ in range(2))
    x = torch.randn(len(packing.rows), 32)
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = x.detach().to(dtype, copy=True).requires_grad_()
        block.self_attn(inputs, packing, rotary).float().square().sum().backward()
        assert inputs.grad is not None
        grads.append(inputs.grad.float())
    error = (grads[0] - grads[1]).norm() / grads[0].norm()
    assert error < 0.03
