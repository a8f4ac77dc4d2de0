"""Attention, packing and the small blocks, against naive loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.attention import written_out_backward
from models.layers import (
    Linear,
    RotaryTable,
    SwiGLU,
    TokenEmbedding,
    apply_rotary,
    attend,
    rms_norm,
    swiglu_width,
    trunc_normal_,
)
from models.packing import pack, pack_all
from models.segments import Segments

lengths_strategy = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=7)


def starts(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def naive_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v for one sequence, written out head by head."""
    heads = []
    for h in range(q.shape[1]):
        if len(k) == 0:
            heads.append(torch.zeros_like(q[:, h]))
            continue
        scores = q[:, h] @ k[:, h].T / math.sqrt(q.shape[-1])
        heads.append(torch.softmax(scores, dim=-1) @ v[:, h])
    return torch.stack(heads, dim=1)


@pytest.mark.parametrize("keys", [(5, 5), (2, 5)], ids=["whole", "masked"])
def test_the_backward_pass_that_is_written_out_is_that_of_the_formula(keys: tuple[int, int]) -> None:
    q, k, v, d_out = (torch.randn(2, 3, length, 4, dtype=torch.float64) for length in (6, 5, 5, 6))
    real = torch.arange(5) < torch.tensor(keys)[:, None]
    bias = torch.zeros(2, 5, dtype=torch.float64).masked_fill(~real, -math.inf)[:, None, None]
    attached = [x.clone().requires_grad_() for x in (q, k, v)]
    rows = [x.transpose(1, 2) for x in attached]
    out = torch.stack([naive_attention(rows[0][i], rows[1][i, :n], rows[2][i, :n]) for i, n in enumerate(keys)])
    expected = torch.autograd.grad(out, attached, d_out.transpose(1, 2))
    found = written_out_backward(q, k, v, d_out, None if all(n == 5 for n in keys) else bias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@given(lengths=lengths_strategy)
@settings(max_examples=40, deadline=None)
def test_attend_equals_a_loop_over_sequences_forward_and_backward(lengths: list[tuple[int, int]]) -> None:
    q_lengths, k_lengths = [a for a, _ in lengths], [b for _, b in lengths]
    cu_q, cu_k = starts(q_lengths), starts(k_lengths)
    generator = torch.Generator().manual_seed(len(lengths))
    q, k, v = (
        torch.randn(int(n), 2, 8, generator=generator, requires_grad=True) for n in (cu_q[-1], cu_k[-1], cu_k[-1])
    )
    out = attend(q, k, v, Segments(cu_q, cu_k, 40, 40))
    parts = [
        naive_attention(q[cu_q[i] : cu_q[i + 1]], k[cu_k[i] : cu_k[i + 1]], v[cu_k[i] : cu_k[i + 1]])
        for i in range(len(lengths))
    ]
    expected = torch.cat(parts)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    if not any(a and b for a, b in lengths):
        return  # no sequence with both queries and keys: nothing to differentiate
    weights = torch.randn(out.shape, generator=generator)
    grads = torch.autograd.grad((out * weights).sum(), (q, k, v))
    naive_grads = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    for grad, naive in zip(grads, naive_grads, strict=True):
        torch.testing.assert_close(grad, naive, atol=1e-5, rtol=1e-5)


def random_mask(lengths: list[int], width: int) -> Tensor:
    """Rows with the given number of valid tokens at random places."""
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, torch.randperm(width)[:length]] = True
    return mask


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=9), by_view=st.booleans())
@settings(max_examples=40, deadline=None)
def test_packed_attention_sees_only_its_own_sequence_and_scatter_inverts_gather(
    lengths: list[int], by_view: bool
) -> None:
    mask = random_mask(lengths, 60)
    packing = pack(mask, by_view=by_view)
    padded = torch.randn(len(lengths), 60, 2, 4)
    x = packing.gather(padded)
    cu, longest = packing.cu_seqlens, packing.max_seqlen
    out = attend(x, x, x, Segments(cu, cu, longest, longest), runs=packing.runs) if len(x) else x
    scattered = packing.scatter(out, torch.zeros_like(padded))
    for row in range(len(lengths)):
        tokens = padded[row][mask[row]]
        torch.testing.assert_close(scattered[row][mask[row]], naive_attention(tokens, tokens, tokens))
        assert not scattered[row][~mask[row]].any()
        if lengths[row]:
            assert torch.equal(x[packing.first_row[row]], tokens[0])
    assert torch.equal(packing.scatter(x, torch.zeros_like(padded)), padded * mask[..., None, None])


