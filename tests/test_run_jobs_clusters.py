"""Job files on clusters: an emulated Ray cluster that loses a node, and submitit on this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.torture
SECONDS = 90.0
SLURM = ("--executor", "slurm", "--slurm-cluster", "local")


def start_runner(folder: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run_jobs.py"), "jobs.txt", "--cpu", "--no-report", *options],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(autouse=True)
def _nothing_runs_on(tmp_path: Path) -> Iterator[None]:
    """Kill the runners and jobs of a test that fails; all of them work in its folder."""
    yield
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # gone meanwhile, or another user's
            if process.pid != os.getpid() and process.cwd() == str(tmp_path):
                process.kill()


def wait_for_lines(path: Path, number: int) -> list[str]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) >= number:
            return lines
        time.sleep(0.05)
    raise AssertionError(f"{path} has not {number} lines")


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without room for jobs."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="the extra [ray] is not installed")
    cluster = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80_000_000},
    )
    yield cluster
    cluster.shutdown()


def test_a_job_that_loses_its_ray_node_runs_again_and_ends_once(ray_cluster: Any, tmp_path: Path) -> None:
    """Two nodes with a job each; one is killed in mid-job. Its job goes on where there is room, never twice at once."""
    nodes = [ray_cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
    (tmp_path / "job.sh").write_text(
        "mkdir running-$1 || echo twice-$1 >> lines\n"
        "trap 'rmdir running-$1; echo lost-$1 >> lines; exit 75' TERM\n"
        "echo start-$1 >> lines\nuntil test -e release; do sleep 0.1; done\nrmdir running-$1\necho end-$1 >> lines\n"
    )
    (tmp_path / "jobs.txt").write_text("[ ] bash job.sh a\n[ ] bash job.sh b\n")
    runner = start_runner(tmp_path, "--executor", "ray", "--ray-address", ray_cluster.address)
    wait_for_lines(tmp_path / "lines", 2)
    ray_cluster.remove_node(nodes[0], allow_graceful=False)
    wait_for_lines(tmp_path / "lines", 3)
    (tmp_path / "release").touch()
    output, _ = runner.communicate(timeout=SECONDS)
    lines = (tmp_path / "lines").read_text().split()
    assert runner.returncode == 0, output[-3000:]
    assert (tmp_path / "jobs.txt").read_text().count("[x]") == 2
    assert sorted(line for line in lines if line.startswith("end")) == ["end-a", "end-b"]
    (lost,) = [line[-1] for line in lines if line.startswith("lost")]
    assert [line for line in lines if line.endswith(lost)] == [f"{x}-{lost}" for x in ("start", "lost", "start", "end")]


def test_slurm_jobs_run_through_submitit_and_go_on_after_an_interruption(tmp_path: Path) -> None:
    """With submitit's local executor: a job that is preempted runs again, a failed one is marked."""
    pytest.importorskip("submitit", reason="the extra [slurm] is not installed")
    (tmp_path / "jobs.txt").write_text(
        "[ ] bash -c 'echo start >> lines; test -e once || { touch once; exit 75; }'\n[ ] bash -c 'exit 3'\n"
    )
    runner = start_runner(tmp_path, *SLURM, "--slurm", "timeout_min=5", "partition=p")
    output, _ = runner.communicate(timeout=SECONDS)
    assert runner.returncode == 1, output
    assert [line[:3] for line in (tmp_path / "jobs.txt").read_text().splitlines()] == ["[x]", "[!]"]
    assert (tmp_path / "lines").read_text().split() == ["start", "start"]


def test_a_slurm_job_saves_when_its_runner_is_stopped(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="the extra [slurm] is not installed")
    (tmp_path / "job.sh").write_text(
        "trap 'echo saved >> lines; exit 75' TERM\necho start >> lines\nwhile true; do sleep 0.05; done\n"
    )
    (tmp_path / "jobs.txt").write_text("[ ] bash job.sh\n")
    runner = start_runner(tmp_path, *SLURM)
    wait_for_lines(tmp_path / "lines", 1)
    runner.terminate()
    output, _ = runner.communicate(timeout=SECONDS)
    assert runner.returncode == 75, output
    assert (tmp_path / "lines").read_text().split() == ["start", "saved"]
    assert (tmp_path / "jobs.txt").read_text() == "[ ] bash job.sh\n"
