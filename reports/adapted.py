"""What test-time training drew: `python -m reports.adapted RECORD --data-paths DATA -o adapted.html`.

RECORD is the folder of an evaluation by adaptation (`evaluate.py --adapt ... --output-dir RECORD`), DATA what it was
asked about. Of each solved puzzle and some unsolved ones, drawn by a seed, the page shows demonstrations, input and
truth, what the first attempt was as adaptation went on, the attempts of the end, and the curve of loss and explained
demonstrations. A name that ends in .svg is a picture of one puzzle (`--puzzle`) instead.
"""

import argparse
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataset.arc_tasks import Task
from dataset.grids import Grid
from dataset.store import DatasetError, load_stores
from evaluators.arc import NUM_ATTEMPTS
from inference.adapt_answers import Mark, answer_of
from inference.adapt_evaluation import tasks_of_split
from inference.adapt_options import AdaptError
from inference.adapt_record import SETTINGS_FILE, AdaptRecord, Answered
from inference.traces import VotedGrid
from reports.pages import Stretch, grid_svg, templates
from reports.picture import sheet
from utils.files import read_json, write_file

CURVE_WIDTH, CURVE_HEIGHT = 220, 60


class UpdateStretch(Stretch):
    """Consecutive marks, named by their updates, at which the same grid was the first attempt."""

    @property
    def name(self) -> str:
        if not self.last:
            return "not adapted"
        return f"update {self.first}" if self.first == self.last else f"updates {self.first}–{self.last}"


@dataclass(frozen=True)
class AnswerView:
    """One test input: what was asked, and what was answered."""

    task: Task
    index: int
    found: Answered

    @property
    def name(self) -> str:
        return f"{self.task.id}, test {self.index + 1}"

    @property
    def input(self) -> Grid:
        return self.task.test[self.index].input

    @property
    def truth(self) -> Grid | None:
        return self.task.test[self.index].output

    @property
    def attempts(self) -> tuple[VotedGrid, ...]:
        return self.found.answer[self.index][:NUM_ATTEMPTS]

    def is_truth(self, grid: Grid) -> bool:
        return self.truth is not None and np.array_equal(grid, self.truth)

    @property
    def is_solved(self) -> bool:
        return any(self.is_truth(vote.grid) for vote in self.attempts)

    @property
    def rank(self) -> int | None:
        """The truth's place among all candidates, from 1."""
        places = (n for n, vote in enumerate(self.found.answer[self.index], start=1) if self.is_truth(vote.grid))
        return next(places, None)

    @property
    def stretches(self) -> list[UpdateStretch]:
        """The first attempt as adaptation went on, each grid once, however long it stayed."""
        stretches: list[UpdateStretch] = []
        marks = self.found.marks
        for number, mark in enumerate(marks, start=1):
            votes = answer_of(marks[:number], self.found.pooled)[self.index]
            grid = votes[0].grid if votes else np.zeros((0, 0), dtype=np.uint8)
            if stretches and mark.updates and stretches[-1].last and np.array_equal(stretches[-1].grid, grid):
                stretches[-1] = replace(stretches[-1], last=mark.updates)
            else:
                stretches.append(UpdateStretch(mark.updates, mark.updates, grid))
        return stretches


@dataclass(frozen=True)
class Curve:
    """Loss and share of explained demonstrations over updates, which the width counts by their logarithm."""

    marks: Sequence[Mark]
    demonstrations: int
    width: int = CURVE_WIDTH
    height: int = CURVE_HEIGHT

    def _points(self, values: Sequence[tuple[int, float]], top: float) -> str:
        end = math.log(max(2, self.marks[-1].updates))
        xs = [self.width * math.log(max(1, updates)) / end for updates, _ in values]
        return " ".join(f"{x:.1f},{self.height * (1 - v / top):.1f}" for x, (_, v) in zip(xs, values, strict=True))

    @property
    def losses(self) -> list[tuple[int, float]]:
        return [(mark.updates, mark.loss) for mark in self.marks if mark.loss is not None]

    @property
    def loss(self) -> str:
        return self._points(self.losses, max((loss for _, loss in self.losses), default=1.0) or 1.0)

    @property
    def explained(self) -> str:
        return self._points([(m.updates, m.explained / max(1, self.demonstrations)) for m in self.marks], 1.0)


@dataclass(frozen=True)
class PuzzleView:
    """A puzzle on the page."""

    task: Task
    found: Answered

    @property
    def answers(self) -> list[AnswerView]:
        return [AnswerView(self.task, index, self.found) for index in range(len(self.task.test))]

    @property
    def is_solved(self) -> bool:
        """Whether all test inputs are."""
        return all(answer.is_solved for answer in self.answers)

    @property
    def is_partly_solved(self) -> bool:
        return any(answer.is_solved for answer in self.answers)

    @property
    def curve(self) -> Curve:
        return Curve(self.found.marks, self.found.demonstrations)


