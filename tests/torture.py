"""Kills and damaged checkpoints: `python -m tests.torture [--kills 200] [--pairs 50] [--damages 100]
[--evaluation-kills 50]`, `make torture`.

Kills: runs of the real entry script on 1 and on 2 ranks, with 1 and with 2 threads, are killed (SIGKILL) at random
moments until they have come to their end. Every restart must come up by itself, at the newest checkpoint that was
there; the end must be, bit for bit and line for line, that of an undisturbed run. Pairs: two first starts of one run at
the same moment; one must train, the other be refused before it writes anything. Damages: the newest checkpoint gets a
flipped bit, is truncated, emptied, or loses a file, at a random place; it must be noticed and the one before it taken.
Evaluation kills: `evaluate.py --adapt-updates` with two processes is killed in the same way; no puzzle may be answered
twice, and the record at the end must be that of a call that nobody killed.
"""

import argparse
import logging
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from checkpoints.checkpoint import CheckpointError, newest_good, open_checkpoint, saved_checkpoints, verified_checkpoint
from dataset.build_arc_dataset import build_dataset
from tests.processes import RUN, SMALL, Launch, hashes, log_lines

STEPS = 40
LIVES_AT_MOST = 200
LONGEST_LIFE = 0.4  # of an undisturbed run, so that several kills hit each run
COURSE = (
    f"epochs={STEPS // 2}",  # of 8 puzzles, 4 samples a step
    "eval_interval=7",
    "log_interval=4",
    "checkpoint_interval=3",
    "checkpoint_keep=3",
    "checkpoint_minutes=0",
)
KINDS = ("flipped bit", "truncated", "emptied", "deleted")


@dataclass
class Counts:
    """What was done and what went wrong."""

    kills: int = 0
    resumed: int = 0
    runs: int = 0
    damages: int = 0
    noticed: int = 0
    fallbacks: int = 0
    faults: list[str] = field(default_factory=list)


def undisturbed(folder: Path, data: Path, ranks: int = 1, threads: int = 1) -> Path:
    """The folder of a run that nobody kills."""
    launch = Launch(folder, (*SMALL, *COURSE, f"data_paths=[{data}]"), ranks=ranks, threads=threads)
    statuses = launch.wait(300)
    if statuses != [0] * ranks:
        raise RuntimeError(f"the undisturbed run ended with {statuses}: {launch.output()[-2000:]}")
    return folder / RUN


def compare(found: Path, expected: Path, counts: Counts, name: str) -> None:
    """Weights, averages, optimizer state and logs must be the same."""
    if hashes(open_checkpoint(found).path) != hashes(open_checkpoint(expected).path):
        counts.faults.append(f"{name}: the final weights differ")
    for log in ("metrics.jsonl", "act_steps.jsonl"):
        if log_lines(found, log) != log_lines(expected, log):
            counts.faults.append(f"{name}: {log} differs")


def newest_step(run: Path) -> int:
    return newest_good(run / "checkpoints")[0].step if saved_checkpoints(run / "checkpoints") else 0


def life(launch: Launch, delay: float, before: int, counts: Counts, name: str) -> bool:
    """One start, killed after `delay` seconds; whether the run came to its end before."""
    end = time.monotonic() + delay
    while time.monotonic() < end and any(process.exitcode is None for process in launch.processes):
        time.sleep(0.005)
    for process in launch.processes:
        process.kill()  # no effect on one that has ended
    statuses = launch.wait()
    resumed = re.search(r"resumed from .*: step (\d+) of", launch.output())
    if resumed:
        counts.resumed += 1
        if int(resumed[1]) != before:
            counts.faults.append(f"{name}: went on at step {resumed[1]}, the newest checkpoint was of step {before}")
    if all(status == 0 for status in statuses):
        return True
    counts.kills += 1
    # With two ranks the second may find the first dead before its own kill arrives.
    if -9 not in statuses or any(status not in (-9, 0, 1) for status in statuses):
        counts.faults.append(f"{name}: ended by itself with {statuses}: {launch.output()[-1500:]}")
    return False


