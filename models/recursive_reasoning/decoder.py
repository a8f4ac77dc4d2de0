"""The recursive decoder of "Less is More: Recursive Reasoning with Tiny Networks" (arXiv 2510.04871).

Two latents, z_H (the answer) and z_L (the reasoning), are refined by one small network, `L_level`, over the sequence
[context ; 900 cells]. Only the valid context tokens and the active cells are computed, as packed rows; the context may
have any length, which may differ from sample to sample (`models/recursive_reasoning/carry.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from config.arch_schema import ArchConfig
from dataset.batches import Batch
from dataset.grids import PAD, SEQ_LEN, VOCAB_SIZE
from models.answer_rows import AnswerRows
from models.canvas import extents_of
from models.encoders.base import EncoderOutput, MovingEvidence, fixed_length_output, forward_dtype, packs_by_view
from models.grid_conv import with_neighbours
from models.grid_coordinates import ABSENT, create_grid_coordinates, grid_coordinates
from models.layers import (
    Linear,
    MixerBlock,
    Rotary,
    TokenEmbedding,
    TransformerBlock,
    trunc_normal_,
    weights_cast_once,
)
from models.memory import Memory, Reading
from models.packing import Packing, pack
from models.pair_vectors import pair_means
from models.positions import create_position_encoding, placed
from models.recursive_reasoning.carry import InnerCarry, RaggedInnerCarry, TRMEncoderInnerCarry
from models.task_rows import in_stack

# Logit of PAD at cells that are not computed, where all other logits are 0: their prediction is PAD.
OUTSIDE_PAD_LOGIT = 16.0
Q_HEAD_BIAS = -5.0


class DecoderConfig(Protocol):
    """What a decoder reads of an `arch` config."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def expansion(self) -> float: ...
    @property
    def H_cycles(self) -> int: ...
    @property
    def L_cycles(self) -> int: ...
    @property
    def L_layers(self) -> int: ...
    @property
    def puzzle_emb_len(self) -> int: ...
    @property
    def mlp_t(self) -> bool: ...
    @property
    def forward_dtype(self) -> str: ...
    @property
    def pos_encodings(self) -> str: ...
    @property
    def grad_cycles(self) -> int: ...
    @property
    def qk_norm_gain(self) -> bool: ...
    @property
    def grid_conv(self) -> bool: ...


