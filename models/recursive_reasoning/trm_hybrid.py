"""TRM hybrid: a frozen language model reads the task as text, a recursive decoder draws the grid.

The language model's pooled hidden state, z_init, is projected and added to every cell's embedding; there are no
context slots. With `conditioning: cross_attention` the decoder also attends to all hidden states of the text. In
training batches bring the latents along (`inference/latent_cache.py`), and no language model is in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from config.arch_schema import HybridArch
from dataset.batches import Batch
from dataset.grids import SEQ_LEN
from models.act import StaticContextReasoner
from models.encoders.base import EncoderOutput, packs_by_view
from models.grid_conv import with_neighbours
from models.layers import CrossBlock, Linear, rms_norm
from models.packing import Packing, pack
from models.positions import placed
from models.recursive_reasoning.carry import TRMEncoderInnerCarry
from models.recursive_reasoning.decoder import RecursiveDecoder
from models.segments import Segments, ends_of
from models.text_reasoning import TextReasoningModule


@dataclass(frozen=True)
class HybridTRMInnerCarry(TRMEncoderInnerCarry):
    """z_H and z_L of the 900 cells, (B, 900, hidden): there are no context slots."""


@dataclass(frozen=True)
class HybridTRMConfig:
    """The decoder and ACT. `arch` configs have more keys; `from_arch` takes these out of them.

    text_hidden_size: width of the language model's hidden states; in use it is read from the model.
    """

    H_cycles: int = 2
    L_cycles: int = 1
    L_layers: int = 4
    hidden_size: int = 512
    text_hidden_size: int = 4096
    num_heads: int = 8
    expansion: float = 4
    puzzle_emb_len: int = 0
    mlp_t: bool = False
    pos_encodings: str = "rope"
    forward_dtype: str = "bfloat16"
    canvas: str = "task"
    halting: str = "act"
    halt_max_steps: int = 1
    halt_exploration_prob: float = 0.5
    num_act_steps: int = 4
    grad_cycles: int = 1
    qk_norm_gain: bool = False
    grid_conv: bool = False
    random_depth: bool = False
    conditioning: Literal["z_init", "cross_attention"] = "z_init"

    @classmethod
    def from_arch(cls, arch: HybridArch) -> "HybridTRMConfig":
        """The decoder's part of an `arch` config; what is None there has its default."""
        values = {field.name: getattr(arch, field.name) for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if value is not None})

    @property
    def max_steps(self) -> int:
        """ACT steps of a sample, at most in training and always in evaluation."""
        return self.num_act_steps if self.halting == "fixed" else self.halt_max_steps


@dataclass(frozen=True, kw_only=True)
class TextContext(EncoderOutput):
    """What the language model made of each task. `context` is z_init as one token; `memory` are all hidden states."""

    z_init: Float[Tensor, "batch text_hidden"]
    memory: Float[Tensor, "batch tokens text_hidden"] | None
    memory_mask: Bool[Tensor, "batch tokens"] | None


