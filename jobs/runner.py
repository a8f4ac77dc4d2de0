"""The runner of a job file: takes waiting jobs, watches them, writes how they ended.

What it knows stands in the file and its records, so a runner that is killed loses nothing: its jobs go on, and the next
one takes them up. Several runners share a file by its lock.
"""

import logging
import os
import signal
import subprocess
import time
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from jobs.command import Job
from jobs.executors import Executor
from jobs.file import JobError, JobLine, Mark
from jobs.process import kill_remains
from jobs.records import Record, Records, this_host
from jobs.sheet import Sheet
from jobs.verdict import Verdict, judge, last_line, status_of
from utils.run_folder import OUTPUT_LOG
from utils.signals import StopCount

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
MAX_INTERRUPTIONS = 10
STOPPED = 75


class Runner:
    """One runner of one file."""

    def __init__(self, sheet: Sheet, executor: Executor):
        self.sheet, self.file, self.options, self.executor = sheet, sheet.file, sheet.options, executor
        self.records = Records(sheet.file.records)
        self.held: dict[str, tuple[Job, Record]] = {}
        self.ended: list[Job] = []
        self.signals = StopCount()
        self._orders: dict[str, str] = {}
        self._alone: set[str] = set()
        self._said: set[str] = set()
        self._kill_at = self._looked_at = 0.0
        self._looked_at_ended = -1
        self.has_begun = False

    def run(self) -> int:
        """Work until nothing is left to do; returns the exit status.

        Raises:
            JobError: the file cannot be read or written; `has_begun` where jobs may have been started before.
        """
        with self.file.lock():
            self.records.register()
        self.has_begun = True
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
        if len(self.ended) == self._looked_at_ended and now - self._looked_at < LOOK_SECONDS:
            return True
        self._looked_at, self._looked_at_ended = now, len(self.ended)
        self.sheet.look_again()
        with self.file.lock():
            for line in self.file.read():
                if line.mark == "-" and line.key not in self.held:
                    self._take_up(line)
            for line in self.file.read():
                if line.mark == " " and not self._start_waiting(line):
                    break
            could_not_start = len(self.ended) > self._looked_at_ended
            return could_not_start or self._is_waiting(self.file.read())

    def _has_room(self) -> bool:
        return self.options.parallel is None or len(self.held) < self.options.parallel

    def _start_waiting(self, line: JobLine) -> bool:
        """Start a waiting job, if it is this runner's and its turn; whether the next one may be looked at."""
        try:
            job = self.sheet.checked(line)
        except JobError as error:
            if self.options.only is None:
                log.error("[!] %s", error)
                self._mark(line, " ", "!")
            else:
                self._say_once(f"{error}: left alone with --only")
            return True
        if not job.matches(self.options.only) or not self.sheet.is_open(line):
            return True
        if line.key in self.held or self._lives(line):
            self._say_once(f"line {line.number}: is set to [ ], but {job.name} still runs: it is not started twice")
            return True
        devices = self._free_devices(job)
        if devices is None:
            return False
        self._start(job, devices)
        return True

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
        taken = {device for record in self._running_here() for device in record.devices}
        free = [device for device in self.options.gpus or () if device not in taken]
        number = self.options.gpus_of(job) if self.options.gpus is not None else 0
        return tuple(free[:number]) if number <= len(free) else None

    def _running_here(self) -> list[Record]:
        """The records of this runner's jobs, and of those that others run on this machine."""
        own = [record for _, record in self.held.values()]
        keys = [line.key for line in self.file.read() if line.mark == "-" and line.key not in self.held]
        others = [record for key in keys if (record := self.records.read(key)) is not None]
        return own + [record for record in others if record.host == this_host()]

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
                log=str((job.folder / OUTPUT_LOG).resolve()),
                devices=devices,
                gpus=self.options.gpus_of(job),
                executor=self.executor.name,
                started=time.time(),
                seen=float(status.get("updated", 0.0)),
                step=max((before or fresh).step, int(status.get("step", 0))),
            ),
        )
        if not self._mark(job.line, " ", "-"):
            return self.records.forget(job.key)  # an editor was quicker
        try:
            record = replace(record, launch=self.executor.start(self.records.job_folder(job.key), record))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # submitit's are RuntimeErrors
            return self._end(job, record, Verdict("failed", f"could not be started: {error}"))
        self.records.write(job.key, record)
        self.held[job.key] = job, record
        where = f" on device {', '.join(devices)}" if devices else ""
        log.info("[-] %s%s, log in %s", job.name, where, job.folder / OUTPUT_LOG)
        return None

    def _environment(self, job: Job, devices: tuple[str, ...]) -> dict[str, str]:
        """What a job has in its environment besides the runner's, of which a Ray worker has nothing."""
        variables = {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", self.file.stem)}
        if self.options.on_cpu or self.options.gpus is not None:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        return variables | job.environment

    # Taking up

    def _take_up(self, line: JobLine) -> None:
        """Watch a job that is marked as running and that no living runner watches."""
        record = self.records.read(line.key)
        at = f"line {line.number}: {record.name if record else line.command}"
        if record is None or not record.owner:
            if not self.sheet.may_be_chosen(line):
                return
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
        elif (job := self.sheet.known(line)) is None:
            self._say_once(f"{at} lost its runner, and cannot be understood any more: left alone")
        else:
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
            self.executor.forget(record)
            with self.file.lock():
                self._end(job, record, judge(status_of(job), record, ended))

    def _end(self, job: Job, record: Record, verdict: Verdict) -> None:
        """Write and say how a job ended; the caller has the file's lock."""
        mark, record = self._next(record, verdict)
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
            path, last = job.folder / OUTPUT_LOG, last_line(job.folder / OUTPUT_LOG)
            more = "" if verdict.reason in last else f"{verdict.reason}; "
            log.warning("[%s] %s %s: %s%s ends with: %s", mark, job.name, verdict.word, more, path, last or "nothing")

    def _next(self, record: Record, verdict: Verdict) -> tuple[Mark, Record]:
        """The mark of a job that ended, and its record for another start."""
        if verdict.outcome == "done":
            return "x", record
        if self.signals.count and verdict.outcome != "fault":
            return " ", record
        if verdict.outcome == "interrupted":
            number = 1 if verdict.step > record.step else record.interruptions + 1
            return (" " if number < MAX_INTERRUPTIONS else "!"), replace(record, interruptions=number)
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
            if (order == "KILL" or key not in self._alone) and self._is_alone(key, record):
                self._alone.add(key)
                kill_remains(record.token, signal.Signals[f"SIG{order}"])

    def _is_alone(self, key: str, record: Record) -> bool:
        """Whether a job of this machine has lost the process above it, which would obey."""
        is_here = record.executor == "local" and record.host == this_host()
        is_alone = is_here and not self.executor.may_run(self.records.job_folder(key), record)
        return is_alone and self.records.exit_status(key, record.token) is None

    def _is_waiting(self, lines: list[JobLine]) -> bool:
        """Whether a job of this runner may still become ready: those of other runners may fail or open a barrier."""
        chosen = [line for line in lines if self.sheet.may_be_chosen(line)]
        is_left = any(line.mark == " " for line in chosen)
        others = [line for line in (lines if is_left else chosen) if line.mark == "-" and line.key not in self.held]
        records = [self.records.read(line.key) for line in others]
        others_run = any(record is not None and self.records.is_alive(record.owner) for record in records)
        return others_run or any(line.mark == " " and self._lives(line) for line in chosen)

    def _outcome(self) -> int:
        """Say what is left; 0 where all is done."""
        left = self.sheet.left()
        for text in left:
            log.warning("%s", text)
        return 1 if left else 0
