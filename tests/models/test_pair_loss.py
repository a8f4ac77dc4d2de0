"""`arch.loss.pair_weight`: vectors of a task's pairs are to be alike, and unlike those of other tasks."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from config.schema import ConfigError, TrainConfig
from dataset.batches import Batch
from dataset.store import PuzzleStore
from models import create_model
from models.losses import create_loss_head
from models.pair_vectors import TEMPERATURE, of_one_task, pair_loss
from training.setup import create_trainer
from utils.distributed import Ranks

Load = Callable[..., TrainConfig]
WEIGHT = "arch.loss.pair_weight=0.5"
ETRM, ETRMTRM = (f"cfg_pretrain_{name}_arc_agi_1" for name in ("etrm", "etrmtrm"))
IN_CONTEXT = "arch.encoder_type=in_context"
READ = (IN_CONTEXT, "arch.context_mode=read", "arch.context_attention=pair")
SYSTEMS = [
    *((ETRM, (f"arch.encoder_type={name}",)) for name in ("standard", "hybrid_variational", "lpn_standard")),
    (ETRM, ("arch.encoder_type=lpn_variational",)),
    (ETRM, (IN_CONTEXT,)),
    (ETRM, (IN_CONTEXT, "arch.context_tokens=two", "arch.context_attention=alternate", "arch.L_layers=2")),
    (ETRM, READ),
    (ETRM, (*READ, "arch.targets=all_pairs", "arch.forward_dtype=bfloat16")),
    (ETRMTRM, ("arch.recurrent_encoder_type=recurrent_standard",)),
    (ETRMTRM, ("arch.recurrent_encoder_type=trm_style",)),
    (ETRMTRM, ("arch.recurrent_encoder_type=in_context",)),
]


def naive(pairs: Tensor, mask: Tensor, same: Tensor) -> list[float]:
    """Each sample's loss, couple by couple."""
    vectors, found = F.normalize(pairs, dim=-1), []
    for i, row in enumerate(mask.tolist()):
        shown = [k for k, is_there in enumerate(row) if is_there]
        couples = []
        for one in shown:
            others = [
                float(vectors[i, one] @ vectors[j, k]) / TEMPERATURE
                for j in range(len(pairs))
                for k in range(mask.shape[1])
                if mask[j, k] and not same[i, j]
            ]
            for other in (k for k in shown if k != one):
                own = float(vectors[i, one] @ vectors[i, other]) / TEMPERATURE
                couples.append(-own + math.log(math.exp(own) + sum(map(math.exp, others))))
        found.append(sum(couples) / max(1, len(couples)))
    return found


def test_it_is_the_mean_over_couples_against_the_pairs_of_other_tasks() -> None:
    """Other samples of a task are left out, and what a slot without a pair holds has no influence."""
    pairs = torch.randn(4, 3, 8, dtype=torch.float32)
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [True, True, False]])
    group = torch.tensor([0, 1, 2, 0])
    same = group[:, None] == group
    found = pair_loss(pairs, mask, same)
    torch.testing.assert_close(found, torch.tensor(naive(pairs, mask, same)), atol=1e-5, rtol=1e-5)
    assert found[2] == 0
    assert found[1] > 0
    filled = torch.where(mask[..., None], pairs, 1e6).requires_grad_()
    torch.testing.assert_close(pair_loss(filled, mask, same), found)
    pair_loss(filled, mask, same).sum().backward()
    assert filled.grad is not None
    assert filled.grad.isfinite().all()
    assert not filled.grad[~mask].any()


def test_a_batch_of_one_task_or_of_single_pairs_gives_zero_and_no_gradient_that_is_not_finite() -> None:
    pairs = torch.randn(3, 2, 8, requires_grad=True)
    several, single = torch.ones(3, 2, dtype=torch.bool), torch.tensor([[True, False]] * 3)
    one_task, three_tasks = torch.ones(3, 3, dtype=torch.bool), torch.eye(3, dtype=torch.bool)
    for mask, same in ((several, one_task), (single, three_tasks), (torch.zeros_like(single), three_tasks)):
        loss = pair_loss(pairs, mask, same)
        assert loss.tolist() == [0.0] * 3
        (grad,) = torch.autograd.grad(loss.sum(), pairs)
        assert not grad.any()


def test_versions_of_a_puzzle_are_tasks_of_their_own_and_samples_of_a_known_rule_are_one() -> None:
    """Puzzle 5 in two versions, one of them twice; another source's puzzle of the same number; two samples of one
    rule, of two lessons, among three."""
    data = {
        "puzzle_groups": torch.tensor([5, 5, 5, 6, 9, 10, 9]),
        "puzzle_identifiers": torch.tensor([1, 2, 2, 2, -7, -7, -8]),
    }
    kinds = torch.tensor([0, 1, 1, 2, 3, 3, 4])
    assert torch.equal(of_one_task(data), kinds[:, None] == kinds)


def made(load: Load, store: PuzzleStore, name: str, *overrides: str) -> tuple[Any, Any]:
    config = load(*overrides, "arch.halt_exploration_prob=0", config_name=name).arch
    torch.manual_seed(0)
    model = create_model(config, store.metadata).train()
    return model, create_loss_head(config, model)


