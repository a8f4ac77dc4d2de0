"""Faults of the machine become one sentence; other errors stay what they are."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils.faults import OutOfMemory, memory_for, of_machine
from utils.files import replacing

ROOT = Path(__file__).parents[2]
CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 3.06 GiB is "
    "free. Including non-PyTorch memory, this process has 76.00 GiB memory in use."
)


def cuda_error() -> None:
    raise torch.OutOfMemoryError(CUDA)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: torch.empty(1 << 60), "DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        (lambda: np.zeros(1 << 60, dtype=np.uint8), "Unable to allocate 1.00 EiB for an array"),
        (lambda: bytearray(1 << 60), "MemoryError"),
        (cuda_error, "CUDA out of memory. Tried to allocate 20.00 GiB)"),
    ],
    ids=["torch", "numpy", "Python", "CUDA"],
)
def test_memory_that_runs_out_is_said_with_what_to_lower(ask: Callable[[], Any], said: str) -> None:
    with pytest.raises(OutOfMemory) as error, memory_for("in a test", "lower the test"):
        ask()
    assert str(error.value).startswith(f"out of memory in a test ({said}")
    assert str(error.value).endswith("; lower the test")
    assert "\n" not in str(error.value)


def test_an_error_of_the_program_is_not_taken_for_the_machines() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), memory_for("in a test", "lower the test"):
        raise RuntimeError("shapes differ")
    assert of_machine(RuntimeError("shapes differ")) is None
    assert of_machine(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is None


def test_a_full_disk_is_said_with_the_file() -> None:
    """numpy tells how many bytes it wrote, and no more."""
    code = (
        "import resource, numpy as np; from pathlib import Path; from utils.files import replacing;"
        "from utils.program import run_program\n"
        "def main():\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "    with replacing(Path('array.npy')) as path, path.open('wb') as file: np.save(file, np.zeros(1000))\n"
        "run_program(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: array.npy could not be written or read: ")
    assert done.stderr.count("\n") == 1
    assert not list(Path().iterdir())


def test_an_error_with_a_name_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), replacing(tmp_path / "file"):
        (tmp_path / "elsewhere").read_text()