class ReasoningLevel(nn.Module):
    """`L_level`: add the injection, then run the blocks; each of them may read a memory too."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        if config.mlp_t:
            length = config.puzzle_emb_len + SEQ_LEN
            blocks = [MixerBlock(config.hidden_size, length, config.expansion) for _ in range(config.L_layers)]
        else:
            sizes = (config.hidden_size, config.num_heads, config.expansion)
            blocks = [
                TransformerBlock(*sizes, qk_gain=config.qk_norm_gain, grid_conv=config.grid_conv)
                for _ in range(config.L_layers)
            ]
        self.layers = nn.ModuleList(blocks)

    def forward(
        self,
        h: Float[Tensor, "n hidden"],
        injection: Float[Tensor, "n hidden"],
        packing: Packing,
        rotary: Rotary | None,
        memories: Sequence[Memory] | None = None,
        answers: AnswerRows | None = None,
    ) -> Float[Tensor, "rows hidden"]:
        """
        Args:
            memories: for each block what it reads, from `memories`.
            answers: the rows that the last block computes, without memories (None: all).
        """
        h = h + injection
        for number, layer in enumerate(self.layers):
            read: tuple[Any, ...] = () if memories is None else (memories[number],)
            if answers is not None and number == len(self.layers) - 1:
                read = (None, answers)
            h = layer(h, packing.of_layer(number), rotary, *read)
        return h

    def memories(self, tokens: Float[Tensor, "m hidden"], rotary: Rotary | None, reading: Reading) -> list[Memory]:
        """What the blocks read of a memory's tokens."""
        blocks: Any = self.layers
        return [block.self_attn.memory(tokens, rotary, reading) for block in blocks]


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
    # The blocks are replayed as CUDA graphs, one for each number of rows: these are rounded up to one of few.
    replays_graphs = False

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config, self.h_cycles = config, config.H_cycles
        hidden, num_slots = config.hidden_size, config.puzzle_emb_len + SEQ_LEN
        self.dtype = forward_dtype(config)
        self.embed_tokens = TokenEmbedding(VOCAB_SIZE, hidden)
        self.L_level = ReasoningLevel(config)
        self.lm_head = Linear(hidden, VOCAB_SIZE)
        self.q_head = QHead(hidden)
        self.position_encoding = create_position_encoding(config.pos_encodings, hidden, config.num_heads, num_slots)
        self.register_buffer("H_init", trunc_normal_(torch.empty(hidden), 1.0))
        self.register_buffer("L_init", trunc_normal_(torch.empty(hidden), 1.0))

    @contextmanager
    def at_depth(self, h_cycles: int) -> Iterator[None]:
        """Inside the block a step has so many H cycles; else as many as the config says."""
        self.h_cycles = h_cycles
        try:
            yield
        finally:
            self.h_cycles = self.config.H_cycles

    def _initial_latents(self, device: torch.device | None = None) -> tuple[Float[Tensor, " hidden"], ...]:
        return tuple(init.to(device or init.device, self.dtype) for init in (self.H_init, self.L_init))

    def initial_carry(self, batch_size: int, device: torch.device, *, ragged: bool = False) -> InnerCarry:
        """The latents at the start of reasoning.

        Args:
            ragged: for contexts of other lengths than `puzzle_emb_len`.
        """
        H_init, L_init = self._initial_latents(device)
        if ragged:
            return RaggedInnerCarry.initial(batch_size, H_init, L_init)
        shape = (batch_size, self.config.puzzle_emb_len + SEQ_LEN, self.config.hidden_size)
        return self.carry_type(H_init.expand(shape).contiguous(), L_init.expand(shape).contiguous())

    def reset_carry(self, reset_flag: Bool[Tensor, " batch"], carry: InnerCarry) -> InnerCarry:
        """The initial latents where `reset_flag`, else the carry's."""
        return carry.reset(reset_flag, *self._initial_latents())

    def _reason(
        self,
        z_H: Tensor,
        z_L: Tensor,
        x: Tensor,
        packing: Packing,
        rotary: Rotary | None,
        read_memory: Callable[[Tensor], Tensor] | None = None,
        memories_at: Callable[[Tensor], Sequence[Memory]] | None = None,
        answers: AnswerRows | None = None,
    ) -> tuple[Float[Tensor, "rows hidden"], Float[Tensor, "n hidden"]]:
        """`h_cycles` times: `L_cycles` times z_L = L_level(z_L, z_H + x), then z_H = L_level(z_H, z_L).

        Only the last `grad_cycles` have a gradient. z_H takes z_L through `read_memory`, where there is one.

        Args:
            memories_at: what the level reads in a cycle, given the z_H at its start.
            answers: the rows of the last z_H that are returned (None: all).
        """
        with weights_cast_once(self.L_level, self.dtype):
            for cycle in range(self.h_cycles):
                is_last = cycle == self.h_cycles - 1
                has_gradient = cycle >= self.h_cycles - self.config.grad_cycles
                with torch.set_grad_enabled(torch.is_grad_enabled() and has_gradient):
                    memories = None if memories_at is None else memories_at(z_H)
                    injection = z_H + x
                    for _ in range(self.config.L_cycles):
                        z_L = self.L_level(z_L, injection, packing, rotary, memories)
                    taken = z_L if read_memory is None else read_memory(z_L)
                    z_H = self.L_level(z_H, taken, packing, rotary, memories, answers if is_last else None)
        return z_H, z_L

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


@dataclass(frozen=True)
class Reasoned:
    """What an ACT step comes to: the detached new carry, logits, halt and continue logits; and z_H's rows, attached."""

    carry: InnerCarry
    logits: Float[Tensor, "batch 900 vocab"]
    halting: tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]
    z_H: Float[Tensor, "n hidden"]
    packing: Packing
    context: EncoderOutput

    def pairs(self, demos: int) -> Float[Tensor, "batch demos hidden"]:
        """The mean z_H of each demonstration pair's cells.

        Raises:
            ValueError: an encoder that gives neither vectors of pairs nor their cells.
        """
        if self.context.cells is None:
            raise ValueError("arch.loss.pair_weight needs `pairs`, or `cells`, in the EncoderOutput of the encoder")
        cells = _cells_of_grids(self.context)
        of_pairs = torch.where(cells < self.context.grids * SEQ_LEN, cells, -1)
        return pair_means(self.z_H, self.packing, of_pairs, self.context.grids, demos)


