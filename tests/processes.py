"""Runs of the real entry scripts in processes of their own, forked from one that has imported everything already."""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
ETRM = "pretrain_etrm.py"
SMALL = (
    "arch.hidden_size=32",
    "arch.num_heads=2",
    "arch.H_cycles=1",
    "arch.L_cycles=1",
    "arch.L_layers=1",
    "arch.encoder_num_layers=1",
    "arch.forward_dtype=float32",
    "arch.halt_max_steps=3",
    "global_batch_size=4",
    "max_demos=3",
    "max_train_groups=8",
    "max_eval_groups=1",
    "max_eval_augmentations=1",
    "eval_batch_size=4",
    "log_predictions_every=0",
    "lr=1e-2",
    "lr_warmup_steps=4",
    "data_workers=0",
    "device=cpu",
    "+project_name=p",
    "+run_name=run",
)
RUN = Path("runs/p/run")


def _enter(
    script: str, arguments: Sequence[str], folder: Path, log: Path, errors: Path, environment: dict[str, str]
) -> None:
    """What the new process does: `python script arguments` in `folder`, with its output in `log` and `errors`."""
    os.setpgid(0, 0)
    os.chdir(folder)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # what a plain process has, for those that read data
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # torch, imported already, has read the variable before
    for number, path in ((1, log), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore that outlives a process that is killed
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@lru_cache
def _context() -> ForkServerContext:
    """Starts the process that the others are forked from, with this folder's modules before installed ones."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.loop", "tests.processes", "torch._dynamo"])  # the last by optimizers
    kept = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), kept)))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if kept is not None:
            os.environ["PYTHONPATH"] = kept
    return context


class Launch:
    """All ranks of one start of a run, each with `threads` threads; the last `absent` of them never come.

    Args:
        log: where each rank writes, in the folder unless it is a whole path; what goes to stderr too, or with
            `separate_errors` into a file of its own beside it.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        *,
        ranks: int = 1,
        absent: int = 0,
        threads: int = 1,
        script: str | Path = ETRM,
        log: str | Path = "log",
        separate_errors: bool = False,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.logs = [folder / f"{log}.{rank}" for rank in range(ranks - absent)]
        self.errors = [path.with_name(f"{path.name}.err") if separate_errors else path for path in self.logs]
        self.marks = [path.stat().st_size if path.exists() else 0 for path in self.logs]
        common = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
        if ranks > 1:
            common |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        context = _context()
        self.processes: list[BaseProcess] = []
        for rank in range(ranks - absent):
            environment = common | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {})
            call = (str(ROOT / script), list(arguments), folder, self.logs[rank], self.errors[rank], environment)
            process = context.Process(target=_enter, args=call)
            process.start()
            self.processes.append(process)

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """A signal to every rank that still runs; with `group` to its worker processes too."""
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                (os.killpg if group else os.kill)(process.pid, number)

    def wait(self, timeout: float = 120) -> list[int | None]:
        """Exit statuses; whatever runs on after the timeout is killed and has None."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        statuses = [process.exitcode for process in self.processes]
        self.kill()
        return statuses

    def kill(self) -> None:
        """SIGKILL to every rank."""
        for process in self.processes:
            process.kill()
            process.join()

    def output(self, rank: int = 0) -> str:
        """What a rank has written since its start."""
        path = self.logs[rank]
        return path.read_bytes()[self.marks[rank] :].decode(errors="replace") if path.exists() else ""

    def wait_for_output(self, text: str, timeout: float = 120) -> None:
        """Wait until rank 0 has written a text."""
        end = time.monotonic() + timeout
        while text not in self.output():
            if time.monotonic() > end or all(process.exitcode is not None for process in self.processes):
                raise AssertionError(f"'{text}' was not written: {self.output()[-2000:]}")
            time.sleep(0.01)

    def wait_for_step(self, step: int, timeout: float = 120) -> None:
        """Wait until the log of metrics has reached a step."""
        end = time.monotonic() + timeout
        path = self.folder / RUN / "metrics.jsonl"
        while time.monotonic() < end:
            last = path.read_text().splitlines()[-1:] if path.exists() else []
            if last and last[0].endswith("}") and json.loads(last[0])["step"] >= step:
                return
            if any(process.exitcode is not None for process in self.processes):
                break
            time.sleep(0.01)
        raise AssertionError(f"step {step} was not reached: {self.output()[-2000:]}")


def call(script: str | Path, *arguments: str, folder: Path, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """`python script arguments` in a folder, on all ranks, to its end; nothing of it is written into the folder."""
    with tempfile.TemporaryDirectory() as logs:
        launch = Launch(folder, arguments, ranks=ranks, script=script, log=Path(logs) / "log", separate_errors=True)
        statuses = launch.wait(300)
        output, errors = ("".join(path.read_text() for path in paths) for paths in (launch.logs, launch.errors))
    failed = next((status for status in statuses if status != 0), 0)
    return subprocess.CompletedProcess([str(script), *arguments], -1 if failed is None else failed, output, errors)


def log_lines(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a run's log without times."""
    lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if "per_second" not in key} for line in lines]


def hashes(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of what must come out the same: weights, averages, optimizer."""
    files = json.loads((checkpoint / "manifest.json").read_text())["sha256"]
    return {name: files[name] for name in ("model.safetensors", "ema.safetensors", "optim.pt") if name in files}
