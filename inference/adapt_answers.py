"""What was answered on the way: votes at each mark, and how those of several marks are ranked together."""

from collections.abc import Sequence
from dataclasses import dataclass

from evaluators.arc import GridKey
from inference.traces import VotedGrid

# Of each test input of a task, in order: the candidates, best first.
Votes = tuple[tuple[VotedGrid, ...], ...]


@dataclass(frozen=True)
class Mark:
    """What the weights of one moment answer.

    updates: so far, those of the fork too.
    seconds: since the task was begun, these votes included.
    loss: mean token loss of the updates since the mark before (None: there were none).
    explained: how many demonstrations are predicted exactly from the others, as they are.
    agreement: the share of views of the demonstration left out that are predicted exactly, by weights that have not
        trained on it (None: none is left out).
    """

    updates: int
    seconds: float
    loss: float | None
    explained: int
    agreement: float | None
    votes: Votes


def key_of(vote: VotedGrid) -> GridKey:
    """The same of equal grids."""
    return vote.grid.shape, vote.grid.tobytes()


def ranked(marks: Sequence[Mark], *, by_agreement: bool = True) -> Votes:
    """The votes of several marks counted together, for each test input.

    Args:
        by_agreement: candidates rank by votes × agreement of the weights that gave them, summed; else, and where no
            agreement is above zero, by votes.
    """
    weights = [mark.agreement if by_agreement and mark.agreement is not None else 1.0 for mark in marks]
    return tuple(_joined(parts, weights) for parts in zip(*(mark.votes for mark in marks), strict=True))


def likeliest_second(votes: tuple[VotedGrid, ...]) -> tuple[VotedGrid, ...]:
    """The first candidate as it is, behind it the one that the weights find most likely, then the others.

    Two attempts by the same measure would often be two slips of one drawing: the second asks another measure.
    """
    known = [number for number, vote in enumerate(votes) if number and vote.likelihood is not None]
    if not known:
        return votes
    second = max(known, key=lambda number: (votes[number].likelihood, -number))
    return votes[0], votes[second], *votes[1:second], *votes[second + 1 :]


def _joined(parts: Sequence[tuple[VotedGrid, ...]], weights: Sequence[float]) -> tuple[VotedGrid, ...]:
    """A candidate is as likely as the last mark that knows it says; without any vote in these marks it is none."""
    joined: dict[GridKey, tuple[float, int, float, VotedGrid]] = {}
    for votes, weight in zip(parts, weights, strict=True):
        for vote in votes:
            key = key_of(vote)
            score, count, confidence, _ = joined.get(key, (0.0, 0, 0.0, vote))
            joined[key] = (
                score + weight * vote.votes,
                count + vote.votes,
                confidence + vote.votes * vote.confidence,
                vote,
            )
    # Equal scores, votes and confidences fall back on the grid itself.
    asked = [(key, found) for key, found in joined.items() if found[1]]
    order = sorted(asked, key=lambda item: (*item[1][:2], item[1][2] / item[1][1], item[0]), reverse=True)
    return tuple(
        VotedGrid(vote.grid, count, confidence / count, vote.likelihood) for _, (_, count, confidence, vote) in order
    )


def agreement_fell(first: Mark, last: Mark) -> bool:
    """Whether the adapted weights predict the demonstration left out in fewer views than the base did."""
    return first.agreement is not None and last.agreement is not None and last.agreement < first.agreement


def answering_marks(marks: Sequence[Mark], pooled: int, *, by_agreement: bool = True) -> Sequence[Mark]:
    """Of some marks, of which the first is the base's, those whose votes are the answer after the last of them.

    The base answers where nothing was adapted, and where agreement fell; else the last `pooled` marks together.
    """
    if by_agreement and agreement_fell(marks[0], marks[-1]):
        return marks[:1]
    return marks[1:][-pooled:] or marks[:1]


def answer_of(
    marks: Sequence[Mark], pooled: int, *, by_agreement: bool = True, by_likelihood: bool | None = None
) -> Votes:
    """The answer after the last of some marks; see `answering_marks`, `ranked` and `likeliest_second`.

    Args:
        by_agreement: else votes alone decide.
        by_likelihood: of the second place (None: as `by_agreement`).
    """
    votes = ranked(answering_marks(marks, pooled, by_agreement=by_agreement), by_agreement=by_agreement)
    by_likelihood = by_agreement if by_likelihood is None else by_likelihood
    return tuple(likeliest_second(part) for part in votes) if by_likelihood else votes


def same_first(one: Votes, other: Votes) -> bool:
    """Whether two answers begin with the same grid for every test input."""
    return all(
        bool(a) == bool(b) and (not a or a[0].grid.tolist() == b[0].grid.tolist())
        for a, b in zip(one, other, strict=True)
    )


def last_change(marks: Sequence[Mark], pooled: int) -> int:
    """After how many updates the first attempts changed for the last time; 0: they are still the base's."""
    changed, before = 0, marks[0].votes
    for number in range(1, len(marks)):
        answer = answer_of(marks[: number + 1], pooled)
        if not same_first(before, answer):
            changed, before = marks[number].updates, answer
    return changed