@pytest.mark.parametrize("by_view", [True, False])
def test_packed_mean_is_the_mean_over_valid_tokens(by_view: bool) -> None:
    mask = random_mask([0, 1, 7, 60, 33], 60)
    padded, weights = torch.randn(5, 60, 3), torch.rand(5, 60)
    packing = pack(mask, by_view=by_view)
    plain = packing.mean(packing.gather(padded))
    weighted = packing.mean(packing.gather(padded), packing.gather(weights))
    assert not plain[0].any()
    assert not weighted[0].any()
    for row in range(1, 5):
        values, w = padded[row][mask[row]], weights[row][mask[row]]
        torch.testing.assert_close(plain[row], values.mean(0))
        torch.testing.assert_close(weighted[row], (values * w[:, None]).sum(0) / w.sum())


@pytest.mark.parametrize("by_view", [True, False])
def test_the_packing_of_complete_sequences_is_that_of_a_full_mask(by_view: bool) -> None:
    found = pack_all(3, 7, torch.device("cpu"), by_view=by_view)
    expected = pack(torch.ones(3, 7, dtype=torch.bool), by_view=by_view)
    for name in ("rows", "sequence", "first_row", "lengths", "cu_seqlens"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert (found.live, found.max_seqlen, found.padded_length) == (None, 7, 7)
    if by_view:
        assert found.runs is not None
        assert expected.runs is not None
        assert torch.equal(found.runs.plan, expected.runs.plan)
        assert torch.equal(found.runs.key_is_real, expected.runs.key_is_real)
    else:
        assert found.runs is expected.runs is None


def test_dead_rows_of_a_packing_pass_no_gradient() -> None:
    mask = random_mask([5, 7, 8, 20], 30)
    packing = pack(mask, by_view=True)
    assert packing.live is not None, "lengths 5, 7 and 8 share a group, so there must be dead rows"
    padded = torch.randn(4, 30, 1, 4, requires_grad=True)
    x = packing.gather(padded)
    x.retain_grad()
    out = attend(x, x, x, packing.segments, runs=packing.runs)
    packing.scatter(out, torch.zeros(4, 30, 1, 4)).square().sum().backward()
    dead = torch.ones(len(x), dtype=torch.bool)
    dead[packing.live] = False
    assert x.grad is not None
    assert dead.any()
    assert not x.grad[dead].any()


def test_rotary_turns_pairs_by_position_and_makes_scores_depend_on_distance_alone() -> None:
    table = RotaryTable(8, 64)
    q, k = torch.randn(8), torch.randn(8)

    def turned(x: Tensor, position: int) -> Tensor:
        """The rotation written out: channels (i, i + 4) by position · 10000^(-2i/8)."""
        out = torch.empty(8)
        for i in range(4):
            angle = position * 10000 ** (-2 * i / 8)
            out[i] = x[i] * math.cos(angle) - x[i + 4] * math.sin(angle)
            out[i + 4] = x[i + 4] * math.cos(angle) + x[i] * math.sin(angle)
        return out

    positions = torch.tensor([0, 3, 63])
    rotated = apply_rotary(q.expand(3, 1, 8), table(positions))
    for row, position in enumerate(positions.tolist()):
        torch.testing.assert_close(rotated[row, 0], turned(q, position))
    scores = [apply_rotary(q.expand(1, 1, 8), table(torch.tensor([p]))) for p in (10, 40)]
    others = [apply_rotary(k.expand(1, 1, 8), table(torch.tensor([p]))) for p in (7, 37)]
    torch.testing.assert_close((scores[0] * others[0]).sum(), (scores[1] * others[1]).sum())


def test_rms_norm_and_swiglu_equal_their_formulas() -> None:
    x = torch.randn(5, 12)
    torch.testing.assert_close(rms_norm(x), x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5))
    mlp = SwiGLU(12, 4)
    gate, up = (x @ mlp.gate_up_proj.weight.T).split(256, dim=-1)
    torch.testing.assert_close(mlp(x), (gate * torch.sigmoid(gate) * up) @ mlp.down_proj.weight.T)


@pytest.mark.parametrize(("width", "expansion", "inner"), [(512, 4, 1536), (128, 4, 512), (64, 4, 256), (916, 4, 2560)])
def test_swiglu_width_is_rounded_up_to_256(width: int, expansion: int, inner: int) -> None:
    assert swiglu_width(width, expansion) == inner
    assert inner >= width * expansion * 2 / 3 > inner - 256


@pytest.mark.parametrize("std", [1.0, 0.05])
def test_truncated_normal_has_the_standard_deviation_asked_for(std: float) -> None:
    values = trunc_normal_(torch.empty(400_000), std)
    assert abs(float(values.std()) / std - 1) < 0.01
    assert float(values.abs().max()) <= 2 * std / 0.8796 + 1e-6


def test_weights_start_at_one_over_root_fan_in() -> None:
    for weight in (Linear(400, 300).weight, TokenEmbedding(300, 400).embedding_weight):
        assert abs(float(weight.detach().std()) * 20 - 1) < 0.02
