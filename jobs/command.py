"""What a job's command is: which program with which arguments, on how many devices, and which run it writes.

A command is words, not shell: `VAR=value` words may stand in front, and `python` and `torchrun` are those of this
Python; so are this program's entry scripts, where the working directory has no file of that name. A command that starts
one of the `pretrain_*.py` is a training run: its config is composed and validated before anything starts, its name and
folder are the run's. Any other command is named by its words.
"""

import re
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from config.command_line import read_command_line
from config.schema import ConfigError, TrainConfig, load_config, run_folder
from jobs.file import JobError, JobLine
from utils.files import sha256_of_text
from utils.processes import ROOT

ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
TRAINING_SCRIPT = re.compile(r"pretrain_\w+\.py")
OWN_SCRIPT = re.compile(r"(pretrain_\w+|evaluate|solve|run_jobs)\.py")
RUNS_SCRIPTS = re.compile(r"torchrun|python[\d.]*")
DEFAULT_CONFIG = re.compile(r"^ *main\(\"(\w+)\"", re.MULTILINE)
SHELL_WORDS = frozenset(("&&", "||", "|", ";", "&", ">", ">>", "<", "2>", "2>&1"))
PROCESSES = re.compile(r"--nproc[-_]per[-_]node(?:=(.*))?")
RENDEZVOUS = re.compile(r"--(standalone|rdzv[-_].*|master[-_].*|nnodes.*|node[-_]rank.*)")


@dataclass(frozen=True)
class Job:
    """A line of a job file, understood.

    processes: of torchrun; None without it.
    project: of a training run; None for another command.
    resume: of a training run.
    config: of a training run.
    """

    line: JobLine
    arguments: tuple[str, ...]
    environment: dict[str, str]
    name: str
    folder: Path
    processes: int | None = None
    project: str | None = None
    resume: str = "auto"
    config: TrainConfig | None = None

    @property
    def key(self) -> str:
        return self.line.key

    def matches(self, pattern: str | None) -> bool:
        """Whether `--only` chooses the job."""
        return pattern is None or fnmatchcase(self.name, pattern)


def understand(line: JobLine, stem: str) -> Job:
    """The job of a line.

    Args:
        stem: of the job file's name, under which other commands than training runs have their logs.

    Raises:
        JobError: the command cannot be run, or the config is not valid; names the line.
    """
    try:
        return _understand(line, stem)
    except (JobError, ConfigError) as error:
        raise JobError(f"line {line.number}: {error}") from error


def _understand(line: JobLine, stem: str) -> Job:
    environment, words = _words(line.command)
    words = _with_own_script(words)
    script = next((i for i, word in enumerate(words) if TRAINING_SCRIPT.fullmatch(Path(word).name)), None)
    launcher = Path(words[0]).name
    if script is None or not (launcher == "torchrun" or launcher.startswith("python")):
        arguments, name = _resolved(words), _slug(line)
        return Job(line, arguments, environment, name, Path("runs") / stem / name, _processes(words))
    config = _training_config(words[script], words[script + 1 :])
    folder = run_folder(config)
    processes = _processes(words[:script])
    if processes and config.global_batch_size % processes:
        raise JobError(f"global_batch_size={config.global_batch_size} cannot be shared by {processes} processes")
    arguments = _resolved(words, script)
    return Job(line, arguments, environment, folder.name, folder, processes, config.project_name, config.resume, config)


def _words(command: str) -> tuple[dict[str, str], list[str]]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise JobError(f"'{command}' cannot be split into words: {error}") from error
    environment: dict[str, str] = {}
    while words and (match := ASSIGNMENT.fullmatch(words[0])):
        environment[match.group(1)] = match.group(2)
        words = words[1:]
    if not words:
        raise JobError(f"'{command}' has no command")
    if shell := [word for word in words if word in SHELL_WORDS]:
        raise JobError(f"'{shell[0]}' needs a shell, and there is none: write bash -c '...'")
    return environment, words