class TRMEncoderInner(RecursiveDecoder):
    """The decoder behind context tokens: one ACT step of H and L cycles, of which the last H cycle has a gradient.

    answers_alone: nobody reads what a step leaves behind of the context's cells.
    """

    def __init__(self, config: ArchConfig, *, answers_alone: bool = False):
        super().__init__(config)
        self.answers_alone = answers_alone
        self.coordinates = create_grid_coordinates(config.grid_coordinates, config.hidden_size)

    def forward(
        self,
        carry: InnerCarry,
        batch: Batch,
        context: EncoderOutput | Float[Tensor, "batch tokens hidden"],
        active: Bool[Tensor, "batch 900"] | None = None,
    ) -> tuple[
        InnerCarry,
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

        Raises:
            ValueError: `mlp_t`, which mixes positions, with another number of context tokens than its own.
        """
        found = self.reason(carry, batch, context, active)
        return found.carry, found.logits, found.halting

    def reason(
        self,
        carry: InnerCarry,
        batch: Batch,
        context: EncoderOutput | Float[Tensor, "batch tokens hidden"],
        active: Bool[Tensor, "batch 900"] | None = None,
    ) -> Reasoned:
        """One ACT step, as `forward`."""
        if isinstance(context, Tensor):
            context = fixed_length_output(context)
        if self.replays_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # what earlier steps left in the graphs' memory is free
        tokens = batch["inputs"].int()
        if active is None:
            active = torch.ones_like(tokens, dtype=torch.bool)
        evidence, context = context, context.alone() if context.is_read else context
        carry = self._fitting(carry, context.context.shape[1])
        if context.pair_lengths is not None:
            context = context.first_token_last()  # beside the answer's cells, with which it is one part
        packing, first_token = self._packed(context, active)
        x, rotary = self._inputs(tokens, context, packing)
        memories_at = self._reader(evidence, packing, rotary) if evidence.is_read else None
        answers = self._answers(packing, context, active)
        z_H, z_L = self._reason(*carry.rows(packing), x, packing, rotary, memories_at=memories_at, answers=answers)
        if answers is None:
            carry = carry.updated(z_H, z_L, packing)
        else:
            packing, first_token = answers.packing, answers.first
        logits = self._logits(z_H, packing)[:, context.context.shape[1] :]
        return Reasoned(carry, logits, self._halting(z_H[first_token]), z_H, packing, context)

    def _answers(
        self, packing: Packing, context: EncoderOutput, active: Bool[Tensor, "batch 900"]
    ) -> AnswerRows | None:
        """The rows that are read of the step, where they are not all; the carry then stays as it was."""
        if not self.answers_alone or context.pair_lengths is None or packing.runs is None or packing.tasks is not None:
            return None
        last = packing.of_layer(self.config.L_layers - 1)
        before, lengths = context.pair_lengths.sum(1), 1 + active.sum(1)
        return AnswerRows.behind(packing, before, lengths, whole=last is packing.of_layer(1))

    def _packed(self, context: EncoderOutput, active: Bool[Tensor, "batch 900"]) -> tuple[Packing, Tensor]:
        """The packing of context and active cells, and the row of each sample's first token."""
        mask, by_view = torch.cat([context.mask, active], dim=1), packs_by_view(active.device, self.dtype)
        packing = pack(mask, by_view=by_view, rounded=self.replays_graphs)
        if self.config.grid_conv:
            packing = with_neighbours(packing, _cells_of_grids(context), context.grids + 1)
        if context.pair_lengths is None:
            return packing, packing.first_row
        parts = torch.cat([context.pair_lengths, 1 + active.sum(1, keepdim=True)], dim=1)
        packing = packing.scoped("alternate", parts, max(context.mask.shape[1], 1 + SEQ_LEN))
        return packing, packing.first_row + context.pair_lengths.sum(1)

    def _reader(
        self, evidence: EncoderOutput, packing: Packing, rotary: Rotary | None
    ) -> Callable[[Tensor], Sequence[Memory]]:
        """What the level reads in a cycle, given the z_H at its start: evidence that stays as it is, or moves on."""
        if isinstance(evidence, MovingEvidence):
            reading = evidence.read_by(packing, evidence.packing)
            advance = evidence.beside(packing, rotary)
            return lambda z_H: self.L_level.memories(advance(z_H), evidence.rotary, reading)
        still = pack(evidence.mask[:, 1:], by_view=packs_by_view(evidence.mask.device, self.dtype))
        places = still.gather(self.position_encoding.of_tokens(*evidence.places)[:, 1:])
        tokens, reading = still.gather(evidence.context[:, 1:]), evidence.read_by(packing, still)
        memories = self.L_level.memories(tokens, self.position_encoding.rotary(places), reading)
        return lambda z_H: memories

    def _fitting(self, carry: InnerCarry, num_context: int) -> InnerCarry:
        """The carry; a padded one whose slots are not this context's starts afresh as a ragged one."""
        if isinstance(carry, RaggedInnerCarry) or num_context == self.config.puzzle_emb_len:
            return carry
        if self.config.mlp_t:
            raise ValueError(
                f"arch.mlp_t=true mixes {self.config.puzzle_emb_len} context tokens with the cells; the context has "
                f"{num_context}"
            )
        return RaggedInnerCarry.initial(len(carry.z_H), *self._initial_latents())

    def _inputs(
        self, tokens: Int[Tensor, "batch 900"], context: EncoderOutput, packing: Packing
    ) -> tuple[Float[Tensor, "n hidden"], Rotary | None]:
        """√hidden · [context ; token embeddings] of the packed rows, placed."""
        batch, num_context, hidden = context.context.shape
        slots = torch.arange(batch * num_context, device=tokens.device, dtype=torch.int32).view(batch, num_context)
        weight = self.embed_tokens.embedding_weight.to(self.dtype)
        if context.query_tokens is not None:
            weight = weight + context.query_tokens
        embeddings = weight.flatten(0, -2)
        index = packing.gather(torch.cat([slots + len(embeddings), in_stack(tokens, weight)], dim=1))
        table = torch.cat([embeddings, context.context.to(self.dtype).reshape(-1, hidden)])
        x = hidden**0.5 * F.embedding(index, table)
        self.position_encoding.cover(num_context)
        cells = torch.arange(SEQ_LEN, device=tokens.device).expand(batch, -1)
        places = torch.cat(
            [
                self.position_encoding.of_tokens(context.positions, context.coordinates),
                self.position_encoding.of_cells(cells, self.config.puzzle_emb_len),
            ],
            dim=1,
        )
        if self.coordinates is not None:
            x = x + self.coordinates(packing.gather(self._in_grids(tokens, cells, context)), self.dtype)
        return placed(self.position_encoding, x, packing.gather(places))

    @staticmethod
    def _in_grids(
        tokens: Int[Tensor, "batch 900"], cells: Int[Tensor, "batch 900"], context: EncoderOutput
    ) -> Int[Tensor, "batch slots 4"]:
        """Where context tokens stand in their grids, and the canvas's cells in that of the query's input."""
        first, end = (bound[:, None].expand(-1, SEQ_LEN, -1) for bound in extents_of(tokens))
        of_context = context.in_grid
        if of_context is None:
            of_context = cells.new_full((*context.positions.shape, 4), ABSENT)
        return torch.cat([of_context, grid_coordinates(cells, first, end)], dim=1)


def _cells_of_grids(context: EncoderOutput) -> Int[Tensor, "batch slots"]:
    """900 · grid + cell of context tokens and canvas, which is the last grid; -1 of tokens that are no cells."""
    of_context = torch.full_like(context.positions, -1) if context.cells is None else context.cells
    canvas = context.grids * SEQ_LEN + torch.arange(SEQ_LEN, device=of_context.device)
    return torch.cat([of_context, canvas.expand(len(of_context), -1)], dim=1)
