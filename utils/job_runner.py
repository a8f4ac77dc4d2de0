"""The runner of a job file: takes waiting jobs, watches them, writes how they ended.

What it knows stands in the file and its records, so a runner that is killed loses nothing: its jobs go on, and the next
one takes them up. Several runners share a file by its lock.
"""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType

from utils.job_command import Job, Understood, same_folder_faults
from utils.job_executors import Executor
from utils.job_file import JobError, JobFile, JobLine, Mark
from utils.job_process import JOB_LOG
from utils.job_records import Record, Records, this_host
from utils.job_verdict import Verdict, judge, last_line, status_of
from utils.signals import SECOND_SIGINT_AFTER_S

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
MAX_INTERRUPTIONS = 10
STOPPED = 75


@dataclass(frozen=True)
class Options:
    """What a runner may do.

    gpus: devices of this machine to give out; None where the executor or nobody does.
    on_cpu: hide all devices from the jobs.
    per_job: devices of a job without torchrun; None: one.
    parallel: jobs at once; None: as many as there are devices for.
    """

    only: str | None = None
    gpus: tuple[str, ...] | None = None
    on_cpu: bool = True
    per_job: int | None = None
    parallel: int | None = 1
    retries: int = 0
    grace: float = 120.0
    take_running: bool = False

    def gpus_of(self, job: Job) -> int:
        """How many devices the job takes.

        Raises:
            JobError: torchrun's number is another than `--per-job`, or more than there are.
        """
        if self.on_cpu:
            return 0
        number = job.processes or self.per_job or 1
        if self.per_job not in (None, number):
            raise JobError(
                f"line {job.line.number}: torchrun starts {number} processes, each on a device of its own, but "
                f"--per-job is {self.per_job}; leave --per-job out, or make both the same"
            )
        if self.gpus is not None and number > len(self.gpus):
            raise JobError(f"line {job.line.number}: needs {number} devices; --gpus has {len(self.gpus)}")
        return number


