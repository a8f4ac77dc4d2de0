"""The recursive decoder of "Less is More: Recursive Reasoning with Tiny Networks" (arXiv 2510.04871), and TRM itself.

Two latents, z_H (the answer) and z_L (the reasoning), are refined by one small network, `L_level`, over the sequence
[context ; 900 cells]. Only the valid context tokens and the active cells are computed; the carry stays padded. TRM's
context is a learned embedding of the puzzle's id.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dataset.grids import PAD, SEQ_LEN, VOCAB_SIZE
from models.act import Batch, RecursiveReasoner, where_halted
from models.encoders.base import EncoderOutput, fixed_length_output, forward_dtype, packs_by_view
from models.layers import (
    Linear,
    MixerBlock,
    Rotary,
    RotaryTable,
    TokenEmbedding,
    TransformerBlock,
    trunc_normal_,
)
from models.packing import Packing, pack

# Logit of PAD at cells that are not computed, where all other logits are 0: their prediction is PAD.
OUTSIDE_PAD_LOGIT = 16.0
Q_HEAD_BIAS = -5.0


@dataclass(frozen=True)
class TRMEncoderInnerCarry:
    """The latents of context slots and cells; slots and cells that are not computed keep their initial state."""

    z_H: Float[Tensor, "batch slots hidden"]
    z_L: Float[Tensor, "batch slots hidden"]


InnerCarry = TypeVar("InnerCarry", bound=TRMEncoderInnerCarry)


@dataclass(frozen=True)
class TRMEncoderCarry:
    """State between ACT steps: latents, steps taken, who has halted, and the data each sample works on."""

    inner_carry: TRMEncoderInnerCarry
    steps: Int[Tensor, " batch"]
    halted: Bool[Tensor, " batch"]
    current_data: Batch


class ReasoningLevel(nn.Module):
    """`L_level`: add the injection, then run the blocks."""

    def __init__(self, config: Any):
        super().__init__()
        if config.mlp_t:
            length = config.puzzle_emb_len + SEQ_LEN
            blocks = [MixerBlock(config.hidden_size, length, config.expansion) for _ in range(config.L_layers)]
        else:
            blocks = [
                TransformerBlock(config.hidden_size, config.num_heads, config.expansion) for _ in range(config.L_layers)
            ]
        self.layers = nn.ModuleList(blocks)

    def forward(
        self,
        h: Float[Tensor, "n hidden"],
        injection: Float[Tensor, "n hidden"],
        packing: Packing,
        rotary: Rotary,
    ) -> Float[Tensor, "n hidden"]:
        h = h + injection
        for layer in self.layers:
            h = layer(h, packing, rotary)
        return h


class QHead(nn.Linear):
    """Halting logits (halt, continue) of one token or mean, float32; starts at weight 0, bias -5."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 2)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, Q_HEAD_BIAS)


