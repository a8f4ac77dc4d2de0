"""Every pair a target: each is answered from the other pairs alone, as if it were asked by itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from config.schema import ConfigError, TrainConfig
from dataset.batches import Batch
from dataset.grids import COLOR_OFFSET, PAD
from dataset.store import PuzzleStore
from models import create_model
from models.act import RecursiveReasoner
from models.encoders import EncoderOutput
from models.losses import ACTLossHead, create_loss_head
from tests.conftest import small_batch

Load = Callable[..., TrainConfig]
READ = ("arch.encoder_type=in_context", "arch.context_mode=read", "arch.context_attention=pair")
ALL_PAIRS = (*READ, "arch.targets=all_pairs", "arch.halt_exploration_prob=0")


@pytest.fixture
def batch(store: PuzzleStore) -> Batch:
    return small_batch(store, 3)


@pytest.fixture
def head(shrunk_config: Load, store: PuzzleStore) -> ACTLossHead:
    config = shrunk_config(*ALL_PAIRS).arch
    model = create_model(config, store.metadata)
    torch.nn.init.normal_(model.inner.q_head.weight, std=0.01)
    return create_loss_head(config, model).train()


def course(model: RecursiveReasoner, batch: Batch, num_steps: int = 3) -> list[dict[str, Tensor]]:
    carry: Any = model.initial_carry(batch)
    steps = []
    for _ in range(num_steps):
        carry, outputs = model(carry, batch)
        steps.append(outputs)
    return steps


def places(batch: Batch) -> list[tuple[int, int]]:
    """(sample, number) of each target, in order: a pair where there are others, and the query, of number K."""
    shown = batch["demo_mask"]
    return [
        (i, k)
        for i in range(len(shown))
        for k in range(shown.shape[1] + 1)
        if k == shown.shape[1] or (shown[i, k] and shown[i].sum() > 1)
    ]


def asked_alone(batch: Batch, sample: int, number: int) -> Batch:
    """The task of one target: its input as the query, the other pairs as demonstrations."""
    alone = {key: value[sample : sample + 1].clone() for key, value in batch.items()}
    if number < batch["demo_mask"].shape[1]:
        alone["inputs"], alone["labels"] = alone["demo_inputs"][:, number], alone["demo_labels"][:, number]
        alone["demo_mask"][:, number] = False
    return alone


def test_each_target_is_answered_as_a_query_asked_alone(head: ACTLossHead, batch: Batch) -> None:
    """Over three ACT steps with carry; a sample with one pair has only its query."""
    batch["demo_mask"][1] = torch.tensor([False, True, False, False])
    model = head.model
    together = course(model, batch)
    targets = places(batch)
    assert targets.count((1, 4)) == 1
    assert not [k for i, k in targets if i == 1 and k < 4]
    assert torch.equal(together[0]["target_samples"], torch.tensor([i for i, _ in targets]))
    model.eval()
    for n, (sample, number) in enumerate(targets):
        with torch.no_grad():
            for beside, alone in zip(together, course(model, asked_alone(batch, sample, number)), strict=True):
                torch.testing.assert_close(beside["target_logits"][n], alone["logits"][0], rtol=0, atol=1e-4)
                torch.testing.assert_close(
                    beside["target_q_halt_logits"][n], alone["q_halt_logits"][0], atol=1e-4, rtol=0
                )


@pytest.mark.parametrize("canvas", ["task", "full"])
def test_an_output_of_other_colours_and_size_changes_every_target_but_its_own(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, canvas: str
) -> None:
    """Logits and q over three ACT steps with carry."""
    model = create_model(shrunk_config(*ALL_PAIRS, f"arch.canvas={canvas}").arch, store.metadata).train()
    torch.nn.init.normal_(model.inner.q_head.weight, std=0.01)
    batch = {key: value[:1] for key, value in batch.items()}
    sample, number = 0, 1
    changed = {key: value.clone() for key, value in batch.items()}
    output = torch.full((30, 30), PAD, dtype=torch.uint8)
    output[:23, :27] = COLOR_OFFSET + 7
    changed["demo_labels"][sample, number] = output.flatten()
    targets = places(batch)
    own = targets.index((sample, number))
    others = [n for n, (i, _) in enumerate(targets) if i == sample and n != own]
    for before, after in zip(course(model, batch), course(model, changed), strict=True):
        for key in ("target_logits", "target_q_halt_logits"):
            torch.testing.assert_close(before[key][own], after[key][own], rtol=0, atol=1e-5)
        assert all((before["target_logits"][n] - after["target_logits"][n]).abs().max() > 1e-3 for n in others)


def test_no_gradient_comes_from_a_targets_own_evidence(head: ACTLossHead, batch: Batch) -> None:
    """And one from the evidence of every other pair."""
    seen: list[EncoderOutput] = []
    head.model.encoder.register_forward_hook(lambda *call: seen.append(call[2]))
    (outputs,) = course(head.model, batch, 1)
    evidence = seen[0]
    assert evidence.pair_lengths is not None
    ends = evidence.pair_lengths.cumsum(1)
    for n, (sample, number) in enumerate(places(batch)):
        asked = outputs["target_logits"][n].square().sum() + outputs["target_q_halt_logits"][n]
        (grad,) = torch.autograd.grad(asked, evidence.context, retain_graph=True)
        for pair in range(batch["demo_mask"].shape[1]):
            tokens = slice(
                1 + int(ends[sample, pair] - evidence.pair_lengths[sample, pair]), 1 + int(ends[sample, pair])
            )
            is_read = pair != number and bool(batch["demo_mask"][sample, pair])
            assert bool(grad[sample, tokens].any()) == is_read
        assert not grad[torch.arange(len(grad)) != sample].any()


def test_losses_are_means_over_targets_and_metrics_the_querys(head: ACTLossHead, batch: Batch) -> None:
    _, loss, sums, outputs = head(head.model.initial_carry(batch), batch)
    lm_loss, q_loss = torch.zeros(3, dtype=torch.float64), torch.zeros(3)
    targets = places(batch)
    for n, (sample, number) in enumerate(targets):
        label = asked_alone(batch, sample, number)["labels"]
        one = {
            "logits": outputs["target_logits"][n : n + 1],
            "q_halt_logits": outputs["target_q_halt_logits"][n : n + 1],
        }
        terms = head.terms(one | {"kl_loss": torch.zeros(1)}, label)
        share = 1 / sum(i == sample for i, _ in targets)
        lm_loss[sample] += share * terms["lm_loss"][0].detach()
        q_loss[sample] += share * terms["q_halt_loss"][0].detach()
    torch.testing.assert_close(loss.detach(), (lm_loss + 0.5 * q_loss).sum(), check_dtype=False)
    query = head.terms(outputs, batch["labels"])
    torch.testing.assert_close(sums["inflight_accuracy"], query["accuracy"].sum())


def test_a_task_halts_when_all_of_its_targets_want_to(head: ACTLossHead, batch: Batch) -> None:
    """The bias lets the least willing target of two tasks halt, and not that of the third."""
    model = head.model
    torch.nn.init.normal_(model.inner.q_head.weight)
    torch.nn.init.zeros_(model.inner.q_head.bias)
    (outputs,) = course(model, batch, 1)
    q, sample = outputs["target_q_halt_logits"], outputs["target_samples"]
    least = torch.stack([q[sample == i].min() for i in range(3)]).detach()
    threshold = least.sort().values[:2].mean()
    torch.nn.init.constant_(model.inner.q_head.bias, -float(threshold))
    carry, _ = model(model.initial_carry(batch), batch)
    assert carry.halted.tolist() == (least > threshold).tolist()
    assert carry.halted.sum() == 2


@pytest.mark.parametrize("given", [(), READ[:1], (*READ[:2],), (*READ[:2], "arch.context_attention=alternate")])
def test_evidence_that_has_seen_the_answer_is_refused(shrunk_config: Load, given: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"targets=all_pairs.*context_mode=read and arch\.context_attention=pair"):
        shrunk_config(*given, "arch.targets=all_pairs")
