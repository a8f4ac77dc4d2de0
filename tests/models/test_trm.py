"""TRM: the published model's arithmetic, puzzle embeddings, and what trains them."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from config.schema import TrainConfig
from dataset.fewshot_puzzle_dataset import Batch
from dataset.store import PuzzleStore
from models import create_model
from models.losses import create_loss_head
from models.recursive_reasoning.trm import TRM

Load = Callable[..., TrainConfig]
TRM_CONFIG = "cfg_pretrain_trm_arc_agi_1"


def published_step(
    state: dict[str, Tensor], z_H: Tensor, z_L: Tensor, inputs: Tensor, identifiers: Tensor, arch: dict[str, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One ACT step as the paper's pseudocode has it, on the whole padded batch, from a state dict alone."""
    hidden, heads, slots = arch["hidden_size"], arch["num_heads"], arch["puzzle_emb_len"]
    head_dim = hidden // heads
    rows = state["puzzle_emb.weights"][identifiers]
    context = F.pad(rows, (0, slots * hidden - rows.shape[1])).view(-1, slots, hidden)
    x = math.sqrt(hidden) * torch.cat([context, state["embed_tokens.embedding_weight"][inputs.long()]], dim=1)
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    angles = torch.outer(torch.arange(x.shape[1], dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]

    def norm(h: Tensor) -> Tensor:
        return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-5)

    def rotate(h: Tensor) -> Tensor:
        first, second = h.chunk(2, dim=-1)
        return h * cos + torch.cat([-second, first], dim=-1) * sin

    def swiglu(h: Tensor, name: str) -> Tensor:
        gate, up = F.linear(h, state[f"{name}.gate_up_proj.weight"]).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, state[f"{name}.down_proj.weight"])

    def attention(h: Tensor, name: str) -> Tensor:
        qkv = F.linear(h, state[f"{name}.qkv_proj.weight"]).view(*h.shape[:2], 3, heads, head_dim)
        q, k, v = (part.transpose(1, 2) for part in (rotate(qkv[:, :, 0]), rotate(qkv[:, :, 1]), qkv[:, :, 2]))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return F.linear(out, state[f"{name}.o_proj.weight"])

    def level(h: Tensor, injection: Tensor) -> Tensor:
        h = h + injection
        for layer in range(arch["L_layers"]):
            name = f"L_level.layers.{layer}"
            if arch["mlp_t"]:
                turned = h.transpose(1, 2)
                h = norm(turned + swiglu(turned, f"{name}.mlp_t")).transpose(1, 2)
            else:
                h = norm(h + attention(h, f"{name}.self_attn"))
            h = norm(h + swiglu(h, f"{name}.mlp"))
        return h

    for _ in range(arch["H_cycles"]):
        for _ in range(arch["L_cycles"]):
            z_L = level(z_L, z_H + x)
        z_H = level(z_H, z_L)
    logits = F.linear(z_H, state["lm_head.weight"])[:, slots:]
    return z_H, z_L, logits, F.linear(z_H[:, 0], state["q_head.weight"], state["q_head.bias"])


@pytest.mark.parametrize("mlp_t", [False, True])
@pytest.mark.parametrize(("hidden", "heads", "layers"), [(48, 2, 2), (64, 4, 1)])
def test_the_full_canvas_equals_the_published_arithmetic_in_float32(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, hidden: int, heads: int, layers: int, mlp_t: bool
) -> None:
    """Four ACT steps, also of untrained weights, whose recursion magnifies every difference of rounding."""
    config = shrunk_config(
        f"arch.hidden_size={hidden}",
        f"arch.num_heads={heads}",
        f"arch.L_layers={layers}",
        f"arch.mlp_t={mlp_t}",
        "arch.expansion=1",
        "arch.canvas=full",
        "arch.H_cycles=2",
        "arch.L_cycles=3",
        config_name=TRM_CONFIG,
    ).arch
    model = create_model(config, store.metadata).eval()
    torch.nn.init.normal_(model.inner.q_head.weight, std=0.1)
    torch.nn.init.normal_(model.inner.puzzle_emb.weights)
    batch = {key: value[:2] for key, value in batch.items()}
    carry = model.initial_carry(batch)
    z_H, z_L = carry.inner_carry.z_H, carry.inner_carry.z_L
    state = model.inner.state_dict()
    with torch.no_grad():
        for _ in range(4):
            carry, outputs = model(carry, batch)
            z_H, z_L, logits, q = published_step(
                state, z_H, z_L, batch["inputs"], batch["puzzle_identifiers"], config.model_dump()
            )
            q_values = torch.stack([outputs["q_halt_logits"], outputs["q_continue_logits"]], dim=1)
            torch.testing.assert_close(outputs["logits"], logits, atol=1e-4, rtol=0)
            torch.testing.assert_close(q_values, q, atol=1e-4, rtol=0)
            torch.testing.assert_close(carry.inner_carry.z_H, z_H, atol=1e-4, rtol=0)
            torch.testing.assert_close(carry.inner_carry.z_L, z_L, atol=1e-4, rtol=0)
    assert outputs["logits"].std() > 0.1