def last_step(model: Any, head: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, sums and outputs of a second step."""
    torch.manual_seed(1)
    carry, *_ = head(model.initial_carry(batch), batch)
    return head(carry, batch)[1:]


@pytest.mark.parametrize(("name", "overrides"), SYSTEMS)
def test_every_encoder_has_vectors_of_its_pairs_that_the_loss_reaches(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, name: str, overrides: tuple[str, ...]
) -> None:
    """Nothing else changes, a sample's are its own whatever stands beside it, and they follow the order of pairs."""
    plain = last_step(*made(shrunk_config, store, name, *overrides), batch)
    model, head = made(shrunk_config, store, name, *overrides, WEIGHT)
    loss, sums, outputs = last_step(model, head, batch)
    assert torch.equal(outputs["logits"], plain[2]["logits"])
    assert "pair_loss" not in plain[1]
    torch.testing.assert_close(loss, plain[0] + 0.5 * sums["pair_loss"], atol=1e-4, rtol=1e-5)
    mask = batch["demo_mask"]
    expected = sum(naive(outputs["pairs"].detach().float(), mask, of_one_task(batch)))
    assert float(sums["pair_loss"]) == pytest.approx(expected, rel=1e-3)
    assert outputs["pairs"].shape == (*mask.shape, 32)
    loose = {"atol": 2e-2, "rtol": 2e-2} if outputs["pairs"].dtype == torch.bfloat16 else {"atol": 1e-3, "rtol": 1e-3}
    if "bfloat16" not in " ".join(overrides):
        own = last_step(model, head, {key: value[:2] for key, value in batch.items()})[2]["pairs"]
        torch.testing.assert_close(own[mask[:2]], outputs["pairs"][:2][mask[:2]], **loose)
        turned = {key: value.flip(1) if key.startswith("demo_") else value for key, value in batch.items()}
        found = last_step(model, head, turned)[2]["pairs"].flip(1)
        torch.testing.assert_close(found[mask], outputs["pairs"][mask], **loose)
    grads = torch.autograd.grad(sums_of_pairs(model, head, batch), list(model.encoder.parameters()), allow_unused=True)
    assert any(grad is not None and grad.any() for grad in grads)


def sums_of_pairs(model: Any, head: Any, batch: Batch) -> Tensor:
    """The loss between pairs, attached."""
    outputs = last_step(model, head, batch)[2]
    return pair_loss(outputs["pairs"], batch["demo_mask"], of_one_task(batch)).sum()


def test_a_vector_is_the_mean_of_its_pairs_tokens_after_reading(
    shrunk_config: Load, store: PuzzleStore, batch: Batch
) -> None:
    model, head = made(shrunk_config, store, ETRM, *READ, WEIGHT)
    outputs = last_step(model, head, batch)[2]
    lengths = model.encode(batch).pair_lengths
    for sample in range(6):
        tokens = outputs["context"][sample, 1 : 1 + int(lengths[sample].sum())]
        for pair, part in enumerate(tokens.split(lengths[sample].tolist())):
            if len(part):
                torch.testing.assert_close(outputs["pairs"][sample, pair], part.mean(0), atol=1e-5, rtol=1e-4)


def test_it_is_learned_and_logged(shrunk_config: Load, ranks: Ranks) -> None:
    """With a large weight it falls; evaluation knows nothing of it."""
    config = shrunk_config("arch.loss.pair_weight=10", "lr=1e-3", "lr_warmup_steps=0", "arch.halt_max_steps=1")
    trainer = create_trainer(config, ranks)
    trainer.model.train()
    batch, losses = trainer.train_data[0], []
    for _ in range(12):
        trainer.window.add(trainer.train_step(batch)[0])
        losses.append(trainer.window.read(ranks, config.global_batch_size)["train/pair_loss"])
        trainer.window = type(trainer.window)()
    assert losses[-1] < 0.5 * losses[0]
    assert not [key for key in trainer.evaluate().metrics if "pair_loss" in key]


def test_an_encoder_that_gives_no_vectors_is_told_so(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, head = made(shrunk_config, store, ETRM, WEIGHT)
    encode = model.encoder.encode
    monkeypatch.setattr(model.encoder, "encode", lambda demonstrations: replace(encode(demonstrations), pairs=None))
    with pytest.raises(ValueError, match="pair_weight needs `pairs`"):
        head(model.initial_carry(batch), batch)


@pytest.mark.parametrize(
    ("name", "overrides", "why"),
    [
        ("cfg_pretrain_trm_arc_agi_1", (), "reads puzzle identifiers and no pairs"),
        ("cfg_pretrain_trm_hybrid", (), "reads texts and no pairs"),
        (ETRMTRM, ("arch.encoder_memory=cells",), "arch.encoder_memory=cells has vectors of cells alone"),
    ],
)
def test_systems_without_vectors_of_pairs_are_refused(
    shrunk_config: Load, name: str, overrides: tuple[str, ...], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        shrunk_config(*overrides, WEIGHT, config_name=name)
