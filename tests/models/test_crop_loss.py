"""The loss of the TRM hybrid: cross-entropy and exact match of the grid that is cropped from the tokens."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from config.schema import TrainConfig
from dataset.grids import place_grid
from dataset.store import PuzzleStore
from evaluators.eos_utils import compute_loss_with_crop
from models import create_model
from models.losses import CropLossHead, create_loss_head

Load = Callable[..., TrainConfig]


@pytest.fixture
def labels() -> Tensor:
    """Grids of 2 × 3, 30 × 30 and 1 × 1, and one without any label."""
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 10, shape, dtype=np.uint8) for shape in ((2, 3), (30, 30), (1, 1))]
    return torch.from_numpy(np.stack([*(place_grid(grid) for grid in grids), np.zeros(900, dtype=np.uint8)]))


def crop_head(shrunk_config: Load, store: PuzzleStore, *overrides: str) -> CropLossHead:
    config = shrunk_config("arch.text_hidden_size=8", *overrides, config_name="cfg_pretrain_trm_hybrid").arch
    head = create_loss_head(config, create_model(config, store.metadata))
    assert isinstance(head, CropLossHead)
    return head


def naive_loss(logits: Tensor, labels: Tensor, lowest: int) -> float:
    terms = []
    for row, label in zip(logits.double(), labels.tolist(), strict=True):
        if lowest <= label <= 11:
            terms.append(math.log(sum(math.exp(float(x)) for x in row)) - float(row[label]))
    return sum(terms) / max(len(terms), 1)


def outputs_of(logits: Tensor) -> dict[str, Tensor]:
    batch = len(logits)
    return {"logits": logits, "q_halt_logits": torch.zeros(batch), "kl_loss": torch.zeros(batch)}


@pytest.mark.parametrize(("include_eos", "lowest"), [(False, 2), (True, 1)])
def test_token_loss_equals_the_naive_version_and_that_of_the_evaluators(
    shrunk_config: Load, store: PuzzleStore, labels: Tensor, include_eos: bool, lowest: int
) -> None:
    head = crop_head(shrunk_config, store, f"arch.loss.include_eos={include_eos}")
    logits = torch.randn(4, 900, 12)
    terms = head.terms(outputs_of(logits), labels)
    for i in range(4):
        expected = naive_loss(logits[i], labels[i], lowest)
        assert float(terms["lm_loss"][i]) == pytest.approx(expected, rel=1e-5)
        alone = compute_loss_with_crop(logits[i : i + 1], labels[i : i + 1], include_eos)
        torch.testing.assert_close(terms["lm_loss"][i], alone)
    assert terms["labelled"].tolist() == [1, 1, 1, 0]
    assert terms["lm_loss"][3] == 0


def test_a_sample_is_exact_when_the_cropped_grids_are_equal(
    shrunk_config: Load, store: PuzzleStore, labels: Tensor
) -> None:
    """Whatever stands outside the grid and its border; but a grid that runs on past its border is wrong."""
    head = crop_head(shrunk_config, store)
    predicted = labels[:1].repeat(5, 1).view(5, 30, 30)
    predicted[1, 10:] = 7  # far outside
    predicted[2, 0, 0] = 2 + (predicted[2, 0, 0] - 1) % 10  # another colour
    predicted[3, 2, :3] = 5  # no border below: the grid goes on
    predicted[4, 2, 0] = 0  # PAD ends a grid as EOS does
    logits = torch.nn.functional.one_hot(predicted.view(5, 900).long(), 12).float() * 9
    terms = head.terms(outputs_of(logits), labels[:1].repeat(5, 1))
    assert terms["exact_accuracy"].tolist() == [1, 1, 0, 0, 1]
    without_label = head.terms(outputs_of(torch.zeros(1, 900, 12)), labels[3:])
    assert without_label["exact_accuracy"].tolist() == [0]


def test_without_eos_among_the_targets_the_border_carries_no_gradient(
    shrunk_config: Load, store: PuzzleStore, labels: Tensor
) -> None:
    is_border = labels[0] == 1
    for include_eos in (False, True):
        head = crop_head(shrunk_config, store, f"arch.loss.include_eos={include_eos}")
        logits = torch.randn(4, 900, 12, requires_grad=True)
        head.terms(outputs_of(logits), labels)["lm_loss"].sum().backward()
        assert logits.grad is not None
        assert bool(logits.grad[0, is_border].any()) == include_eos
        assert not logits.grad[0, labels[0] == 0].any()