class HybridTRM_Inner(RecursiveDecoder):
    """The decoder: one ACT step of H and L cycles over the active cells, of which the last H cycle has a gradient.

    z_init (and the memory) are scaled to unit RMS before they are projected: hidden states of language models differ
    in scale by orders of magnitude.
    """

    carry_type = HybridTRMInnerCarry
    config: HybridTRMConfig

    def __init__(self, config: HybridTRMConfig):
        super().__init__(config)
        self.z_projection = Linear(config.text_hidden_size, config.hidden_size)
        if config.conditioning == "cross_attention":
            self.memory_projection = Linear(config.text_hidden_size, config.hidden_size)
            self.memory_block = CrossBlock(config.hidden_size, config.num_heads, config.expansion)

    def forward(
        self,
        carry: TRMEncoderInnerCarry,
        z_init: Float[Tensor, "batch text_hidden"],
        problem_grid: Int[Tensor, "batch 900"],
        *,
        active: Bool[Tensor, "batch 900"] | None = None,
        memory: Float[Tensor, "batch tokens text_hidden"] | None = None,
        memory_mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> tuple[
        TRMEncoderInnerCarry,
        Float[Tensor, "batch 900 vocab"],
        tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]],
    ]:
        """One ACT step.

        Args:
            active: the cells to compute (None: all).
            memory, memory_mask: all hidden states of each text, for `conditioning: cross_attention`.

        Returns:
            The detached new carry; logits (float32), PAD outside the active cells; the halt and continue logits.
        """
        tokens = problem_grid.int()
        if active is None:
            active = torch.ones_like(tokens, dtype=torch.bool)
        packing = pack(active, by_view=packs_by_view(tokens.device, self.dtype))
        if self.config.grid_conv:
            packing = with_neighbours(packing, torch.arange(SEQ_LEN, device=tokens.device).expand_as(tokens), 1)
        places = self.position_encoding.of_cells(packing.positions, 0)
        x, rotary = placed(self.position_encoding, self._input_embeddings(z_init, tokens, packing), places)
        read_memory = self._memory_reader(memory, memory_mask, packing)
        z_H, z_L = self._reason(*carry.rows(packing), x, packing, rotary, read_memory)
        return carry.updated(z_H, z_L, packing), self._logits(z_H, packing), self._halting(packing.mean(z_H))

    def _input_embeddings(
        self,
        z_init: Float[Tensor, "batch text_hidden"],
        problem_grid: Int[Tensor, "batch 900"],
        packing: Packing | None = None,
    ) -> Float[Tensor, "batch 900 hidden"] | Float[Tensor, "n hidden"]:
        """√hidden · token embedding + projected z_init, at every position (of `packing`: at its rows alone)."""
        scale = self.config.hidden_size**0.5
        z = self.z_projection(self._unit_rms(z_init))
        if packing is None:
            return scale * self.embed_tokens(problem_grid.int(), self.dtype) + z[:, None]
        return scale * self.embed_tokens(packing.gather(problem_grid.int()), self.dtype) + z[packing.sequence]

    def _unit_rms(self, states: Tensor) -> Tensor:
        return rms_norm(states.to(torch.promote_types(states.dtype, torch.float32))).to(self.dtype)

    def _memory_reader(
        self, memory: Tensor | None, memory_mask: Tensor | None, packing: Packing
    ) -> Callable[[Tensor], Tensor] | None:
        """What lets each packed row attend to its own task's hidden states; None with `conditioning: z_init`."""
        if self.config.conditioning == "z_init":
            return None
        if memory is None or memory_mask is None:
            raise ValueError("conditioning=cross_attention needs memory and memory_mask: the text's hidden states")
        sample = packing.sequence[packing.cu_seqlens[:-1].long()]  # packed sequences stand in another order
        mask = memory_mask[sample]
        tokens = self.memory_projection(self._unit_rms(memory[sample][mask]))
        segments = Segments(packing.cu_seqlens, ends_of(mask.sum(1)), packing.max_seqlen, memory_mask.shape[1])
        return lambda z: self.memory_block(z, tokens, segments)


class HybridTRMModel(StaticContextReasoner):
    """Task as text → frozen `text_module` → z_init → `inner`.

    A batch brings `z_init` (B, text_hidden), and with `conditioning: cross_attention` also `text_states`
    (B, T, text_hidden) and `text_mask` (B, T). Without `z_init` it brings the texts as `text_tokens`, `text_mask`
    (B, T), and the language model runs at every step.
    """

    condition_keys = ("z_init", "text_states", "text_mask", "text_tokens")
    inner: HybridTRM_Inner

    def __init__(self, config: HybridArch, text_module: TextReasoningModule | None = None):
        super().__init__(config)
        self.text_module = text_module
        self.inner = HybridTRM_Inner(HybridTRMConfig.from_arch(config))

    def encode(self, data: Batch) -> TextContext:
        """Raises ValueError if the batch brings neither latents nor texts that a language model here could read."""
        mask, states = data.get("text_mask"), data.get("text_states")
        z_init = data.get("z_init")
        if z_init is None:
            if self.text_module is None or mask is None:
                raise ValueError("the batch has no z_init, and there is no text_module to make it from text_tokens")
            latents = self.text_module(data["text_tokens"], mask)
            z_init, states = latents.z_init, latents.states
        batch, device = len(z_init), z_init.device
        return TextContext(
            context=z_init[:, None],
            mask=torch.ones(batch, 1, dtype=torch.bool, device=device),
            positions=torch.zeros(batch, 1, dtype=torch.int64, device=device),
            kl_loss=torch.zeros(batch, device=device),
            z_init=z_init,
            memory=states,
            memory_mask=mask,
        )

    def decode(
        self, inner_carry: Any, data: Batch, context: TextContext, active: Bool[Tensor, "batch 900"]
    ) -> tuple[Any, Tensor, tuple[Tensor, Tensor]]:
        memory = {"memory": context.memory, "memory_mask": context.memory_mask}
        return self.inner(inner_carry, context.z_init, data["inputs"], active=active, **memory)
