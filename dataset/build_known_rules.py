"""Build a fixed set of known-rule tasks: `python -m dataset.build_known_rules --output-dir DIR --held-out 200 ...`.

The training split has tasks of trained rules, the test split held-out ones (`dataset.known_rules.family.Family`), the
families in turn; with `--held-out-families` the test split has tasks of these alone, and the training split none of
them. A training task that shares a pair with a held-out one up to augmentation is dropped, as in
`dataset.build_arc_dataset`, and named in the split manifest; this also has each task's rule, and a donor's rule for the
controls of an evaluation.
"""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until numpy is imported

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from dataset.arc_tasks import Task
from dataset.build_arc_dataset import build_arrays, manifest_of
from dataset.grids import SEQ_LEN, VOCAB_SIZE
from dataset.known_rules.family import RuleSplit, TaskSettings
from dataset.known_rules.generator import FAMILIES, check_settings, draw_donor, draw_task, generator_of
from dataset.splits import split_tasks
from dataset.store import DatasetError, PuzzleRule, check_output_folder, save_store
from utils.program import run_program

log = logging.getLogger(__name__)
# In the place of a batch's number: no training batch has these.
FIXED_SET = 2**64 - 1
DONORS = 2**64 - 2
RuledTask = tuple[Task, PuzzleRule]


def draw_tasks(settings: TaskSettings, split: RuleSplit, count: int, seed: int) -> list[RuledTask]:
    """Tasks of one split, each family's turn coming round, with what is known of their rules; the first of them do not
    depend on how many there are."""
    tasks = []
    for index in range(count):
        family = settings.families[index % len(settings.families)]
        task = draw_task(generator_of(seed, FIXED_SET, index, split), settings, split, family)
        rule = PuzzleRule(
            family=family,
            rule=task.rule,
            donor=draw_donor(generator_of(seed, DONORS, index, split), settings, split, task),
            chance=FAMILIES[family].chance(settings, split, task.pairs),
        )
        tasks.append((task.as_arc(f"{family}-{split}-{index:06d}", split), rule))
    return tasks


def build_known_rules(
    output_dir: Path,
    settings: TaskSettings,
    *,
    train: int,
    held_out: int,
    held_out_families: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Draw the tasks and write them as a data set.

    Args:
        train, held_out: how many tasks of each split.
        held_out_families: of the settings' families, those of the held-out tasks, and of no training task; with none,
            all families are of both.

    Raises:
        DatasetError: settings that leave a family without rules, or `output_dir` holds something that is not a data
            set.
    """
    if seed < 0 or train < 0 or held_out < 1:
        raise DatasetError(f"--train {train} and --seed {seed} must be 0 or more, --held-out {held_out} 1 or more")
    held_out_families = tuple(dict.fromkeys(held_out_families))
    if unknown := set(held_out_families) - set(settings.families):
        raise DatasetError(
            f"--held-out-families {' '.join(sorted(unknown))}: not one of the families, {', '.join(settings.families)}"
        )
    trained = tuple(name for name in settings.families if name not in held_out_families)
    if train and not trained:
        raise DatasetError("--held-out-families leaves no family to train on: hold out fewer, or give --train 0")
    check_output_folder(output_dir)
    counts: dict[RuleSplit, tuple[int, tuple[str, ...]]] = {
        "train": (train, trained),
        "held_out": (held_out, held_out_families or settings.families),
    }
    drawn: list[RuledTask] = []
    for split, (count, families) in counts.items():
        if count:
            of_split = replace(settings, families=families)
            check_settings(of_split, split)
            drawn += draw_tasks(of_split, split, count, seed)
    rules = {task.id: rule for task, rule in drawn}
    chosen, dropped = split_tasks([task for task, _ in drawn], ["held_out"])
    arrays = build_arrays([task for task, _, _ in chosen], num_aug=0, seed=seed)
    build: dict[str, object] = {"known_rules": asdict(settings), "train": train, "held_out": held_out, "seed": seed}
    if held_out_families:
        build["held_out_families"] = list(held_out_families)
    save_store(output_dir, arrays, manifest_of(chosen, dropped, rules), build, VOCAB_SIZE, SEQ_LEN)
    asked = sum(split == "test" for _, split, _ in chosen)
    log.info(
        "%s: %d training and %d held-out tasks of %d families (%d dropped, which share a pair with held-out ones)",
        output_dir,
        len(chosen) - asked,
        asked,
        len(settings.families),
        len(dropped),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; a fault in the input ends it with one message and status 2, before anything is written."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset.build_known_rules",
        description="Build a fixed set of tasks whose rules are known.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults = TaskSettings(tuple(FAMILIES))
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the data set")
    parser.add_argument(
        "--families", nargs="+", default=list(FAMILIES), metavar="FAMILY", help="of " + ", ".join(FAMILIES)
    )
    parser.add_argument(
        "--held-out-families",
        nargs="+",
        default=[],
        metavar="FAMILY",
        help="of the families, those that are held out whole: all held-out tasks are of these, no training task is",
    )
    parser.add_argument("--sides", nargs=2, type=int, default=defaults.sides, metavar=("LOW", "HIGH"), help="of inputs")
    parser.add_argument("--colors", type=int, default=defaults.colors, help="inputs have the colours 1 to this")
    parser.add_argument("--demos", nargs=2, type=int, default=defaults.demos, metavar=("LOW", "HIGH"))
    parser.add_argument("--distinct", action="store_true", help="each colour at most once, where an input is small")
    parser.add_argument("--train", type=int, default=1000, help="training tasks")
    parser.add_argument("--held-out", type=int, default=200, help="held-out tasks")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    settings = TaskSettings(
        families=tuple(arguments.families),
        sides=(arguments.sides[0], arguments.sides[1]),
        colors=arguments.colors,
        demos=(arguments.demos[0], arguments.demos[1]),
        distinct=arguments.distinct,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    folder = arguments.output_dir.expanduser()
    try:
        build_known_rules(
            folder,
            settings,
            train=arguments.train,
            held_out=arguments.held_out,
            held_out_families=arguments.held_out_families,
            seed=arguments.seed,
        )
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    except OSError as error:
        parser.exit(2, f"error: the data set could not be written: {error}\n")


if __name__ == "__main__":
    run_program(main)
