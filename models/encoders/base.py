"""What an encoder returns, and the registry of encoders.

An encoder reads `demo_inputs`, `demo_labels` (B, K, 900) and `demo_mask` (B, K) and gives context tokens. A new
encoder is one file, whose class says its name with `@encoder("...")`, and one line in `models/encoders/__init__.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from config.arch_schema import EncoderArch, EtrmArch, EtrmtrmArch
from dataset.batches import Demonstrations
from models.attention import uses_varlen_kernel
from models.layers import Rotary
from models.machine import best_dtype
from models.memory import Reading
from models.packing import Packing


@dataclass(frozen=True)
class EncoderOutput:
    """Context for the decoder.

    Attributes:
        context: (B, T, hidden), attached to the graph in training; T may differ from batch to batch.
        mask: which context tokens are valid; the first one is, for it tells whether to halt.
        positions: the number of each context token, for `pos_encodings: rope`; below the larger of T and
            `puzzle_emb_len` + 900, where the decoder's cells stand at `puzzle_emb_len` + 0..899.
        kl_loss: KL divergence of each sample, zeros for a deterministic encoder.
        coordinates: row and column of each context token on the canvas, for the other encodings (None: they are no
            cells).
        in_grid: the numbers of each context token in its grid (`models.grid_coordinates`; None: the decoder adds none).
        is_read: the tokens behind the first one are evidence that the decoder's rows read; else they evolve with them.
        cells: 900 · grid + cell of each context token that is a cell of a demonstration's grid, -1 of others (None:
            there is none), and `grids`, how many grids a sample has at most.
        pairs: a vector of each demonstration pair, for `arch.loss.pair_weight` (None: there is none, or nothing asks).
        query_tokens: for each colour of the query what is added to its cells' embeddings (None: nothing).
        pair_lengths: how many tokens each pair has, which follow one another behind the first token. Where they evolve,
            every other layer of the decoder attends within a pair, and within first token and answer (None: no layer).
    """

    context: Float[Tensor, "batch tokens hidden"]
    mask: Bool[Tensor, "batch tokens"]
    positions: Int[Tensor, "batch tokens"]
    kl_loss: Float[Tensor, " batch"]
    coordinates: Int[Tensor, "batch tokens 2"] | None = None
    in_grid: Int[Tensor, "batch tokens 4"] | None = None
    is_read: bool = False
    pair_lengths: Int[Tensor, "batch demos"] | None = None
    query_tokens: Float[Tensor, "vocab hidden"] | None = None
    cells: Int[Tensor, "batch tokens"] | None = None
    grids: int = 0
    pairs: Float[Tensor, "batch demos hidden"] | None = None

    @property
    def places(self) -> tuple[Tensor, Tensor | None]:
        """Positions and coordinates, as `PositionEncoding.of_tokens` takes them."""
        return self.positions, self.coordinates

    def alone(self) -> "EncoderOutput":
        """The first token without the others."""
        tokens = {name: value[:, :1] for name, value in self._of_tokens().items()}
        return replace(self, **tokens, is_read=False, pair_lengths=None, grids=0)

    def of_samples(self, samples: Int[Tensor, " n"]) -> "EncoderOutput":
        """The tokens of these samples, one after another."""
        return replace(self, **{name: value[samples] for name, value in self._of_tokens().items()})

    def _of_tokens(self) -> dict[str, Tensor]:
        names = ("context", "mask", "positions", "coordinates", "in_grid", "cells")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def read_by(self, queries: Packing, memory: Packing) -> Reading:
        """Which rows of the tokens behind the first one, packed as `memory`, each sequence of the decoder reads."""
        live = memory.live_rows
        return Reading.beside(queries, live, memory.sequence[live], memory.padded_length)

    def first_token_last(self) -> "EncoderOutput":
        """The same tokens with the first one behind all others."""
        return replace(self, **{name: value.roll(-1, 1) for name, value in self._of_tokens().items()})


@dataclass(frozen=True, kw_only=True)
class MovingEvidence(EncoderOutput):
    """Evidence with a latent of its own, which moves on at the start of each of the decoder's H cycles.

    Attributes:
        packing: that of the latent's rows, and `rotary`, where they stand.
        beside: given the decoder's packing and places, what makes of its z_H the latent's next rows.
    """

    packing: Packing
    rotary: Rotary | None
    beside: Callable[[Packing, Rotary | None], Callable[[Tensor], Tensor]]


def fixed_length_output(
    context: Float[Tensor, "batch tokens hidden"],
    kl_loss: Float[Tensor, " batch"] | None = None,
    pairs: Float[Tensor, "batch demos hidden"] | None = None,
) -> EncoderOutput:
    """An `EncoderOutput` whose tokens are all valid and stand at positions 0..T-1."""
    batch, tokens = context.shape[:2]
    return EncoderOutput(
        context=context,
        mask=torch.ones(batch, tokens, dtype=torch.bool, device=context.device),
        positions=torch.arange(tokens, device=context.device).expand(batch, tokens),
        kl_loss=context.new_zeros(batch, dtype=torch.float32) if kl_loss is None else kl_loss,
        pairs=pairs,
    )


def masked_mean(
    values: Float[Tensor, "batch demos width"], mask: Bool[Tensor, "batch demos"]
) -> Float[Tensor, "batch width"]:
    """The mean over each sample's valid slots; zeros where there is none."""
    return torch.where(mask[..., None], values, 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class HasDtype(Protocol):
    """A config that names the dtype of activations."""

    @property
    def forward_dtype(self) -> str: ...


def forward_dtype(config: HasDtype) -> torch.dtype:
    """The dtype that activations are computed in (`arch.forward_dtype`).

    A run replaces `auto` by what suits its device (`config.schema.with_dtype`); else it is what suits the machine's.
    """
    name = config.forward_dtype
    if name == "auto":
        name = best_dtype(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def packs_by_view(device: torch.device, dtype: torch.dtype) -> bool:
    """How `models.packing.pack` arranges rows for attention on this device."""
    return not uses_varlen_kernel(device, dtype)


class DemoEncoder(nn.Module, ABC):
    """An encoder whose context depends on the demonstrations alone.

    num_tokens: how many context tokens every sample has; None where that depends on the sample.
    """

    def __init__(self, num_tokens: int | None = None):
        super().__init__()
        self.num_tokens = num_tokens

    @abstractmethod
    def encode(self, demonstrations: Demonstrations) -> EncoderOutput: ...

    def forward(
        self,
        demo_inputs: Int[Tensor, "batch demos 900"],
        demo_labels: Int[Tensor, "batch demos 900"],
        demo_mask: Bool[Tensor, "batch demos"],
    ) -> EncoderOutput:
        return self.encode(Demonstrations(demo_inputs, demo_labels, demo_mask))


# The registries: filled by the decorators below as `models.encoders` imports its modules.
ENCODERS: dict[str, Callable[[EtrmArch], DemoEncoder]] = {}
RECURRENT_ENCODERS: dict[str, Callable[[EtrmtrmArch], Any]] = {}
AnyEncoderArch = TypeVar("AnyEncoderArch", bound=EncoderArch)
EncoderClass = TypeVar("EncoderClass", bound=Callable[[Any], nn.Module])


def encoder(name: str) -> Callable[[EncoderClass], EncoderClass]:
    """Register a class, built from an `arch` config, as `arch.encoder_type`."""
    return _registering(ENCODERS, name)


def recurrent_encoder(name: str) -> Callable[[EncoderClass], EncoderClass]:
    """Register a class, built from an `arch` config, as `arch.recurrent_encoder_type`."""
    return _registering(RECURRENT_ENCODERS, name)


def _registering(registry: dict[str, Any], name: str) -> Callable[[EncoderClass], EncoderClass]:
    def register(kind: EncoderClass) -> EncoderClass:
        assert name not in registry, f"two encoders are named {name}"
        registry[name] = kind
        return kind

    return register


def create_encoder(config: EtrmArch) -> DemoEncoder:
    """The encoder named by `config.encoder_type`.

    Args:
        config: a validated `arch` config.

    Raises:
        ValueError: no encoder of that name.
    """
    return _create(ENCODERS, "encoder_type", config.encoder_type, config)


def create_recurrent_encoder(config: EtrmtrmArch) -> Any:
    """The recurrent encoder named by `config.recurrent_encoder_type`: a `BaseRecurrentEncoder`, but for variant C,
    which moves with the decoder alone.

    Args:
        config: a validated `arch` config.

    Raises:
        ValueError: no encoder of that name.
    """
    return _create(RECURRENT_ENCODERS, "recurrent_encoder_type", config.recurrent_encoder_type, config)


def _create(registry: dict[str, Callable[[AnyEncoderArch], Any]], key: str, name: str, config: AnyEncoderArch) -> Any:
    if name not in registry:
        raise ValueError(f"arch.{key} '{name}' is not one of {', '.join(registry)}")
    return registry[name](config)
