"""What is promised about processes, with the real entry scripts: kills, signals, faults of one rank, a full disk."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from checkpoints.checkpoint import open_checkpoint
from dataset.build_arc_dataset import build_dataset
from tests.processes import ETRM, ROOT, RUN, SMALL, Launch, hashes, log_lines
from tests.torture import torture_damages, torture_kills, torture_pairs
from utils.run_status import read_status

pytestmark = pytest.mark.torture
# 10 steps; a log line at each second and at evaluations, which come after steps 6 and 10.
COURSE = ("epochs=5", "eval_interval=3", "log_interval=2", "checkpoint_interval=4", "checkpoint_minutes=0")
Start = Callable[..., Launch]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Puzzles of small grids."""
    folder = tmp_path_factory.mktemp("data") / "small"
    build_dataset(folder, ["training", "evaluation"], test_set_name="evaluation", num_aug=2, seed=0, max_side=6)
    return folder


@pytest.fixture
def start(data: Path, tmp_path: Path) -> Iterator[Start]:
    """`start("key=value", ..., ranks=2, place="name")`: a start of a run of 10 steps in a folder of this test."""
    launches: list[Launch] = []

    def begin(*overrides: str, place: str = "run", **options: object) -> Launch:
        has_encoder = options.get("script") != "pretrain_trm.py"
        small = [override for override in SMALL if has_encoder or "encoder" not in override]
        arguments = (*small, *COURSE, f"data_paths=[{data}]", *overrides)
        launches.append(Launch(tmp_path / place, arguments, **options))  # type: ignore[arg-type]
        return launches[-1]

    yield begin
    for launch in launches:
        launch.kill()


FAULTY = """
import os, resource, sys, time
from training.trainer import Trainer

rank, train_step = int(os.environ.get("RANK", "0")), Trainer.train_step

def faulty_step(self, batch):
    token_loss = self.head.token_loss
    if self.step == 5:
        {fault}
    try:
        return train_step(self, batch)
    finally:
        self.head.token_loss = token_loss

Trainer.train_step = faulty_step
from training.loop import main
main("cfg_pretrain_etrm_arc_agi_1")
"""
NAN_ON_LAST_RANK = (
    'if rank == int(os.environ.get("WORLD_SIZE", "1")) - 1: self.head.token_loss = '
    "lambda logits, labels: token_loss(logits, labels) * float('nan')"
)


@pytest.fixture
def faulty(tmp_path: Path) -> Callable[[str], Path]:
    """`faulty("statement")`: an entry script in whose sixth step the statement is executed."""

    def write(fault: str) -> Path:
        (tmp_path / "faulty.py").write_text(FAULTY.format(fault=fault))
        return tmp_path / "faulty.py"

    return write


def weights(run: Path) -> dict[str, str]:
    return hashes(open_checkpoint(run).path)


def test_kills_and_damages_lose_nothing(data: Path, tmp_path: Path) -> None:
    """The short version of `make torture`."""
    kills = torture_kills(tmp_path, data, kills=4, ranks=1, seed=1)
    assert not kills.faults
    assert kills.kills >= 4
    damages = torture_damages(tmp_path, data, damages=12, seed=1, resumes=1)
    assert not damages.faults
    assert (damages.noticed, damages.fallbacks) == (12, 12)


def test_of_two_first_starts_of_one_run_at_once_one_trains_and_the_other_names_it(data: Path, tmp_path: Path) -> None:
    found = torture_pairs(tmp_path, data, pairs=5)
    assert not found.faults
    assert found.runs == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_process_group_saves_and_the_run_goes_on(start: Start, number: signal.Signals) -> None:
    """As schedulers send it: to the process that reads data too."""
    start("checkpoint_interval=0", place="straight").wait()
    launch = start("checkpoint_interval=0", "data_workers=1")
    launch.wait_for_step(4)
    launch.send(number, group=True)
    assert launch.wait() == [75]
    assert launch.output().count(f"stopped: {number.name}: saved at step") == 1
    assert "Traceback" not in launch.output()
    run = launch.folder / RUN
    status = read_status(run)
    assert status["state"] == "preempted"
    assert 4 <= int(str(status["step"])) < 10
    assert open_checkpoint(run).step == status["step"]

    assert start("checkpoint_interval=0", "data_workers=1").wait() == [0]
    status = read_status(run)
    assert (status["state"], status["step"], status["reason"]) == ("done", 10, "")
    assert log_lines(run) == log_lines(run.parents[3] / "straight" / RUN)
    assert weights(run) == weights(run.parents[3] / "straight" / RUN)


