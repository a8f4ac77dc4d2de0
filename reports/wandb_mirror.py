"""Mirrors a run folder into wandb: `python -m reports.wandb_mirror RUN`.

A run writes files and waits for nobody. Where wandb is wanted, a process of its own follows those files and sends what
is new; it may hang, fail or be killed, and the run does not notice. Started by hand, the same command sends a run that
has ended, or what is still missing of one: `wandb_sent.json` says what wandb has finished with.
"""

import argparse
import fcntl
import json
import logging
import os
import select
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, TextIO

from reports.wandb_process import command, environment, wandb_mode
from reports.wandb_variables import ID_FILE, directory, group_of, keep_directory, name_of, notices, project_of
from utils.files import write_file
from utils.path_kinds import kind_of
from utils.run_folder import read_config

log = logging.getLogger(__name__)
SENT_FILE = "wandb_sent.json"
POLL_SECONDS = 2.0
PATIENCE_SECONDS = 600  # after the end of the run


@dataclass
class Sent:
    """What wandb has been given: the lines of `metrics.jsonl` up to a step, how many of that step, and the versions of
    other files (their time of change in nanoseconds)."""

    step: int = -1
    lines: int = 0
    files: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Sent":
        path = folder / SENT_FILE
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def write(self, folder: Path) -> None:
        write_file(folder / SENT_FILE, json.dumps(asdict(self)))

    def is_new(self, step: int, nth: int) -> bool:
        """Whether the nth line (from 0) of a step is still to be sent."""
        return step > self.step or (step == self.step and nth >= self.lines)


def complete_lines(path: Path, position: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines from a position on that have been written to their end, each with the position after it. A torn line that
    a killed run left in the middle is passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(position)
        for line in file:
            if not line.endswith(b"\n"):
                return
            position += len(line)
            try:
                yield position, json.loads(line)
            except ValueError:
                log.warning("%s: a torn line before byte %d is left out", path, position)


class Follower:
    """Sends a run folder's files to a wandb run, each thing once."""

    def __init__(self, folder: Path, run: Any):
        self.folder, self.run, self.sent = folder, run, Sent.read(folder)
        self.position = 0
        self.seen = (-1, 0)  # the step of the last line that was read, and how many lines it has had

    def send_new(self) -> None:
        """Everything written since the last call."""
        for position, line in complete_lines(self.folder / "metrics.jsonl", self.position):
            self.position = position
            step = int(line.pop("step"))
            nth = self.seen[1] if step == self.seen[0] else 0
            self.seen = (step, nth + 1)
            if self.sent.is_new(step, nth):
                self.run.log(line, step=step)
                self.sent.step, self.sent.lines = step, nth + 1
        for name, send in self._senders().items():
            path = self.folder / name
            version = path.stat().st_mtime_ns if path.exists() else 0
            if version > self.sent.files.get(name, 0):
                send(path)
                self.sent.files[name] = version

    def _senders(self) -> dict[str, Callable[[Path], None]]:
        return {
            "act_steps.jsonl": self._send_act_steps,
            "predictions.json": self._send_predictions,
            "report.html": self._send_report,
        }

    def _log(self, **values: Any) -> None:
        self.run.log(values, step=max(0, self.sent.step))  # wandb drops steps that go backwards

    def _send_act_steps(self, path: Path) -> None:
        """The last evaluation's measures by ACT step."""
        import wandb

        lines = list(complete_lines(path, 0))
        if not lines:
            return
        rows = lines[-1][1]["act_steps"]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        self._log(act_steps=wandb.Table(columns=columns, data=[[row.get(key) for key in columns] for row in rows]))

    def _send_predictions(self, path: Path) -> None:
        """A row for each query that the run shows, its grids drawn."""
        import wandb

        from inference.traces import read_traces
        from reports.pages import grid_svg

        step, sections = read_traces(path.parent)
        table = wandb.Table(columns=["step", "puzzles", "query", "right", "confidence", "input, prediction, truth"])
        for section, traces in sections.items():
            for trace in traces:
                grids = {"input": trace.input, "prediction": trace.prediction, "truth": trace.truth}
                drawing = " ".join(grid_svg(grid, label) for label, grid in grids.items())
                right = None if trace.truth is None else trace.is_right
                table.add_data(step, section, trace.name, right, trace.confidence, wandb.Html(drawing, inject=False))
        self._log(predictions=table)

    def _send_report(self, path: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"report-{self.run.id}", type="report")
        artifact.add_file(str(path))
        self.run.log_artifact(artifact)


def claim_id(folder: Path, *, wait: bool) -> tuple[str, TextIO]:
    """The id under which wandb knows the run, for as long as its folder lives, and the open file that keeps other
    mirrors of the folder waiting until this process ends. WANDB_RUN_ID names a new run's.

    Raises:
        BlockingIOError: another mirror is at work, and this one is not to wait.
    """
    file = (folder / ID_FILE).open("a+", encoding="utf-8")
    # The mirror of the process that is being resumed may still be sending.
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.seek(0)
    if not (found := file.read().strip()):
        found = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12]
        file.write(found)
        file.flush()
    return found, file


