"""Blocks shared by every encoder and decoder, all on packed tokens: (tokens, hidden), sequences one after another.

    n tokens   s sequences   l positions of a padded sequence   h heads   d head width

The one attention of the project is in `models/attention.py`; `models/packing.py` says which rows belong to which
sequence.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.answer_rows import AnswerRows
from models.attention import attend
from models.grid_conv import GridConv
from models.memory import Memory, Reading
from models.packing import Packing
from models.segments import Segments

RMS_EPS = 1e-5
ROPE_THETA = 10000.0
# The standard deviation that remains of a unit normal after truncation at ±2.
TRUNCATED_STD = 0.8796256610342398


def trunc_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with a normal truncated at ±2σ whose standard deviation after truncation is really `std`."""
    sigma = std / TRUNCATED_STD
    return nn.init.trunc_normal_(tensor, std=sigma, a=-2 * sigma, b=2 * sigma)


class _StandIn(torch.autograd.Function):
    """A weight's copy in another dtype; each use gives the weight a gradient in its own dtype."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.to(ctx.dtype), None


class Linear(nn.Linear):
    """A linear map with float32 weights, computed in the dtype of its input; weight std 1/√fan_in, bias 0."""

    copy: Tensor | None  # the weight in another dtype, inside `weights_cast_once`

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__(in_features, out_features, bias=bias)
        self.copy = None

    def reset_parameters(self) -> None:
        trunc_normal_(self.weight, self.in_features**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        weight = self.weight.to(input.dtype) if self.copy is None else _StandIn.apply(self.weight, self.copy)
        return F.linear(input, weight, bias)


@contextmanager
def weights_cast_once(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block the linear maps of a module, which compute in `dtype`, have cast their weights; these must not
    change meanwhile. For a network that runs many times in one step."""
    linears = [part for part in module.modules() if isinstance(part, Linear) and part.weight.dtype != dtype]
    for linear in linears:
        linear.copy = linear.weight.detach().to(dtype)
    try:
        yield
    finally:
        for linear in linears:
            linear.copy = None