def torchrun(arguments: list[str], folder: Path) -> "subprocess.Popen[str]":
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments],
        cwd=folder,
        env=environment,
        stderr=(folder / "log.0").open("w"),
        text=True,
    )


def test_torchrun_passes_sigterm_on_and_two_ranks_go_on_bit_for_bit(start: Start, data: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun, then SIGKILL to both ranks, then to the end; then once more on one rank."""
    straight = start("checkpoint_interval=1", "checkpoint_keep=null", place="straight", ranks=2)
    arguments = [*SMALL, *COURSE, f"data_paths=[{data}]", "checkpoint_interval=1", "checkpoint_keep=null"]
    with torchrun([str(ROOT / ETRM), *arguments], tmp_path / "run") as agent:
        waiting = Launch.__new__(Launch)
        waiting.folder, waiting.processes, waiting.logs, waiting.marks = tmp_path / "run", [], [tmp_path / "x"], [0]
        waiting.wait_for_step(2)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) != 0
    run = tmp_path / "run" / RUN
    assert read_status(run)["state"] == "preempted"
    told = subprocess.run(
        [sys.executable, "-m", "utils.run_status", str(run)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stdout.split(" at ")[0]) == (75, "preempted")

    stopped_at = int(str(read_status(run)["step"]))
    launch = start("checkpoint_interval=1", "checkpoint_keep=null", ranks=2)
    launch.wait_for_step(stopped_at + 1)
    launch.kill()
    assert start("checkpoint_interval=1", "checkpoint_keep=null", ranks=2).wait() == [0, 0]
    assert straight.wait() == [0, 0]
    assert log_lines(run) == log_lines(straight.folder / RUN)
    assert weights(run) == weights(straight.folder / RUN)

    for step in range(6, 11):
        shutil.rmtree(run / f"checkpoints/step_{step:08d}")
    alone = start("checkpoint_interval=1", "checkpoint_keep=null")
    assert alone.wait() == [0]
    assert "was written by 2 ranks and goes on with 1: carries start afresh, the data go on at sample 20" in (
        alone.output()
    )
    found, expected = log_lines(run), log_lines(straight.folder / RUN)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    assert found[2]["step"] == 6
    assert found[:2] == expected[:2]
    assert found[2]["train/loss"] != expected[2]["train/loss"]


@pytest.mark.parametrize("script", ["pretrain_etrmtrm.py", "pretrain_trm.py"])
def test_two_ranks_of_the_other_systems_stop_at_sigterm_and_go_on_bit_for_bit(start: Start, script: str) -> None:
    straight = start(place="straight", ranks=2, script=script)
    launch = start(ranks=2, script=script)
    launch.wait_for_step(4)
    launch.send(signal.SIGTERM)
    assert launch.wait() == [75, 75]
    assert start(ranks=2, script=script).wait() == [0, 0]
    assert straight.wait() == [0, 0]
    assert log_lines(launch.folder / RUN) == log_lines(straight.folder / RUN)
    assert weights(launch.folder / RUN) == weights(straight.folder / RUN)


def test_a_loss_on_one_rank_that_is_not_finite_stops_both_before_the_step(start: Start, faulty: Callable) -> None:
    launch = start("checkpoint_interval=1", ranks=2, script=faulty(NAN_ON_LAST_RANK))
    assert launch.wait() == [3, 3]
    run = launch.folder / RUN
    status = read_status(run)
    assert (status["state"], status["step"]) == ("non-finite", 5)
    assert re.search(r"step 6: train/loss is nan \(on rank 1\); the gradient of \w+", str(status["reason"]))
    assert launch.output().count("error: step 6: train/loss is nan") == 1
    assert open_checkpoint(run).step == 5


def test_a_step_that_is_skipped_leaves_the_weights_and_is_counted(start: Start, faulty: Callable) -> None:
    launch = start("checkpoint_interval=1", "on_nonfinite=skip", ranks=2, script=faulty(NAN_ON_LAST_RANK))
    assert launch.wait() == [0, 0]
    run = launch.folder / RUN
    lines = log_lines(run)
    assert {line["step"]: line["train/skipped_steps"] for line in lines if "train/loss" in line} == {
        2: 0,
        4: 0,
        6: 1,
        8: 1,
        10: 1,
    }
    assert "skipped, the 1. of this run" in launch.output()


def test_skipped_steps_are_limited(start: Start, faulty: Callable) -> None:
    always = "pass\n    self.head.token_loss = lambda logits, labels: token_loss(logits, labels) * float('nan')"
    launch = start("on_nonfinite=skip", "nonfinite_limit=3", script=faulty(always))
    assert launch.wait() == [3]
    assert "step 4: " in str(read_status(launch.folder / RUN)["reason"])
    assert "nonfinite_limit=3" in launch.output()


def test_a_failure_on_rank_zero_ends_all_ranks_within_seconds(tmp_path: Path, data: Path, faulty: Callable) -> None:
    """Under torchrun; the other rank is far from any collective."""
    script = faulty("time.sleep(100) if rank else sys.modules['builtins'].exec('raise OSError(\"no such thing\")')")
    began = time.monotonic()
    with torchrun([str(script), *SMALL, *COURSE, f"data_paths=[{data}]"], tmp_path / "run") as agent:
        assert agent.wait(90) == 1
    assert time.monotonic() - began < 60  # start included; torchrun alone would wait for 30 s more, on an idle machine
    status = read_status(tmp_path / "run" / RUN)
    assert (status["state"], status["reason"]) == ("failed", "OSError: no such thing")
    assert "another rank failed: rank 0: OSError: no such thing" in (tmp_path / "run/log.0").read_text()


def test_a_collective_that_hangs_ends_the_run(start: Start, faulty: Callable) -> None:
    launch = start("distributed_timeout_s=3", ranks=2, script=faulty("time.sleep(100 * rank)"))
    launch.wait_for_step(4)
    began = time.monotonic()
    launch.processes[0].join(60)
    assert launch.processes[0].exitcode == 1
    assert 1 < time.monotonic() - began < 30
    status = read_status(launch.folder / RUN)
    assert status["state"] == "failed"
    assert "timed out" in str(status["reason"]).lower()


def test_a_full_disk_is_one_clear_error_and_the_last_checkpoint_stays(start: Start, faulty: Callable) -> None:
    launch = start(script=faulty("resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"))
    assert launch.wait() == [1]
    run = launch.folder / RUN
    error = r"^error: the checkpoint of step 6 could not be written to .*: File too large"
    assert re.search(error, launch.output(), re.M)
    assert "Traceback" not in launch.output()
    assert open_checkpoint(run).step == 4
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000004"]
    status = read_status(run)
    assert (status["state"], status["step"]) == ("failed", 6)
    assert "could not be written" in str(status["reason"])


def test_the_status_of_a_run_has_what_others_read(start: Start) -> None:
    launch = start()
    assert launch.wait() == [0]
    status = json.loads((launch.folder / RUN / "status.json").read_text())
    assert set(status) == {"state", "step", "total_steps", "reason", "pid", "host", "updated", "last"}
    assert (status["state"], status["step"], status["total_steps"]) == ("done", 10, 10)
    assert status["pid"] == launch.processes[0].pid
    assert {"train/loss", "eval/accuracy", "ARC/pass@1"} <= set(status["last"])
