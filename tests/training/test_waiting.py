"""Signals and waits of the real entry scripts: what ends a process that waits, and what it says meanwhile."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataset.build_arc_dataset import build_dataset
from tests.processes import RUN, SMALL, Launch
from utils.run_status import read_status

PATCHED = """
import os, resource, signal, sys, time
import dataset.loading
import training.loop
from dataset.fewshot_puzzle_dataset import FewshotTrainDataset
from training.trainer import Trainer
{patch}
training.loop.main("cfg_pretrain_etrm_arc_agi_1")
"""
IN_A_STEP = "Trainer.train_step = lambda self, batch: (os.write(1, b'in a step'), time.sleep(100))"
BEFORE_A_STEP = "training.loop.create_trainer = lambda *_: (os.write(1, b'loading'), time.sleep(100))"
STUCK = "FewshotTrainDataset.__getitem__ = lambda self, number: time.sleep(1000)"
KILLED = "FewshotTrainDataset.__getitem__ = lambda self, number: os.kill(os.getpid(), signal.SIGKILL)"
QUICK_LOOKS = "dataset.loading.LOOK_SECONDS = 0.5; dataset.loading.LOOKS = 4"
FEW_FILES = """
made = training.loop.create_trainer
def with_few_files(*options):
    trainer = made(*options)
    files = len(os.listdir("/proc/self/fd")) + {more}
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    return trainer
training.loop.create_trainer = with_few_files
"""
Start = Callable[..., Launch]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Puzzles of small grids."""
    folder = tmp_path_factory.mktemp("data") / "small"
    build_dataset(folder, ["training", "evaluation"], test_set_name="evaluation", num_aug=1, seed=0, max_side=6)
    return folder


@pytest.fixture
def start(data: Path, tmp_path: Path) -> Iterator[Start]:
    """`start("key=value", ..., patch="statement", ranks=2, absent=1)`: a start of a run, with a part replaced."""
    launches: list[Launch] = []

    def begin(*overrides: str, patch: str = "", **options: int) -> Launch:
        (tmp_path / "patched.py").write_text(PATCHED.format(patch=patch))
        arguments = (*SMALL, "epochs=2", "eval_interval=2", f"data_paths=[{data}]", *overrides)
        launches.append(Launch(tmp_path / "run", arguments, script=tmp_path / "patched.py", **options))
        return launches[-1]

    yield begin
    for launch in launches:
        launch.kill()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_wait_for_a_rank_that_never_comes_says_so_and_ends_at_a_signal(
    start: Start, number: signal.Signals, status: int
) -> None:
    launch = start(ranks=2, absent=1)
    launch.wait_for_output("waiting for all 2 ranks at 127.0.0.1:")
    assert "; this is rank 0 (" in launch.output()
    launch.send(number)
    assert launch.wait(10) == [status]
    assert launch.output().count(f"stopped: {number.name} before the first step") == 1
    assert "Traceback" not in launch.output()


def test_ranks_that_do_not_come_in_time_are_one_line(start: Start) -> None:
    launch = start("distributed_timeout_s=2", ranks=2, absent=1)
    assert launch.wait(60) == [1]
    assert "error: all 2 ranks at 127.0.0.1:" in launch.output()
    assert "Traceback" not in launch.output()


def test_a_signal_before_the_first_step_ends_a_run_at_once(start: Start) -> None:
    launch = start(patch=BEFORE_A_STEP)
    launch.wait_for_output("loading")
    launch.send(signal.SIGTERM)
    assert launch.wait(10) == [143]
    assert launch.output().endswith("there is nothing to save; the same command starts again\n")


def test_a_second_signal_ends_a_run_that_does_not_come_to_the_end_of_its_step(start: Start) -> None:
    """The first is a wish; one that follows at once may be a launcher's copy of it."""
    launch = start(patch=IN_A_STEP)
    launch.wait_for_output("in a step")
    launch.send(signal.SIGINT)
    launch.send(signal.SIGINT)
    time.sleep(1.5)
    assert [process.exitcode for process in launch.processes] == [None]
    launch.send(signal.SIGINT)
    assert launch.wait(10) == [130]
    assert "stopped: SIGINT for the second time" in launch.output()
    assert "Traceback" not in launch.output()


def test_workers_that_give_no_batch_are_named(start: Start) -> None:
    launch = start("data_workers=2", patch=f"{STUCK}; {QUICK_LOOKS}")
    assert launch.wait(60) == [1]
    words = "error: the worker processes (data_workers=2) gave none of the training batches for 2 s; data_workers=0"
    assert words in launch.output()
    assert "waiting for the training batches from the worker processes" in launch.output()
    assert read_status(launch.folder / RUN)["state"] == "failed"


def test_a_worker_that_is_killed_is_named(start: Start) -> None:
    launch = start("data_workers=2", patch=KILLED)
    assert launch.wait(60) == [1]
    assert "error: the worker processes (data_workers=2) cannot read the training batches: DataLoader worker" in (
        launch.output()
    )
    assert "Traceback" not in launch.output()


@pytest.mark.parametrize("more", [4, 12], ids=["too few to start", "too few to send"])
def test_workers_without_open_files_end_the_run_with_the_limit(start: Start, more: int) -> None:
    launch = start("data_workers=2", patch=f"{QUICK_LOOKS}\n{FEW_FILES.format(more=more)}")
    assert launch.wait(60) == [1]
    last = launch.output().splitlines()[-1]
    assert last.startswith("error: the worker processes (data_workers=2) ")
    assert "ulimit -n is" in last


def test_memory_that_runs_out_in_a_step_names_what_to_lower(start: Start) -> None:
    launch = start(patch="import torch; Trainer.train_step = lambda self, batch: torch.empty(1 << 60)")
    assert launch.wait(60) == [1]
    words = r"error: out of memory in a training step (DefaultCPUAllocator: can't allocate memory"
    assert words in launch.output()
    assert "lower the batch size, global_batch_size=4, or max_demos=3" in launch.output()
    assert "Traceback" not in launch.output()
    assert str(read_status(launch.folder / RUN)["reason"]).startswith("OutOfMemory: out of memory in a training step")
