"""Runners of one job file that are killed on the way: `python -m tests.job_races`."""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start_runner(folder: Path, *options: str, device: str = "--cpu") -> subprocess.Popen[bytes]:
    """`python run_jobs.py jobs.txt --cpu options` in a folder, with its words in `runner.log`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    with (folder / "runner.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "run_jobs.py"), "jobs.txt", *filter(None, [device]), *options],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )


def race(folder: Path, *, jobs: int, seconds: float, kills: int, parallel: int) -> tuple[list[int], Counter[str], str]:
    """Two runners on one file, the second of them killed and started again as often as asked.

    Returns:
        Exit statuses of both, how often each job came to its end, and the file.
    """
    lines = [f"[ ] bash -c 'sleep {seconds}; echo {i} >> ended'" for i in range(jobs)]
    (folder / "jobs.txt").write_text("\n".join(["Jobs that write a line when they end.", *lines]))
    options = ("--parallel", str(parallel))
    runners = [start_runner(folder, *options), start_runner(folder, *options)]
    for kill in range(kills):
        wait_for_ended(folder, jobs * (kill + 1) // (kills + 2))
        time.sleep(random.random() * seconds)
        runners[1].kill()
        runners[1].wait(60)
        runners[1] = start_runner(folder, *options)
    statuses = [runner.wait(600) for runner in runners]
    return statuses, Counter((folder / "ended").read_text().split()), (folder / "jobs.txt").read_text()


def wait_for_ended(folder: Path, number: int) -> None:
    """Wait until so many jobs have come to their end."""
    for _ in range(6000):
        if (folder / "ended").exists() and len((folder / "ended").read_text().split()) >= number:
            return
        time.sleep(0.01)
    raise AssertionError(f"{number} jobs did not end: {(folder / 'runner.log').read_text()[-2000:]}")


def main(argv: Sequence[str] | None = None) -> None:
    """The figure of docs/sweeps.md."""
    parser = argparse.ArgumentParser(prog="python -m tests.job_races", description=__doc__)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=2, help="jobs at once of each runner")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        statuses, ended, text = race(Path(folder), **vars(arguments))
        words = (Path(folder) / "runner.log").read_text()
    faults = [job for job in map(str, range(arguments.jobs)) if ended[job] != 1]
    sys.stdout.write(
        f"{arguments.jobs} jobs of {arguments.seconds} s, {arguments.kills} kills of one of two runners: "
        f"{len(ended)} ended, {len(faults)} not exactly once, {text.count('[x]')} marked [x], "
        f"{words.count('taken up')} taken up, exit statuses {statuses}, {time.monotonic() - began:.0f} s\n"
    )
    parser.exit(bool(faults or any(statuses) or text.count("[x]") != arguments.jobs))


if __name__ == "__main__":
    main()