def tags_of(config: dict[str, Any]) -> list[str]:
    """System, encoder, seed and `wandb_tags`, then those of the variable WANDB_TAGS."""
    arch = config["arch"]
    system = arch["name"].split("@")[0].rsplit(".", 1)[-1]
    encoder = arch.get("recurrent_encoder_type", arch.get("encoder_type"))
    tags = [system, encoder, f"seed{config['seed']}", *config.get("wandb_tags", ())]
    tags += os.environ.get("WANDB_TAGS", "").split(",")
    return list(dict.fromkeys(tag for tag in tags if tag))


def start_run(name: str, run_id: str, mode: str) -> Any:
    """The wandb run of the present folder, new or taken up again, as the variables of the environment want it."""
    import wandb

    config = read_config(Path())
    return wandb.init(
        project=project_of(config),
        name=name,
        group=group_of(config),
        tags=tags_of(config),
        id=run_id,
        resume="allow",
        dir=directory(),
        config=config,
        mode=mode,  # pyright: ignore[reportArgumentType]
        settings=wandb.Settings(silent=True, console="off"),
    )


def ended_within(seconds: float) -> bool:
    """Whether the run that started this process ends within some seconds: its pipe is written to, or
    closes because it was killed."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable)


def give_up_after_the_run() -> None:
    """Let this process end some time after the run, even if wandb hangs."""
    select.select([sys.stdin], [], [])
    signal.alarm(PATIENCE_SECONDS)


def mirror(folder: Path, *, follow: bool) -> None:
    """Send the folder to wandb until the run has ended (`follow`), or as it is."""
    keep_directory()
    os.chdir(folder)  # which goes with the folder when a run of the same name moves it aside
    if follow:
        Thread(target=give_up_after_the_run, daemon=True).start()
    run_id, lock = claim_id(Path(), wait=follow)
    with lock:
        mode = wandb_mode()
        try:
            run = start_run(name_of(folder), run_id, mode)
        except Exception as error:
            if mode != "online":
                raise
            log.warning("wandb cannot be reached (%s: %s): offline from here on", type(error).__name__, error)
            # In this process wandb would go on waiting for the server.
            os.execve(sys.executable, command(folder, follow=follow), environment() | {"WANDB_MODE": "offline"})
        follower = Follower(Path(), run)
        while follow and not ended_within(POLL_SECONDS):
            follower.send_new()
        follower.send_new()
        run.finish()
        follower.sent.write(Path())  # only now: what wandb had merely queued would be lost with it


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m reports.wandb_mirror", description="Send a run folder to wandb.")
    parser.add_argument("run", type=Path, help="a run folder: runs/<project_name>/<run_name>")
    parser.add_argument("--follow", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not (arguments.run / "config.yaml").exists():
        kind = kind_of(arguments.run)
        parser.exit(2, f"error: {arguments.run}: not a run folder (config.yaml is missing), but {kind}\n")
    if wandb_mode() == "disabled":
        parser.exit(2, "error: WANDB_MODE=disabled: nothing would be sent; WANDB_MODE=offline writes for wandb sync\n")
    for text in () if arguments.follow else notices(arguments.run, read_config(arguments.run)):
        log.warning("%s", text)
    try:
        mirror(arguments.run.resolve(), follow=arguments.follow)
    except BlockingIOError:
        parser.exit(2, f"error: {arguments.run}: another process is still sending this run to wandb\n")


if __name__ == "__main__":
    main()
