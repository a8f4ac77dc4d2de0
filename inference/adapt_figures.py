"""Figures of an evaluation by adaptation: pass@k adapted and not, on the same versions of the same puzzles."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from dataset.arc_tasks import Task
from dataset.splits import pair_hashes
from dataset.trained_on import TrainedOn
from evaluators.arc import NUM_ATTEMPTS, Submission, attempts_of, credits_of_ranks, pass_metrics, shares_with
from inference.adapt import FAILED
from inference.adapt_answers import Votes, answer_of
from inference.adapt_options import AdaptOptions
from inference.adapt_record import Answered
from inference.puzzle_results import PuzzleResults
from utils.files import write_file, write_json

CURVE_FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
Credits = dict[str, dict[int, float]]


def credits_of(tasks: Sequence[Task], votes: Sequence[Votes]) -> Credits:
    """{puzzle id: {k: share of its labelled test inputs whose truth is among the first k candidates}}."""
    credits = {}
    for task, answer in zip(tasks, votes, strict=True):
        labelled = [(p.output, part) for p, part in zip(task.test, answer, strict=True) if p.output is not None]
        ranks = [
            next((i for i, vote in enumerate(part) if np.array_equal(vote.grid, truth)), None)
            for truth, part in labelled
        ]
        if ranks:
            credits[task.id] = credits_of_ranks(ranks)
    return credits


def contaminated_puzzles(tasks: Sequence[Task], seen: TrainedOn) -> list[str]:
    """Ids of the tasks that share a pair or a rule with what the base saw; all of them where that is unknown."""
    pairs, puzzles = frozenset(seen.pair_hashes), seen.puzzle_ids
    return [t.id for t in tasks if seen.unknown_origin or shares_with(t.id, pair_hashes(t), pairs, puzzles)]


def figures(
    tasks: Sequence[Task], found: Sequence[Answered], seen: TrainedOn, options: AdaptOptions, curve_end: float | None
) -> dict[str, float]:
    """All metrics of a complete record.

    `ARC/pass@k` is the base's, `ARC/adapted_pass@k` that of votes × agreement, `ARC/adapted_by_votes_pass@k` that of
    votes alone, and where a fork was asked `ARC/adapted_by_agreement_pass@k` that of votes × agreement without the
    likelihood, which decides on the second attempt of `adapted`; under a control its name stands in the place of
    `adapted`. The names begin with `ARC/contaminated_` where the base saw a pair of one of the puzzles.

    Args:
        curve_end: the seconds of a puzzle at which the curve of pass@2 ends (None: no curve).
    """
    contaminated = contaminated_puzzles(tasks, seen)
    prefix = "ARC/contaminated_" if contaminated else "ARC/"
    what = prefix + (options.control or "adapted")
    metrics: dict[str, float] = {
        "ARC/num_puzzles": len(tasks),
        "ARC/num_contaminated_puzzles": len(contaminated),
        "ARC/num_test_inputs": sum(len(task.test) for task in tasks),
    }
    metrics |= pass_metrics(credits_of(tasks, [f.marks[0].votes for f in found]), prefix)
    metrics |= pass_metrics(credits_of(tasks, [f.answer for f in found]), f"{what}_")
    metrics |= pass_metrics(credits_of(tasks, [f.by_votes for f in found]), f"{what}_by_votes_")
    if any(mark.agreement is not None for f in found for mark in f.marks):
        plain = [answer_of(f.marks, f.pooled, by_likelihood=False) for f in found]
        metrics |= pass_metrics(credits_of(tasks, plain), f"{what}_by_agreement_")
    for fraction in CURVE_FRACTIONS if curve_end is not None else ():
        seconds = fraction * (curve_end or 0.0)
        credits = credits_of(tasks, [f.answer if fraction == 1 else answer_after(f, seconds) for f in found])
        solved = sum(credit[2] for credit in credits.values())
        metrics[f"{what}_pass@2_after_{seconds:g}s"] = solved / max(1, len(credits))
    metrics["adapt/seconds_per_puzzle"] = float(np.mean([f.seconds for f in found]))
    metrics["adapt/updates_per_puzzle"] = float(np.mean([f.updates for f in found]))
    if any(f.demos_left_out for f in found):
        metrics["adapt/demos_left_out"] = float(np.mean([f.demos_left_out for f in found]))
    for ended in sorted({f.ended for f in found}):
        metrics[f"adapt/ended_{ended}"] = sum(f.ended == ended for f in found)
    return metrics


def answer_after(found: Answered, seconds: float) -> Votes:
    """The answer that a puzzle had at a time: that of the last mark before it, at least the base's."""
    if seconds >= found.seconds:
        return found.answer
    marks = [mark for mark in found.marks if mark.seconds <= seconds] or list(found.marks[:1])
    return answer_of(marks, found.pooled)


def trained_on(tasks: Sequence[Task], seen: TrainedOn) -> TrainedOn:
    """What the weights that answered have seen: the base's, and the demonstrations of the puzzles."""
    hashes = [h for task in tasks for h in pair_hashes(task)[: len(task.train)]]
    own = TrainedOn(held_out_demonstrations=tuple(task.id for task in tasks), pair_hashes=tuple(dict.fromkeys(hashes)))
    return seen.joined(own)


def submission_of(found: Sequence[Answered], num_attempts: int = NUM_ATTEMPTS) -> Submission:
    """Kaggle's format; see `evaluators.arc.attempts_of`."""
    return {f.puzzle: [attempts_of([vote.grid for vote in part], num_attempts) for part in f.answer] for f in found}


def write_figures(
    folder: Path,
    tasks: Sequence[Task],
    found: Sequence[Answered],
    seen: TrainedOn,
    metrics: dict[str, float],
    step: int,
    control: str | None = None,
) -> None:
    """The files that stand beside the record of a complete evaluation."""
    write_json(folder / "metrics.json", metrics)
    write_file(folder / "submission.json", json.dumps(submission_of(found)))
    contaminated: Collection[str] = contaminated_puzzles(tasks, seen)
    PuzzleResults(step, credits_of(tasks, [f.answer for f in found]), frozenset(contaminated)).write(folder)
    answered = zip(tasks, found, strict=True)
    learned = [task for task, f in answered if f.updates and f.ended not in FAILED and control != "votes"]
    write_file(folder / "trained_on.json", trained_on(learned, seen).model_dump_json(indent=1) + "\n")
