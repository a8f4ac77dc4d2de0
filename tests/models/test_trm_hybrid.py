"""The TRM hybrid's decoder: its arithmetic, what conditions it, and the frozen language model beside it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from config.schema import TrainConfig
from dataset.fewshot_puzzle_dataset import Batch, FewshotEvalDataset
from dataset.store import PuzzleStore
from learning.adam_atan2 import AdamATan2
from learning.groups import GroupOptions, parameter_groups
from models import create_model
from models.canvas import task_canvas
from models.language_models import locate_model
from models.losses import create_loss_head
from models.recursive_reasoning.trm_hybrid import HybridTRM_Inner, HybridTRMConfig, HybridTRMInnerCarry, HybridTRMModel
from models.text_reasoning import TextReasoningModule
from tests.reference import cross_attention, post_norm_block, rms, swiglu

Load = Callable[..., TrainConfig]
HYBRID = "cfg_pretrain_trm_hybrid"
SMALL = HybridTRMConfig(hidden_size=32, num_heads=2, L_layers=1, text_hidden_size=24, forward_dtype="float32")
CPU = torch.device("cpu")


@pytest.fixture
def queries(store: PuzzleStore) -> Batch:
    """Four untranslated queries of small puzzles, with latents of width 24 and hidden states of 5 or 3 tokens."""
    data = FewshotEvalDataset(store, batch_size=4, split="train", max_demos=3, max_groups=8, max_augmentations=1)
    batch = {key: value for key, value in data[0].items() if key != "query_indices"}
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 3:] = False
    return batch | {"z_init": torch.randn(4, 24), "text_states": torch.randn(4, 5, 24), "text_mask": mask}


def test_the_defaults_are_those_of_the_design() -> None:
    config = HybridTRMConfig()
    sizes = (config.H_cycles, config.L_cycles, config.L_layers, config.hidden_size, config.text_hidden_size)
    assert sizes == (2, 1, 4, 512, 4096)
    inner = HybridTRM_Inner(config)
    assert inner.z_projection.weight.shape == (512, 4096)


@pytest.mark.parametrize("canvas", ["task", "full"])
@pytest.mark.parametrize("conditioning", ["z_init", "cross_attention"])
def test_shapes_of_logits_and_carry(queries: Batch, conditioning: str, canvas: str) -> None:
    config = replace(SMALL, conditioning=conditioning, canvas=canvas)  # pyright: ignore[reportArgumentType]
    model = HybridTRMModel(config).train()
    carry, outputs = model(model.initial_carry(queries), queries)
    assert outputs["logits"].shape == (4, 900, 12)
    assert outputs["q_halt_logits"].shape == outputs["q_continue_logits"].shape == (4,)
    assert isinstance(carry.inner_carry, HybridTRMInnerCarry)
    assert carry.inner_carry.z_H.shape == carry.inner_carry.z_L.shape == (4, 900, 32)
    assert not carry.inner_carry.z_H.requires_grad


def test_z_init_reaches_every_cell_alike_and_the_grid_each_its_own(queries: Batch) -> None:
    inner = HybridTRM_Inner(SMALL)
    grid = queries["inputs"]
    embedded = inner._input_embeddings(queries["z_init"], grid)
    assert embedded.shape == (4, 900, 32)
    without = inner._input_embeddings(torch.zeros(4, 24), grid)
    projected = rms(queries["z_init"]) @ inner.z_projection.weight.T
    torch.testing.assert_close(embedded - without, projected[:, None].expand(4, 900, 32), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(without, 32**0.5 * inner.embed_tokens.embedding_weight[grid.long()])


def test_every_cells_logits_answer_to_z_init(queries: Batch) -> None:
    inner = HybridTRM_Inner(SMALL)
    z_init = queries["z_init"][:1].requires_grad_()
    _, logits, _ = inner(inner.initial_carry(1, CPU), z_init, queries["inputs"][:1])
    for cell in range(0, 900, 59):
        (gradient,) = torch.autograd.grad(logits[0, cell, 3], z_init, retain_graph=True)
        assert gradient.abs().sum() > 0, cell


def naive_step(
    inner: HybridTRM_Inner, z_H: Tensor, z_L: Tensor, grid: Tensor, z_init: Tensor, memory: Tensor | None, cells: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One ACT step of one sample over its cells: (z_H, z_L, logits, q)."""
    config = inner.config
    embedded = inner.embed_tokens.embedding_weight[grid.long()[cells]]
    x = config.hidden_size**0.5 * embedded + rms(z_init) @ inner.z_projection.weight.T

    def level(h: Tensor) -> Tensor:
        for block in inner.L_level.layers:
            h = post_norm_block(h, block, cells)
        return h

    def read(h: Tensor) -> Tensor:
        if memory is None:
            return h
        tokens = rms(memory) @ inner.memory_projection.weight.T
        h = rms(h + cross_attention(h, tokens, inner.memory_block.cross_attn))
        return rms(h + swiglu(h, inner.memory_block.mlp))

    for cycle in range(config.H_cycles):
        with torch.set_grad_enabled(cycle == config.H_cycles - 1):
            for _ in range(config.L_cycles):
                z_L = level(z_L + (z_H + x))
            z_H = level(z_H + read(z_L))
    q = inner.q_head.weight @ z_H.mean(0) + inner.q_head.bias
    return z_H, z_L, z_H @ inner.lm_head.weight.T, q


