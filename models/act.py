"""Adaptive computation time: halting, the replacement of halted samples, and the step that all models share.

Deep supervision with truncated backpropagation: one ACT step for each batch, the carry lives on across batches, and
gradients stay inside the step. A model differs from another only in how it comes by its context.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from config.arch_schema import ArchConfig
from dataset.batches import DEMONSTRATION_KEYS, Batch
from models.canvas import full_canvas, task_canvas

# Optional keys of a batch, uniform numbers that are drawn from torch's generator if absent: (B, 2) that decide on
# exploration; and one for `arch.random_depth`, on the CPU, where reading it waits for no device.
EXPLORATION_KEY, DEPTH_KEY = "exploration_draws", "depth_draw"


def exploration_draws(seed: int, step: int, global_batch_size: int, slots: slice) -> Float[Tensor, "slots 2"]:
    """Uniform numbers in [0, 1) keyed by (seed, step, global slot), the same for any number of ranks."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64)))
    return torch.from_numpy(rng.random((global_batch_size, 2), dtype=np.float32)[slots])


def depth_draw(seed: int, step: int) -> Float[Tensor, ""]:
    """A uniform number in [0, 1) keyed by (seed, step), so that all ranks draw the same depth."""
    key, counter = np.array([seed, step], dtype=np.uint64), np.array([0, 0, 0, 1], dtype=np.uint64)
    return torch.tensor(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())


def decide_halting(
    steps: Int[Tensor, " batch"],
    q_halt_logits: Float[Tensor, " batch"],
    draws: Float[Tensor, "batch 2"],
    halt_max_steps: int,
    exploration_prob: float,
) -> Bool[Tensor, " batch"]:
    """Which samples halt after this step, in training.

    A sample halts when its q_halt logit is positive or at `halt_max_steps`; with probability `exploration_prob`, drawn
    afresh at each step, it must have reached a random minimum of 2..`halt_max_steps` steps.
    """
    halted = (q_halt_logits > 0) | (steps >= halt_max_steps)
    if halt_max_steps == 1:
        return halted
    minimum = 2 + torch.floor(draws[:, 1] * (halt_max_steps - 1)).to(steps.dtype)
    return halted & ((draws[:, 0] >= exploration_prob) | (steps >= minimum))


def where_halted(halted: Bool[Tensor, " batch"], fresh: Tensor, current: Tensor) -> Tensor:
    """For each sample `fresh` if it has halted, else `current`; `fresh` broadcasts."""
    return torch.where(halted.view(-1, *[1] * (current.dim() - 1)), fresh, current)


@dataclass(frozen=True)
class TRMEncoderCarry:
    """State between ACT steps: the decoder's latents, steps taken, who has halted, and the data of each sample."""

    inner_carry: Any
    steps: Int[Tensor, " batch"]
    halted: Bool[Tensor, " batch"]
    current_data: Batch


@dataclass(frozen=True)
class Thought:
    """What a step comes to: its `EncoderOutput`, logits (B, 900, vocab), halt and continue logits (B), the
    fields of the carry that change, and diagnostics (B). `decides` are the halt logits (B) that say who halts, where
    they are others."""

    context: Any
    logits: Tensor
    halting: tuple[Tensor, Tensor]
    changed: dict[str, Any]
    diagnostics: dict[str, Tensor]
    decides: Tensor | None = None


