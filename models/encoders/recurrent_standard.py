"""Variant A: one latent, one cross-attention update for each ACT step."""

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from config.arch_schema import EtrmtrmArch
from models.act import where_halted
from models.encoders.base import forward_dtype, recurrent_encoder
from models.encoders.grid import CellEncoding
from models.encoders.recurrent_base import BaseRecurrentEncoder, PairEncoding, RecurrentEncoderCarry
from models.layers import CrossBlock, trunc_normal_


@recurrent_encoder("recurrent_standard")
class RecurrentAggregationEncoder(BaseRecurrentEncoder):
    """z_e = rms_norm(z_e + CrossAttn(z_e, memory)); z_e = rms_norm(z_e + MLP(z_e)), from a learned `z_e_init`.

    `z_e_init` starts at std 1: at the 0.02 of `DemoSetEncoder`'s queries the first norm would leave the tokens alike.
    """

    def __init__(self, config: EtrmtrmArch):
        super().__init__(config)
        self.dtype = forward_dtype(config)
        self.z_e_init = nn.Parameter(trunc_normal_(torch.empty(config.puzzle_emb_len, config.hidden_size), 1.0))
        self.aggregate = CrossBlock(
            config.hidden_size, config.num_heads, config.expansion, config.encoder_residual_scale
        )

    def initial_carry(self, batch_size: int, device: torch.device) -> RecurrentEncoderCarry:
        return RecurrentEncoderCarry(self.z_e_init.detach().to(device, self.dtype).repeat(batch_size, 1, 1))

    def reset_carry(self, needs_reset: Bool[Tensor, " batch"], carry: RecurrentEncoderCarry) -> RecurrentEncoderCarry:
        return RecurrentEncoderCarry(where_halted(needs_reset, self.z_e_init.to(self.dtype), carry.z_e))

    def update(self, carry: RecurrentEncoderCarry, encoding: PairEncoding | CellEncoding) -> RecurrentEncoderCarry:
        tokens = carry.z_e.shape[1]
        z_e = self.aggregate(carry.z_e.flatten(0, 1), *encoding.read_by(tokens))
        return RecurrentEncoderCarry(self.smoothed(carry.z_e, z_e.view_as(carry.z_e)))
