"""A job file under the options of a runner: which jobs are chosen, valid, and ready to start."""

from dataclasses import dataclass

from jobs.command import Job, Understood
from jobs.file import JobError, JobFile, JobLine


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


class Sheet:
    """The lines of a job file as one runner understands them."""

    def __init__(self, file: JobFile, options: Options):
        self.file, self.options, self._jobs = file, options, Understood(file.stem)

    def look_again(self) -> None:
        """What could not be understood may have been mended."""
        self._jobs.forget_faults()

    def known(self, line: JobLine) -> Job | None:
        """The job of a line; None where it cannot be understood."""
        try:
            return self._jobs.job(line)
        except JobError:
            return None

    def jobs(self) -> list[Job]:
        """The jobs that can be understood."""
        return [job for line in self.file.read() if (job := self.known(line)) is not None]

    def chosen(self) -> list[Job]:
        """Those of `--only`."""
        return [job for job in self.jobs() if job.matches(self.options.only)]

    def checked(self, line: JobLine) -> Job:
        """The job of a line.

        Raises:
            JobError: it cannot be run, or not under these options.
        """
        job = self._jobs.job(line)
        if job.matches(self.options.only):
            self.options.gpus_of(job)
        for other in self.jobs():
            if other.folder == job.folder and other.line.number < line.number:
                raise JobError(
                    f"line {line.number}: writes {job.folder}, as line {other.line.number} does; give each a +run_name"
                )
        return job

    def faults(self) -> list[str]:
        """All that is wrong with the waiting jobs, and with the file."""
        lines = self.file.read()
        found = [fault for line in lines if line.mark == " " and (fault := self._fault(line))]
        if not lines:
            found.append("has no job; a job is a line such as '[ ] python pretrain_etrm.py ...'")
        elif not found and not self.chosen():
            names = ", ".join(job.name for job in self.jobs())
            found.append(f"--only '{self.options.only}' chooses none of {names}")
        return [f"{self.file.name}: {fault}" for fault in found]

    def _fault(self, line: JobLine) -> str:
        try:
            self.checked(line)
        except JobError as error:
            return str(error)
        return ""

    def starting_over(self) -> list[str]:
        """What is said of chosen jobs that wait and that an interruption would set back."""
        return [
            f"line {job.line.number}: {job.name} has resume={job.resume}, so it begins there again after every "
            "interruption; resume=auto (the default) goes on"
            for job in self.chosen()
            if job.line.mark == " " and job.resume != "auto"
        ]

    def is_open(self, line: JobLine) -> bool:
        """Whether everything above the barriers above a line is done."""
        return not line.section or not self._before(line)

    def _before(self, line: JobLine) -> list[JobLine]:
        return [other for other in self.file.read() if other.section < line.section and other.mark != "x"]

    def left(self) -> list[str]:
        """What is said of chosen jobs that are not done, when nothing more can start."""
        lines = [line for line in self.file.read() if line.mark != "x"]
        return [self._why_left(line) for line in lines if self.may_be_chosen(line)]

    def may_be_chosen(self, line: JobLine) -> bool:
        """Whether a job is this runner's to run; with `--only`, one that cannot be understood is not."""
        job = self.known(line)
        return self.options.only is None if job is None else job.matches(self.options.only)

    def _why_left(self, line: JobLine) -> str:
        job = self.known(line)
        at = f"[{line.mark}] line {line.number}, {job.name if job else line.command}"
        if line.mark == "!":
            return f"{at}: failed; it runs again when its mark is set to [ ]"
        if line.mark == "-":
            return f"{at}: left alone"
        above = self._before(line)
        return (
            f"{at}: waits for line {above[0].number} [{above[0].mark}] above '---'" if above else f"{at}: not started"
        )