class RecursiveReasoner(nn.Module, ABC):
    """A context provider and a recursive decoder (`inner`) under ACT.

    `forward(carry, batch)` is one ACT step for every sample and returns (new carry, outputs); outputs are `logits`
    (B, 900, vocab) float32, `q_halt_logits`, `q_continue_logits` (B), `context` (B, T, hidden, detached), where its
    length differs from sample to sample also `context_mask` (B, T), `kl_loss` (B); in training, where
    `arch.loss.pair_weight` asks for it, `pairs` (B, K, hidden), attached. In training a sample that has
    halted is replaced by the batch's; in evaluation all samples take `max_steps` steps (`rollout`). With
    `arch.halting=fixed` all halt together at `num_act_steps`: a batch that is given that many times in a row starts
    with a fresh carry.
    """

    inner: Any
    # Whether the context comes from the demonstrations, so that puzzles never seen can be asked about.
    reads_demonstrations = True
    # The keys of a batch that tell the model which puzzle it is: what the shuffled control exchanges.
    condition_keys: tuple[str, ...] = DEMONSTRATION_KEYS

    def __init__(self, config: ArchConfig):
        super().__init__()
        self.config = config

    @property
    def context_tokens(self) -> int | None:
        """Context tokens of every sample; None where that depends on the sample."""
        return self.config.puzzle_emb_len

    @property
    def max_steps(self) -> int:
        """ACT steps of a sample: at most in training, always in evaluation."""
        return self.config.max_steps

    @abstractmethod
    def initial_carry(self, batch: Batch) -> Any:
        """A carry in which every sample has halted, so that the first step takes all of `batch`."""

    def _fresh_state(self, batch: Batch) -> dict[str, Any]:
        """The fields that every carry has, with every sample halted."""
        inputs = batch["inputs"]
        size, device = len(inputs), inputs.device
        return {
            "inner_carry": self.inner.initial_carry(size, device, ragged=self._is_ragged),
            "steps": torch.zeros(size, dtype=torch.int32, device=device),
            "halted": torch.ones(size, dtype=torch.bool, device=device),
            "current_data": {key: value for key, value in batch.items() if key not in (EXPLORATION_KEY, DEPTH_KEY)},
        }

    @abstractmethod
    def encode(self, data: Batch) -> Any:
        """What the context needs and the carry does not change: computed once a sample in evaluation."""

    @abstractmethod
    def advance_context(self, carry: Any, encoding: Any) -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
        """This step's `EncoderOutput` (attached to the graph), the carry's fields that change, and diagnostics."""

    def decode(
        self, inner_carry: Any, data: Batch, context: Any, active: Bool[Tensor, "batch 900"]
    ) -> tuple[Any, Tensor, tuple[Tensor, Tensor]]:
        """One step of the decoder: the new latents, logits (B, 900, vocab), halt and continue logits (B)."""
        return self.inner(inner_carry, data, context, active)

    def think(self, carry: Any, data: Batch, encoding: Any, active: Bool[Tensor, "batch 900"]) -> "Thought":
        """One step of context and decoder."""
        context, changed, diagnostics = self.advance_context(carry, encoding)
        inner_carry = self.inner.reset_carry(carry.halted, carry.inner_carry)
        inner_carry, logits, halting = self.decode(inner_carry, data, context, active)
        return Thought(context, logits, halting, {"inner_carry": inner_carry, **changed}, diagnostics)

    def active_cells(self, data: Batch, canvas: str | None = None) -> Bool[Tensor, "batch 900"]:
        """The cells that the decoder computes. Labels take part in training only, where they may enlarge the canvas."""
        if (canvas or self.config.canvas) == "full":
            return full_canvas(data["inputs"])
        return task_canvas(data, include_labels=self.training)

    def forward(self, carry: Any, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        """Replace what has halted, read the demonstrations, take one ACT step."""
        draws = None
        if self.training:
            draws = batch.get(EXPLORATION_KEY)
            if draws is None:
                draws = torch.rand(len(carry.steps), 2, device=carry.steps.device)
        data = self._current_data(carry, batch)
        with self.inner.at_depth(self._h_cycles(batch)):
            return self._act_step(carry, data, self.encode(data), self.active_cells(data), draws)

    def _h_cycles(self, batch: Batch) -> int:
        """H cycles of a step: with `arch.random_depth` in training 1 to those of the config, each as likely."""
        most = self.config.H_cycles
        if not (self.training and self.config.random_depth):
            return most
        draw = batch.get(DEPTH_KEY)
        return 1 + int(float(torch.rand(()) if draw is None else draw) * most)

    @property
    def _is_ragged(self) -> bool:
        return self.context_tokens != self.config.puzzle_emb_len

    @staticmethod
    def _current_data(carry: Any, batch: Batch) -> Batch:
        return {key: where_halted(carry.halted, batch[key], current) for key, current in carry.current_data.items()}

    def _act_step(
        self, carry: Any, data: Batch, encoding: Any, active: Bool[Tensor, "batch 900"], draws: Tensor | None
    ) -> tuple[Any, dict[str, Tensor]]:
        """One ACT step, in training and in evaluation: advance the context, reason, decide on halting.

        Args:
            encoding: what `encode` makes of the data.
            active: the cells to compute.
            draws: decide on exploration; None in evaluation, where every sample takes `max_steps` steps.
        """
        thought = self.think(carry, data, encoding, active)
        context, (q_halt, q_continue) = thought.context, thought.halting
        with torch.no_grad():
            steps = torch.where(carry.halted, 0, carry.steps) + 1
            if draws is None or self.config.halting == "fixed":
                halted = steps >= self.max_steps
            else:
                decides = q_halt if thought.decides is None else thought.decides
                halted = decide_halting(steps, decides, draws, self.max_steps, self.config.halt_exploration_prob)
        carry = replace(carry, steps=steps, halted=halted, current_data=data, **thought.changed)
        outputs = {
            "logits": thought.logits,
            "q_halt_logits": q_halt,
            "q_continue_logits": q_continue,
            "context": context.context.detach(),
            "kl_loss": context.kl_loss,
            **thought.diagnostics,
        }
        if self.context_tokens is None:
            outputs["context_mask"] = context.mask
        if self.training and context.pairs is not None and self.config.loss.pair_weight:
            outputs["pairs"] = context.pairs
        return carry, outputs

    @torch.no_grad()
    def rollout(self, batch: Batch, canvas: str | None = None) -> Iterator[dict[str, Tensor]]:
        """The outputs of each of the `max_steps` ACT steps in evaluation; demonstrations are encoded once.

        Args:
            canvas: "full" overrides `arch.canvas`.

        Raises:
            RuntimeError: the model is in training mode.
        """
        if self.training:
            raise RuntimeError("rollout is for evaluation: call model.eval() first")
        carry = self.initial_carry(batch)
        encoding, active = self.encode(carry.current_data), self.active_cells(carry.current_data, canvas)
        for _ in range(self.max_steps):
            carry, outputs = self._act_step(carry, carry.current_data, encoding, active, None)
            yield outputs


class StaticContextReasoner(RecursiveReasoner):
    """A model whose context is the same at each ACT step for given weights: `encode` gives the `EncoderOutput`."""

    def initial_carry(self, batch: Batch) -> TRMEncoderCarry:
        return TRMEncoderCarry(**self._fresh_state(batch))

    def advance_context(self, carry: Any, encoding: Any) -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
        return encoding, {}, {}
