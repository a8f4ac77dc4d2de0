"""Naive references, written from the papers' formulas: one sequence at a time, no packing, no shared blocks."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.grids import COLOR_OFFSET


def rms(x: Tensor) -> Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate-half rotary embedding of (tokens, width) at theta 10000."""
    width = x.shape[-1]
    angles = positions[:, None] * (1 / 10000.0 ** (torch.arange(0, width, 2) / width))
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
    half_turned = torch.cat([-x[:, width // 2 :], x[:, : width // 2]], -1)
    return x * cos + half_turned * sin


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.T / math.sqrt(q.shape[-1]), -1) @ v


def self_attention(
    x: Tensor,
    attention: Any,
    positions: Tensor,
    qk_norm: bool = False,
    evidence: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """With the keys and values of evidence (`keys_and_values`) these stand beside those of x."""
    hidden, heads = x.shape[-1], attention.num_heads
    q = x @ attention.qkv_proj.weight[:hidden].T
    made = [keys_and_values(x, attention, positions, qk_norm), *([] if evidence is None else [evidence])]
    k, v = (torch.cat(parts) for parts in zip(*made, strict=True))
    outputs = []
    for h in range(heads):
        part = slice(h * hidden // heads, (h + 1) * hidden // heads)
        queries = q[:, part]
        if qk_norm or attention.gain is not None:
            queries = rms(queries)
        if attention.gain is not None:
            queries = queries * attention.gain[h]
        outputs.append(softmax_attention(rotate(queries, positions), k[:, part], v[:, part]))
    return torch.cat(outputs, -1) @ attention.o_proj.weight.T


def keys_and_values(
    x: Tensor, attention: Any, positions: Tensor | None, qk_norm: bool = False
) -> tuple[Tensor, Tensor]:
    """Keys, rotated head by head, and values of self- or cross-attention; without positions nothing is rotated."""
    is_self = hasattr(attention, "qkv_proj")
    weight = attention.qkv_proj.weight if is_self else attention.kv_proj.weight
    k, v = (x @ w.T for w in weight.split(x.shape[-1])[-2:])
    heads = []
    for keys in k.chunk(attention.num_heads, -1):
        normed = rms(keys) if qk_norm or (is_self and attention.gain is not None) else keys
        heads.append(normed if positions is None else rotate(normed, positions))
    return torch.cat(heads, -1), v


def cross_attention(x: Tensor, memory: Tensor, attention: Any) -> Tensor:
    return found_in(x, keys_and_values(memory, attention, None), attention)


def found_in(x: Tensor, memory: tuple[Tensor, Tensor], attention: Any, positions: Tensor | None = None) -> Tensor:
    """What x finds in a memory's keys and values; with the positions of x its queries are rotated."""
    hidden, heads = x.shape[-1], attention.num_heads
    q = x @ attention.q_proj.weight.T
    outputs = []
    for h in range(heads):
        part = slice(h * hidden // heads, (h + 1) * hidden // heads)
        queries = q[:, part] if positions is None else rotate(q[:, part], positions)
        outputs.append(softmax_attention(queries, memory[0][:, part], memory[1][:, part]))
    return torch.cat(outputs, -1) @ attention.o_proj.weight.T


def reading_block(x: Tensor, block: Any, positions: Tensor, evidence: tuple[Tensor, Tensor]) -> Tensor:
    """Attention to the rows and to evidence (its keys and values) under one softmax, then SwiGLU."""
    x = rms(x + self_attention(x, block.self_attn, positions, evidence=evidence))
    return rms(x + swiglu(x, block.mlp))


def swiglu(x: Tensor, mlp: Any) -> Tensor:
    gate, up = (x @ mlp.gate_up_proj.weight.T).chunk(2, -1)
    return (F.silu(gate) * up) @ mlp.down_proj.weight.T


def post_norm_block(x: Tensor, block: Any, positions: Tensor) -> Tensor:
    x = rms(x + self_attention(x, block.self_attn, positions))
    return rms(x + swiglu(x, block.mlp))


def within_parts(x: Tensor, block: Any, positions: Tensor, parts: Tensor) -> Tensor:
    """The block on the tokens of each part alone."""
    result = torch.zeros_like(x)
    for part in parts.unique():
        rows = torch.nonzero(parts == part).squeeze(-1)
        result = result.index_copy(0, rows, post_norm_block(x[rows], block, positions[rows]))
    return result


def encoder_block(x: Tensor, block: Any, positions: Tensor, config: Any) -> Tensor:
    def scaled(residual: Any, branch: Tensor) -> Tensor:
        return branch if config.encoder_layer_scale_init is None else branch * residual.layer_scale.scale

    qk_norm = config.encoder_qk_norm
    if config.encoder_norm_style == "pre":
        x = x + scaled(block.attn_residual, self_attention(rms(x), block.self_attn, positions, qk_norm))
        return x + scaled(block.mlp_residual, swiglu(rms(x), block.mlp))
    x = rms(x + scaled(block.attn_residual, self_attention(x, block.self_attn, positions, qk_norm)))
    return rms(x + scaled(block.mlp_residual, swiglu(x, block.mlp)))


def pair_vector(encoder: Any, grid_in: Tensor, grid_out: Tensor, config: Any) -> Tensor:
    """One demonstration pair through `DemoGridEncoder`: only its non-PAD tokens, at their canvas positions."""
    tokens = torch.cat([grid_in, grid_out]).long()
    positions = torch.nonzero(tokens).squeeze(-1)
    is_output = positions >= 900
    embedded = torch.where(
        is_output[:, None],
        encoder.output_embedding.embedding_weight[tokens[positions]],
        encoder.input_embedding.embedding_weight[tokens[positions]],
    )
    if config.encoder_aligned_cells:
        other = torch.cat([grid_out, grid_in]).long()[positions]  # PAD, row 0, where that grid has no cell
        embedded = embedded + encoder.aligned_embedding.embedding_weight[other]
    x = embedded * math.sqrt(config.hidden_size)
    for block in encoder.layers:
        x = encoder_block(x, block, positions, config)
    if config.encoder_norm_style == "pre":
        x = rms(x)
    method = config.encoder_pooling_method
    if method == "mean":
        pooled = x.mean(0)
    elif method == "weighted":
        weights = torch.sigmoid(x @ encoder.pooling.gate.weight.T)
        pooled = (weights * x).sum(0) / weights.sum()
    else:
        pooled = cross_attention(encoder.pooling.query, x, encoder.pooling.attention)[0]
    return pooled @ encoder.projection.weight.T


def set_context(encoder: Any, pairs: Tensor) -> Tensor:
    """`DemoSetEncoder` for one sample's (pairs, hidden)."""
    x = encoder.queries
    for block in encoder.layers:
        x = rms(x + cross_attention(x, pairs, block.cross_attn))
        x = rms(x + swiglu(x, block.mlp))
    return rms(x)


def standard_context(encoder: Any, batch: dict[str, Tensor], sample: int, config: Any) -> Tensor:
    """The standard encoder's context of one sample, pair by pair."""
    pairs = [
        pair_vector(encoder.grid_encoder, batch["demo_inputs"][sample, k], batch["demo_labels"][sample, k], config)
        for k in range(batch["demo_mask"].shape[1])
        if batch["demo_mask"][sample, k]
    ]
    return set_context(encoder.set_encoder, torch.stack(pairs))


def mixer_block(x: Tensor, block: Any) -> Tensor:
    x = rms(x.T + swiglu(x.T, block.mlp_t)).T
    return rms(x + swiglu(x, block.mlp))


def numbers_in_grid(tokens: Tensor, cell: int) -> list[int]:
    """Row and column of a canvas cell from the grid's first corner, then from its last."""
    places = [divmod(i, 30) for i, token in enumerate(tokens.tolist()) if token >= COLOR_OFFSET]
    rows, columns = zip(*places, strict=True)
    row, column = divmod(cell, 30)
    return [row - min(rows), column - min(columns), max(rows) - row, max(columns) - column]


def grid_embedding(coordinates: Any, numbers: Sequence[int] | None) -> Tensor:
    """The sum of the embeddings of a cell's numbers; a table's row 30 is that of number 0."""
    tables = [table.embedding_weight for table in coordinates.tables]
    if numbers is None:
        return torch.zeros_like(tables[0][0])
    return torch.stack([table[30 + n] for table, n in zip(tables, numbers, strict=False)]).sum(0)


def decoder_step(
    inner: Any,
    z_H: Tensor,
    z_L: Tensor,
    tokens: Tensor,
    context: Tensor,
    cells: Tensor,
    config: Any,
    context_positions: Tensor | None = None,
    parts: Tensor | None = None,
    evidence: tuple[Tensor, Tensor] | None = None,
    context_in_grid: Sequence[Sequence[int] | None] | None = None,
    added: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One ACT step of one sample from the paper's pseudocode: (z_H, z_L, logits, q) over context and given cells.

    Context tokens stand at 0, 1, ... where nothing else is said, the cells from `puzzle_emb_len` on. With `parts`, a
    number for each token, every other block attends within a part, from the first on. `evidence`, tokens and their
    positions, is what blocks read. `context_in_grid`: the numbers of each context token in its grid, where the decoder
    has grid coordinates. `added` goes to the cells' embeddings.
    """
    num_context = len(context)
    embedded = inner.embed_tokens.embedding_weight[tokens.long()[cells]]
    x = torch.cat([context, embedded + added])
    if inner.coordinates is not None:
        in_grid = [*(context_in_grid or [None] * num_context), *(numbers_in_grid(tokens, int(c)) for c in cells)]
        x = x + torch.stack([grid_embedding(inner.coordinates, numbers) for numbers in in_grid])
    x = math.sqrt(config.hidden_size) * x
    if context_positions is None:
        context_positions = torch.arange(num_context)
    positions = torch.cat([context_positions, config.puzzle_emb_len + cells])
    layers = inner.L_level.layers
    read = None if evidence is None else [keys_and_values(evidence[0], b.self_attn, evidence[1]) for b in layers]

    def level(h: Tensor) -> Tensor:
        for number, block in enumerate(layers):
            if config.mlp_t:
                h = mixer_block(h, block)
            elif read is not None:
                h = reading_block(h, block, positions, read[number])
            elif parts is None or number % 2:
                h = post_norm_block(h, block, positions)
            else:
                h = within_parts(h, block, positions, parts)
        return h

    for cycle in range(config.H_cycles):
        with torch.set_grad_enabled(cycle >= config.H_cycles - config.grad_cycles):
            for _ in range(config.L_cycles):
                z_L = level(z_L + (z_H + x))
            z_H = level(z_H + z_L)
    logits = z_H[num_context:] @ inner.lm_head.weight.T
    q = inner.q_head.weight @ z_H[0] + inner.q_head.bias
    return z_H, z_L, logits, q
