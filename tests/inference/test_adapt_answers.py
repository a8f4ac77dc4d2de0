"""Ranking the votes of several marks, and what is read from a record."""

from dataclasses import replace

import numpy as np

from dataset.arc_tasks import Pair, Task
from dataset.splits import pair_hashes
from dataset.trained_on import TrainedOn
from inference.adapt_answers import Mark, answer_of, answering_marks, last_change, ranked
from inference.adapt_figures import answer_after, contaminated_puzzles, credits_of, figures, submission_of
from inference.adapt_options import AdaptOptions
from inference.adapt_record import Answered
from inference.traces import VotedGrid


def vote(color: int, votes: int, confidence: float = 0.5, likelihood: float | None = None) -> VotedGrid:
    return VotedGrid(np.full((1, 2), color, dtype=np.uint8), votes, confidence, likelihood)


def mark(updates: int, agreement: float | None, *votes: VotedGrid) -> Mark:
    return Mark(updates, float(updates), None, 0, agreement, (votes,))


def colors(votes: tuple[tuple[VotedGrid, ...], ...]) -> list[int]:
    return [int(v.grid[0, 0]) for v in votes[0]]


BASE = mark(0, 0.25, vote(9, 5))
EARLY = mark(16, 0.5, vote(1, 6), vote(2, 3))
LATE = mark(24, 1.0, vote(2, 2), vote(3, 2, 0.9))


def test_candidates_rank_by_votes_times_agreement() -> None:
    assert colors(ranked([EARLY, LATE])) == [2, 1, 3]  # 3.5, 3, 2
    assert colors(ranked([EARLY, LATE], by_agreement=False)) == [1, 2, 3]  # 6, 5, 2
    assert [v.votes for v in ranked([EARLY, LATE])[0]] == [5, 6, 2]


def test_without_agreement_votes_alone_rank_then_confidence() -> None:
    nothing = [mark(m.updates, a, *m.votes[0]) for m in (EARLY, LATE) for a in (0.0,)]
    assert colors(ranked(nothing)) == [1, 2, 3]
    unknown = [mark(m.updates, None, *m.votes[0]) for m in (EARLY, LATE)]
    assert colors(ranked(unknown)) == [1, 2, 3]
    assert colors(ranked([mark(1, None, vote(1, 2, 0.1), vote(2, 2, 0.2))])) == [2, 1]


def test_the_second_attempt_is_the_likeliest_of_those_behind_the_first() -> None:
    """The first has most votes, whatever is likely; by votes alone nothing is exchanged."""
    last = mark(24, None, vote(1, 5, likelihood=-9), vote(2, 3), vote(3, 2, likelihood=-4), vote(4, 1, likelihood=-1))
    assert colors(answer_of([BASE, last], 1)) == [1, 4, 2, 3]
    assert colors(answer_of([BASE, last], 1, by_agreement=False)) == [1, 2, 3, 4]
    unknown = mark(24, None, vote(1, 5), vote(2, 3), vote(3, 2))
    assert colors(answer_of([BASE, unknown], 1)) == [1, 2, 3]


def test_the_last_mark_says_how_likely_a_grid_is_also_one_that_it_does_not_vote_for() -> None:
    early = mark(16, None, vote(1, 6, likelihood=-1), vote(2, 3, likelihood=-2), vote(3, 4, likelihood=-3))
    late = mark(24, None, vote(1, 6, likelihood=-1), vote(3, 0, 0.0, likelihood=-8), vote(2, 0, 0.0, likelihood=-5))
    assert colors(answer_of([BASE, early, late], 2)) == [1, 2, 3]
    assert [(v.votes, v.confidence) for v in ranked([early, late])[0]] == [(12, 0.5), (4, 0.5), (3, 0.5)]
    assert colors(answer_of([BASE, early, late], 1)) == [1], "nobody voted for the others at the last mark"


def test_the_base_answers_where_agreement_fell_and_the_last_marks_else() -> None:
    assert list(answering_marks([BASE, EARLY, LATE], 1)) == [LATE]
    assert list(answering_marks([BASE, EARLY, LATE], 5)) == [EARLY, LATE]
    assert list(answering_marks([BASE], 3)) == [BASE]
    worse = mark(36, 0.0, vote(4, 9))
    assert colors(answer_of([BASE, EARLY, worse], 3)) == [9]
    assert colors(answer_of([BASE, EARLY, worse], 3, by_agreement=False)) == [4, 1, 2]


def test_the_last_change_of_the_first_attempt_is_found() -> None:
    assert last_change([BASE], 1) == 0
    assert last_change([BASE, EARLY, LATE], 1) == 24
    assert last_change([BASE, EARLY, mark(24, 0.5, vote(1, 1))], 1) == 16


def answered(puzzle: str, *marks: Mark, ended: str = "seconds") -> Answered:
    seconds = marks[-1].seconds + 1
    answers = (answer_of(marks, 1), answer_of(marks, 1, by_agreement=False))
    return Answered(puzzle, 3, marks[-1].updates, seconds, ended, None, 1, 8, marks, *answers)


def task(name: str, truth: int | None) -> Task:
    grid = np.full((1, 2), 7, dtype=np.uint8)
    output = None if truth is None else np.full((1, 2), truth, dtype=np.uint8)
    return Task(name, "s", (Pair(grid, grid),), (Pair(grid, output),))


