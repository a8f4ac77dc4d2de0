"""No bottleneck: every cell of the demonstrations is a context token.

evolve   the tokens take part in the decoder's recursion
read     the encoder's own blocks make them evidence, which the decoder's rows read and which stays as it is
"""

from dataclasses import replace

import torch
from torch import nn

from config.arch_schema import EtrmArch
from dataset.batches import Demonstrations
from models.encoders.base import DemoEncoder, EncoderOutput, encoder
from models.encoders.cells import CellTokens, evidence_packing, packed_cells, pairs_of_cells
from models.grid_coordinates import create_grid_coordinates
from models.layers import TransformerBlock, rms_norm
from models.positions import create_position_encoding, placed


@encoder("in_context")
class InContextEncoder(DemoEncoder, CellTokens):
    """The cells' tokens; with `context_mode: read` what blocks of its own make of them.

    Attention is over all of a task, within one pair alone, or in turn (`context_attention`): that of the encoder's own
    blocks where it has some, else that of the decoder's.
    """

    def __init__(self, config: EtrmArch):
        super().__init__(num_tokens=None)
        self.embed_cells(config)
        self.scope = config.context_attention
        self.blocks = EvidenceBlocks(config) if config.context_mode == "read" else None

    def encode(self, demonstrations: Demonstrations) -> EncoderOutput:
        tokens = self.tokens(demonstrations)
        if self.blocks is not None:
            return replace(self.blocks(tokens), is_read=True)
        return tokens if self.scope == "alternate" else replace(tokens, pair_lengths=None)


class EvidenceBlocks(nn.Module):
    """Transformer blocks over the tokens of the demonstrations' cells."""

    def __init__(self, config: EtrmArch):
        super().__init__()
        hidden, heads = config.hidden_size, config.num_heads
        self.scope, self.is_pre_norm = config.context_attention, config.encoder_norm_style == "pre"
        self.grid_conv = config.grid_conv
        self.layers = nn.ModuleList(
            TransformerBlock(
                hidden,
                heads,
                config.expansion,
                config.encoder_norm_style,
                config.encoder_layer_scale_init,
                config.encoder_qk_norm,
                qk_gain=config.qk_norm_gain,
                grid_conv=config.grid_conv,
            )
            for _ in range(config.encoder_num_layers)
        )
        self.has_pair_vectors = config.loss.pair_weight > 0
        self.coordinates = create_grid_coordinates(config.grid_coordinates, hidden)
        self.position_encoding = create_position_encoding(config.pos_encodings, hidden, heads, config.num_positions)

    def forward(self, tokens: EncoderOutput) -> EncoderOutput:
        """The tokens after the blocks; the first one, which is no cell, as it is."""
        packing = evidence_packing(tokens, self.scope, grid_conv=self.grid_conv)
        places = packing.gather(self.position_encoding.of_tokens(*tokens.places)[:, 1:])
        cells = tokens.context[:, 1:]
        x, rotary = placed(self.position_encoding, packed_cells(tokens, packing, self.coordinates), places)
        for number, layer in enumerate(self.layers):
            x = layer(x, packing.of_layer(number), rotary)
        if self.is_pre_norm:
            x = rms_norm(x)
        read = packing.scatter(x, torch.zeros_like(cells))
        pairs = pairs_of_cells(x, packing, tokens) if self.has_pair_vectors else None
        return replace(tokens, context=torch.cat([tokens.context[:, :1], read], dim=1), in_grid=None, pairs=pairs)
