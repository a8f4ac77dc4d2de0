"""Variant B: an encoder that reasons as TRM does, with a slow and a fast latent and loops of its own."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from config.arch_schema import EtrmtrmArch
from models.act import where_halted
from models.encoders.base import forward_dtype, masked_mean, packs_by_view, recurrent_encoder
from models.encoders.grid import CellEncoding
from models.encoders.recurrent_base import BaseRecurrentEncoder, PairEncoding, TRMStyleEncoderCarry
from models.layers import CrossAttention, Rotary, TransformerBlock, trunc_normal_, weights_cast_once
from models.packing import Packing, pack_all
from models.positions import create_position_encoding


@recurrent_encoder("trm_style")
class TRMStyleEncoder(BaseRecurrentEncoder):
    """`encoder_h_cycles` times: `encoder_l_cycles` times z_e_L = L_enc(z_e_L, z_e_H + demo_input); z_e_H = L_enc(z_e_H,
    z_e_L). `demo_input` is the mean of the pairs' vectors, the same for every token; with `encoder_memory: cells` it is
    what each token of z_e_H finds among the cells' by attention.

    The initial states are fixed buffers as in TRM, but one vector for each token: the input is the same for all tokens,
    so tokens that start alike would stay alike for ever. The context is z_e_H.
    """

    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: EtrmtrmArch):
        super().__init__(config)
        hidden, heads = config.hidden_size, config.num_heads
        self.dtype = forward_dtype(config)
        self.L_enc = nn.ModuleList(
            TransformerBlock(hidden, heads, config.expansion, residual_scale=config.encoder_residual_scale)
            for _ in range(config.encoder_l_layers)
        )
        self.position_encoding = create_position_encoding(config.pos_encodings, hidden, heads, config.puzzle_emb_len)
        if config.encoder_memory == "cells":
            self.look_up = CrossAttention(hidden, heads)
        for name in ("H_init", "L_init"):
            self.register_buffer(name, trunc_normal_(torch.empty(config.puzzle_emb_len, hidden), 1.0))

    def initial_carry(self, batch_size: int, device: torch.device) -> TRMStyleEncoderCarry:
        z_e_H, z_e_L = (init.to(device, self.dtype).repeat(batch_size, 1, 1) for init in (self.H_init, self.L_init))
        return TRMStyleEncoderCarry(z_e_H, z_e_L)

    def reset_carry(self, needs_reset: Bool[Tensor, " batch"], carry: TRMStyleEncoderCarry) -> TRMStyleEncoderCarry:
        return TRMStyleEncoderCarry(
            where_halted(needs_reset, self.H_init.to(self.dtype), carry.z_e_H),
            where_halted(needs_reset, self.L_init.to(self.dtype), carry.z_e_L),
        )

    def update(self, carry: TRMStyleEncoderCarry, encoding: PairEncoding | CellEncoding) -> TRMStyleEncoderCarry:
        batch, tokens, hidden = carry.z_e_H.shape
        demo_input = self._demo_input(carry.z_e_H, encoding)
        packing = pack_all(batch, tokens, demo_input.device, by_view=packs_by_view(demo_input.device, self.dtype))
        rotary = self.position_encoding.rotary(self.position_encoding.of_tokens(packing.positions))
        z_H, z_L = self._reason(carry.z_e_H.flatten(0, 1), carry.z_e_L.flatten(0, 1), demo_input, packing, rotary)
        return TRMStyleEncoderCarry(
            self.smoothed(carry.z_e_H, z_H.view(batch, tokens, hidden)),
            self.smoothed(carry.z_e_L, z_L.view(batch, tokens, hidden)),
        )

    def _demo_input(
        self, z_e_H: Float[Tensor, "batch tokens hidden"], encoding: PairEncoding | CellEncoding
    ) -> Float[Tensor, "n hidden"]:
        """The mean of the pairs' vectors, the same for every token; of cells what each token finds among them."""
        tokens = z_e_H.shape[1]
        if isinstance(encoding, CellEncoding):
            return self.look_up(z_e_H.flatten(0, 1), *encoding.read_by(tokens))
        return masked_mean(encoding.pairs, encoding.mask).to(self.dtype).repeat_interleave(tokens, dim=0)

    def _reason(
        self, z_H: Tensor, z_L: Tensor, demo_input: Tensor, packing: Packing, rotary: Rotary | None
    ) -> tuple[Float[Tensor, "n hidden"], Float[Tensor, "n hidden"]]:
        """The loops; gradients of the last H cycle only, or of all (`encoder_grad_cycles`)."""

        def level(h: Tensor, injection: Tensor) -> Tensor:
            h = h + injection
            for layer in self.L_enc:
                h = layer(h, packing, rotary)
            return h

        cycles = self.config.encoder_h_cycles
        first_with_gradient = 0 if self.config.encoder_grad_cycles == "all" else cycles - 1
        with weights_cast_once(self.L_enc, self.dtype):
            for cycle in range(cycles):
                with torch.set_grad_enabled(torch.is_grad_enabled() and cycle >= first_with_gradient):
                    injection = z_H + demo_input
                    for _ in range(self.config.encoder_l_cycles):
                        z_L = level(z_L, injection)
                    z_H = level(z_H, z_L)
        return z_H, z_L
