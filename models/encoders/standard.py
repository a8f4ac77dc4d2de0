"""The standard encoder: each demonstration pair to one vector, then 16 learned queries over the pairs' vectors."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from config.arch_schema import EtrmArch
from dataset.batches import Demonstrations
from models.encoders.base import DemoEncoder, EncoderOutput, encoder, fixed_length_output
from models.encoders.grid import QUERY_STD, DemoGridEncoder
from models.layers import CrossBlock, rms_norm
from models.segments import set_segments


class DemoSetEncoder(nn.Module):
    """Learned queries cross-attend over the pair vectors: (B, K, hidden) to (B, T, hidden), in any order of pairs."""

    def __init__(self, config: EtrmArch):
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
        segments = set_segments(num_tokens, demo_mask)
        memory = pairs[demo_mask]
        x = self.queries.to(pairs.dtype).repeat(batch, 1)
        for layer in self.layers:
            x = layer(x, memory, segments)
        return rms_norm(x).view(batch, num_tokens, -1)


@encoder("standard")
class StandardDemoEncoder(DemoEncoder):
    """A grid encoder (`DemoGridEncoder`), then `DemoSetEncoder`."""

    def __init__(self, config: EtrmArch, grid_encoder: nn.Module | None = None):
        super().__init__(config.puzzle_emb_len)
        self.grid_encoder = grid_encoder or DemoGridEncoder(config)
        self.set_encoder = DemoSetEncoder(config)

    def encode(self, demonstrations: Demonstrations) -> EncoderOutput:
        pairs = self.grid_encoder(demonstrations)
        return fixed_length_output(self.set_encoder(pairs, demonstrations.mask), pairs=pairs)
