"""Several tasks adapted at once: their next updates are one forward and backward pass over stacked weights.

Each task keeps its own weights, optimizer, average and end; only the pass is shared. A task that ends makes room for
the next.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from config.arch_schema import AnyArch, EtrmArch
from config.schema import TrainConfig
from dataset.arc_tasks import Task
from dataset.batches import Batch
from dataset.grids import PAD
from inference.adapt import Adaptation, Steps, adaptation_steps, check, resumed, undisturbed
from inference.adapt_options import AdaptError, AdaptOptions, Budget
from inference.adapt_weights import Course
from learning.learner import StepResult
from models.act import EXPLORATION_KEY, RecursiveReasoner
from models.recursive_reasoning.carry import RaggedInnerCarry
from models.stacked import StackedModel
from utils.faults import is_out_of_memory

log = logging.getLogger(__name__)
Fault = str | MemoryError | RuntimeError | None
FILLED = {"demo_inputs": PAD, "demo_labels": PAD, "demo_mask": False}  # what a missing demonstration is


def stack_refusal(arch: AnyArch, options: AdaptOptions, budget: Budget | None) -> str | None:
    """Why tasks cannot be adapted side by side; None where they can."""
    if not isinstance(arch, EtrmArch) or arch.encoder_type != "in_context" or arch.targets != "query":
        return (
            f"weights of {arch.name} cannot stand side by side, but for arch.encoder_type=in_context with "
            "arch.targets=query: leave --stack out"
        )
    if arch.random_depth:
        return (
            "arch.random_depth=true draws each update's depth, which tasks side by side would share: leave --stack out"
        )
    if arch.loss.pair_weight:
        return "arch.loss.pair_weight tells a task's pairs from those of the tasks beside it: leave --stack out"
    if budget is None or budget.updates is None:
        return "tasks side by side share the clock: give --adapt-updates, not seconds"
    if options.control in ("votes", "random_weights"):
        return f"the control '{options.control}' is made one task after another: leave --stack out"
    return None


def joined_batches(batches: Sequence[Batch]) -> Batch:
    """The samples of several batches, with as many slots for demonstrations as the widest has."""
    return {key: torch.cat(_as_wide([batch[key] for batch in batches], key)) for key in batches[0]}


def _as_wide(values: Sequence[Tensor], key: str) -> list[Tensor]:
    if key not in FILLED:
        return list(values)
    slots = max(value.shape[1] for value in values)
    return [
        torch.cat([value, value.new_full((len(value), slots - value.shape[1], *value.shape[2:]), FILLED[key])], dim=1)
        for value in values
    ]


def joined_carries(carries: Sequence[Any], data: Batch) -> Any:
    """The carry of several batches' samples.

    Args:
        data: of all the samples.
    """
    inner = [carry.inner_carry for carry in carries]
    firsts = [0]
    for part in inner[:-1]:
        firsts.append(firsts[-1] + len(part.z_H) - 1)
    return replace(
        carries[0],
        inner_carry=RaggedInnerCarry(
            torch.cat([part.starts + first for part, first in zip(inner, firsts, strict=True)]),
            torch.cat([part.lengths for part in inner]),
            *(torch.cat([*(z[:-1] for z in rows), rows[0][-1:]]) for rows in _latents(inner)),
        ),
        steps=torch.cat([carry.steps for carry in carries]),
        halted=torch.cat([carry.halted for carry in carries]),
        current_data={key: value for key, value in data.items() if key != EXPLORATION_KEY},
    )


def _latents(inner: Sequence[RaggedInnerCarry]) -> tuple[list[Tensor], list[Tensor]]:
    return [part.z_H for part in inner], [part.z_L for part in inner]


def divided_carry(carry: Any, batches: Sequence[Batch]) -> list[Any]:
    """The inverse of `joined_carries`, after a step, which leaves the rows of each batch next to each other."""
    inner, count = carry.inner_carry, len(batches)
    starts = inner.starts.view(count, -1)
    firsts = [*starts.amin(1).tolist(), len(inner.z_H) - 1]
    parts = zip(
        starts, *(value.view(count, -1) for value in (inner.lengths, carry.steps, carry.halted)), batches, strict=True
    )
    return [
        replace(
            carry,
            inner_carry=RaggedInnerCarry(
                starts - first,
                lengths,
                *(torch.cat([z[first:end], z[-1:]]) for z in (inner.z_H, inner.z_L)),
            ),
            steps=steps,
            halted=halted,
            current_data={key: value for key, value in batch.items() if key != EXPLORATION_KEY},
        )
        for (starts, lengths, steps, halted, batch), first, end in zip(parts, firsts, firsts[1:], strict=False)
    ]


class Stack:
    """Makes updates of several courses, whose models have the architecture of one, in one pass."""

    def __init__(self, model: RecursiveReasoner):
        self.stacked = StackedModel(model)

    def update(self, courses: Sequence[Course]) -> list[Fault]:
        """An update of each; what was not finite in it, or that memory ran out in its own optimizer step, if anything.

        Raises:
            MemoryError, RuntimeError: from the pass; then no weight has changed.
        """
        try:
            results, losses = self._pass(courses)
        except (MemoryError, RuntimeError):
            for course in courses:
                course.learner.optimizer.zero_grad(set_to_none=True)
            raise
        return [_learned(*parts) for parts in zip(courses, results, losses, strict=True)]

    def _pass(self, courses: Sequence[Course]) -> tuple[list[StepResult], Tensor]:
        """Forward and backward: the gradients are each course's model's own."""
        for course in courses:
            course.begin()
        learners, batches = [course.learner for course in courses], [course.batch for course in courses]
        carries = [c.learner.model.initial_carry(c.batch) if c.carry is None else c.carry for c in courses]
        batch, head = joined_batches(batches), learners[0].head
        carry, outputs = self.stacked.step(
            [learner.model for learner in learners], joined_carries(carries, batch), batch
        )
        terms = head.terms(outputs, batch["labels"])
        terms = {name: value.unflatten(0, (len(courses), -1)) for name, value in terms.items()}
        losses = head.total(terms)
        (losses.sum() / learners[0].options.global_batch_size).backward()
        sums = terms["lm_loss"].detach().float().sum(-1)
        results = [
            StepResult(part, {"lm_loss": value}, {}, [])
            for part, value in zip(divided_carry(carry, batches), sums, strict=True)
        ]
        return results, losses.detach()


def _learned(course: Course, result: StepResult, loss: Tensor) -> Fault:
    """Take the optimizer's step of one; a fault in it is its own, for the others' steps are made or to be made."""
    try:
        return course.end(course.learner.learn(result, loss, course.updates, course.rate()))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        course.learner.optimizer.zero_grad(set_to_none=True)
        return error


class _Live:
    """The tasks that are adapted side by side; fewer in a pass after memory has run out."""

    def __init__(self, stack: Stack, size: int):
        self.stack, self.size = stack, size
        self.waiting: dict[int, tuple[Steps, Course]] = {}

    def round(self) -> Iterator[tuple[int, Adaptation]]:
        """Make one update of each; those that have ended."""
        numbers = list(self.waiting)
        while numbers:
            part = numbers[: self.size]
            go_on = self._updated([self.waiting[number][1] for number in part])
            if go_on is None:
                continue
            for number in part:
                steps, course = self.waiting.pop(number)
                try:
                    self.waiting[number] = steps, go_on(steps, course)
                except StopIteration as end:
                    yield number, end.value
            numbers = numbers[len(part) :]

    def _updated(self, courses: list[Course]) -> Callable[[Steps, Course], Course] | None:
        """What leads an adaptation to its next update, now that this one is made; None: try with fewer."""
        if len(courses) == 1:
            return resumed
        try:
            faults = dict(zip(map(id, courses), self.stack.update(courses), strict=True))
            return lambda steps, course: _told(steps, faults[id(course)])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        self.size = len(courses) // 2
        log.warning("memory ran out for %d tasks at once: going on with %d in a pass", len(courses), self.size)
        return None


def _told(steps: Steps, fault: Fault) -> Course:
    return steps.throw(fault) if isinstance(fault, BaseException) else steps.send(fault)


def adapt_stacked(
    model: RecursiveReasoner,
    config: TrainConfig,
    tasks: Iterable[tuple[int, Task]],
    options: AdaptOptions,
    budget: Budget,
    size: int,
) -> Iterator[tuple[int, Adaptation]]:
    """`adapt` for many tasks, `size` of them at a time; each with its number, as it ends.

    Raises:
        AdaptError: options and budget do not go together, or the system cannot be adapted so.
    """
    check(config, options, budget)
    if why := stack_refusal(config.arch, options, budget):
        raise AdaptError(f"--stack {size}: {why}")
    live = _Live(Stack(model), size)
    coming = iter(tasks)
    with undisturbed(next(model.parameters()).device):
        room = size
        while True:
            if not live.waiting:  # what took too much beside others has ended: more may fit again
                room = live.size = min(size, 2 * min(room, live.size))
            while len(live.waiting) < room and (following := next(coming, None)) is not None:
                number, task = following
                steps = adaptation_steps(model, config, task, options, budget)
                try:
                    live.waiting[number] = steps, next(steps)
                except StopIteration as end:
                    if end.value.ended == "out_of_memory" and live.waiting:  # the others hold it
                        room, coming = len(live.waiting), chain([following], coming)
                        log.warning("memory ran out for another task: going on with %d side by side", room)
                    else:
                        yield number, end.value
            if not live.waiting:
                return
            yield from live.round()
