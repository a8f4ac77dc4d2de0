"""What a launcher's variables say; incomplete ones are refused with the remedy."""

import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import ConfigError
from utils.launch import Launch, is_one_of_several, launch_of_environment, rank_of_environment

ROOT = Path(__file__).parents[2]
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without any of a launcher's variables."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "launch"),
    [
        ({}, Launch()),
        ({"WORLD_SIZE": "1"}, Launch()),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Launch()),
        (WHOLE, Launch(1, 2, 1, "host:29500")),
    ],
)
def test_complete_variables_place_a_process(
    environment: pytest.MonkeyPatch, variables: dict[str, str], launch: Launch
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    assert launch_of_environment() == launch
    assert rank_of_environment() == launch.rank
    assert is_one_of_several() == (launch.world_size > 1)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "1"}, r"RANK=1 is set, but WORLD_SIZE is not: torchrun sets .*unset RANK"),
        ({"WORLD_SIZE": "2"}, r"WORLD_SIZE=2 is set, but RANK is not: .*unset WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, r"WORLD_SIZE=2 ranks, but MASTER_ADDR does not say where they meet"),
        ({**WHOLE, "MASTER_PORT": ""}, r"but MASTER_PORT does not say"),
        ({**WHOLE, "MASTER_PORT": "http"}, r"MASTER_PORT=http is not a number"),
        ({**WHOLE, "RANK": "two"}, r"RANK=two is not a number"),
        ({**WHOLE, "RANK": "2"}, r"RANK=2 must be below WORLD_SIZE=2"),
    ],
)
def test_incomplete_variables_are_refused_by_name(
    environment: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        launch_of_environment()


def test_a_rank_without_the_others_is_refused_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "pretrain_etrm.py"), "device=cpu"],
        env={"PYTHONPATH": str(ROOT), "RANK": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("rank 1: error: RANK=1 is set, but WORLD_SIZE is not")
    assert done.stderr.count("\n") == 1
    assert not list(Path().iterdir())