def load(folder: Path, data_paths: list[str]) -> list[PuzzleView]:
    """The puzzles of a record that are answered, in its order.

    Raises:
        AdaptError, DatasetError: no record, a damaged one, or one about other data.
    """
    settings = read_json(folder / SETTINGS_FILE)
    if not {"puzzles", "split", "data"} <= settings.keys():
        raise AdaptError(f"{folder}: not the record of an evaluation by adaptation ({SETTINGS_FILE} is missing there)")
    store = load_stores(data_paths)
    if store.metadata.sha256 != settings["data"]:
        raise AdaptError(
            f"{folder}: its answers are to other data than {', '.join(data_paths)}; name what it was asked"
        )
    tasks = tasks_of_split(store, settings["split"], None, settings["puzzles"])
    found = AdaptRecord(folder).read_all(settings["puzzles"])
    views = [PuzzleView(task, answer) for task, answer in zip(tasks, found, strict=True) if answer is not None]
    if not views:
        raise AdaptError(f"{folder}: no puzzle of it has been answered yet")
    return views


def sections_of(views: Sequence[PuzzleView], unsolved: int, seed: int) -> dict[str, list[PuzzleView]]:
    """All solved puzzles, and so many of the others, drawn by the seed."""
    solved = [view for view in views if view.is_partly_solved]
    others = [view for view in views if not view.is_partly_solved]
    drawn = sorted(random.Random(seed).sample(range(len(others)), min(unsolved, len(others))))
    return {
        f"Solved, at least one test input: {len(solved)} of {len(views)} puzzles": solved,
        f"Not solved: {len(drawn)} of {len(others)} puzzles, drawn by seed {seed}": [others[n] for n in drawn],
    }


def page(title: str, sections: dict[str, list[PuzzleView]]) -> str:
    """The HTML, with everything in it."""
    return templates.get_template("adapted.html.j2").render(title=title, sections=sections, svg=grid_svg)


def picture(view: AnswerView, note: str) -> str:
    """The SVG of one test input: demonstrations, then the first attempt as adaptation goes on."""
    truth = [] if view.truth is None else [("truth", view.truth)]
    drawn, seconds = [(stretch.name, stretch.grid) for stretch in view.stretches], view.found.seconds
    return sheet(
        f"{view.name}: the weights train on the demonstrations, {view.found.updates} updates in {seconds:.0f} s ...",
        [(pair.input, pair.output) for pair in view.task.train if pair.output is not None],
        "... and draw the answer to the test input. The first attempt, as adaptation goes on:",
        [("test input", view.input), *drawn, *truth],
        note,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; status 2 and one message for what cannot be drawn."""
    parser = argparse.ArgumentParser(prog="python -m reports.adapted", description="What test-time training drew.")
    parser.add_argument("record", type=Path, metavar="RECORD", help="the folder of evaluate.py --adapt")
    parser.add_argument("--data-paths", nargs="+", required=True, metavar="DATA", help="what it was asked about")
    parser.add_argument("--unsolved", type=int, default=12, help="how many unsolved puzzles are drawn (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--puzzle", help="of a picture; default: the first that is solved")
    parser.add_argument("--note", default="", help="a line below a picture")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a file ending in .html or .svg")
    arguments = parser.parse_args(argv)
    if arguments.unsolved < 0:
        parser.error(f"--unsolved {arguments.unsolved}: must be 0 or more")
    try:
        views = load(arguments.record, arguments.data_paths)
        write_file(arguments.output, _drawn(arguments, views))
    except (AdaptError, DatasetError, ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    sys.stdout.write(f"{arguments.output}\n")


def _drawn(arguments: argparse.Namespace, views: Sequence[PuzzleView]) -> str:
    """
    Raises:
        ValueError: the output is neither a page nor a picture, or the puzzle is not in the record.
    """
    if arguments.output.suffix == ".html":
        sections = sections_of(views, arguments.unsolved, arguments.seed)
        return page(f"Answers of {arguments.record.resolve().name}, by adapting to each puzzle", sections)
    if arguments.output.suffix != ".svg":
        raise ValueError(f"-o {arguments.output}: a page ends in .html, a picture of one puzzle in .svg")
    answers = [a for view in views if arguments.puzzle in (None, view.task.id) for a in view.answers]
    if not answers:
        raise ValueError(f"--puzzle {arguments.puzzle}: not in {arguments.record}")
    return picture(next((answer for answer in answers if answer.is_solved), answers[0]), arguments.note)


if __name__ == "__main__":
    main()
