"""Every pair a target: in training each pair's output is asked for from the other pairs, all in one pass."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dataset.batches import Batch
from models.act import Thought, TRMEncoderCarry
from models.canvas import canvases_by_sizes, demonstration_sizes, full_canvas
from models.encoders.base import EncoderOutput
from models.memory import Reading
from models.packing import Packing
from models.recursive_reasoning.carry import RaggedInnerCarry
from models.recursive_reasoning.etrm import TRMWithEncoder


@dataclass(frozen=True)
class Targets:
    """What is asked of a batch: n targets, sample by sample, the query the last of each.

    A pair is a target where another one is left to read.

    Attributes:
        sample, number: whose a target is, and which: a demonstration's slot, or K for the query.
        query: the target that is each sample's query.
    """

    sample: Int[Tensor, " n"]
    number: Int[Tensor, " n"]
    query: Int[Tensor, " batch"]
    inputs: Int[Tensor, "n 900"]
    labels: Int[Tensor, "n 900"]

    @classmethod
    def of(cls, data: Batch) -> "Targets":
        shown = data["demo_mask"]
        is_target = torch.cat([shown & (shown.sum(1, keepdim=True) > 1), torch.ones_like(shown[:, :1])], dim=1)
        sample, number = is_target.nonzero().unbind(1)  # the one synchronisation
        inputs, labels = (
            torch.cat([data[demos], data[query][:, None].to(data[demos].dtype)], dim=1)[sample, number]
            for demos, query in (("demo_inputs", "inputs"), ("demo_labels", "labels"))
        )
        return cls(sample, number, is_target.sum(1).cumsum(0) - 1, inputs, labels)

    def canvases(self, data: Batch) -> Bool[Tensor, "n 900"]:
        """The task canvas of each target, from its input and the other pairs."""
        is_own = torch.arange(data["demo_mask"].shape[1], device=self.number.device) == self.number[:, None]
        sizes = (torch.where(is_own[..., None], 0, size[self.sample]) for size in demonstration_sizes(data))
        return canvases_by_sizes(self.inputs, *sizes)


@dataclass(frozen=True, kw_only=True)
class TargetEvidence(EncoderOutput):
    """Evidence of which each target reads the other pairs'."""

    targets: Targets

    def alone(self) -> EncoderOutput:
        return super().alone().of_samples(self.targets.sample)

    def read_by(self, queries: Packing, memory: Packing) -> Reading:
        sample, number = self.targets.sample, self.targets.number
        assert self.pair_lengths is not None
        place = torch.arange(self.mask.shape[1] - 1, device=sample.device).expand(len(self.mask), -1).contiguous()
        pair = torch.searchsorted(self.pair_lengths.cumsum(1), place, right=True)
        readable = self.mask[:, 1:][sample] & (pair[sample] != number[:, None])
        target, at = readable.nonzero().unbind(1)
        return Reading.beside(queries, memory.first_row[sample[target]] + at, target, place.shape[1])


class TRMWithTargets(TRMWithEncoder):
    """ETRM whose training step answers every pair of a task; evaluation asks for the query alone.

    Latents are kept for each target. A task halts when every target of it wants to, and all at once.
    """

    def initial_carry(self, batch: Batch) -> TRMEncoderCarry:
        carry = super().initial_carry(batch)
        if not self.training:
            return carry
        size = len(batch["inputs"]) * (1 + batch["demo_mask"].shape[1])
        inner_carry = self.inner.initial_carry(size, batch["inputs"].device, ragged=True)
        return replace(carry, inner_carry=inner_carry)

    def active_cells(self, data: Batch, canvas: str | None = None) -> Bool[Tensor, "batch 900"]:
        """The query's cells, which no label enlarges."""
        if (canvas or self.config.canvas) == "full":
            return full_canvas(data["inputs"])
        return canvases_by_sizes(data["inputs"], *demonstration_sizes(data))

    def think(self, carry: Any, data: Batch, encoding: EncoderOutput, active: Bool[Tensor, "batch 900"]) -> Thought:
        if not self.training:
            return super().think(carry, data, encoding, active)
        targets = Targets.of(data)
        num_slots = 1 + data["demo_mask"].shape[1]
        active = full_canvas(targets.inputs) if self.config.canvas == "full" else targets.canvases(data)
        kept = self.inner.reset_carry(carry.halted.repeat_interleave(num_slots), carry.inner_carry)
        slots = targets.sample * num_slots + targets.number
        evidence = TargetEvidence(**vars(encoding), targets=targets)
        moved, logits, halting = self.decode(of_slots(kept, slots), {"inputs": targets.inputs}, evidence, active)
        q_halt, q_continue = (q[targets.query] for q in halting)
        return Thought(
            context=encoding,
            logits=logits[targets.query],
            halting=(q_halt, q_continue),
            changed={"inner_carry": into_slots(moved, slots, len(kept.lengths))},
            diagnostics={
                "target_logits": logits,
                "target_q_halt_logits": halting[0],
                "target_labels": targets.labels,
                "target_samples": targets.sample,
                "target_queries": targets.query,
            },
            decides=q_halt.scatter_reduce(0, targets.sample, halting[0], "amin"),
        )


def of_slots(carry: RaggedInnerCarry, slots: Int[Tensor, " n"]) -> RaggedInnerCarry:
    """The same rows, for the sequences of these slots alone."""
    return replace(carry, starts=carry.starts[slots], lengths=carry.lengths[slots])


def into_slots(carry: RaggedInnerCarry, slots: Int[Tensor, " n"], num_slots: int) -> RaggedInnerCarry:
    """The carry of all slots, of which the others have no row."""
    none = carry.none(num_slots, slots.device)
    return replace(
        carry,
        starts=none.index_copy(0, slots, carry.starts.to(none.dtype)),
        lengths=none.index_copy(0, slots, carry.lengths.to(none.dtype)),
    )