def torture_kills(folder: Path, data: Path, *, kills: int, ranks: int, seed: int, threads: int = 1) -> Counts:
    """Runs that are killed again and again, until `kills` kills are reached and the last run has ended."""
    counts, rng = Counts(), random.Random(seed)
    group = f"{ranks}-{threads}"
    undisturbed(folder / f"warm-up-{group}", data, ranks, threads)
    began = time.monotonic()
    expected = undisturbed(folder / f"undisturbed-{group}", data, ranks, threads)
    longest = LONGEST_LIFE * (time.monotonic() - began)
    while counts.kills < kills:
        place = folder / f"killed-{group}-{counts.runs}"
        for number in range(LIVES_AT_MOST):
            name = f"{place.name}, start {number + 1}"
            before = newest_step(place / RUN)
            launch = Launch(place, (*SMALL, *COURSE, f"data_paths=[{data}]"), ranks=ranks, threads=threads)
            delay = rng.uniform(0, longest) if counts.kills < kills else 300.0
            began = time.monotonic()
            if life(launch, delay, before, counts, name):
                if not number:  # the whole run in one life: the machine has become faster
                    longest = min(longest, LONGEST_LIFE * (time.monotonic() - began))
                break
        else:
            counts.faults.append(f"{place.name}: not at its end after {LIVES_AT_MOST} starts")
        counts.runs += 1
        compare(place / RUN, expected, counts, place.name)
        shutil.rmtree(place)
    return counts


def torture_pairs(folder: Path, data: Path, *, pairs: int) -> Counts:
    """Two first starts of one run at once, which differ in their seed, again and again."""
    counts = Counts()
    course = (*SMALL, "epochs=2", "eval_interval=2", f"data_paths=[{data}]")
    for number in range(pairs):
        place = folder / f"pair-{number}"
        both = [Launch(place, (*course, f"seed={seed}"), log=f"seed-{seed}") for seed in range(2)]
        statuses = [launch.wait(300)[0] for launch in both]
        counts.runs += 1
        fault = fault_of_pair(place, both, statuses)
        if fault:
            counts.faults.append(f"{place.name} ended with {statuses}: {fault}")
    return counts


def fault_of_pair(place: Path, both: list[Launch], statuses: list[int | None]) -> str:
    """What is wrong with how two first starts ended; empty where nothing is."""
    if sorted(map(str, statuses)) != ["0", "2"]:
        return " / ".join(launch.output()[-1000:] for launch in both)
    winner, loser = statuses.index(0), both[statuses.index(2)].output()
    came_late = "the config is not the run's own: seed was" in loser  # after the end of the first, on a busy machine
    if f"process {both[winner].processes[0].pid} on " not in loser and not came_late:
        return f"the loser does not say who has the run: {loser[-1000:]}"
    if sorted(path.name for path in (place / RUN).parent.iterdir()) != [RUN.name]:
        return "an earlier run was set aside, or a lock has stayed"
    seeds = {yaml.safe_load((path / "config.yaml").read_text())["seed"] for path in run_and_checkpoint(place)}
    return "" if seeds == {winner} else f"seed {winner} has trained, the files are of {seeds}"


def run_and_checkpoint(place: Path) -> tuple[Path, Path]:
    return place / RUN, open_checkpoint(place / RUN).path


def damage(checkpoint: Path, kind: str, rng: random.Random) -> str:
    """Damage one file of a checkpoint; says which and where."""
    path = rng.choice(sorted(checkpoint.iterdir()))
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if kind == "deleted":
        path.unlink()
        return f"{path.name} deleted"
    if kind == "flipped bit":
        content[place] ^= 1 << rng.randrange(8)
    else:
        content = content[: place if kind == "truncated" else 0]
    path.write_bytes(content)
    return f"{path.name} {kind} at byte {place}"


def torture_damages(folder: Path, data: Path, *, damages: int, seed: int, resumes: int) -> Counts:
    """Damaged copies of a run's checkpoints; `resumes` of them are resumed to their end."""
    counts, rng = Counts(), random.Random(seed)
    expected = undisturbed(folder / "whole", data)
    paths = [path for _, path in saved_checkpoints(expected / "checkpoints")]
    for number in range(damages):
        place = folder / "damaged"
        shutil.copytree(folder / "whole", place, symlinks=True)
        newest = place / RUN / "checkpoints" / paths[-1].name
        what = damage(newest, KINDS[number % len(KINDS)], rng)
        counts.damages += 1
        try:
            verified_checkpoint(newest)
            counts.faults.append(f"{what}: not noticed")
        except CheckpointError:
            counts.noticed += 1
        taken = open_checkpoint(place / RUN).path
        if taken.name == paths[-2].name:
            counts.fallbacks += 1
        else:
            counts.faults.append(f"{what}: {taken.name} taken instead of {paths[-2].name}")
        if number < resumes:
            undisturbed(place, data)
            compare(place / RUN, expected, counts, what)
        shutil.rmtree(place)
    return counts


def answers_of(record: Path) -> dict[str, str]:
    """What is written of each puzzle and of all, by the file's name, without the time it took."""
    files = [
        *(record / "puzzles").iterdir(),
        *(record / f"{name}.json" for name in ("metrics", "puzzles", "submission")),
    ]
    return {path.name: re.sub(r'("[a-z/_]*seconds[a-z_]*": )[0-9.e+-]+', r"\1", path.read_text()) for path in files}


