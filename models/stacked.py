"""One forward pass with the weights of several models, each for the samples of its own task.

A copy of one of them has the classes of its modules exchanged for those below, which expect each weight with a
dimension of tasks in front. Linear maps are grouped products; whatever else has weights looks up those of a row's task.
Attention never leaves a sample, so it is as it was.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.batches import Batch
from models.act import RecursiveReasoner
from models.encoders.in_context import EvidenceBlocks, InContextEncoder
from models.grid_conv import GridConv
from models.grid_coordinates import GridCoordinates
from models.layers import (
    CrossAttention,
    LayerScale,
    Linear,
    ReadingBlock,
    Residual,
    RotaryTable,
    SelfAttention,
    SwiGLU,
    TokenEmbedding,
    TransformerBlock,
)
from models.positions import Learned, Rope, Rope2d
from models.recursive_reasoning.decoder import QHead, ReasoningLevel, TRMEncoderInner
from models.recursive_reasoning.etrm import TRMWithEncoder
from models.stacked_linear import stacked_linear
from models.task_rows import TaskRows, stacked_tasks, the_stack


class StackError(ValueError):
    """A model whose weights cannot stand side by side with others'."""


def _rows_like(x: Tensor) -> TaskRows:
    rows = the_stack().rows
    assert len(x) == len(rows.task), f"{len(x)} rows, while {len(rows.task)} are worked on"
    return rows


def _mapped(x: Tensor, weights: Tensor, biases: Tensor | None, rows: TaskRows) -> Tensor:
    out = stacked_linear(x, weights.to(x.dtype), rows.ends)
    return out if biases is None else out + F.embedding(rows.task, biases.to(x.dtype))


class StackedLinear(Linear):
    """A linear map of packed rows."""

    def forward(self, input: Tensor) -> Tensor:
        return _mapped(input, self.weight, self.bias, _rows_like(input))


class StackedQHead(QHead):
    """Halting logits, a row for each sample."""

    def forward(self, input: Tensor) -> Tensor:
        return _mapped(input, self.weight, self.bias, the_stack().samples)


class StackedTokenEmbedding(TokenEmbedding):
    """Embeddings of packed rows."""

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        tables = self.embedding_weight.to(dtype)
        return F.embedding(tokens + tables.shape[1] * _rows_like(tokens).task, tables.flatten(0, 1))


class StackedLayerScale(LayerScale):
    """A factor for each channel of packed rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x * F.embedding(_rows_like(x).task, self.scale.to(x.dtype))


class StackedSelfAttention(SelfAttention):
    """Attention whose gains are each row's task's."""

    def gained(self, q: Tensor, gain: Tensor) -> Tensor:
        return q * F.embedding(_rows_like(q).task, gain.to(q.dtype))[..., None]


class StackedGridConv(GridConv):
    """The convolution of packed rows, by the weights of each row's task."""

    def forward(self, x: Tensor, packing: Any) -> Tensor:
        task, rows = _rows_like(x).task, torch.cat([x, x.new_zeros(1, x.shape[1])])
        taps = zip(self.weight.unbind(1), packing.neighbours, strict=True)
        parts = (F.embedding(task, weight) * rows.index_select(0, index) for weight, index in taps)
        return x + sum(parts, torch.zeros((), device=x.device)).to(x.dtype)


class StackedReasoningLevel(ReasoningLevel):
    """The level, over the rows of the packing that it is given."""

    def forward(
        self,
        h: Tensor,
        injection: Tensor,
        packing: Any,
        rotary: Any,
        memories: Sequence[Any] | None = None,
        answers: Any = None,
    ) -> Tensor:
        assert answers is None, "the rows of each task are known of whole packings alone"
        the_stack().rows = packing.tasks
        return super().forward(h, injection, packing, rotary, memories)


STACKED: dict[type[nn.Module], type[nn.Module]] = {
    Linear: StackedLinear,
    QHead: StackedQHead,
    TokenEmbedding: StackedTokenEmbedding,
    LayerScale: StackedLayerScale,
    SelfAttention: StackedSelfAttention,
    GridConv: StackedGridConv,
    ReasoningLevel: StackedReasoningLevel,
}
# Modules that have no weights of their own, or look them up by `models.task_rows`.
AS_THEY_ARE = {
    TRMWithEncoder,
    TRMEncoderInner,
    InContextEncoder,
    EvidenceBlocks,
    TransformerBlock,
    ReadingBlock,
    CrossAttention,
    SwiGLU,
    Residual,
    GridCoordinates,
    Rope,
    Rope2d,
    RotaryTable,
    Learned,
    nn.ModuleList,
    nn.Identity,
}


def not_stackable(model: nn.Module) -> str | None:
    """The first module whose weights cannot stand side by side with those of other models; None: all can."""
    for name, module in model.named_modules():
        if type(module) not in STACKED and type(module) not in AS_THEY_ARE:
            return f"{name or 'the model'} is a {type(module).__name__}"
    return None


class StackedModel:
    """What runs models of one architecture side by side.

    Args:
        model: one of them; buffers, which do not learn, are taken from it.

    Raises:
        StackError: it has a module that cannot be stacked.
    """

    def __init__(self, model: RecursiveReasoner):
        if why := not_stackable(model):
            raise StackError(f"weights cannot be stacked: {why}; an ETRM with arch.encoder_type=in_context can be")
        self.template = copy.deepcopy(model).train()
        for module in self.template.modules():
            module.__class__ = STACKED.get(type(module), type(module))
        self.names = [name for name, _ in self.template.named_parameters()]

    def weights_of(self, models: Sequence[nn.Module]) -> dict[str, Tensor]:
        """The weights side by side, attached to those of the models, so that gradients arrive there."""
        return {name: torch.stack([_weight(model, name) for model in models]) for name in self.names}

    def step(self, models: Sequence[nn.Module], carry: Any, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        """One ACT step in training.

        Args:
            carry, batch: of the samples of the first model, then of the second, ..., equally many of each.
        """
        device, samples = batch["inputs"].device, len(batch["inputs"])
        task = torch.arange(len(models), device=device).repeat_interleave(samples // len(models))
        with stacked_tasks(task, len(models)):
            return torch.func.functional_call(self.template, self.weights_of(models), (carry, batch))


def _weight(model: nn.Module, name: str) -> Tensor:
    """A weight as the model computes with it, by its name without parametrization."""
    path, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(path), attribute)