def trm(config: TrainConfig, store: PuzzleStore) -> TRM:
    model = create_model(config.arch, store.metadata)
    assert isinstance(model, TRM)
    return model


def test_a_puzzle_has_one_row_for_each_augmentation_from_zero(shrunk_config: Load, store: PuzzleStore) -> None:
    weights = trm(shrunk_config("arch.puzzle_emb_ndim=40", config_name=TRM_CONFIG), store).inner.puzzle_emb.weights
    assert weights.shape == (len(store.dihedral) + 1, 40)
    assert not weights.any()


def test_the_embedding_fills_the_context_slots_in_order_and_zeros_the_rest(
    shrunk_config: Load, store: PuzzleStore
) -> None:
    model = trm(shrunk_config("arch.puzzle_emb_ndim=40", "arch.puzzle_emb_len=2", config_name=TRM_CONFIG), store)
    torch.nn.init.normal_(model.inner.puzzle_emb.weights)
    output = model.inner.puzzle_context(torch.tensor([3, 5], dtype=torch.int32))
    assert output.context.shape == (2, 2, 32)
    for sample, row in enumerate((3, 5)):
        flat = output.context[sample].flatten()
        assert torch.equal(flat[:40], model.inner.puzzle_emb.weights[row])
        assert not flat[40:].any()


@pytest.mark.parametrize("mlp_t", [False, True])
def test_one_step_gives_every_parameter_and_every_row_of_the_batch_a_gradient(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, mlp_t: bool
) -> None:
    config = shrunk_config(f"arch.mlp_t={mlp_t}", "arch.canvas=full", config_name=TRM_CONFIG)
    batch = {key: value[:3] for key, value in batch.items()}
    model = trm(config, store).train()
    # Weights from zero give the first context no gradient through the norms' inputs alone.
    torch.nn.init.normal_(model.inner.puzzle_emb.weights)
    _, loss, _, _ = create_loss_head(config.arch, model)(model.initial_carry(batch), batch)
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert model.inner.puzzle_emb.touched is not None
    identifiers, rows = model.inner.puzzle_emb.touched
    assert torch.equal(identifiers, batch["puzzle_identifiers"])
    assert rows.grad is not None
    assert (rows.grad != 0).any(dim=1).all()


def test_the_context_is_the_puzzles_and_nothing_of_the_demonstrations(
    shrunk_config: Load, store: PuzzleStore, batch: Batch
) -> None:
    model = trm(shrunk_config("arch.canvas=full", config_name=TRM_CONFIG), store).eval()
    torch.nn.init.normal_(model.inner.puzzle_emb.weights)
    batch = {key: value[:3] for key, value in batch.items()}
    *_, outputs = model.rollout(batch)
    *_, without = model.rollout({**batch, "demo_mask": torch.zeros_like(batch["demo_mask"])})
    *_, other = model.rollout({**batch, "puzzle_identifiers": batch["puzzle_identifiers"] + 1})
    assert torch.equal(outputs["logits"], without["logits"])
    assert (outputs["logits"] != other["logits"]).any(dim=(1, 2)).all()
