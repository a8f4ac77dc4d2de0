"""Run the jobs of a job file: `python run_jobs.py jobs-cpu-smoke.txt`. docs/sweeps.md has all of it.

Exit status: 0 everything chosen is done, 1 something failed, could not start or is left, or the file could not be read
or written on the way, 75 stopped by a signal (the same command goes on), 2 a fault of the file, a job or an option,
before anything was started.
"""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until the rest is imported

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.executors import Executor, LocalExecutor, RayExecutor, SlurmExecutor
from jobs.file import JobError, JobFile
from jobs.process import OF_ONE_RUN
from jobs.runner import Runner
from jobs.sheet import Options, Sheet
from jobs.table import commands, job_table
from utils.program import run_program
from utils.run_folder import METRICS_FILE, REPORT_FILE

log = logging.getLogger("run_jobs")
FAILED, USER_FAULT = 1, 2
LOOKED_AT_DRY = ("gpus", "cpu", "per_job", "parallel", "executor", "slurm", "slurm_cluster", "ray_address", "ray_cpus")


def argument_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a job file: '[ ] command' lines")
    parser.add_argument("--list", action="store_true", help="show where the jobs stand, and start nothing")
    parser.add_argument("--dry-run", action="store_true", help="validate the waiting jobs and show their commands")
    parser.add_argument("--only", metavar="GLOB", help="jobs by name, such as 'E0*'")
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--gpus", metavar="0,1,...", help="CUDA devices to give out; default: all that torch sees")
    devices.add_argument("--cpu", action="store_true", help="no CUDA device for any job")
    parser.add_argument("--per-job", type=positive, metavar="N", help="devices of a job; default: torchrun's, or 1")
    parser.add_argument("--parallel", type=positive, metavar="N", help="jobs at once; default: by devices; 1 on CPU")
    parser.add_argument("--retries", type=natural, default=0, metavar="N", help="further tries of a failed job")
    parser.add_argument("--grace", type=float, default=120.0, metavar="S", help="seconds for jobs to save when stopped")
    parser.add_argument("--take-running", action="store_true", help="run [-] jobs that no runner of this machine knows")
    parser.add_argument("--no-report", action="store_true", help="write no report.html at the end")
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    parser.add_argument("--slurm", nargs="+", default=[], metavar="key=value", help="partition=..., timeout_min=...")
    parser.add_argument("--slurm-cluster", choices=("slurm", "local"), default="slurm", help="local: to try it out")
    parser.add_argument("--ray-address", default="auto", metavar="ADDRESS", help="of the Ray cluster")
    parser.add_argument("--ray-cpus", type=positive, default=1, metavar="N", help="CPUs that a job takes in Ray")
    return parser