def _with_own_script(words: list[str]) -> list[str]:
    """The words with this program's own entry script found where the working directory has no such file, as from an
    installation; `etrm-train` and `python -m pretrain_etrm` are the script of that name."""
    if Path(words[0]).name == "etrm-train":
        words = ["python", "pretrain_etrm.py", *words[1:]]
    if not RUNS_SCRIPTS.fullmatch(Path(words[0]).name):
        return words
    for i, (word, following) in enumerate(zip(words, [*words[1:], ""], strict=True)):
        if word == "-m" and TRAINING_SCRIPT.fullmatch(f"{following}.py"):
            return [*words[:i], _own(f"{following}.py"), *words[i + 2 :]]
        if word.endswith(".py"):
            return [*words[:i], _own(word), *words[i + 1 :]]
    return words


def _own(script: str) -> str:
    is_own = OWN_SCRIPT.fullmatch(script) and not Path(script).exists() and (ROOT / script).exists()
    return str(ROOT / script) if is_own else script


def _resolved(words: list[str], script: int | None = None) -> tuple[str, ...]:
    """The words with their program found; each torchrun of one host with a port of its own."""
    program, rest = words[0], words[1:]
    if program in ("python", "python3"):
        return (sys.executable, *rest)
    if program == "torchrun":
        options = words[1:script]
        alone = () if any(RENDEZVOUS.fullmatch(word) for word in options) else ("--standalone",)
        return (sys.executable, "-m", "torch.distributed.run", *alone, *rest)
    if shutil.which(program) is None:
        raise JobError(f"{program}: there is no such program")
    return tuple(words)


def _processes(words: list[str]) -> int | None:
    """How many processes torchrun starts; None without torchrun."""
    if Path(words[0]).name != "torchrun" and "torch.distributed.run" not in words:
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if match := PROCESSES.fullmatch(word):
            value = following if match.group(1) is None else match.group(1)
            if not value.isdecimal() or not int(value):
                raise JobError(f"--nproc-per-node {value}: must be a number, for devices are given out by it")
            return int(value)
    return 1


def _training_config(script: str, arguments: list[str]) -> TrainConfig:
    try:
        default = DEFAULT_CONFIG.search(Path(script).read_text())
    except OSError as error:
        raise JobError(f"{script}: {error.strerror}; job files are run from the project's folder") from error
    if default is None:
        raise JobError(f"{script}: names no config in main(...)")
    if any(word in ("--help", "-h") for word in arguments):
        raise JobError("--help prints what there is and trains nothing")
    asked = read_command_line(default.group(1), arguments)
    if asked.shows_config:
        raise JobError("--cfg prints the config and trains nothing")
    return load_config(asked.config_name, asked.overrides, asked.config_dir)


def _slug(line: JobLine) -> str:
    """A short name for a command that is no training run: its words, and a hash against mix-ups."""
    words = re.sub(r"[^\w.=-]+", "_", line.command, flags=re.ASCII).strip("_.")[:40]
    return f"{words}-{sha256_of_text(line.key)[:6]}"


class Understood:
    """The jobs of a file by their commands; each config is composed once, or again when its faults are forgotten."""

    def __init__(self, stem: str):
        self.stem = stem
        self._known: dict[str, Job | JobError] = {}

    def job(self, line: JobLine) -> Job:
        """The job of a line.

        Raises:
            JobError: as `understand`.
        """
        if line.key not in self._known:
            try:
                self._known[line.key] = understand(line, self.stem)
            except JobError as error:
                self._known[line.key] = error
        known = self._known[line.key]
        if isinstance(known, JobError):
            raise known
        return replace(known, line=line)

    def forget_faults(self) -> None:
        """Look again at what could not be understood: it may have been mended."""
        self._known = {key: known for key, known in self._known.items() if isinstance(known, Job)}
