"""Variant C: the demonstrations' cells have a latent of their own, which advances with the decoder in one recursion."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from config.arch_schema import EtrmtrmArch
from dataset.batches import Demonstrations
from models.encoders.base import EncoderOutput, recurrent_encoder
from models.encoders.cells import CellTokens, evidence_packing, packed_cells
from models.encoders.recurrent_base import smoothed
from models.grid_coordinates import create_grid_coordinates
from models.layers import ReadingBlock, Rotary, trunc_normal_
from models.memory import Reading
from models.packing import Packing
from models.positions import create_position_encoding, placed
from models.ragged import RaggedRows


@dataclass(frozen=True)
class InContextEncoderCarry(RaggedRows):
    """Variant C's latent: (n + 1, hidden) the rows of all samples' cells in some order; the last is the initial one."""

    z_e: Float[Tensor, "rows hidden"] = field(metadata={"ragged": True})

    def get_context(self) -> Float[Tensor, "batch longest hidden"]:
        """The latent of each sample's cells, zero behind them."""
        place = torch.arange(int(self.lengths.max()), device=self.lengths.device)
        rows = self.z_e[torch.where(place < self.lengths[:, None], self.starts[:, None] + place, -1)]
        return torch.where((place < self.lengths[:, None])[..., None], rows, 0)


@recurrent_encoder("in_context")
class InContextRecurrentEncoder(CellTokens):
    """At the start of each of the decoder's H cycles, `encoder_l_cycles` times: z_e = L_enc(z_e, x_e), in which each
    block attends to z_e, then to the decoder's z_H. x_e are the embedded cells; z_e is what the decoder reads.

    The initial latent is one fixed vector for all cells, as the decoder's are: x_e tells them apart.
    """

    E_init: Tensor

    def __init__(self, config: EtrmtrmArch):
        super().__init__()
        self.config = config
        self.num_tokens = None
        self.embed_cells(config)
        hidden, heads = config.hidden_size, config.num_heads
        self.L_enc = nn.ModuleList(
            ReadingBlock(
                hidden,
                heads,
                config.expansion,
                config.encoder_residual_scale,
                config.qk_norm_gain,
                config.grid_conv,
            )
            for _ in range(config.encoder_l_layers)
        )
        self.position_encoding = create_position_encoding(config.pos_encodings, hidden, heads, config.num_positions)
        self.coordinates = create_grid_coordinates(config.grid_coordinates, hidden)
        self.register_buffer("E_init", trunc_normal_(torch.empty(hidden), 1.0))

    def initial_carry(self, batch_size: int, device: torch.device) -> InContextEncoderCarry:
        none = RaggedRows.none(batch_size, device)
        return InContextEncoderCarry(none, none, self.E_init.to(device, self.dtype)[None])

    def reset_carry(self, needs_reset: Bool[Tensor, " batch"], carry: InContextEncoderCarry) -> InContextEncoderCarry:
        return carry.restarted(needs_reset)

    def encode_pairs(self, demonstrations: Demonstrations) -> EncoderOutput:
        """The part that does not depend on the carry: the embedded cells."""
        return self.tokens(demonstrations)

    def begin(self, carry: InContextEncoderCarry, tokens: EncoderOutput) -> "CellLatent":
        """The latent at the start of an ACT step."""
        return CellLatent(self, carry, tokens)


class CellLatent:
    """z_e during one ACT step.

    Attributes:
        packing, rotary: of its rows.
        start, z_e: the rows at the start of the step, and now.
    """

    def __init__(self, encoder: InContextRecurrentEncoder, carry: InContextEncoderCarry, tokens: EncoderOutput):
        self.encoder, config = encoder, encoder.config
        self.packing = packing = evidence_packing(tokens, config.context_attention, grid_conv=config.grid_conv)
        encoding = encoder.position_encoding
        places = packing.gather(encoding.of_tokens(*tokens.places)[:, 1:])
        self.x, self.rotary = placed(encoding, packed_cells(tokens, packing, encoder.coordinates), places)
        self.start = self.z_e = carry.z_e[carry.row_index(packing, len(carry.z_e))]

    def beside(self, packing: Packing, rotary: Rotary | None) -> Callable[[Tensor], Float[Tensor, "m hidden"]]:
        """What moves the latent on by one H cycle beside the decoder, given its z_H, and returns what is read of it."""
        reading = Reading.across(self.packing, packing)
        blocks: Any = self.encoder.L_enc

        def advance(z_H: Tensor) -> Tensor:
            memories = [layer.cross_attn.memory(z_H, rotary, reading) for layer in blocks]
            before = self.z_e
            for _ in range(self.encoder.config.encoder_l_cycles):
                self.z_e = self.z_e + self.x
                for number, layer in enumerate(blocks):
                    self.z_e = layer(self.z_e, self.packing.of_layer(number), self.rotary, memories[number])
            self.z_e = smoothed(self.encoder.config.encoder_state_ema, before, self.z_e)
            return self.shown

        return advance

    @property
    def shown(self) -> Float[Tensor, "m hidden"]:
        """What the decoder reads."""
        norm = getattr(self.encoder, "context_norm", None)
        return self.z_e if norm is None else norm(self.z_e.float()).to(self.z_e.dtype)

    def carry(self) -> InContextEncoderCarry:
        """The detached rows, between ACT steps."""
        rows = torch.cat([self.z_e.detach(), self.encoder.E_init.to(self.z_e.dtype)[None]])
        return InContextEncoderCarry(self.packing.first_row, self.packing.lengths, rows)
