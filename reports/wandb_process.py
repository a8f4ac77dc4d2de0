"""The process that mirrors a run into wandb, as the run sees it: started, looked at, told that the run has ended."""

import logging
import netrc
import os
import subprocess
from contextlib import suppress
from pathlib import Path

from reports.wandb_variables import chosen_mode, notices
from utils.processes import JOB_TOKEN_VARIABLE, module_command
from utils.run_folder import read_config

log = logging.getLogger(__name__)
LOG_FILE = "wandb.log"
WAIT_SECONDS = 20.0  # a run that ends waits no longer than this for the last lines to be sent
LATER = "metrics.jsonl has everything; python -m reports.wandb_mirror {} sends it"


def wandb_mode() -> str:
    """What the variables ask for, or online where there is a key and offline where there is none."""
    return chosen_mode() or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def command(folder: Path, *, follow: bool) -> list[str]:
    """What starts this module as a process."""
    return module_command("reports.wandb_mirror", str(folder), *(["--follow"] if follow else []))


def environment() -> dict[str, str]:
    """The variables with which it outlives the job that it is started by."""
    return {name: value for name, value in os.environ.items() if name != JOB_TOKEN_VARIABLE}


class Mirror:
    """An observer of a run: the process that follows its folder. Nothing here waits or raises but `ended`, which waits
    WAIT_SECONDS at most."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        if wandb_mode() == "disabled":
            return
        for text in notices(folder, read_config(folder)):
            log.warning("%s", text)
        try:
            with (folder / LOG_FILE).open("ab") as output:
                self.process = subprocess.Popen(
                    command(folder.resolve(), follow=True),
                    stdin=subprocess.PIPE,  # its end tells the mirror that the run has ended, however it did
                    stdout=output,
                    stderr=output,
                    env=environment(),
                    start_new_session=True,  # signals to the run are not for it
                )
        except OSError as error:
            log.warning("wandb could not be started (%s); %s", error, LATER.format(folder))

    def logged(self) -> None:
        """Say so, once, if the process has ended before the run."""
        if self.process is not None and self.process.poll() is not None:
            self._warn(self.process.returncode)

    def _warn(self, status: int) -> None:
        log.warning("wandb failed (status %d, see %s); %s", status, self.folder / LOG_FILE, LATER.format(self.folder))
        self.process = None

    def evaluated(self, *, is_last: bool) -> None:
        pass

    def ended(self) -> None:
        """Tell the process that the run has ended, and wait a little for it."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(b"end")  # closing alone is not seen while workers have the pipe too
            self.process.stdin.close()
        try:
            status = self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("wandb is still sending (process %d goes on); %s", self.process.pid, LATER.format(self.folder))
            return
        if status:
            self._warn(status)