def torture_evaluations(folder: Path, arguments: Sequence[str], *, kills: int, seed: int) -> tuple[Counts, int]:
    """Evaluations by adaptation that are killed until `kills` kills are reached and the last one has ended, with the
    puzzles that were answered before the last kill as what was resumed; and how many puzzles each answers."""
    counts, rng = Counts(), random.Random(seed)

    def launched(name: str) -> Launch:
        return Launch(folder, (*arguments, "--output-dir", name), script="evaluate.py", log=name)

    for name in ("warm-up", "whole"):
        began = time.monotonic()
        launch = launched(name)
        if launch.wait(600) != [0]:
            raise RuntimeError(f"the undisturbed evaluation failed: {launch.output()[-2000:]}")
    longest = LONGEST_LIFE * (time.monotonic() - began)
    expected = answers_of(folder / "whole")
    while counts.kills < kills:
        name, written, answered = f"killed-{counts.runs}", dict[str, int](), 0
        for _ in range(LIVES_AT_MOST):
            launch = launched(name)
            has_ended = life(launch, rng.uniform(0, longest) if counts.kills < kills else 600.0, 0, counts, name)
            for path in (folder / name / "puzzles").glob("*.json"):
                if written.setdefault(path.name, path.stat().st_mtime_ns) != path.stat().st_mtime_ns:
                    counts.faults.append(f"{name}: {path.name} was written twice")
            if has_ended:
                break
            answered = len(written)
        counts.resumed += answered
        counts.runs += 1
        if not has_ended or answers_of(folder / name) != expected:
            counts.faults.append(f"{name}: the record is not that of an evaluation that nobody killed")
    return counts, len(list((folder / "whole" / "puzzles").iterdir()))


def evaluation_arguments(data: Path) -> tuple[str, ...]:
    """The base that comes along adapts shortly to each held-out puzzle of a data set, in two processes."""
    base = Path(__file__).parents[1] / "weights" / "arc_base"
    adapting = ("--adapt-updates", "16", "--adapt-with", "views=2", "votes=4", "--jobs", "2", "--device", "cpu")
    return ("--checkpoint", str(base), "--data-paths", str(data), *adapting)


def main() -> None:
    """Run all and print the counts; status 1 where anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="a quarter of them on 2 ranks, a quarter with 2 threads")
    parser.add_argument("--damages", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=50, help="of simultaneous first starts")
    parser.add_argument("--evaluation-kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # each damage that is noticed is one, and is counted
    faults = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "data"
        build_dataset(data, ["training", "evaluation"], test_set_name="evaluation", num_aug=2, seed=0, max_side=6)
        quarter = arguments.kills // 4
        groups = ((1, 1, arguments.kills - 2 * quarter), (1, 2, quarter), (2, 1, quarter))
        for ranks, threads, kills in groups if arguments.kills else ():
            began = time.monotonic()
            found = torture_kills(folder, data, kills=kills, ranks=ranks, threads=threads, seed=arguments.seed)
            sys.stdout.write(
                f"{ranks} rank(s) of {threads} thread(s): {found.kills} kills in {found.runs} runs of {STEPS} steps, "
                f"{found.resumed} resumed starts, {len(found.faults)} faults, {time.monotonic() - began:.0f} s\n"
            )
            sys.stdout.flush()
            faults += found.faults
        began = time.monotonic()
        found = torture_pairs(folder, data, pairs=arguments.pairs)
        sys.stdout.write(
            f"{found.runs} pairs of simultaneous first starts: {len(found.faults)} faults, "
            f"{time.monotonic() - began:.0f} s\n"
        )
        faults += found.faults
        began = time.monotonic()
        found = torture_damages(folder, data, damages=arguments.damages, seed=arguments.seed, resumes=4)
        sys.stdout.write(
            f"{found.damages} damaged checkpoints: {found.noticed} noticed, {found.fallbacks} fallbacks, "
            f"{len(found.faults)} faults, {time.monotonic() - began:.0f} s\n"
        )
        faults += found.faults
    if arguments.evaluation_kills:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as temporary:
            data = Path(temporary) / "data"
            build_dataset(data, ["training", "evaluation"], test_set_name="evaluation", num_aug=2, seed=0, max_side=6)
            found, puzzles = torture_evaluations(
                Path(temporary), evaluation_arguments(data), kills=arguments.evaluation_kills, seed=arguments.seed
            )
        sys.stdout.write(
            f"{found.kills} kills in {found.runs} evaluations of {puzzles} puzzles by adaptation, in which "
            f"{found.resumed} of these were answered: {len(found.faults)} faults, {time.monotonic() - began:.0f} s\n"
        )
        faults += found.faults
    for fault in faults:
        sys.stdout.write(f"FAULT {fault}\n")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
