"""The record of an evaluation by adaptation: a folder with a file for each puzzle that has been answered.

    settings.json       what was asked: checkpoint, puzzles, options, budget
    seconds.json        how long all calls together took, until the last puzzle was written
    puzzles/<n>.json    what puzzle n came to, written in one move as soon as it is answered
    metrics.json  puzzles.json  submission.json  trained_on.json    written at the end

A call with the same settings goes on where the one before it ended, however that was.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.adapt import Adaptation
from inference.adapt_answers import Mark, Votes, answering_marks, last_change
from inference.adapt_options import AdaptError
from inference.traces import VotedGrid, grid_of_rows, grid_rows
from utils.files import read_json, write_file, write_json

SETTINGS_FILE, SECONDS_FILE, ANSWERED_FOLDER = "settings.json", "seconds.json", "puzzles"


@dataclass(frozen=True)
class Answered:
    """What one puzzle came to; as `Adaptation`, without the weights, and with what it was allowed.

    answer, by_votes: the candidates of each test input, ranked by votes × agreement and by votes alone.
    allowed_seconds: its share of the time, where that was limited.
    """

    puzzle: str
    demonstrations: int
    updates: int
    seconds: float
    ended: str
    allowed_seconds: float | None
    pooled: int
    versions: int
    marks: tuple[Mark, ...]
    answer: Votes
    by_votes: Votes
    demos_left_out: int = 0  # records of before the limit held here lack it

    @classmethod
    def of(cls, adaptation: Adaptation, allowed_seconds: float | None) -> "Answered":
        """What is kept of an adaptation."""
        return cls(
            puzzle=adaptation.task,
            demonstrations=adaptation.demonstrations,
            updates=adaptation.updates,
            seconds=adaptation.seconds,
            ended=adaptation.ended,
            allowed_seconds=allowed_seconds,
            pooled=adaptation.pooled,
            versions=adaptation.versions,
            marks=adaptation.marks,
            answer=adaptation.answer(),
            by_votes=adaptation.answer(by_agreement=False),
            demos_left_out=adaptation.demos_left_out,
        )

    @property
    def answering_marks(self) -> Sequence[Mark]:
        """Those whose votes are the answer."""
        return answering_marks(self.marks, self.pooled)

    @property
    def last_change(self) -> int:
        """After how many updates the first attempts changed for the last time; 0: they are the base's."""
        return last_change(self.marks, self.pooled)

    def to_json(self) -> dict[str, Any]:
        """As it stands in its file."""
        marks = [{**vars(mark), "votes": _rows_of(mark.votes)} for mark in self.marks]
        return {**vars(self), "marks": marks, "answer": _rows_of(self.answer), "by_votes": _rows_of(self.by_votes)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Answered":
        """The inverse of `to_json`."""
        marks = tuple(Mark(**{**mark, "votes": _votes_of(mark["votes"])}) for mark in value["marks"])
        answers = {key: _votes_of(value[key]) for key in ("answer", "by_votes")}
        return cls(**{**value, "marks": marks, **answers})


def _rows_of(votes: Votes) -> list[list[dict[str, Any]]]:
    return [[{**vars(vote), "grid": grid_rows(vote.grid)} for vote in part] for part in votes]


def _votes_of(value: list[list[dict[str, Any]]]) -> Votes:
    return tuple(tuple(VotedGrid(**{**vote, "grid": grid_of_rows(vote["grid"])}) for vote in part) for part in value)


class AdaptRecord:
    """The folder of one evaluation."""

    def __init__(self, folder: Path):
        self.folder = folder

    def open(self, settings: dict[str, Any]) -> None:
        """Begin a record, or go on with one of the same settings.

        Raises:
            AdaptError: the folder holds another evaluation, or something else.
        """
        path = self.folder / SETTINGS_FILE
        settings = json.loads(json.dumps(settings))
        if path.exists():
            before = read_json(path)
            if differing := next(_differing(before, settings), None):
                key, there, asked = differing
                raise AdaptError(
                    f"--output-dir {self.folder}: holds an evaluation with {key}={_short(there)}, asked is "
                    f"{_short(asked)}; name another folder, or move this one away"
                )
            self._tidy()
            return
        self._tidy()
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise AdaptError(
                f"--output-dir {self.folder}: is not empty and has no {SETTINGS_FILE}; name another folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)

    def _tidy(self) -> None:
        """Remove what a process that was killed left half-written."""
        for pattern in (f".{SETTINGS_FILE}.tmp-*", f".{SECONDS_FILE}.tmp-*", f"{ANSWERED_FOLDER}/.*.tmp-*"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def seconds(self) -> float:
        """How long the calls before took."""
        path = self.folder / SECONDS_FILE
        return float(read_json(path)["seconds"]) if path.exists() else 0.0

    def write_seconds(self, seconds: float) -> None:
        """Keep how long all calls have taken."""
        write_json(self.folder / SECONDS_FILE, {"seconds": seconds})

    def path_of(self, number: int) -> Path:
        return self.folder / ANSWERED_FOLDER / f"{number:04d}.json"

    def write(self, number: int, answered: Answered) -> None:
        """Keep what a puzzle came to, in one move."""
        self.path_of(number).parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path_of(number), json.dumps(answered.to_json()) + "\n")

    def read(self, number: int, puzzle: str) -> Answered | None:
        """What a puzzle came to; None where it has not been answered.

        Raises:
            AdaptError: the file is damaged, or another puzzle's.
        """
        path = self.path_of(number)
        if not path.exists():
            return None
        try:
            found = Answered.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise AdaptError(f"{path}: damaged ({type(error).__name__}: {error}); remove it to answer again") from error
        if found.puzzle != puzzle:
            raise AdaptError(f"{path}: of puzzle '{found.puzzle}', expected '{puzzle}'; name another --output-dir")
        return found

    def lacks(self, puzzles: Sequence[str]) -> list[int]:
        """The numbers of the puzzles that have not been answered."""
        return [number for number, found in enumerate(self.read_all(puzzles)) if found is None]

    def read_all(self, puzzles: Sequence[str]) -> list[Answered | None]:
        """What each puzzle came to."""
        return [self.read(number, puzzle) for number, puzzle in enumerate(puzzles)]


def _differing(one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What two settings do not have alike: the key, with those that it lies under, and both values."""
    for key in sorted({*one, *other}):
        there, asked = one.get(key), other.get(key)
        if isinstance(there, dict) and isinstance(asked, dict):
            yield from ((f"{key}.{inner}", *values) for inner, *values in _differing(there, asked))
        elif there != asked:
            yield key, there, asked


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "..."