class StopSignals:
    """How often SIGINT or SIGTERM has come; one that follows at once is the same, sent twice."""

    def __init__(self) -> None:
        self.count, self._last = 0, 0.0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.count or now - self._last > SECOND_SIGINT_AFTER_S:
            self.count += 1
        self._last = now

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take both inside the block."""
        handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


class Runner:
    """One runner of one file."""

    def __init__(self, file: JobFile, options: Options, executor: Executor):
        self.file, self.options, self.executor = file, options, executor
        self.records, self.jobs = Records(file.records), Understood(file.stem)
        self.held: dict[str, tuple[Job, Record]] = {}
        self.ended: list[Job] = []
        self.signals = StopSignals()
        self._orders: dict[str, str] = {}
        self._said: set[str] = set()
        self._kill_at = self._looked_at = 0.0

    def run(self) -> int:
        """Work until nothing is left to do; returns the exit status.

        Raises:
            JobError: the file cannot be read or written.
        """
        with self.file.lock():
            self.records.register()
        try:
            with self.signals.listening():
                return self._work()
        finally:
            self.records.unregister()

    def _work(self) -> int:
        while True:
            self._collect()
            if self.signals.count:
                if not self.held:
                    return STOPPED
                self._stop_jobs()
            elif not self._take() and not self.held:
                return self._outcome()
            time.sleep(self.executor.poll_seconds)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)

    # Taking

    def _take(self) -> bool:
        """Start what can start, take up what lost its runner; whether anything may still happen."""
        now = time.monotonic()
        if self.held and not self._has_room() and now - self._looked_at < LOOK_SECONDS:
            return True
        self._looked_at = now
        with self.file.lock():
            for line in self.file.read():
                if line.mark == "-" and line.key not in self.held:
                    self._take_up(line)
            for line in self.file.read():
                if line.mark == " " and not self._start_waiting(line):
                    break
            return self._is_waiting(self.file.read())

    def _has_room(self) -> bool:
        return self.options.parallel is None or len(self.held) < self.options.parallel

    def _start_waiting(self, line: JobLine) -> bool:
        """Start a waiting job, if it is this runner's and its turn; whether the next one may be looked at."""
        try:
            job = self._checked(line)
        except JobError as error:
            if self.options.only is None:
                log.error("[!] %s", error)
                self._mark(line, " ", "!")
            else:
                self._say_once(f"{error}: left alone with --only")
            return True
        if not job.matches(self.options.only) or not self._is_open(line):
            return True
        if line.key in self.held or self._lives(line):
            self._say_once(f"line {line.number}: is set to [ ], but {job.name} still runs: it is not started twice")
            return True
        devices = self._free_devices(job)
        if devices is None:
            return False
        self._start(job, devices)
        return True

    def _checked(self, line: JobLine) -> Job:
        """The job of a line.

        Raises:
            JobError: it cannot be run.
        """
        job = self.jobs.job(line)
        self.options.gpus_of(job)
        for fault in same_folder_faults(self.known_jobs()):
            if fault.startswith(f"line {line.number}:"):
                raise JobError(fault)
        return job

    def known_jobs(self) -> list[Job]:
        """The jobs of the file that can be understood."""
        return [job for line in self.file.read() if (job := self._known(line)) is not None]

    def _known(self, line: JobLine) -> Job | None:
        try:
            return self.jobs.job(line)
        except JobError:
            return None

    def _is_open(self, line: JobLine) -> bool:
        """Whether everything above the barriers above a line is done."""
        return not line.section or all(x.mark == "x" for x in self.file.read() if x.section < line.section)

    def _lives(self, line: JobLine) -> bool:
        """Whether a job that is not marked as running runs all the same."""
        record = self.records.read(line.key)
        if record is None or not record.token:
            return False
        with self.records.claimed(line.key) as is_free:
            return not is_free or (self.records.is_alive(record.owner) and record.owner != self.records.runner)

    def _free_devices(self, job: Job) -> tuple[str, ...] | None:
        """Devices for a job; None where there are too few, or no room."""
        if not self._has_room():
            return None
        taken = {device for _, record in self.held.values() for device in record.devices}
        free = [device for device in self.options.gpus or () if device not in taken]
        number = self.options.gpus_of(job) if self.options.gpus is not None else 0
        return tuple(free[:number]) if number <= len(free) else None

    def _start(self, job: Job, devices: tuple[str, ...]) -> None:
        status, before = status_of(job), self.records.read(job.key)
        fresh = Record(command=job.line.command, name=job.name)
        record = self.records.begin(
            job.key,
            replace(
                before or fresh,
                arguments=job.arguments,
                environment=self._environment(job, devices),
                directory=str(Path.cwd()),
                log=str((job.folder / JOB_LOG).resolve()),
                devices=devices,
                gpus=self.options.gpus_of(job),
                executor=self.executor.name,
                started=time.time(),
                seen=float(status.get("updated", 0.0)),
                step=int(status.get("step", 0)),
            ),
        )
        self._mark(job.line, " ", "-")
        record = replace(record, launch=self.executor.start(self.records.job_folder(job.key), record))
        self.records.write(job.key, record)
        self.held[job.key] = job, record
        where = f" on device {', '.join(devices)}" if devices else ""
        log.info("[-] %s%s, log in %s", job.name, where, job.folder / JOB_LOG)

    def _environment(self, job: Job, devices: tuple[str, ...]) -> dict[str, str]:
        """What a job has in its environment besides the runner's."""
        group = {} if "WANDB_RUN_GROUP" in os.environ else {"WANDB_RUN_GROUP": self.file.stem}
        if self.options.on_cpu or self.options.gpus is not None:
            group["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        return group | job.environment

    # Taking up

    def _take_up(self, line: JobLine) -> None:
        """Watch a job that is marked as running and that no living runner watches."""
        record = self.records.read(line.key)
        at = f"line {line.number}: {record.name if record else line.command}"
        if record is None or not record.owner:
            if self.options.take_running:
                self._mark(line, "-", " ")
            else:
                self._say_once(f"{at} is marked [-], and no runner knows it: left alone without --take-running")
            return
        if self.records.is_alive(record.owner) or not fnmatchcase(record.name, self.options.only or "*"):
            return
        if record.executor != self.executor.name:
            self._say_once(f"{at} was started with --executor {record.executor}: left alone by this runner")
        elif record.host != this_host() and record.executor == "local" and not self.options.take_running:
            self._say_once(f"{at} was started on {record.host}: left alone here without --take-running")
        elif (job := self._known(line)) is not None:
            self.held[line.key] = job, self.records.adopt(line.key, record)
            log.info("[-] %s lost its runner: taken up", job.name)

    # Ending

    def _collect(self) -> None:
        """Write down what has ended."""
        for key, (job, record) in list(self.held.items()):
            ended = self.records.exit_status(key, record.token)
            if ended is None:
                if self.executor.may_run(self.records.job_folder(key), record):
                    continue
                with self.records.claimed(key) as is_free:
                    if not is_free:
                        continue
                    ended = self.records.exit_status(key, record.token)
                    self.records.write(key, replace(record, token="" if ended is None else record.token))
            del self.held[key]
            self._end(job, record, judge(status_of(job), record, ended))

    def _end(self, job: Job, record: Record, verdict: Verdict) -> None:
        mark, record = self._next(record, verdict)
        with self.file.lock():
            is_written = self._mark(job.line, "-", mark)
            if is_written and mark == " ":
                self.records.write(job.key, replace(record, owner="", token="", devices=()))
            else:
                self.records.forget(job.key)
        if not is_written:
            log.warning("[%s] %s: its line is gone or was changed, so its mark is not written", mark, job.name)
        self.ended.append(job)
        if verdict.outcome == "done":
            log.info("[x] %s", job.name)
        else:
            path = job.folder / JOB_LOG
            said = f"{verdict.reason}; {path} ends with: {last_line(path)}"
            log.warning("[%s] %s %s: %s", mark, job.name, verdict.word, said)

    def _next(self, record: Record, verdict: Verdict) -> tuple[Mark, Record]:
        """The mark of a job that ended, and its record for another start."""
        if verdict.outcome == "done":
            return "x", record
        if self.signals.count and verdict.outcome != "fault":
            return " ", record
        if verdict.outcome == "interrupted":
            number = 1 if verdict.step > record.step else record.interruptions + 1
            return (" " if number <= MAX_INTERRUPTIONS else "!"), replace(record, interruptions=number)
        failures = record.failures + 1
        again = verdict.outcome == "failed" and failures <= self.options.retries
        return (" " if again else "!"), replace(record, failures=failures)

    def _mark(self, line: JobLine, old: Mark, new: Mark) -> bool:
        return self.file.set_mark(line, old, new)

    def _stop_jobs(self) -> None:
        """Ask all jobs to save and end; after the grace, or when asked twice, kill them."""
        now = time.monotonic()
        if not self._kill_at:
            self._kill_at = now + self.options.grace
            log.info("stopping: %d jobs save and end; once more kills them", len(self.held))
        order = "KILL" if self.signals.count > 1 or now > self._kill_at else "TERM"
        for key, (_, record) in self.held.items():
            if self._orders.get(key) != order:
                self._orders[key] = order
                self.records.ask_to_stop(key, order)
                with self.records.claimed(key) as has_not_begun:
                    if has_not_begun:
                        self.executor.cancel(self.records.job_folder(key), record)

    def _is_waiting(self, lines: list[JobLine]) -> bool:
        """Whether a job of this runner may still become ready: those of other runners may fail or open a barrier."""
        records = [self.records.read(line.key) for line in lines if line.mark == "-" and line.key not in self.held]
        others_run = any(record is not None and self.records.is_alive(record.owner) for record in records)
        return others_run or any(line.mark == " " and self._lives(line) for line in lines)

    def _outcome(self) -> int:
        """Say what is left; 0 where all is done."""
        lines = self.file.read()
        chosen = [job for job in self.known_jobs() if job.matches(self.options.only)]
        for job in chosen:
            if (line := job.line).mark == " ":
                above = next((x for x in lines if x.section < line.section and x.mark != "x"), None)
                why = f"waits for line {above.number} [{above.mark}] above '---'" if above else "was not started"
                log.warning("[ ] %s %s", job.name, why)
        left = [line for line in lines if line.mark != "x"] if self.options.only is None else []
        return 1 if left or any(job.line.mark != "x" for job in chosen) else 0
