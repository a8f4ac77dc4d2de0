"""The first numbers that a process computes are those that it computes later, with several threads too."""

import subprocess
import sys
from pathlib import Path

# Each child is as a process that has just started, in a hundredth of the time. Without settling, 1 in 25 to 80 builds a
# wrong first table on two cores.
FRESH_PROCESSES = """
import os
import torch
from models.layers import RotaryTable

def table_is_right():
    torch.set_num_threads(2)
    first, later = RotaryTable(64, 128), RotaryTable(64, 128)
    return torch.equal(first.cos, later.cos) and torch.equal(first.sin, later.sin)

wrong = 0
for _ in range(250):
    child = os.fork()
    if child == 0:
        os._exit(0 if table_is_right() else 1)
    wrong += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
print(wrong)
"""


def test_the_first_rotary_table_of_a_process_is_the_one_it_builds_later() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", FRESH_PROCESSES], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0", f"{done.stdout.strip()} of 250 processes built a wrong first table"
