"""Demonstration pairs to vectors: the tokens of [input ; output] through transformer blocks, pooled.

PAD never takes part: it is not among the packed tokens. Masked pairs give zeros.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from config.arch_schema import EncoderArch
from dataset.batches import Demonstrations
from dataset.grids import PAD, SEQ_LEN, VOCAB_SIZE
from models.encoders.base import forward_dtype, packs_by_view
from models.layers import CrossAttention, Linear, TokenEmbedding, TransformerBlock, rms_norm, trunc_normal_
from models.packing import Packing, pack
from models.positions import create_position_encoding
from models.segments import Segments, ends_of

QUERY_STD = 0.02


class GridEncoder(nn.Module):
    """The transformer over a pair's tokens. With `has_cls` a CLS token stands in front, at position 0 of `rope`."""

    def __init__(self, config: EncoderArch, norm_style: Literal["post", "pre"], *, has_cls: bool):
        super().__init__()
        hidden, heads = config.hidden_size, config.num_heads
        self.embed_scale = hidden**0.5
        self.dtype = forward_dtype(config)
        self.num_cls = int(has_cls)
        self.input_embedding = TokenEmbedding(VOCAB_SIZE, hidden)
        self.output_embedding = TokenEmbedding(VOCAB_SIZE, hidden)
        if has_cls:
            self.cls_embedding = nn.Parameter(trunc_normal_(torch.empty(1, hidden), hidden**-0.5))
        self.aligned_embedding = TokenEmbedding(VOCAB_SIZE, hidden) if config.encoder_aligned_cells else None
        self.layers = nn.ModuleList(
            TransformerBlock(
                hidden,
                heads,
                config.expansion,
                norm_style,
                config.encoder_layer_scale_init,
                config.encoder_qk_norm,
            )
            for _ in range(config.encoder_num_layers)
        )
        self.position_encoding = create_position_encoding(
            config.pos_encodings, hidden, heads, self.num_cls + 2 * SEQ_LEN
        )

    def read(self, demonstrations: Demonstrations) -> tuple[Float[Tensor, "n hidden"], Packing]:
        """The blocks' output for the tokens of all pairs, packed; a sequence is a pair, (b · k) of them."""
        tokens = torch.cat([demonstrations.inputs, demonstrations.labels], dim=-1).flatten(0, 1).int()  # (b · k, 1800)
        shown = demonstrations.mask.flatten()[:, None]
        valid = torch.cat([shown] * self.num_cls + [(tokens != PAD) & shown], dim=1)
        packing = pack(valid, by_view=packs_by_view(tokens.device, self.dtype))
        positions = packing.positions
        is_output = positions >= SEQ_LEN + self.num_cls
        x = self._embedded(tokens, packing, is_output)
        places = self._places(positions, is_output)
        if (embedding := self.position_encoding.embedding(places, self.dtype)) is not None:
            x = x + self.embed_scale * embedding
        rotary = self.position_encoding.rotary(places)
        for layer in self.layers:
            x = layer(x, packing, rotary)
        return x, packing

    def _embedded(self, tokens: Tensor, packing: Packing, is_output: Tensor) -> Float[Tensor, "n hidden"]:
        """Rows 0-11 of the joint table embed input tokens, rows 12-23 output tokens, row 24 is CLS.

        With `encoder_aligned_cells` what the other grid of the pair has at the same place comes on top, PAD for none.
        """
        weights: list[Tensor] = [self.input_embedding.embedding_weight, self.output_embedding.embedding_weight]
        if self.num_cls:
            weights.append(self.cls_embedding)
        index = packing.gather(self._behind_cls(tokens, 2 * VOCAB_SIZE)) + VOCAB_SIZE * is_output
        embedded = F.embedding(index, (torch.cat(weights) * self.embed_scale).to(self.dtype))
        if self.aligned_embedding is None:
            return embedded
        aligned = packing.gather(self._behind_cls(tokens.roll(SEQ_LEN, dims=1), PAD))
        table = self.aligned_embedding.embedding_weight * self.embed_scale
        return embedded + F.embedding(aligned, table.to(self.dtype))

    def _behind_cls(self, tokens: Tensor, cls: int) -> Tensor:
        """A column of `cls` before the tokens, where there is such a token."""
        return F.pad(tokens, (self.num_cls, 0), value=cls)

    def _places(self, positions: Tensor, is_output: Tensor) -> Tensor:
        """In `rope` the output follows the input; on the canvas a cell stands where it is in either grid."""
        encoding = self.position_encoding
        if encoding.is_one_dimensional:
            return encoding.of_tokens(positions)
        cells = positions - self.num_cls - SEQ_LEN * is_output
        places = encoding.of_cells(cells.clamp(min=0), 0)
        return torch.where(cells[:, None] < 0, encoding.of_tokens(torch.zeros_like(cells)), places)


