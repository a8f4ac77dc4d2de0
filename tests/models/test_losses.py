"""Losses against their formulas in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from config.schema import TrainConfig
from dataset.fewshot_puzzle_dataset import Batch
from dataset.store import PuzzleStore
from models import create_model
from models.losses import create_loss_head, softmax_cross_entropy, stablemax_cross_entropy

Load = Callable[..., TrainConfig]


def s(x: float) -> float:
    return x + 1 if x >= 0 else 1 / (1 - x)


def test_stablemax_equals_its_formula_and_ignores_pad_and_ignore_label() -> None:
    logits = torch.randn(2, 5, 12) * 30
    labels = torch.tensor([[0, 1, 11, -100, 5], [2, 3, 0, 4, 7]])
    loss = stablemax_cross_entropy(logits, labels)
    assert loss.dtype == torch.float64
    for i in range(2):
        for j in range(5):
            label = int(labels[i, j])
            row = [s(float(x)) for x in logits[i, j]]
            expected = -math.log(row[label] / sum(row)) if label > 0 else 0.0
            assert math.isclose(float(loss[i, j]), expected, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("value", [-1e6, 0.0, 1e6])
def test_stablemax_has_finite_gradients_at_extreme_logits(value: float) -> None:
    logits = torch.full((1, 12), value, requires_grad=True)
    stablemax_cross_entropy(logits, torch.tensor([3])).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.any()


def test_softmax_equals_torch() -> None:
    logits, labels = torch.randn(3, 12), torch.tensor([1, 5, 0])
    expected = torch.nn.functional.cross_entropy(logits[:2], labels[:2], reduction="none")
    torch.testing.assert_close(softmax_cross_entropy(logits, labels)[:2], expected)
    assert softmax_cross_entropy(logits, labels)[2] == 0


def per_sample_loss(logits: Tensor, labels: Tensor, q_halt: float) -> float:
    """The loss of one sample from the spec: mean token loss + 0.5 × binary cross-entropy of 'all right'."""
    total, count, all_right = 0.0, 0, True
    for row, label in zip(logits.double(), labels.tolist(), strict=True):
        if label <= 0:
            continue
        scores = [s(float(x)) for x in row]
        total -= math.log(scores[label] / sum(scores))
        count += 1
        all_right &= int(row.argmax()) == label
    probability = 1 / (1 + math.exp(-q_halt))
    halting = -math.log(probability if all_right else 1 - probability)
    return total / count + 0.5 * halting


def test_loss_is_the_sum_over_samples_of_mean_token_loss_and_halting_loss(
    shrunk_config: Load, store: PuzzleStore, batch: Batch
) -> None:
    config = shrunk_config()
    model = create_model(config.arch, store.metadata)
    with torch.no_grad():
        model.inner.q_head.bias.fill_(0.3)
    _, loss, sums, outputs = create_loss_head(config.arch, model)(model.initial_carry(batch), batch)
    expected = sum(
        per_sample_loss(outputs["logits"][i].detach(), batch["labels"][i], float(outputs["q_halt_logits"][i].detach()))
        for i in range(len(batch["labels"]))
    )
    assert math.isclose(float(loss.detach()), expected, rel_tol=1e-5)
    assert math.isclose(float(sums["loss"]), float(loss.detach()), rel_tol=1e-6)


def test_measures_over_halted_samples_count_only_those(shrunk_config: Load, store: PuzzleStore, batch: Batch) -> None:
    config = shrunk_config("arch.halt_exploration_prob=0")
    model = create_model(config.arch, store.metadata)
    head = create_loss_head(config.arch, model)
    carry, _, sums, outputs = head(model.initial_carry(batch), batch)
    assert float(sums["count"]) == 0, "bias -5 halts nobody at the first of four steps"
    assert float(sums["inflight_count"]) == len(batch["labels"])
    with torch.no_grad():
        model.inner.q_head.bias.copy_(torch.tensor([5.0, 0.0]))
    carry, _, sums, outputs = head(carry, batch)
    valid = batch["labels"] > 0
    right = (outputs["logits"].argmax(-1) == batch["labels"]) & valid
    assert float(sums["count"]) == len(batch["labels"])
    assert math.isclose(float(sums["accuracy"]), float((right.sum(-1) / valid.sum(-1)).sum()), rel_tol=1e-5)
    assert float(sums["steps"]) == 2 * len(batch["labels"])


def test_ignore_label_id_equals_pad(shrunk_config: Load, store: PuzzleStore, batch: Batch) -> None:
    config = shrunk_config("arch.canvas=full")
    model = create_model(config.arch, store.metadata)
    head = create_loss_head(config.arch, model)
    labels = batch["labels"].long()
    ignored = {**batch, "labels": torch.where(labels == 0, -100, labels)}
    loss = head(model.initial_carry(batch), batch)[1]
    assert torch.equal(loss, head(model.initial_carry(ignored), ignored)[1])