class RecursiveDecoder(nn.Module):
    """What every decoder shares: token table, `L_level`, heads, initial latents, and the recursion over packed rows."""

    H_init: Tensor
    L_init: Tensor
    carry_type: type[TRMEncoderInnerCarry] = TRMEncoderInnerCarry

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.dtype = forward_dtype(config)
        self.embed_tokens = TokenEmbedding(VOCAB_SIZE, hidden)
        self.L_level = ReasoningLevel(config)
        self.lm_head = Linear(hidden, VOCAB_SIZE)
        self.q_head = QHead(hidden)
        self.rotary = RotaryTable(hidden // config.num_heads, config.puzzle_emb_len + SEQ_LEN)
        self.register_buffer("H_init", trunc_normal_(torch.empty(hidden), 1.0))
        self.register_buffer("L_init", trunc_normal_(torch.empty(hidden), 1.0))

    def initial_carry(self, batch_size: int, device: torch.device) -> TRMEncoderInnerCarry:
        """The latents at the start of reasoning."""
        shape = (batch_size, self.config.puzzle_emb_len + SEQ_LEN, self.config.hidden_size)
        z_H, z_L = (init.to(device, self.dtype).expand(shape).contiguous() for init in (self.H_init, self.L_init))
        return self.carry_type(z_H, z_L)

    def reset_carry(self, reset_flag: Bool[Tensor, " batch"], carry: InnerCarry) -> InnerCarry:
        """The initial latents where `reset_flag`, else the carry's."""
        return replace(
            carry,
            z_H=where_halted(reset_flag, self.H_init.to(self.dtype), carry.z_H),
            z_L=where_halted(reset_flag, self.L_init.to(self.dtype), carry.z_L),
        )

    def _reason(
        self,
        z_H: Tensor,
        z_L: Tensor,
        x: Tensor,
        packing: Packing,
        rotary: Rotary,
        read_memory: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Float[Tensor, "n hidden"], Float[Tensor, "n hidden"]]:
        """H_cycles - 1 cycles without gradient, then one with; z_H takes z_L through `read_memory`."""

        def cycle(z_H: Tensor, z_L: Tensor) -> tuple[Tensor, Tensor]:
            for _ in range(self.config.L_cycles):
                z_L = self.L_level(z_L, z_H + x, packing, rotary)
            injection = z_L if read_memory is None else read_memory(z_L)
            return self.L_level(z_H, injection, packing, rotary), z_L

        with torch.no_grad():
            for _ in range(self.config.H_cycles - 1):
                z_H, z_L = cycle(z_H, z_L)
        return cycle(z_H, z_L)

    def _logits(self, z_H: Tensor, packing: Packing) -> Float[Tensor, "batch slots vocab"]:
        """Logits of all slots, float32; PAD where nothing is computed."""
        logits = z_H.new_zeros(len(packing.lengths), packing.padded_length, VOCAB_SIZE, dtype=torch.float32)
        logits[..., PAD] = OUTSIDE_PAD_LOGIT
        return packing.scatter(self.lm_head(z_H).float(), logits)

    def _halting(
        self, features: Float[Tensor, "batch hidden"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        q_halt, q_continue = self.q_head(features.to(self.q_head.weight.dtype)).unbind(-1)
        return q_halt, q_continue

    @staticmethod
    def _carried(carry: InnerCarry, z_H: Tensor, z_L: Tensor, packing: Packing) -> InnerCarry:
        """The detached new carry."""
        return replace(
            carry, z_H=packing.scatter(z_H.detach(), carry.z_H), z_L=packing.scatter(z_L.detach(), carry.z_L)
        )


class TRMEncoderInner(RecursiveDecoder):
    """The decoder behind context slots: one ACT step of H and L cycles, of which the last H cycle has a gradient."""

    def forward(
        self,
        carry: TRMEncoderInnerCarry,
        batch: Batch,
        context: EncoderOutput | Float[Tensor, "batch tokens hidden"],
        active: Bool[Tensor, "batch 900"] | None = None,
    ) -> tuple[
        TRMEncoderInnerCarry,
        Float[Tensor, "batch 900 vocab"],
        tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]],
    ]:
        """One ACT step.

        Args:
            batch: `inputs` (B, 900).
            context: a plain tensor means tokens that are all valid, at positions 0..T-1.
            active: the cells to compute (None: all).

        Returns:
            The detached new carry; logits (float32), PAD outside the active cells; the halt and continue logits.
        """
        if isinstance(context, Tensor):
            context = fixed_length_output(context)
        num_context = context.context.shape[1]
        tokens = batch["inputs"].int()
        if active is None:
            active = torch.ones_like(tokens, dtype=torch.bool)
        packing = pack(torch.cat([context.mask, active], dim=1), by_view=packs_by_view(tokens.device, self.dtype))
        x, rotary = self._inputs(tokens, context, packing)
        z_H, z_L = packing.gather(carry.z_H), packing.gather(carry.z_L)
        z_H, z_L = self._reason(z_H, z_L, x, packing, rotary)

        logits = self._logits(z_H, packing)[:, num_context:]
        return self._carried(carry, z_H, z_L, packing), logits, self._halting(z_H[packing.first_row])

    def _inputs(
        self, tokens: Tensor, context: EncoderOutput, packing: Packing
    ) -> tuple[Float[Tensor, "n hidden"], Rotary]:
        """√hidden · [context ; token embeddings] of the packed rows, and their rotary angles."""
        batch, num_context, hidden = context.context.shape
        slots = torch.arange(batch * num_context, device=tokens.device, dtype=torch.int32).view(batch, num_context)
        index = packing.gather(torch.cat([slots + VOCAB_SIZE, tokens], dim=1))
        weight = self.embed_tokens.embedding_weight.to(self.dtype)
        table = torch.cat([weight, context.context.to(self.dtype).reshape(-1, hidden)])
        x = hidden**0.5 * F.embedding(index, table)
        cells = torch.arange(SEQ_LEN, device=tokens.device) + self.config.puzzle_emb_len
        positions = torch.cat([context.positions, cells.expand(batch, -1)], dim=1)
        return x, self.rotary(packing.gather(positions))


class PuzzleEmbedding(nn.Module):
    """A row of `puzzle_emb_ndim` numbers for each puzzle identifier, from zero.

    The table is a buffer: no optimizer, average or gradient is as large as it. In training a forward pass leaves the
    rows of its batch in `touched`, a leaf of the graph, for `learning.optim.PuzzleEmbeddingSGD`.
    """

    weights: Tensor

    def __init__(self, num_puzzles: int, ndim: int):
        super().__init__()
        self.register_buffer("weights", torch.zeros(num_puzzles, ndim))
        self.touched: tuple[Tensor, Tensor] | None = None

    def forward(self, puzzle_identifiers: Int[Tensor, " batch"]) -> Float[Tensor, "batch ndim"]:
        rows = self.weights[puzzle_identifiers]
        if self.training and torch.is_grad_enabled():
            rows.requires_grad_()
            self.touched = (puzzle_identifiers, rows)
        return rows


class TRMInner(TRMEncoderInner):
    """The decoder with the puzzle embeddings beside it, named as in published checkpoints."""

    def __init__(self, config: Any, num_puzzle_identifiers: int):
        super().__init__(config)
        self.puzzle_emb = PuzzleEmbedding(num_puzzle_identifiers, config.puzzle_emb_ndim)

    def puzzle_context(self, puzzle_identifiers: Int[Tensor, " batch"]) -> EncoderOutput:
        """The puzzle's embedding, zero-padded and cut into `puzzle_emb_len` context tokens."""
        rows = self.puzzle_emb(puzzle_identifiers)
        slots, hidden = self.config.puzzle_emb_len, self.config.hidden_size
        padded = F.pad(rows, (0, slots * hidden - rows.shape[1]))
        return fixed_length_output(padded.view(-1, slots, hidden))


class TRM(RecursiveReasoner):
    """Puzzle identifier → learned embedding → context → `inner`: it never reads a demonstration."""

    reads_demonstrations = False
    condition_keys = ("puzzle_identifiers",)

    def __init__(self, config: Any, num_puzzle_identifiers: int):
        super().__init__(config)
        self.inner = TRMInner(config, num_puzzle_identifiers)

    def initial_carry(self, batch: Batch) -> TRMEncoderCarry:
        return TRMEncoderCarry(**self._fresh_state(batch))

    def encode(self, data: Batch) -> EncoderOutput:
        return self.inner.puzzle_context(data["puzzle_identifiers"])

    def advance_context(
        self, carry: TRMEncoderCarry, encoding: EncoderOutput
    ) -> tuple[EncoderOutput, dict[str, Any], dict[str, Tensor]]:
        return encoding, {}, {}