def natural(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not natural(text):
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def options_of(arguments: argparse.Namespace) -> Options:
    """What the runner may do.

    Raises:
        JobError: devices that cannot be given out, or an option of another executor.
    """
    is_local = arguments.executor == "local"
    if arguments.gpus is not None and not is_local:
        raise JobError(
            f"--gpus is for this machine; with --executor {arguments.executor} the cluster gives devices out"
        )
    for name in ("slurm", "slurm_cluster", "ray_address", "ray_cpus"):
        executor = name.split("_")[0]
        if arguments.executor != executor and getattr(arguments, name) != argument_parser().get_default(name):
            raise JobError(f"--{name.replace('_', '-')} is for --executor {executor}")
    if not arguments.grace >= 0:
        raise JobError(f"--grace {arguments.grace}: must be at least 0 seconds")
    gpus = None if arguments.cpu or not is_local else chosen_gpus(arguments.gpus)
    on_cpu = arguments.cpu or (is_local and not gpus)
    return Options(
        only=arguments.only,
        gpus=gpus or None,
        on_cpu=on_cpu,
        per_job=arguments.per_job,
        parallel=arguments.parallel or (1 if on_cpu and is_local else None),
        retries=arguments.retries,
        grace=arguments.grace,
        take_running=arguments.take_running,
    )


def chosen_gpus(text: str | None) -> tuple[str, ...]:
    """The devices that `--gpus` names; without it all that torch sees.

    Raises:
        JobError: something else than distinct devices.
    """
    if text is None:
        return visible_gpus()
    gpus = tuple(part.strip() for part in text.split(","))
    if not all(gpus) or len(set(gpus)) < len(gpus):
        raise JobError(f"--gpus '{text}': must be distinct devices such as 0,1,2,3")
    return gpus


def visible_gpus() -> tuple[str, ...]:
    """What torch sees, by the numbers outside this process."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        log.info("torch finds no CUDA device: jobs run on the CPU")
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(names.split(",")[:count]) if names else tuple(map(str, range(count)))


def without_effect(arguments: argparse.Namespace) -> list[str]:
    """Options that were given and that `--list` or `--dry-run` do not look at."""
    shown = "list" if arguments.list else "dry_run" if arguments.dry_run else None
    if shown is None:
        return []
    looked_at = ("file", "list", "dry_run", "only", *(() if arguments.list else LOOKED_AT_DRY))
    parser = argument_parser()
    given = [name for name, value in vars(arguments).items() if value != parser.get_default(name)]
    return [f"--{name.replace('_', '-')}" for name in given if name not in looked_at]


def executor_of(arguments: argparse.Namespace, file: JobFile) -> Executor:
    """The executor that the options name."""
    if arguments.executor == "slurm":
        return SlurmExecutor(file.records / "slurm", arguments.slurm, arguments.slurm_cluster)
    if arguments.executor == "ray":
        return RayExecutor(arguments.ray_address, arguments.ray_cpus)
    return LocalExecutor()


def write_reports(runner: Runner) -> None:
    """`runs/<project>/report.html` for each project of which this runner ended the last job; failed ones are on it."""
    jobs = runner.sheet.jobs()
    for project in sorted({job.project for job in runner.ended if job.project is not None}):
        own = [job for job in jobs if job.project == project]
        folders = [job.folder for job in own if (job.folder / METRICS_FILE).exists()]
        if folders and all(job.line.mark in ("x", "!") for job in own):
            write_project_report(folders, folders[0].parent / REPORT_FILE)


def write_project_report(folders: Sequence[Path], output: Path) -> None:
    """The page of a project's runs; what keeps it from being written is said, for the runs are done all the same."""
    from reports.report import write_report  # with torch

    try:
        write_report(folders, output)
    except (OSError, ValueError) as error:
        log.warning("%s could not be written: %s", output, error)
    else:
        log.info("%s", output)


def run(arguments: argparse.Namespace) -> int:
    """What the options ask for; returns the exit status.

    Raises:
        JobError: nothing has been started.
    """
    file = JobFile(arguments.file)
    if unused := without_effect(arguments):
        log.warning("%s: has no effect here, nothing is started", ", ".join(unused))
    if arguments.list:
        sys.stdout.write(job_table(file, arguments.only))
        return 0
    sheet = Sheet(file, options_of(arguments))
    if faults := sheet.faults():
        raise JobError("\nerror: ".join(faults))
    for name in OF_ONE_RUN:
        if name in os.environ:
            log.warning("%s is kept from the jobs, which share the runner's variables: put it before a command", name)
    for number in file.nearly_jobs():
        log.warning("%s: line %d looks like a job and is none; a job is '[ ] command'", file.name, number)
    for text in sheet.starting_over():
        log.warning("%s: %s", file.name, text)
    if arguments.dry_run:
        sys.stdout.write(commands(sheet))
        return 0
    runner = Runner(sheet, executor_of(arguments, file))
    try:
        status = runner.run()
        if not arguments.no_report:
            write_reports(runner)
    except JobError as error:
        if not runner.has_begun:
            raise
        log.error("%s; jobs that run go on", error)
        return FAILED
    return status


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = argument_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        status = run(arguments)
    except JobError as error:
        sys.stderr.write(f"error: {error}\n")
        status = USER_FAULT
    sys.exit(status)


if __name__ == "__main__":
    run_program(main)
