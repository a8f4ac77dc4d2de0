"""Tasks adapted side by side on CUDA, where the linear maps of all of them are one kernel."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from config.schema import TrainConfig
from dataset.arc_tasks import Pair, Task
from dataset.store import PuzzleStore
from inference.adapt import adapt
from inference.adapt_options import AdaptOptions, Budget
from inference.adapt_stack import adapt_stacked
from models import create_model
from models.stacked_linear import stacked_linear, uses_grouped_kernel

SHALLOW = ("arch.encoder_type=in_context", "arch.H_cycles=1", "arch.L_cycles=1", "arch.halt_max_steps=1")


def turning(seed: int, side: int) -> Task:
    """Grids that are turned upside down."""
    rng = np.random.default_rng(seed)
    grids = [rng.integers(0, 10, (side, side)).astype(np.uint8) for _ in range(4)]
    pairs = tuple(Pair(grid, grid[::-1].copy()) for grid in grids)
    return Task(f"t{seed}", "toy", pairs[:3], pairs[3:])


def test_the_kernel_and_its_gradients_are_the_products_of_each_task(device: torch.device) -> None:
    """Twelve outputs and ten inputs are no multiples of 16 bytes, one task has no row."""
    assert uses_grouped_kernel(device, torch.bfloat16) == (device.type == "cuda")
    torch.manual_seed(0)
    sizes = (3, 0, 18)
    rows = torch.randn(sum(sizes), 10, device=device, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(len(sizes), 12, 10, device=device, dtype=torch.bfloat16, requires_grad=True)
    ends = torch.tensor(sizes, device=device).cumsum(0).int()
    out = stacked_linear(rows, weights, ends)
    grad = torch.randn_like(out)
    found = out, *torch.autograd.grad(out, (rows, weights), grad)
    apart = torch.cat([part @ weight.t() for part, weight in zip(rows.split(sizes), weights, strict=True)])
    for one, other in zip(found, (apart, *torch.autograd.grad(apart, (rows, weights), grad)), strict=True):
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tasks_side_by_side_learn_as_one_after_another(
    shrunk_config: Callable[..., TrainConfig], store: PuzzleStore, device: torch.device, dtype: str
) -> None:
    config = shrunk_config(*SHALLOW, f"arch.forward_dtype={dtype}")
    torch.manual_seed(0)
    model = create_model(config.arch, store.metadata).to(device).eval()
    tasks = [turning(number, side) for number, side in enumerate((3, 7, 5))]
    options, budget = AdaptOptions(votes=2, views=4, fork_every=0, warmup_updates=2), Budget(updates=17)
    together = dict(adapt_stacked(model, config, enumerate(tasks), options, budget, size=3))
    for number, task in enumerate(tasks):
        alone = adapt(model, config, task, options, budget)
        losses = [[mark.loss for mark in done.marks[1:]] for done in (together[number], alone)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3 if dtype == "float32" else 0.05)
