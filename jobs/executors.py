"""Where jobs run: on this machine, on a Slurm cluster, or on a Ray cluster.

All of them start the same process (`jobs.process`), which leaves word in the job's folder; an executor knows only
whether a job that it was given may still begin or go on. Clusters need a file system that all machines share, with
locks.
"""

import logging
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import psutil

from jobs.file import JobError
from jobs.process import STOP_FILE, command_line, run_under
from jobs.records import Record

log = logging.getLogger(__name__)
SLURM_MINUTES = 24 * 60
CONNECT_SECONDS = 10
END_SECONDS = 10


class Executor(Protocol):
    """Starts jobs.

    name: as in a record.
    poll_seconds: how often it is worth looking after jobs.
    """

    name: str
    poll_seconds: float

    def start(self, folder: Path, record: Record) -> str:
        """Start a job; returns what finds it again.

        Raises:
            OSError, RuntimeError: it could not be started.
        """
        ...

    def may_run(self, folder: Path, record: Record) -> bool:
        """Whether the job may still begin, or runs."""
        ...

    def cancel(self, folder: Path, record: Record) -> None:
        """Take back a job that has not begun."""
        ...

    def forget(self, record: Record) -> None:
        """A job has ended."""
        ...


def _is_process_of(pid: int, token: str) -> bool:
    """Whether a process above a job, which another runner of this machine started, still lives."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and token in process.cmdline()
    except psutil.Error:
        return False


class LocalExecutor:
    """Processes of this machine, in sessions of their own."""

    name, poll_seconds = "local", 0.1

    def __init__(self) -> None:
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, folder: Path, record: Record) -> str:
        process = subprocess.Popen(command_line(folder, record.token), stdin=subprocess.DEVNULL, start_new_session=True)
        self._started[record.token] = process
        return str(process.pid)

    def may_run(self, folder: Path, record: Record) -> bool:
        process = self._started.get(record.token)
        if process is not None:
            return process.poll() is None
        return record.launch.isdecimal() and _is_process_of(int(record.launch), record.token)

    def cancel(self, folder: Path, record: Record) -> None:
        pass

    def forget(self, record: Record) -> None:
        if (process := self._started.pop(record.token, None)) is not None:
            with suppress(subprocess.TimeoutExpired):  # it ends as soon as it has left word
                process.wait(END_SECONDS)


def run_in_slurm(folder: Path, token: str) -> None:
    """The task of a Slurm job: what Slurm sends before a time limit or a preemption asks the job to save."""

    def stop(number: int, frame: FrameType | None) -> None:
        (folder / STOP_FILE).write_text("TERM")

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, stop)
    run_under(folder, token)


class SlurmExecutor:
    """A Slurm cluster, through submitit.

    Args:
        folder: for submitit's scripts and logs.
        options: `key=value` of submitit's AutoExecutor; Slurm's own with or without `slurm_` in front.
        cluster: `local` runs the same on this machine.
    """

    name, poll_seconds = "slurm", 1.0

    def __init__(self, folder: Path, options: Sequence[str], cluster: str = "slurm"):
        try:
            import submitit
        except ImportError as error:
            raise JobError("--executor slurm needs submitit: pip install -e '.[slurm]'") from error
        self._submitit, self._folder, self._cluster = submitit, folder, cluster
        self.poll_seconds = 0.2 if cluster == "local" else self.poll_seconds
        self._jobs: dict[str, Any] = {}
        self._parameters = {"timeout_min": SLURM_MINUTES, **dict(map(self._option, options))}
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(**self._parameters)
        except (NameError, ValueError, AssertionError, RuntimeError) as error:
            raise JobError(f"--slurm: {str(error).splitlines()[0]}") from error

    def _option(self, text: str) -> tuple[str, Any]:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise JobError(f"--slurm '{text}': must be key=value; the job file stands before --slurm")
        if key not in self._submitit.AutoExecutor._valid_parameters() and not key.startswith("slurm_"):
            key = f"slurm_{key}"
        return key, int(value) if value.isdecimal() else value

    def start(self, folder: Path, record: Record) -> str:
        gpus = {"gpus_per_node": record.gpus} if record.gpus else {}
        self._executor.update_parameters(**{"name": record.name, **gpus, **self._parameters})
        job = self._executor.submit(run_in_slurm, folder, record.token)
        self._jobs[record.token] = job
        return str(job.job_id)

    def _job(self, record: Record) -> Any:
        if record.token not in self._jobs and record.launch:
            kind = self._submitit.SlurmJob if self._cluster == "slurm" else self._submitit.LocalJob
            self._jobs[record.token] = kind(self._folder, record.launch, [0])
        return self._jobs.get(record.token)

    def may_run(self, folder: Path, record: Record) -> bool:
        job = self._job(record)
        return job is not None and not job.done()

    def cancel(self, folder: Path, record: Record) -> None:
        job = self._job(record)
        if job is not None:
            job.cancel(check=False)

    def forget(self, record: Record) -> None:
        self._jobs.pop(record.token, None)


def _refuse_silent(address: str) -> None:
    """Ray would wait for minutes where nothing listens, and end the process.

    Raises:
        JobError: nothing answers at HOST:PORT.
    """
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise JobError(f"--ray-address {address}: no Ray cluster answers: {error}") from error


class RayExecutor:
    """A Ray cluster: each job is a task, which Ray runs again elsewhere when its node is lost.

    Args:
        address: of the cluster; `auto` finds the one of this machine.
        cpus: that a job takes.
    """

    name, poll_seconds = "ray", 0.2

    def __init__(self, address: str, cpus: int):
        try:
            import ray
            from ray.exceptions import RayError
        except ImportError as error:
            raise JobError("--executor ray needs ray: pip install -e '.[ray]'") from error
        _refuse_silent(address)
        try:
            if not ray.is_initialized():
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise JobError(f"--ray-address {address}: no Ray cluster answers: {error}") from error
        self._ray, self._error = ray, RayError
        self._task = ray.remote(max_retries=-1, num_cpus=cpus)(run_under)
        self._started: dict[str, Any] = {}

    def start(self, folder: Path, record: Record) -> str:
        try:
            there = int(self._ray.cluster_resources().get("GPU", 0))
            if record.gpus > there:
                log.warning(
                    "%s waits for %d GPUs; the cluster has %d now (--cpu: none)", record.name, record.gpus, there
                )
            task = self._task.options(name=record.name, num_gpus=record.gpus)
            self._started[record.token] = task.remote(folder, record.token)
        except self._error as error:
            raise RuntimeError(str(error)) from error
        return record.token

    def may_run(self, folder: Path, record: Record) -> bool:
        task = self._started.get(record.token)
        if task is None:
            return False
        ready, _ = self._ray.wait([task], timeout=0)
        return not ready

    def cancel(self, folder: Path, record: Record) -> None:
        if record.token in self._started:
            self._ray.cancel(self._started[record.token])

    def forget(self, record: Record) -> None:
        self._started.pop(record.token, None)
