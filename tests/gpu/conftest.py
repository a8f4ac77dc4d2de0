"""Tests that need CUDA: skipped elsewhere. With CHECK_DEVICE=cpu they run on the CPU, to show that they run at all."""

import os

import pytest
import torch

CHECK_DEVICE = os.environ.get("CHECK_DEVICE", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHECK_DEVICE == "cuda" and not torch.cuda.is_available():
        for item in items:
            if "tests/gpu" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(CHECK_DEVICE)
