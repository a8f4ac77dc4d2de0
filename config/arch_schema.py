"""What the `arch` section may hold: the decoder and ACT of every system, and what each system adds."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from config.fields import (
    Beta,
    Home,
    NonNegativeFloat,
    Number,
    Positive,
    PositiveFloat,
    Probability,
    Section,
    Text,
    TrueAsWord,
)
from dataset.grids import SEQ_LEN

EMBEDDED_TEXT_MODEL = "embedded"  # the small model that the extra [llm] brings along
# What encoders read whose tokens are the demonstrations' cells, and the layers of those that encode pairs.
CONTEXT_KEYS = ("context_tokens", "context_attention", "query_as_context")
ForwardDtype = Literal["auto", "bfloat16", "float32"]
ENCODER_LAYER_KEYS = ("encoder_num_layers", "encoder_norm_style", "encoder_layer_scale_init", "encoder_qk_norm")
# What a batch tells of a puzzle beside the query.
Condition = Literal["demonstrations", "puzzle identifiers", "texts"]


class _LossTerms(Section):
    loss_type: Literal["stablemax_cross_entropy", "softmax_cross_entropy"]
    kl_weight: NonNegativeFloat
    pair_weight: NonNegativeFloat = 0.0


class LossConfig(_LossTerms):
    name: Literal["losses@ACTLossHead"]


class CropLossConfig(_LossTerms):
    name: Literal["losses@CropLossHead"]
    include_eos: bool


class ArchConfig(Section):
    """The recursive decoder and ACT."""

    condition: ClassVar[Condition] = "demonstrations"

    loss: LossConfig

    hidden_size: Positive
    num_heads: Positive
    expansion: PositiveFloat
    H_cycles: Positive
    L_cycles: Positive
    H_layers: Literal[0]
    L_layers: Positive
    puzzle_emb_len: Positive
    mlp_t: bool
    pos_encodings: Literal["rope", "rope2d", "learned"] = "rope"  # configs of runs from before it existed are read
    grid_coordinates: Literal["none", "corner", "both"] = "none"
    forward_dtype: ForwardDtype
    canvas: Literal["task", "full"]
    halting: Literal["act", "fixed"]
    halt_max_steps: Positive
    halt_exploration_prob: Probability
    num_act_steps: Positive
    grad_cycles: Positive = 1
    qk_norm_gain: bool = False
    grid_conv: bool = False
    random_depth: bool = False

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ArchConfig":
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"arch.hidden_size={self.hidden_size} must be a multiple of 2 * arch.num_heads={self.num_heads} "
                "(rotary positions turn pairs of channels)"
            )
        if self.pos_encodings == "rope2d" and self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"arch.pos_encodings=rope2d turns half of each head by the row and half by the column: "
                f"arch.hidden_size={self.hidden_size} must be a multiple of 4 * arch.num_heads={self.num_heads}"
            )
        if self.mlp_t and self.pos_encodings != "rope":
            raise ValueError(
                f"arch.mlp_t=true knows positions by itself: arch.pos_encodings={self.pos_encodings} must be rope"
            )
        if self.mlp_t and self.canvas != "full":
            raise ValueError(f"arch.mlp_t=true mixes all {SEQ_LEN} cells: it needs arch.canvas=full")
        return self

    @model_validator(mode="after")
    def _has_vectors_of_pairs(self) -> "ArchConfig":
        if self.loss.pair_weight and (why := self.without_pair_vectors):
            raise ValueError(
                f"arch.loss.pair_weight={self.loss.pair_weight} makes the vectors of a task's pairs alike, but {why}: "
                "it must be 0"
            )
        return self

    @property
    def without_pair_vectors(self) -> str | None:
        """Why there is no vector of each demonstration pair; None where there is one."""
        return f"this system reads {self.condition} and no pairs"

    @model_validator(mode="after")
    def _cycles_have_a_gradient(self) -> "ArchConfig":
        if self.grad_cycles > self.H_cycles:
            raise ValueError(
                f"arch.grad_cycles={self.grad_cycles} is more than the arch.H_cycles={self.H_cycles} that there are"
            )
        return self

    @property
    def max_steps(self) -> int:
        """ACT steps of a sample, at most in training and always in evaluation."""
        return self.num_act_steps if self.halting == "fixed" else self.halt_max_steps

    @property
    def steps_per_batch(self) -> int:
        """ACT steps, and so optimizer steps, on one batch."""
        return self.num_act_steps if self.halting == "fixed" else 1

    @property
    def is_variational(self) -> bool:
        """Whether the encoder samples, so that there is a KL divergence."""
        return False

    @property
    def num_positions(self) -> int:
        """How many positions `rope` tells apart: context slots, and cells behind them."""
        return self.puzzle_emb_len + SEQ_LEN

    @property
    def encoder_name(self) -> str:
        """The encoder, as run folders and reports call it."""
        return "none"

    def unused_keys(self) -> dict[str, str]:
        """Keys that the chosen options do not read, with the reason."""
        unused = {}
        if self.halting == "fixed":
            why = "arch.halting=fixed takes arch.num_act_steps steps"
            unused |= {"halt_max_steps": why, "halt_exploration_prob": why}
        else:
            unused["num_act_steps"] = "arch.halting=act halts by itself; arch.halting=fixed reads it"
        if self.mlp_t:
            unused["qk_norm_gain"] = "arch.mlp_t=true has no attention"
            unused["grid_conv"] = "arch.mlp_t=true mixes all positions; its blocks have no convolution"
        if self.H_cycles == 1:
            unused["random_depth"] = "arch.H_cycles=1 leaves nothing to draw"
        if self.halting == "act" and self.halt_max_steps == 1:
            unused["halt_exploration_prob"] = "arch.halt_max_steps=1 leaves nothing to explore"
        if not self.is_variational:
            unused["loss.kl_weight"] = f"the encoder {self.encoder_name} is deterministic and has no KL"
        if why := self.without_pair_vectors:
            unused["loss.pair_weight"] = why
        return unused


class TrmArch(ArchConfig):
    """TRM: a learned embedding for each puzzle and augmentation."""

    name: Literal["recursive_reasoning.trm@TRM"]
    condition: ClassVar[Condition] = "puzzle identifiers"
    puzzle_emb_ndim: Positive

    @property
    def encoder_name(self) -> str:
        return "puzzle_emb"

    @model_validator(mode="after")
    def _embedding_fits(self) -> "TrmArch":
        slots = self.puzzle_emb_len * self.hidden_size
        if self.puzzle_emb_ndim > slots:
            raise ValueError(
                f"arch.puzzle_emb_ndim={self.puzzle_emb_ndim} does not fit into arch.puzzle_emb_len="
                f"{self.puzzle_emb_len} slots of arch.hidden_size={self.hidden_size}: at most {slots}"
            )
        return self


class EncoderArch(ArchConfig):
    """What the archs with an encoder of demonstration pairs share."""

    encoder_num_layers: Positive
    encoder_norm_style: Literal["post", "pre"]
    encoder_layer_scale_init: PositiveFloat | None
    encoder_qk_norm: bool
    encoder_pooling_method: Literal["mean", "attention", "weighted"]
    encoder_aligned_cells: bool = False
    context_tokens: Literal["one", "two"] = "one"
    context_attention: Literal["all", "alternate", "pair"] = "all"
    query_as_context: bool = False

    @property
    def without_pair_vectors(self) -> str | None:
        return None

    def _refuse_mixing(self, choice: str) -> None:
        if self.mlp_t:
            raise ValueError(
                f"arch.mlp_t=true mixes a fixed number of context tokens: {choice}, which has one for each cell of the "
                "demonstrations, needs arch.mlp_t=false"
            )

    def _unused_in_context(self, choice: str, layers: Iterable[str]) -> dict[str, str]:
        """What an encoder that embeds cells does not read: among others, these keys of layers."""
        unused = dict.fromkeys(layers, f"{choice} has no such layers")
        unused["encoder_pooling_method"] = f"{choice} pools nothing"
        unused["encoder_aligned_cells"] = f"{choice} embeds the aligned cell always"
        if self.pos_encodings != "rope":
            unused["puzzle_emb_len"] = f"{choice} has a token for each cell; rope alone counts by it"
        return unused


class EtrmArch(EncoderArch):
    """ETRM: a static encoder."""

    name: Literal["recursive_reasoning.etrm@TRMWithEncoder"]
    encoder_type: Literal[
        "standard", "hybrid_standard", "hybrid_variational", "lpn_standard", "lpn_variational", "in_context"
    ]
    encoder_set_layers: Positive
    lpn_latent_dim: Positive
    context_mode: Literal["evolve", "read"] = "evolve"
    targets: Literal["query", "all_pairs"] = "query"

    @model_validator(mode="after")
    def _has_slots_to_mix(self) -> "EtrmArch":
        if self.encoder_type == "in_context":
            self._refuse_mixing("arch.encoder_type=in_context")
        return self

    @model_validator(mode="after")
    def _attention_reaches_the_answer(self) -> "EtrmArch":
        if self.encoder_type != "in_context" or self.context_mode != "evolve":
            return self
        if self.context_attention == "pair":
            raise ValueError(
                "arch.context_attention=pair keeps the decoder's own blocks from reading any demonstration: it needs "
                "arch.context_mode=read"
            )
        if self.context_attention == "alternate" and self.L_layers == 1:
            raise ValueError(
                "arch.context_attention=alternate lets every other layer attend within a pair, the first one too: "
                "arch.L_layers=1 would read no demonstration, it must be 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _targets_read_other_pairs_alone(self) -> "EtrmArch":
        chosen = (self.encoder_type, self.context_mode, self.context_attention)
        if self.targets == "all_pairs" and chosen != ("in_context", "read", "pair"):
            raise ValueError(
                "arch.targets=all_pairs asks for a pair's output from the other pairs, whose evidence must not have "
                "seen it: it needs arch.encoder_type=in_context, arch.context_mode=read and arch.context_attention=pair"
            )
        return self

    @property
    def encoder_name(self) -> str:
        return self.encoder_type

    @property
    def is_variational(self) -> bool:
        return self.encoder_type.endswith("variational")

    def unused_keys(self) -> dict[str, str]:
        unused = super().unused_keys()
        chosen = f"arch.encoder_type={self.encoder_type}"
        if self.encoder_type == "in_context":
            layers = () if self.context_mode == "read" else ENCODER_LAYER_KEYS
            keys = self._unused_in_context(f"{chosen} with arch.context_mode={self.context_mode}", layers)
            if self.context_mode == "read" and self.qk_norm_gain:
                keys["encoder_qk_norm"] = (
                    "arch.qk_norm_gain=true norms the queries and keys of the encoder's blocks too"
                )
            return unused | keys | dict.fromkeys(("encoder_set_layers", "lpn_latent_dim"), f"{chosen} does not read it")
        for key in ("context_mode", *CONTEXT_KEYS):
            unused[key] = f"{chosen} does not read it; in_context does"
        if self.encoder_type != "standard":
            unused["encoder_norm_style"] = f"{chosen} is pre-norm"
            unused["encoder_pooling_method"] = f"{chosen} pools by its CLS token"
        if self.encoder_type.startswith("lpn"):
            unused["encoder_set_layers"] = f"{chosen} has no set encoder"
        if self.encoder_type != "lpn_variational":
            unused["lpn_latent_dim"] = f"{chosen} does not read it; lpn_variational does"
        return unused


class EtrmtrmArch(EncoderArch):
    """ETRMTRM: a recurrent encoder; `encoder_type` is that of its grid encoder."""

    name: Literal["recursive_reasoning.etrmtrm@TRMWithRecurrentEncoder"]
    encoder_type: Literal["standard"]
    recurrent_encoder_type: Literal["recurrent_standard", "trm_style", "in_context"]
    encoder_memory: Literal["pairs", "cells"] = "pairs"
    encoder_h_cycles: Positive
    encoder_l_cycles: Positive
    encoder_l_layers: Positive
    encoder_grad_cycles: Literal["last", "all"]
    encoder_state_ema: Beta
    encoder_residual_scale: PositiveFloat
    encoder_context_norm: bool

    @property
    def encoder_name(self) -> str:
        return self.recurrent_encoder_type

    @property
    def without_pair_vectors(self) -> str | None:
        has_cells_alone = self.encoder_memory == "cells" and self.recurrent_encoder_type != "in_context"
        return "arch.encoder_memory=cells has vectors of cells alone" if has_cells_alone else None

    @model_validator(mode="after")
    def _has_slots_to_mix(self) -> "EtrmtrmArch":
        if self.recurrent_encoder_type == "in_context":
            self._refuse_mixing("arch.recurrent_encoder_type=in_context")
        return self

    def unused_keys(self) -> dict[str, str]:
        unused = super().unused_keys()
        chosen = f"arch.recurrent_encoder_type={self.recurrent_encoder_type}"
        if self.recurrent_encoder_type == "in_context":
            why = f"{chosen} moves on with the decoder's H cycles; arch.grad_cycles says how many have a gradient"
            unused |= self._unused_in_context(chosen, ENCODER_LAYER_KEYS)
            unused["encoder_memory"] = f"{chosen} keeps the cells of all pairs themselves"
            return unused | dict.fromkeys(("encoder_h_cycles", "encoder_grad_cycles"), why)
        unused |= dict.fromkeys(CONTEXT_KEYS, f"{chosen} does not read it; in_context does")
        if self.encoder_memory == "cells":
            unused["encoder_pooling_method"] = "arch.encoder_memory=cells pools nothing"
        if self.recurrent_encoder_type == "recurrent_standard":
            why = f"{chosen} has no inner loops"
            loops = ("encoder_h_cycles", "encoder_l_cycles", "encoder_l_layers", "encoder_grad_cycles")
            unused |= dict.fromkeys(loops, why)
        elif self.encoder_h_cycles == 1:
            unused["encoder_grad_cycles"] = "arch.encoder_h_cycles=1 has a gradient anyway"
        return unused


class HybridArch(ArchConfig):
    """TRM hybrid: a frozen language model reads the task as text."""

    name: Literal["recursive_reasoning.trm_hybrid@HybridTRMModel"]
    condition: ClassVar[Condition] = "texts"
    loss: CropLossConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    puzzle_emb_len: Literal[0]  # pyright: ignore[reportIncompatibleVariableOverride]

    text_model: Annotated[Text, Field(min_length=1), Home]
    revision: Text | None
    local_files_only: bool
    text_dtype: Literal["float32", "bfloat16", "float16"]
    text_device: Literal["auto", "cpu", "cuda"]
    layer: Annotated[int, Number]
    pooling: Literal["last", "mean"]
    text_hidden_size: Positive | None

    chat_template: Literal["auto", "required", "none"]
    max_text_tokens: Positive | None
    demo_overflow: Literal["truncate", "error"]
    text_augmentations: Positive
    text_cache: Annotated[Text, Field(min_length=1), Home]
    text_batch_size: Positive

    conditioning: Literal["z_init", "cross_attention"]
    latents: Annotated[Literal["true", "shuffled", "zero"], TrueAsWord]
    curriculum: Literal["none", "grid_size"]

    @property
    def encoder_name(self) -> str:
        return self.conditioning if self.latents == "true" else f"{self.conditioning}-{self.latents}"

    def unused_keys(self) -> dict[str, str]:
        unused = super().unused_keys()
        if self.text_model == EMBEDDED_TEXT_MODEL:
            unused |= dict.fromkeys(("revision", "local_files_only"), "the embedded model is never looked for on a hub")
        unused["grid_coordinates"] = "the TRM hybrid's decoder has the published parts alone"
        return unused


DEFAULT_PROJECTS = {"recursive_reasoning.trm_hybrid@HybridTRMModel": "arc-trm-hybrid"}
AnyArch = TrmArch | EtrmArch | EtrmtrmArch | HybridArch


def no_graphs(arch: AnyArch) -> str | None:
    """Why the decoder's blocks cannot be replayed as CUDA graphs; None where they can.

    These are recorded for each number of rows, of which there are few only where the decoder packs its own rows alone.
    """
    if arch.forward_dtype != "bfloat16":
        return f"arch.forward_dtype={arch.forward_dtype} need not pack such rows: write arch.forward_dtype=bfloat16"
    if arch.mlp_t:
        return "arch.mlp_t=true needs whole sequences"
    if arch.grid_conv:
        return "arch.grid_conv=true has the blocks read the rows of neighbouring cells besides"
    if isinstance(arch, HybridArch):
        return "the TRM hybrid's decoder has other parts"
    if isinstance(arch, EtrmArch) and (arch.encoder_type, arch.context_mode) == ("in_context", "read"):
        return "arch.context_mode=read has the blocks read the demonstrations' cells besides"
    if isinstance(arch, EtrmtrmArch) and arch.recurrent_encoder_type == "in_context":
        return "arch.recurrent_encoder_type=in_context has the blocks read the demonstrations' cells besides"
    return None