def test_figures_stand_beside_those_of_the_base_and_along_the_time() -> None:
    tasks = [task("a", 3), task("b", 9), task("c", None)]
    found = [answered("a", BASE, EARLY, LATE), answered("b", BASE), answered("c", BASE)]
    metrics = figures(tasks, found, TrainedOn(), AdaptOptions(), 32.0)
    assert metrics["ARC/pass@1"] == 0.5
    assert metrics["ARC/adapted_pass@1"] == 1.0
    assert metrics["ARC/adapted_pass@2_solved"] == 2
    assert 0.3 < metrics["ARC/adapted_pass@2_low"] < 0.4
    assert [metrics[f"ARC/adapted_pass@2_after_{s}s"] for s in (2, 4, 8, 16, 32)] == [0.5, 0.5, 0.5, 0.5, 1.0]
    assert metrics["adapt/ended_seconds"] == 3
    control = figures(tasks, found, TrainedOn(), AdaptOptions(control="votes"), None)
    assert control["ARC/votes_pass@1"] == 1.0
    assert "ARC/adapted_pass@1" not in control


def test_where_a_fork_was_asked_agreement_is_told_from_likelihood() -> None:
    unsure = mark(16, 0.5, vote(1, 6, likelihood=-9), vote(2, 3, likelihood=-8), vote(3, 2, likelihood=-1))
    metrics = figures([task("a", 3)], [answered("a", BASE, unsure)], TrainedOn(), AdaptOptions(), None)
    assert metrics["ARC/adapted_pass@2"] == 1.0
    assert metrics["ARC/adapted_by_agreement_pass@2"] == metrics["ARC/adapted_by_votes_pass@2"] == 0.0
    blind = mark(16, None, *unsure.votes[0])
    plain = figures(
        [task("a", 3)], [answered("a", replace(BASE, agreement=None), blind)], TrainedOn(), AdaptOptions(), None
    )
    assert "ARC/adapted_by_agreement_pass@2" not in plain


def test_the_answer_at_a_time_is_that_of_the_last_mark_before_it() -> None:
    found = answered("a", BASE, EARLY, LATE)
    assert [colors(answer_after(found, s))[0] for s in (0.0, 15.9, 16.0, 23.0, 24.0, 99.0)] == [9, 9, 1, 1, 3, 3]


def test_the_answers_on_the_way_of_a_record_have_a_likely_second_too() -> None:
    """What is read back from a file says how likely each grid is, as it was known then."""
    early = mark(16, None, vote(1, 6, likelihood=-9), vote(2, 3, likelihood=-8), vote(3, 2, likelihood=-1))
    found = Answered.from_json(answered("a", BASE, early, LATE).to_json())
    assert colors(answer_after(found, 16.0)) == [1, 3, 2]
    assert figures([task("a", 3)], [found], TrainedOn(), AdaptOptions(), 32.0)["ARC/adapted_pass@2_after_16s"] == 1.0


def test_a_curve_ends_at_the_answer_though_its_mark_was_late() -> None:
    found = answered("a", BASE, mark(40, None, vote(3, 5)))
    metrics = figures([task("a", 3)], [found], TrainedOn(), AdaptOptions(), 39.5)
    assert metrics["ARC/adapted_pass@2_after_39.5s"] == metrics["ARC/adapted_pass@2"] == 1.0


def test_figures_are_contaminated_where_the_base_saw_a_pair_and_not_by_adapting() -> None:
    tasks = [task("a", 3), task("b", 9)]
    seen = TrainedOn(pair_hashes=pair_hashes(tasks[0])[:1])
    assert contaminated_puzzles([task("x", 3)], TrainedOn(held_out_demonstrations=("x",))) == []
    assert contaminated_puzzles(tasks, seen) == ["a", "b"]  # both show the same pair
    assert contaminated_puzzles(tasks, TrainedOn(unknown_origin=("weights.pt",))) == ["a", "b"]
    metrics = figures(tasks, [answered("a", BASE), answered("b", BASE)], seen, AdaptOptions(), None)
    assert metrics["ARC/contaminated_adapted_pass@1"] == 0.5
    generated = [replace(tasks[0], id="held_out_generators/a/0")]
    assert contaminated_puzzles(generated, TrainedOn(puzzle_ids=("training/a",))) == ["held_out_generators/a/0"]
    assert not any(name.startswith("ARC/adapted") for name in metrics)


def test_test_inputs_count_in_parts_and_a_submission_repeats_its_last_attempt() -> None:
    two = Task("t", "s", task("t", 1).train, (task("t", 3).test[0], task("t", 4).test[0]))
    votes = ((vote(3, 2), vote(4, 1)), (vote(5, 2),))
    assert credits_of([two], [votes])["t"][1] == 0.5
    found = Answered("t", 1, 0, 0.0, "seconds", None, 1, 8, (Mark(0, 0.0, None, 0, None, votes),), votes, votes)
    assert submission_of([found]) == {
        "t": [{"attempt_1": [[3, 3]], "attempt_2": [[4, 4]]}, {"attempt_1": [[5, 5]], "attempt_2": [[5, 5]]}]
    }
    assert Answered.from_json(found.to_json()).to_json() == found.to_json()