class TokenEmbedding(nn.Module):
    """Token embeddings of std 1/√hidden, to be multiplied by √hidden where they enter a network."""

    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        self.embedding_weight = nn.Parameter(trunc_normal_(torch.empty(vocab_size, hidden_size), hidden_size**-0.5))

    def forward(self, tokens: Int[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape hidden"]:
        return F.embedding(tokens, self.embedding_weight.to(dtype))


def rms_norm(x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
    """Root-mean-square norm over the last dimension, eps 1e-5, without weights, in the dtype of `x`."""
    return F.rms_norm(x, (x.shape[-1],), eps=RMS_EPS)


class RotaryTable(nn.Module):
    """Cosines and sines of the rotary positions 0..max_positions-1 (rotate-half form, theta 10000)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, max_positions: int):
        super().__init__()
        self.head_dim = head_dim
        for name, values in self._table(max_positions).items():
            self.register_buffer(name, values, persistent=False)

    def _table(self, max_positions: int) -> dict[str, Tensor]:
        frequencies = 1.0 / ROPE_THETA ** (torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim)
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies)
        return {"cos": angles.cos(), "sin": angles.sin()}

    def cover(self, num_positions: int) -> None:
        """Let the table reach to `num_positions` - 1 at least."""
        if num_positions > len(self.cos):
            for name, values in self._table(num_positions).items():
                setattr(self, name, values.to(self.cos))

    def forward(self, positions: Int[Tensor, " n"]) -> tuple[Float[Tensor, "n 1 d/2"], Float[Tensor, "n 1 d/2"]]:
        return self.cos[positions].unsqueeze(-2), self.sin[positions].unsqueeze(-2)


Rotary = tuple[Tensor, Tensor]


def apply_rotary(x: Float[Tensor, "n ... d"], rotary: Rotary) -> Float[Tensor, "n ... d"]:
    """Turn each pair (i, i + d/2) of the last dimension by its position's angles."""
    cos, sin = rotary
    if x.dim() == 4:  # queries and keys at once
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention over packed sequences, rotary positions, fused projection in the order q, k, v.

    With `qk_norm` queries and keys are normed; with `qk_gain` too, and the queries of each head get a learned factor.
    """

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool = False, qk_gain: bool = False):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(num_heads)) if qk_gain else None
        self.num_heads, self.qk_norm = num_heads, qk_norm or qk_gain
        self.qkv_proj = Linear(hidden_size, 3 * hidden_size)
        self.o_proj = Linear(hidden_size, hidden_size)

    def forward(
        self,
        x: Float[Tensor, "n hidden"],
        packing: Packing,
        rotary: Rotary | None,
        memory: Memory | None = None,
        answers: AnswerRows | None = None,
    ) -> Float[Tensor, "rows hidden"]:
        """With a memory each row attends to its own sequence and to what that reads of the memory.

        Args:
            answers: the rows to be computed, without a memory (None: all).
        """
        q, k, v = self._projected(x, rotary)
        if self.gain is not None:
            q = self.gained(q, self.gain)
        if answers is not None:
            out = attend(answers.of(q), k, v, packing.segments, runs=answers.runs)
        elif memory is None:
            out = attend(q, k, v, packing.segments, runs=packing.runs)
        else:
            reading = memory.reading
            keys, values = (
                reading.arranged(torch.cat([own, read])) for own, read in ((k, memory.keys), (v, memory.values))
            )
            out = attend(q, keys, values, reading.segments, runs=reading.runs, keys_are_arranged=True)
        return self.o_proj(rearrange(out, "n h d -> n (h d)"))

    def _projected(self, x: Float[Tensor, "n hidden"], rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (n, h, d) each."""
        qkv = rearrange(self.qkv_proj(x), "n (three h d) -> n three h d", three=3, h=self.num_heads)
        qk, v = qkv.split([2, 1], dim=1)
        if self.qk_norm:
            qk = rms_norm(qk)
        q, k = (qk if rotary is None else apply_rotary(qk, rotary)).unbind(1)
        return q, k, v.squeeze(1)

    def memory(self, tokens: Float[Tensor, "m hidden"], rotary: Rotary | None, reading: Reading) -> Memory:
        """The keys and values of a memory, by the projection that makes those of the rows.

        Args:
            rotary: where its tokens stand.
        """
        _, k, v = self._projected(tokens, rotary)
        return Memory(k, v, reading)

    def gained(self, q: Float[Tensor, "n h d"], gain: Float[Tensor, " h"]) -> Float[Tensor, "n h d"]:
        """Queries times the factor of their head."""
        return q * gain.to(q.dtype)[:, None]


class CrossAttention(nn.Module):
    """Queries of one set of packed sequences attend to the tokens of another.

    `forward` knows no positions. A memory that is read again and again has its keys made once (`memory`), with
    positions, and is then read (`read`).
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = Linear(hidden_size, hidden_size)
        self.kv_proj = Linear(hidden_size, 2 * hidden_size)
        self.o_proj = Linear(hidden_size, hidden_size)

    def forward(
        self,
        x: Float[Tensor, "nq hidden"],
        memory: Float[Tensor, "nk hidden"],
        segments: Segments,
    ) -> Float[Tensor, "nq hidden"]:
        k, v = rearrange(self.kv_proj(memory), "n (two h d) -> two n h d", two=2, h=self.num_heads)
        out = attend(self._queries(x), k, v, segments)
        return self.o_proj(rearrange(out, "n h d -> n (h d)"))

    def _queries(self, x: Float[Tensor, "nq hidden"]) -> Float[Tensor, "nq h d"]:
        return rearrange(self.q_proj(x), "n (h d) -> n h d", h=self.num_heads)

    def memory(self, tokens: Float[Tensor, "m hidden"], rotary: Rotary | None, reading: Reading) -> Memory:
        """The keys and values of a memory.

        Args:
            rotary: where its tokens stand.
        """
        k, v = rearrange(self.kv_proj(tokens), "n (two h d) -> two n h d", two=2, h=self.num_heads)
        k = k if rotary is None else apply_rotary(k, rotary)
        return Memory(reading.arranged(k), reading.arranged(v), reading)

    def read(self, x: Float[Tensor, "nq hidden"], rotary: Rotary | None, memory: Memory) -> Float[Tensor, "nq hidden"]:
        """What each row finds in its sequence's part of the memory; zeros where that is empty."""
        q = self._queries(x)
        q = q if rotary is None else apply_rotary(q, rotary)
        segments, runs = memory.reading.segments, memory.reading.runs
        out = attend(q, memory.keys, memory.values, segments, runs=runs, keys_are_arranged=True)
        return self.o_proj(rearrange(out, "n h d -> n (h d)"))


def swiglu_width(width: int, expansion: float) -> int:
    """Inner width of SwiGLU: expansion · width · 2/3, rounded up to a multiple of 256."""
    return math.ceil(round(expansion * width * 2 / 3) / 256) * 256


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), fused projection in the order gate, up."""

    def __init__(self, width: int, expansion: float):
        super().__init__()
        inner = swiglu_width(width, expansion)
        self.gate_up_proj = Linear(width, 2 * inner)
        self.down_proj = Linear(inner, width)

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up if torch.is_grad_enabled() else F.silu(gate).mul_(up))


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch."""

    def __init__(self, hidden_size: int, init: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((hidden_size,), init))

    def forward(self, x: Float[Tensor, "n hidden"]) -> Float[Tensor, "n hidden"]:
        return x * self.scale.to(x.dtype)


class Residual(nn.Module):
    """x + scale · branch, RMS norm after the sum (`post`) or before the branch (`pre`), optional layer scale."""

    def __init__(
        self,
        hidden_size: int,
        norm_style: str = "post",
        layer_scale_init: float | None = None,
        residual_scale: float = 1.0,
    ):
        super().__init__()
        self.is_pre, self.residual_scale = norm_style == "pre", residual_scale
        self.layer_scale = nn.Identity() if layer_scale_init is None else LayerScale(hidden_size, layer_scale_init)

    def before(self, x: Tensor) -> Tensor:
        """What the branch reads."""
        return rms_norm(x) if self.is_pre else x

    def after(self, x: Tensor, branch: Tensor) -> Tensor:
        """What the block goes on with."""
        branch = self.layer_scale(branch)
        branch = branch if self.residual_scale == 1 else self.residual_scale * branch
        total = branch.add_(x)  # a tensor that nobody else has: a product's, or a multiple of it
        return total if self.is_pre else rms_norm(total)


class TransformerBlock(nn.Module):
    """Self-attention and SwiGLU, each a residual branch; with `grid_conv` before them a convolution over the cells of
    each grid.

    It stands on the block's input, where a row has `hidden_size` channels and not the several times as many of the
    MLP's expansion, and where attention compares cells that know their neighbours.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        expansion: float,
        norm_style: str = "post",
        layer_scale_init: float | None = None,
        qk_norm: bool = False,
        residual_scale: float = 1.0,
        qk_gain: bool = False,
        grid_conv: bool = False,
    ):
        super().__init__()
        self.grid_conv = GridConv(hidden_size) if grid_conv else None
        self.self_attn = SelfAttention(hidden_size, num_heads, qk_norm, qk_gain)
        self.mlp = SwiGLU(hidden_size, expansion)
        self.attn_residual = Residual(hidden_size, norm_style, layer_scale_init, residual_scale)
        self.mlp_residual = Residual(hidden_size, norm_style, layer_scale_init, residual_scale)

    def forward(
        self,
        x: Float[Tensor, "n hidden"],
        packing: Packing,
        rotary: Rotary | None,
        memory: Memory | None = None,
        answers: AnswerRows | None = None,
    ) -> Float[Tensor, "rows hidden"]:
        """
        Args:
            answers: the rows to be computed, without a memory (None: all).
        """
        if self.grid_conv is not None:
            x = self.grid_conv(x, packing)
        branch = self.self_attn(self.attn_residual.before(x), packing, rotary, memory, answers)
        x = self.attn_residual.after(x if answers is None else answers.of(x), branch)
        return self.mlp_residual.after(x, self.mlp(self.mlp_residual.before(x)))


class ReadingBlock(TransformerBlock):
    """Self-attention, cross-attention to a memory, and SwiGLU, each a post-norm residual branch."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        expansion: float,
        residual_scale: float = 1.0,
        qk_gain: bool = False,
        grid_conv: bool = False,
    ):
        options = {"residual_scale": residual_scale, "qk_gain": qk_gain, "grid_conv": grid_conv}
        super().__init__(hidden_size, num_heads, expansion, **options)
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.cross_residual = Residual(hidden_size, residual_scale=residual_scale)

    def forward(
        self,
        x: Float[Tensor, "n hidden"],
        packing: Packing,
        rotary: Rotary | None,
        memory: Memory | None = None,
        answers: AnswerRows | None = None,
    ) -> Float[Tensor, "n hidden"]:
        assert memory is not None
        assert answers is None, "a block that reads computes all rows"
        if self.grid_conv is not None:
            x = self.grid_conv(x, packing)
        x = self.attn_residual.after(x, self.self_attn(x, packing, rotary))
        x = self.cross_residual.after(x, self.cross_attn.read(x, rotary, memory))
        return self.mlp_residual.after(x, self.mlp(x))


class MixerBlock(nn.Module):
    """The block without attention (`mlp_t`): a SwiGLU over positions in its place; every sequence must be complete.

    The norm that follows it is taken over positions too, as published checkpoints of this variant need it.
    """

    def __init__(self, hidden_size: int, sequence_length: int, expansion: float):
        super().__init__()
        self.sequence_length = sequence_length
        self.mlp_t = SwiGLU(sequence_length, expansion)
        self.mlp = SwiGLU(hidden_size, expansion)

    def forward(
        self, x: Float[Tensor, "n hidden"], packing: Packing, rotary: Rotary | None
    ) -> Float[Tensor, "n hidden"]:
        by_channel = rearrange(x, "(s l) c -> s c l", l=self.sequence_length)
        x = rearrange(rms_norm(by_channel + self.mlp_t(by_channel)), "s c l -> (s l) c")
        return rms_norm(x + self.mlp(x))


class CrossBlock(nn.Module):
    """Cross-attention and SwiGLU, each a post-norm residual branch."""

    def __init__(self, hidden_size: int, num_heads: int, expansion: float, residual_scale: float = 1.0):
        super().__init__()
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.mlp = SwiGLU(hidden_size, expansion)
        self.residual = Residual(hidden_size, residual_scale=residual_scale)

    def forward(
        self,
        x: Float[Tensor, "nq hidden"],
        memory: Float[Tensor, "nk hidden"],
        segments: Segments,
    ) -> Float[Tensor, "nq hidden"]:
        x = self.residual.after(x, self.cross_attn(x, memory, segments))
        return self.residual.after(x, self.mlp(x))
