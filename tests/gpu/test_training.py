"""Whole runs on one CUDA device: one that is interrupted goes on bit for bit; the optimizer; NCCL with one rank."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from config.schema import TrainConfig
from learning.adam_atan2 import AdamATan2, adam_atan2_class
from training.setup import create_trainer
from utils.distributed import Ranks, any_rank, from_first_rank, sum_over_ranks

Load = Callable[..., TrainConfig]
CONFIGS = ("cfg_pretrain_trm_arc_agi_1", "cfg_pretrain_etrm_arc_agi_1", "cfg_pretrain_etrmtrm_arc_agi_1")
SIZE = ("arch.hidden_size=128", "arch.num_heads=2", "arch.forward_dtype=bfloat16", "compile=off")


@pytest.fixture
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels that add in no fixed order are replaced by those that do."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def trainer_in(folder: Path, config: TrainConfig, device: torch.device) -> Any:
    folder.mkdir(exist_ok=True)
    with contextlib.chdir(folder):
        return create_trainer(config, Ranks(0, 1, device))


def train(trainer: Any, device: torch.device, until: int) -> list[float]:
    """The losses of the steps from where the trainer is."""
    losses = []
    while trainer.step < until:
        batch = {key: value.to(device) for key, value in trainer.train_data[trainer.step].items()}
        sums, _ = trainer.train_step(batch)
        losses.append(float(sums["loss"]))
    return losses


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("config_name", CONFIGS)
def test_a_run_that_goes_on_from_its_checkpoint_ends_bit_for_bit_like_one_that_was_not_interrupted(
    shrunk_config: Load, device: torch.device, tmp_path: Path, config_name: str
) -> None:
    config = shrunk_config(*SIZE, f"device={device.type}", "lr=1e-3", config_name=config_name)
    whole = trainer_in(tmp_path / "whole", config, device)
    expected = train(whole, device, 6)
    first = trainer_in(tmp_path / "parts", config, device)
    losses = train(first, device, 3)
    with contextlib.chdir(tmp_path / "parts"):
        assert first.save_checkpoint() is not None
        first.logger.close()
    del first
    second = trainer_in(tmp_path / "parts", config, device)
    assert second.step == 3
    assert losses + train(second, device, 6) == expected
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name


def weights(device: torch.device) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in ((64, 32), (7,), (3, 5, 2))]


def trained(params: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.device)
        optimizer.step()
    return [p.detach().cpu() for p in params]


def test_the_optimizers_steps_are_those_on_the_cpu(device: torch.device) -> None:
    here, there = weights(torch.device("cpu")), weights(device)
    expected, found = (trained(params, AdamATan2(params, lr=1e-2)) for params in (here, there))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("adam_atan2") is None, reason="adam_atan2 (extra fused) is not installed")
def test_the_fused_optimizer_steps_as_the_multi_tensor_form(device: torch.device) -> None:
    plain, fused = weights(device), weights(device)
    expected = trained(plain, AdamATan2(plain, lr=1e-2))
    found = trained(fused, adam_atan2_class(device)(fused, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_collectives_over_nccl_with_one_rank_give_what_went_in(device: torch.device, tmp_path: Path) -> None:
    """The rank says that there is another, for alone it would ask nobody."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        ranks = Ranks(0, 2, device)
        values = [torch.ones(3, device=device), torch.arange(4.0, device=device)]
        sum_over_ranks(values, ranks)
        assert [value.tolist() for value in values] == [[1, 1, 1], [0, 1, 2, 3]]
        assert [any_rank(flag, ranks) for flag in (True, False)] == [True, False]
        assert from_first_rank({"a": 1}, ranks) == {"a": 1}
    finally:
        dist.destroy_process_group()
