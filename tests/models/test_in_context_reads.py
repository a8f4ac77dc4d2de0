"""The in-context encoder reads: permutations of colours that no training task had are applied to new grids."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config.schema import load_config
from dataset.batches import Batch
from dataset.grids import place_grid
from learning.learner import LearnerOptions, create_learner
from learning.optim import OptimizerOptions
from models import create_model
from models.losses import create_loss_head

COLOURS, SIDE, DEMOS, BATCH_SIZE, LR, MUON_LR = 5, 3, 2, 16, 1e-3, 4e-3
OVERRIDES = [
    "arch.hidden_size=64",
    "arch.num_heads=2",
    "arch.H_cycles=1",
    "arch.L_cycles=2",
    "arch.halt_max_steps=1",
    "arch.forward_dtype=float32",
]

ETRM = ("cfg_pretrain_etrm_arc_agi_1", "arch.encoder_type=in_context")
MODELS = [
    pytest.param(ETRM[0], (ETRM[1],), 170, id="evolve"),
    pytest.param(
        ETRM[0],
        (ETRM[1], "arch.context_mode=read", "arch.context_attention=pair", "arch.encoder_num_layers=1"),
        140,
        id="read",
    ),
]


def split_rules() -> tuple[np.ndarray, np.ndarray]:
    """The permutations but the identity: three quarters to train on, the others."""
    rules = np.array(list(itertools.permutations(range(COLOURS)))[1:])
    rules = np.random.default_rng(0).permutation(rules)
    return rules[len(rules) // 4 :], rules[: len(rules) // 4]


def canvases(grids: np.ndarray) -> torch.Tensor:
    """(..., side, side) colours to (..., 900) tokens."""
    tokens = [place_grid(grid) for grid in grids.reshape(-1, SIDE, SIDE)]
    return torch.from_numpy(np.stack(tokens).reshape(*grids.shape[:-2], 900))


def draw(rng: np.random.Generator, rules: np.ndarray, size: int) -> tuple[Batch, Batch]:
    """Tasks of random grids whose first demonstration has all colours; and the same with outputs by another rule."""
    grids = rng.integers(0, COLOURS, (size, DEMOS + 1, SIDE, SIDE), dtype=np.uint8)
    grids[:, 0].reshape(size, -1)[:, :COLOURS] = np.arange(COLOURS)
    own = rng.integers(len(rules), size=size)
    donor = (own + rng.integers(1, len(rules), size=size)) % len(rules)
    tasks = []
    for chosen in (own, donor):
        outputs = canvases(rules[chosen].astype(np.uint8)[np.arange(size)[:, None, None, None], grids])
        inputs = canvases(grids)
        tasks.append(
            {
                "demo_inputs": inputs[:, :DEMOS],
                "demo_labels": outputs[:, :DEMOS],
                "demo_mask": torch.ones(size, DEMOS, dtype=torch.bool),
                "inputs": inputs[:, DEMOS],
                "labels": outputs[:, DEMOS],
            }
        )
    return tasks[0], tasks[1]


@pytest.mark.parametrize(("config_name", "overrides", "steps"), MODELS)
def test_it_reads_permutations_of_colours_that_it_was_not_trained_on(
    config_name: str, overrides: tuple[str, ...], steps: int
) -> None:
    """With another rule's demonstrations it draws that rule's answer."""
    torch.manual_seed(0)
    arch = load_config(config_name, [*OVERRIDES, *overrides]).arch
    model = create_model(arch, SimpleNamespace(vocab_size=12, seq_len=900)).train()
    head = create_loss_head(arch, model)
    learner = create_learner(head, LearnerOptions(OptimizerOptions("muon", lr=LR, muon_lr=MUON_LR), BATCH_SIZE))
    trained, held_out = split_rules()
    rng, carry = np.random.default_rng(0), None
    for step in range(steps):
        batch, _ = draw(rng, trained, BATCH_SIZE)
        carry = learner.step(carry, batch, step, LR * min(1, (step + 1) / 30)).carry

    model.eval()
    batch, by_donor = draw(np.random.default_rng(1), held_out, 256)
    (right,), (misled,) = (list(model.rollout(b)) for b in (batch, by_donor))

    def share(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> float:
        return float(head.exact(outputs["logits"], labels).float().mean())

    assert share(right, batch["labels"]) > 0.9
    assert share(misled, batch["labels"]) < 0.05
    assert share(misled, by_donor["labels"]) > 0.9