@pytest.mark.parametrize("conditioning", ["z_init", "cross_attention"])
def test_two_steps_equal_the_naive_loop_with_gradients(queries: Batch, conditioning: str) -> None:
    """In float64: the recursion of untrained weights is chaotic. Each sample reads its own text alone."""
    config = replace(SMALL, conditioning=conditioning, L_cycles=2)  # pyright: ignore[reportArgumentType]
    inner = HybridTRM_Inner(config).double()
    inner.dtype = torch.float64
    torch.nn.init.normal_(inner.q_head.weight)
    with_memory = conditioning == "cross_attention"
    active = task_canvas(queries, include_labels=True)
    mask = queries["text_mask"]
    memory = queries["text_states"].double() if with_memory else None
    z_init = queries["z_init"].double().requires_grad_()
    carry = inner.initial_carry(4, CPU)
    naive = [(inner.H_init.expand(int(n), -1), inner.L_init.expand(int(n), -1)) for n in active.sum(1)]
    for _ in range(2):
        carry, logits, (q_halt, q_continue) = inner(
            carry, z_init, queries["inputs"], active=active, memory=memory, memory_mask=mask
        )
        naive_loss = torch.zeros(())
        for i in range(4):
            cells = torch.nonzero(active[i]).squeeze(-1)
            own = None if memory is None else memory[i][mask[i]]
            z_H, z_L, expected, q = naive_step(inner, *naive[i], queries["inputs"][i], z_init[i], own, cells)
            torch.testing.assert_close(logits[i][cells], expected.float(), atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(torch.stack([q_halt[i], q_continue[i]]), q, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(carry.z_H[i][cells], z_H, atol=1e-6, rtol=1e-6)
            naive[i] = (z_H.detach(), z_L.detach())
            naive_loss = naive_loss + expected.square().mean() + q.sum()
            assert (logits[i][~active[i]].argmax(-1) == 0).all()
        loss = sum(logits[i][active[i]].square().mean() + q_halt[i] + q_continue[i] for i in range(4))
        variables = [z_init, *inner.parameters()]
        ours, reference = (torch.autograd.grad(value, variables, retain_graph=True) for value in (loss, naive_loss))
        for one, other in zip(ours, reference, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_reset_takes_the_initial_latents_where_the_flag_is_set() -> None:
    inner = HybridTRM_Inner(SMALL)
    carry = HybridTRMInnerCarry(torch.randn(2, 900, 32), torch.randn(2, 900, 32))
    reset = inner.reset_carry(torch.tensor([True, False]), carry)
    assert torch.equal(reset.z_H[0], inner.H_init.expand(900, 32))
    assert torch.equal(reset.z_L[0], inner.L_init.expand(900, 32))
    assert torch.equal(reset.z_H[1], carry.z_H[1])
    assert torch.equal(reset.z_L[1], carry.z_L[1])


def test_every_parameter_gets_a_gradient_from_one_step(shrunk_config: Load, store: PuzzleStore, queries: Batch) -> None:
    for conditioning in ("z_init", "cross_attention"):
        overrides = (f"arch.conditioning={conditioning}", "arch.text_hidden_size=24")
        config = shrunk_config(*overrides, config_name=HYBRID).arch
        model = create_model(config, store.metadata).train()
        _, loss, _, _ = create_loss_head(config, model)(model.initial_carry(queries), queries)
        loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_batch_without_latents_or_texts_is_refused(queries: Batch) -> None:
    model = HybridTRMModel(SMALL)
    bare = {key: value for key, value in queries.items() if key != "z_init"}
    with pytest.raises(ValueError, match=r"no z_init.*text_module"):
        model(model.initial_carry(bare), bare)
    model = HybridTRMModel(replace(SMALL, conditioning="cross_attention"))
    bare = {key: value for key, value in queries.items() if key != "text_states"}
    with pytest.raises(ValueError, match="cross_attention needs memory"):
        model(model.initial_carry(bare), bare)


def test_the_language_model_never_changes_and_gets_no_gradient(
    tiny_llama: Path, shrunk_config: Load, queries: Batch
) -> None:
    """Three optimizer steps with the language model in the model, over the groups that training makes."""
    config = shrunk_config("arch.text_hidden_size=32", f"arch.text_model={tiny_llama}", config_name=HYBRID).arch
    source = locate_model(str(tiny_llama), None, True)
    text_module = TextReasoningModule(source, layer=-1, pooling="last", dtype="float32", device=CPU)
    before = {name: p.clone() for name, p in text_module.named_parameters()}
    model = HybridTRMModel(config, text_module).train()
    assert not any(module.training for module in text_module.modules())
    groups = parameter_groups(model, {"text_module": GroupOptions(frozen=True)})
    assert [group["name"] for group in groups] == ["inner"]
    optimizer = AdamATan2(groups, lr=1e-2)
    head = create_loss_head(config, model)
    texts = {key: value for key, value in queries.items() if key not in ("z_init", "text_states")}
    texts["text_tokens"] = torch.randint(6, 1000, (4, 5))
    losses = []
    for _ in range(3):
        _, loss, _, _ = head(model.initial_carry(texts), texts)
        loss.backward()
        assert all(p.grad is None for p in text_module.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    assert all(torch.equal(before[name], p) for name, p in text_module.named_parameters())