class AttentionPooling(nn.Module):
    """One learned query attends over the tokens of each sequence."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, hidden_size) * QUERY_STD)
        self.attention = CrossAttention(hidden_size, num_heads)

    def forward(self, x: Float[Tensor, "n hidden"], packing: Packing) -> Float[Tensor, "s hidden"]:
        num_sequences = len(packing.lengths)
        cu_q = torch.arange(num_sequences + 1, dtype=torch.int32, device=x.device)
        segments = Segments(cu_q, ends_of(packing.lengths), 1, packing.padded_length)
        return self.attention(self.query.to(x.dtype).expand(num_sequences, -1), packing.in_order(x), segments)


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


class DemoGridEncoder(GridEncoder):
    """One vector for each demonstration pair: the pooled tokens, projected."""

    def __init__(self, config: EncoderArch):
        super().__init__(config, config.encoder_norm_style, has_cls=False)
        self.pooling = create_pooling(config.encoder_pooling_method, config.hidden_size, config.num_heads)
        self.is_pre_norm = config.encoder_norm_style == "pre"
        self.projection = Linear(config.hidden_size, config.hidden_size)

    def forward(self, demonstrations: Demonstrations) -> Float[Tensor, "batch demos hidden"]:
        x, packing = self.read(demonstrations)
        if self.is_pre_norm:
            x = rms_norm(x)
        return self.projection(self.pooling(x, packing)).unflatten(0, demonstrations.mask.shape)


@dataclass(frozen=True)
class CellEncoding:
    """A vector for each cell of the demonstrations, sample by sample, and how many of them each sample has."""

    cells: Float[Tensor, "m hidden"]
    lengths: Int[Tensor, " batch"]
    longest: int

    def read_by(self, num_queries: int) -> tuple[Float[Tensor, "m hidden"], Segments]:
        """The cells, and which of them so many queries of each sample attend to."""
        queries = torch.full_like(self.lengths, num_queries)
        return self.cells, Segments(ends_of(queries), ends_of(self.lengths), num_queries, self.longest)


class CellGridEncoder(GridEncoder):
    """A vector for each cell of the demonstrations: what the blocks make of it beside its pair's, projected."""

    def __init__(self, config: EncoderArch):
        super().__init__(config, config.encoder_norm_style, has_cls=False)
        self.is_pre_norm = config.encoder_norm_style == "pre"
        self.projection = Linear(config.hidden_size, config.hidden_size)

    def forward(self, demonstrations: Demonstrations) -> CellEncoding:
        x, packing = self.read(demonstrations)
        if self.is_pre_norm:
            x = rms_norm(x)
        cells, lengths = packing.in_order(x), packing.lengths.unflatten(0, demonstrations.mask.shape)
        return CellEncoding(self.projection(cells), lengths.sum(1), lengths.shape[1] * packing.padded_length)


class LpnGridEncoder(GridEncoder):
    """One vector for each demonstration pair, LPN-style: pre-norm blocks, the normed output of the CLS token."""

    def __init__(self, config: EncoderArch):
        super().__init__(config, "pre", has_cls=True)

    def forward(self, demonstrations: Demonstrations) -> Float[Tensor, "batch demos hidden"]:
        x, packing = self.read(demonstrations)
        mask = demonstrations.mask
        if not len(x):  # no sample has a demonstration
            return x.new_zeros(*mask.shape, x.shape[1])
        cls = torch.where(mask.flatten()[:, None], rms_norm(x[packing.first_row]), 0)
        return cls.unflatten(0, mask.shape)
