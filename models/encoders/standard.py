"""The standard encoder: each demonstration pair to one vector, then 16 learned queries over the pairs' vectors."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dataset.grids import PAD, SEQ_LEN, VOCAB_SIZE
from models.encoders.base import DemoEncoder, EncoderOutput, encoder, fixed_length_output, forward_dtype, packs_by_view
from models.layers import (
    CrossAttention,
    CrossBlock,
    Linear,
    RotaryTable,
    TokenEmbedding,
    TransformerBlock,
    rms_norm,
)
from models.packing import Packing, pack, set_seqlens

QUERY_STD = 0.02


class AttentionPooling(nn.Module):
    """One learned query attends over the tokens of each sequence."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, hidden_size) * QUERY_STD)
        self.attention = CrossAttention(hidden_size, num_heads)

    def forward(self, x: Float[Tensor, "n hidden"], packing: Packing) -> Float[Tensor, "s hidden"]:
        live = packing.live
        tokens, sequence = (x, packing.sequence) if live is None else (x[live], packing.sequence[live])
        order = torch.argsort(sequence, stable=True)  # back to the order of the sequences
        num_sequences = len(packing.lengths)
        cu_q = torch.arange(num_sequences + 1, dtype=torch.int32, device=x.device)
        cu_k = torch.cat([cu_q[:1], packing.lengths.cumsum(0).to(torch.int32)])
        queries = self.query.to(x.dtype).expand(num_sequences, -1)
        return self.attention(queries, tokens[order], cu_q, cu_k, 1, packing.padded_length)


class WeightedPooling(nn.Module):
    """The mean of each sequence's tokens, each weighted by a learned sigmoid gate."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.gate = Linear(hidden_size, 1)

    def forward(self, x: Float[Tensor, "n hidden"], packing: Packing) -> Float[Tensor, "s hidden"]:
        return packing.mean(x, torch.sigmoid(self.gate(x).float()).squeeze(-1)).to(x.dtype)


class MeanPooling(nn.Module):
    """The mean of each sequence's tokens."""

    def forward(self, x: Float[Tensor, "n hidden"], packing: Packing) -> Float[Tensor, "s hidden"]:
        return packing.mean(x).to(x.dtype)


def create_pooling(method: str, hidden_size: int, num_heads: int) -> nn.Module:
    """`arch.encoder_pooling_method`: mean, attention or weighted."""
    if method == "attention":
        return AttentionPooling(hidden_size, num_heads)
    if method == "weighted":
        return WeightedPooling(hidden_size)
    if method == "mean":
        return MeanPooling()
    raise ValueError(f"arch.encoder_pooling_method '{method}' is not one of mean, attention, weighted")


class DemoGridEncoder(nn.Module):
    """One vector for each demonstration pair: [input ; output] through transformer blocks, pooled, projected.

    PAD never takes part: it is not among the packed tokens. Masked pairs give zeros.
    """

    def __init__(self, config: Any):
        super().__init__()
        hidden, heads = config.hidden_size, config.num_heads
        self.embed_scale = hidden**0.5
        self.dtype = forward_dtype(config)
        self.input_embedding = TokenEmbedding(VOCAB_SIZE, hidden)
        self.output_embedding = TokenEmbedding(VOCAB_SIZE, hidden)
        self.layers = nn.ModuleList(
            TransformerBlock(
                hidden,
                heads,
                config.expansion,
                config.encoder_norm_style,
                config.encoder_layer_scale_init,
                config.encoder_qk_norm,
            )
            for _ in range(config.encoder_num_layers)
        )
        self.rotary = RotaryTable(hidden // heads, 2 * SEQ_LEN)
        self.pooling = create_pooling(config.encoder_pooling_method, hidden, heads)
        self.is_pre_norm = config.encoder_norm_style == "pre"
        self.projection = Linear(hidden, hidden)

    def forward(
        self,
        demo_inputs: Int[Tensor, "batch demos 900"],
        demo_labels: Int[Tensor, "batch demos 900"],
        demo_mask: Bool[Tensor, "batch demos"],
    ) -> Float[Tensor, "batch demos hidden"]:
        batch, num_demos = demo_mask.shape
        tokens = torch.cat([demo_inputs, demo_labels], dim=-1).flatten(0, 1).int()  # (b · k, 1800)
        valid = (tokens != PAD) & demo_mask.flatten()[:, None]
        packing = pack(valid, by_view=packs_by_view(tokens.device, self.dtype))
        positions = packing.positions
        # Rows 0-11 of the joint table embed input tokens, rows 12-23 output tokens.
        table = torch.cat([self.input_embedding.embedding_weight, self.output_embedding.embedding_weight])
        index = packing.gather(tokens) + VOCAB_SIZE * (positions >= SEQ_LEN)
        x = nn.functional.embedding(index, (table * self.embed_scale).to(self.dtype))
        rotary = self.rotary(positions)
        for layer in self.layers:
            x = layer(x, packing, rotary)
        if self.is_pre_norm:
            x = rms_norm(x)
        return self.projection(self.pooling(x, packing)).view(batch, num_demos, -1)


class DemoSetEncoder(nn.Module):
    """Learned queries cross-attend over the pair vectors: (B, K, hidden) to (B, T, hidden), in any order of pairs."""

    def __init__(self, config: Any):
        super().__init__()
        hidden = config.hidden_size
        self.queries = nn.Parameter(torch.randn(config.puzzle_emb_len, hidden) * QUERY_STD)
        self.layers = nn.ModuleList(
            CrossBlock(hidden, config.num_heads, config.expansion) for _ in range(config.encoder_set_layers)
        )

    def forward(
        self, pairs: Float[Tensor, "batch demos hidden"], demo_mask: Bool[Tensor, "batch demos"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        batch, num_tokens = len(pairs), len(self.queries)
        cu_q, cu_k = set_seqlens(num_tokens, demo_mask)
        memory = pairs[demo_mask]
        x = self.queries.to(pairs.dtype).repeat(batch, 1)
        for layer in self.layers:
            x = layer(x, memory, cu_q, cu_k, num_tokens, demo_mask.shape[1])
        return rms_norm(x).view(batch, num_tokens, -1)


@encoder("standard")
class StandardDemoEncoder(DemoEncoder):
    """A grid encoder (`DemoGridEncoder`), then `DemoSetEncoder`."""

    def __init__(self, config: Any, grid_encoder: nn.Module | None = None):
        super().__init__()
        self.grid_encoder = grid_encoder or DemoGridEncoder(config)
        self.set_encoder = DemoSetEncoder(config)

    def forward(
        self,
        demo_inputs: Int[Tensor, "batch demos 900"],
        demo_labels: Int[Tensor, "batch demos 900"],
        demo_mask: Bool[Tensor, "batch demos"],
    ) -> EncoderOutput:
        pairs = self.grid_encoder(demo_inputs, demo_labels, demo_mask)
        return fixed_length_output(self.set_encoder(pairs, demo_mask))
