"""Test-time training: weights learn from a task's own demonstrations, then answer it.

Each demonstration is asked for in turn, with a random subset of the others shown, in random views. What a test input
leads to is never seen. The base's weights are copied for each task, so they keep their bits.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from config.schema import TrainConfig
from dataset.arc_tasks import Task
from dataset.build_arc_dataset import store_of_tasks, without_outputs
from dataset.context_limit import ContextLimit
from inference.adapt_answers import Mark, Votes, answer_of, ranked
from inference.adapt_options import AdaptError, AdaptOptions, Budget, mark_updates
from inference.adapt_questions import Questions
from inference.adapt_systems import refusal, with_new_identifiers
from inference.adapt_views import TaskViews, task_key
from inference.adapt_weights import Course, create_task_learner
from models import create_model
from models.act import RecursiveReasoner
from utils.faults import is_out_of_memory
from utils.threads import one_thread

UPDATE_COST = 3.0  # forward and backward pass of a view, in forward passes
SPARE = 1.2  # of the time that the last mark took, kept for the next
MARK_SHARE = 0.1  # of the seconds of a task, the most that a mark may take: else fewer versions vote
ENDS = {
    "updates": "all updates made",
    "seconds": "the time was over",
    "consistent": "twice in a row every demonstration is explained, the one left out too where there is one",
    "gave_up": "after half of the time no demonstration was explained",
    "stopped": "stopped by a signal",
    "one_demonstration": "a task of one demonstration has nothing to leave out: the base answers",
    "no_room": "max_context_tokens leaves a demonstration no other that could be shown: the base answers",
    "not_finite": "a loss or gradient was not finite: the base answers",
    "out_of_memory": "memory ran out: the base answers",
}
FAILED = ("one_demonstration", "no_room", "not_finite", "out_of_memory")
Tell = Callable[[Mark | None, int, float], None]
Clock = Callable[[], float]
Steps = Generator[Course, str | None, "Adaptation"]  # the updates of an adaptation, made by whoever asks for them


def tell_nothing(mark: Mark | None, updates: int, seconds: float) -> None:
    """No progress is shown."""


@dataclass(frozen=True)
class Adaptation:
    """What an adaptation came to.

    ended: why, a key of `ENDS`.
    marks: the base's first; of an adaptation that failed nothing after it counts.
    pooled: how many of the last marks are counted together.
    demos_left_out: demonstrations that its queries lack for the sake of `max_context_tokens`.
    versions: of the task, that vote at each mark.
    model: the weights that answer, in evaluation mode.
    """

    task: str
    demonstrations: int
    updates: int
    seconds: float
    ended: str
    marks: tuple[Mark, ...]
    pooled: int
    versions: int
    demos_left_out: int
    model: RecursiveReasoner

    def answer(self, *, by_agreement: bool = True) -> Votes:
        """The candidates of each test input, best first."""
        return answer_of(self.marks, self.pooled, by_agreement=by_agreement)


def _mispaired(task: Task) -> Task:
    """The task with each demonstration's output at the next one's input."""
    outputs = [pair.output for pair in task.train]
    pairs = (replace(pair, output=out) for pair, out in zip(task.train, (*outputs[1:], outputs[0]), strict=True))
    return replace(task, train=tuple(pairs))


class _Session:
    """The adaptation of one model to one task, as it goes on."""

    def __init__(
        self,
        model: RecursiveReasoner,
        config: TrainConfig,
        task: Task,
        options: AdaptOptions,
        budget: Budget,
        tell: Tell,
        stop: Any,
        clock: Clock = time.monotonic,
    ):
        self.clock, self.began = clock, clock()
        self.config, self.options, self.budget = config, options, budget
        self.task, self.tell, self.stop = without_outputs(task), tell, stop
        self.device = next(model.parameters()).device
        self.key = task_key(self.task, options.seed, "answer")
        self.asking = self._questions(options.votes)
        self.base = with_new_identifiers(model.eval(), config.arch, self.asking.store.metadata)
        self.taught = store_of_tasks([_mispaired(self.task) if options.control == "mispaired" else self.task], 0, 0)
        self.marks: list[Mark] = []
        self.updates, self.mark_seconds, self.update_seconds = 0, 0.0, 0.0
        self.asked_at_half = False

    @property
    def seconds(self) -> float:
        return self.clock() - self.began

    def run(self) -> Steps:
        """Ask the base, adapt, ask again at each mark and at the end.

        Whatever has an update to make is yielded, and what was not finite in it, if anything, is sent back.
        """
        ended, model = yield from self._adapted() if self._base_is_asked() else _out_of_memory(self.base)
        failed = ended in FAILED
        return Adaptation(
            task=self.task.id,
            demonstrations=len(self.task.train),
            updates=self.updates,
            seconds=self.seconds,
            ended=ended,
            marks=tuple(self.marks[:1] if failed else self.marks),
            pooled=self.pooled,
            versions=len(self.asking.store.dihedral),
            demos_left_out=self.asking.data.left_out().get(self.task.id, 0),
            model=self.base if failed else model,
        )

    def _base_is_asked(self) -> bool:
        """Take the first mark; where memory does not suffice it has no votes, and nothing more can be done."""
        try:
            with torch.no_grad():
                if (votes := self._affordable_votes()) < self.options.votes:
                    self.options = self.options.model_copy(update={"votes": votes})
                    self.asking = self._questions(votes)
                self._mark(self.base, self.base, None)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.marks = [Mark(0, self.seconds, None, 0, None, ((),) * len(self.task.test))]
            return False
        return True

    def _questions(self, votes: int) -> Questions:
        """What is asked at each mark, of so many versions; fewer are those of a task that is asked for fewer."""
        store = store_of_tasks([self.task], votes - 1, self.key, self.options.palettes)
        return Questions(store, self.key, self.config, self.options, self.device)

    def _affordable_votes(self) -> int:
        """So many versions that a mark takes `MARK_SHARE` of the seconds at most; a single one where it is to stop."""
        votes, seconds = self.options.votes, self.budget.seconds
        if self.stop or (seconds is not None and self.seconds >= seconds):
            return 1
        if seconds is None or votes == 1 or self._trains_on_versions:
            return votes
        plain = self._questions(1)
        each = min(self._seconds_of(plain) for _ in range(2)) / len(self.task.test)  # the first call warms up
        room = MARK_SHARE * seconds - each * self.asking.beside_votes
        return votes if each * len(self.task.test) * votes <= room else max(1, int(room / each) // len(self.task.test))

    @property
    def _trains_on_versions(self) -> bool:
        """Whether the versions that vote are the only views, so that fewer of them would be another training."""
        return bool(self.options.palettes) or not self.base.reads_demonstrations

    def _seconds_of(self, asking: Questions) -> float:
        started = self.clock()
        asking.votes(self.base)
        return self.clock() - started

    def _adapted(self) -> Generator[Course, str | None, tuple[str, RecursiveReasoner]]:
        if self.options.control == "votes":
            return self._vote_on(), self.base
        if self.asking.count < 2:
            return "one_demonstration", self.base
        if not self._has_room():
            return "no_room", self.base
        try:
            main, fork = self._courses()
            ended = yield from self._train(main, fork)
            return ended, main.settle()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return "out_of_memory", self.base

    def _has_room(self) -> bool:
        """Whether whatever learns has another demonstration to show beside each that it asks for."""
        limit = ContextLimit(self.taught, self.config.max_context_tokens)
        taken = [np.arange(self.asking.count)] + ([] if self.asking.left_out is None else [self.asking.others])
        return all(limit.leaves_another(pairs) for pairs in taken)

    def _vote_on(self) -> str:
        """Let the base vote again and again in other versions, at the cost of updates."""
        options, config = self.options, self.config
        asked = options.votes * len(self.task.test) * self.base.max_steps
        cost = max(1, round(asked / (UPDATE_COST * options.views)))
        while (ended := self._end()) is None:
            started = self.clock()
            number = len(self.marks)
            store = store_of_tasks([self.task], options.votes - 1, task_key(self.task, options.seed, f"votes {number}"))
            with torch.no_grad():
                votes = Questions(store, self.key, config, options, self.device).votes(self.base, self._earlier())
            self.updates += cost
            self.mark_seconds = self.clock() - started
            self.marks.append(replace(self.marks[0], updates=self.updates, seconds=self.seconds, votes=votes))
            self.tell(self.marks[-1], self.updates, self.seconds)
        return ended

    @property
    def pooled(self) -> int:
        """How many marks are counted together; under the control of more votes all of them."""
        return len(self.marks) if self.options.control == "votes" else self.options.pooled_marks

    def _earlier(self) -> Votes:
        """What the marks voted for that the next one is counted together with."""
        adapted = self.marks[1:]
        return ranked(adapted[max(0, len(adapted) - self.pooled + 1) :], by_agreement=False)

    def _courses(self) -> tuple[Course, Course | None]:
        """What learns from all demonstrations, and where one is left out, what learns from the others."""
        start, everything = self.base, list(range(self.asking.count))
        if self.options.control == "random_weights":
            torch.manual_seed(self.key % (1 << 63))
            start = create_model(self.config.arch, self.asking.store.metadata).to(self.device)
        total, every = self.budget.updates, self.options.fork_every
        if self.asking.left_out is None:
            return self._course(start, everything, "main", total), None
        others = self.asking.others.tolist()
        forks = None if total is None else total // every
        mains = None if total is None or forks is None else total - forks
        return self._course(start, everything, "main", mains), self._course(start, others, "fork", forks)

    def _course(self, start: RecursiveReasoner, pairs: list[int], role: str, total: int | None) -> Course:
        options, key = self.options, task_key(self.task, self.options.seed, role)
        views = TaskViews(
            self.taught,
            pairs,
            key,
            views=options.views,
            max_demos=self.config.max_demos,
            max_context_tokens=self.config.max_context_tokens,
            translate=options.translate,
            versions=self.asking.store if self._trains_on_versions else None,
        )
        torch.manual_seed(key % (1 << 63))  # for what low-rank changes begin with
        learner = create_task_learner(start, self.config.arch, options)
        learner.model.train()
        return Course(learner, views, options, total, self.device)

    def _train(self, main: Course, fork: Course | None) -> Generator[Course, str | None, str]:
        """Update until something ends it, which is returned; a key of `ENDS`."""
        while (ended := self._end(main)) is None:
            started = self.clock()
            self.updates += 1
            course = fork if fork is not None and self.updates % self.options.fork_every == 0 else main
            if (yield course) is not None:
                return "not_finite"
            self.update_seconds = self.clock() - started
            self.tell(None, self.updates, self.seconds)
            if mark_updates(self.updates):
                self._mark_courses(main, fork)
        if self.marks[-1].updates != self.updates:
            self._mark_courses(main, fork)
        return ended

    def _end(self, main: Course | None = None) -> str | None:
        if self.stop:
            return "stopped"
        if self.budget.updates is not None and self.updates >= self.budget.updates:
            return "updates"
        spare = self.update_seconds + SPARE * self.mark_seconds
        if self.budget.seconds is not None and self.seconds + spare >= self.budget.seconds:
            return "seconds"
        if self.options.stop_when_consistent and self._is_consistent():
            return "consistent"
        if self.options.give_up and self._is_hopeless(main):
            return "gave_up"
        return None

    def _is_hopeless(self, main: Course | None) -> bool:
        """After half of the seconds nothing is explained: by a mark of this moment, or asked once more at half time,
        for what an older mark lacks may have been learned since."""
        last, seconds = self.marks[-1], self.budget.seconds
        if seconds is None or self.seconds <= seconds / 2 or last.explained:
            return False
        if last.updates == self.updates:
            return True
        if self.asked_at_half or main is None or self.asking.explained is None:
            return False
        self.asked_at_half = True
        with main.answering() as model:
            return not self.asking.right(model, self.asking.explained).any()

    def _is_consistent(self) -> bool:
        last = self.marks[1:][-2:]
        alone = self.options.stop_when_explained
        agreed = all(m.agreement == 1.0 or (alone and m.agreement is None) for m in last)
        return len(last) == 2 and agreed and all(m.explained == self.asking.count for m in last)

    def _mark_courses(self, main: Course, fork: Course | None) -> None:
        loss = main.mean_loss()
        if fork is None:
            with main.answering() as model:
                return self._mark(model, None, loss)
        fork.losses.clear()
        with main.answering() as model, fork.answering() as blind:
            return self._mark(model, blind, loss)

    def _mark(self, model: RecursiveReasoner, blind: RecursiveReasoner | None, loss: float | None) -> None:
        """Take the answers of this moment.

        Args:
            blind: weights that have not seen the demonstration left out.
        """
        started, asking = self.clock(), self.asking
        agreement = None
        if blind is not None and asking.left_out is not None:
            agreement = float(asking.right(blind, asking.left_out).mean())
        explained = 0 if asking.explained is None else int(asking.right(model, asking.explained).sum())
        votes = asking.votes(model, self._earlier())
        self.mark_seconds = self.clock() - started
        self.marks.append(Mark(self.updates, self.seconds, loss, explained, agreement, votes))
        self.tell(self.marks[-1], self.updates, self.seconds)


def _out_of_memory(base: RecursiveReasoner) -> Generator[Course, str | None, tuple[str, RecursiveReasoner]]:
    """An adaptation of no update."""
    yield from ()
    return "out_of_memory", base


def adapt(
    model: RecursiveReasoner,
    config: TrainConfig,
    task: Task,
    options: AdaptOptions,
    budget: Budget,
    *,
    tell: Tell = tell_nothing,
    stop: Any = False,
    clock: Clock = time.monotonic,
) -> Adaptation:
    """Adapt a copy of the model to a task, and answer it.

    Args:
        model: in evaluation mode afterwards; its weights are not touched.
        task: its test outputs are not looked at.
        tell: hears of each update and mark: the mark, if there is a new one, updates and seconds so far.
        stop: as soon as it is true, what there is answers.
        clock: seconds of a clock that goes on.

    Raises:
        AdaptError: options and budget do not go together, or the system cannot be adapted.
    """
    check(config, options, budget)
    with undisturbed(next(model.parameters()).device):
        return alone(adaptation_steps(model, config, task, options, budget, tell=tell, stop=stop, clock=clock))


def check(config: TrainConfig, options: AdaptOptions, budget: Budget) -> None:
    """Refuse what cannot be adapted, or not so.

    Raises:
        AdaptError: options and budget do not go together, or the system cannot be adapted.
    """
    budget.check(options)
    if why := refusal(config.arch, options):
        raise AdaptError(why)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """One thread on the CPU, and the random state is afterwards as it was before."""
    with one_thread(device), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def adaptation_steps(
    model: RecursiveReasoner,
    config: TrainConfig,
    task: Task,
    options: AdaptOptions,
    budget: Budget,
    *,
    tell: Tell = tell_nothing,
    stop: Any = False,
    clock: Clock = time.monotonic,
) -> Steps:
    """`adapt`, as the updates that it asks for."""
    return _Session(model, config, task, options, budget, tell, stop, clock).run()


def alone(steps: Steps) -> Adaptation:
    """Make each update of an adaptation as it is asked for."""
    try:
        course = next(steps)
        while True:
            course = resumed(steps, course)
    except StopIteration as end:
        return end.value


def resumed(steps: Steps, course: Course) -> Course:
    """Make the update that an adaptation has asked for; its next. It hears of memory that runs out."""
    try:
        fault = course.update()
    except (MemoryError, RuntimeError) as error:
        return steps.throw(error)
    return steps.send(fault)
