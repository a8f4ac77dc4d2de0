"""The formulas for useful operations, against counts of what a naive loop and what the models really compute."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import models.attention
from benchmarks import flops
from config.schema import TrainConfig
from dataset.fewshot_puzzle_dataset import Batch
from dataset.store import PuzzleStore
from models import create_model
from models.losses import create_loss_head
from tests.models.test_in_context import naive_context as in_context_tokens
from tests.reference import decoder_step, standard_context

Load = Callable[..., TrainConfig]
SYSTEMS = [
    ("cfg_pretrain_trm_arc_agi_1", ()),
    ("cfg_pretrain_etrm_arc_agi_1", ()),
    ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_set_layers=2", "arch.encoder_num_layers=3")),
    ("cfg_pretrain_etrmtrm_arc_agi_1", ()),
    ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=trm_style",)),
    (
        "cfg_pretrain_etrmtrm_arc_agi_1",
        ("arch.recurrent_encoder_type=trm_style", "arch.encoder_grad_cycles=all", "arch.encoder_l_cycles=2"),
    ),
    *(
        ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_type=in_context", f"arch.context_tokens={n}"))
        for n in ("one", "two")
    ),
]


def naive_context(encoder: Any, batch: Batch, sample: int, config: Any) -> tuple[Tensor, Tensor | None]:
    """One sample's context tokens, and where they stand."""
    if config.encoder_type == "standard":
        return standard_context(encoder, batch, sample, config), None
    context, cells = in_context_tokens(encoder, batch, sample)
    return context, torch.tensor([0, *(16 + cell for _, _, cell in cells)])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "encoder",
    [
        ("arch.encoder_set_layers=2",),
        ("arch.encoder_type=in_context", "arch.context_tokens=one"),
        ("arch.encoder_type=in_context", "arch.context_tokens=two"),
    ],
    ids=["standard", "in_context one", "in_context two"],
)
def test_a_step_of_etrm_needs_what_a_naive_loop_over_samples_computes(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, training: bool, encoder: tuple[str, ...]
) -> None:
    """Exactly: the loop has no padding, so its matrix products are the useful ones."""
    config = shrunk_config("arch.L_layers=2", "arch.H_cycles=3", *encoder).arch
    model = create_model(config, store.metadata).train(training)
    batch = {key: value[:2] for key, value in batch.items()}
    active = model.active_cells(batch)
    loss: Tensor = torch.zeros(())
    with FlopCounterMode(display=False) as counted, torch.set_grad_enabled(training):
        for i in range(2):
            cells = torch.nonzero(active[i]).squeeze(-1)
            context, positions = naive_context(model.encoder, batch, i, config)
            rows = len(context) + len(cells)
            z_H, z_L = (init.expand(rows, -1) for init in (model.inner.H_init, model.inner.L_init))
            _, _, logits, _ = decoder_step(model.inner, z_H, z_L, batch["inputs"][i], context, cells, config, positions)
            loss = loss + logits.sum()
        if training:
            loss.backward()
    if training:
        expected = flops.training_step(batch, active, config)
    else:
        expected = flops.evaluation(batch, active, config.model_copy(update={"halt_max_steps": 1}))
    assert counted.get_total_flops() == pytest.approx(expected, rel=1e-9)


def attention_by_plan(plan: Tensor, heads: int, width: int, times: int) -> int:
    """Scores and sums of values over the runs of a plan, dead rows and all; `times` counts such products."""
    return sum(
        times * 2 * count * heads * (q_rows // count) * (k_rows // count) * width
        for q_rows, k_rows, count in plan.tolist()
        if count
    )


@pytest.mark.parametrize(("name", "overrides"), SYSTEMS)
def test_the_models_compute_little_more_than_is_useful(
    shrunk_config: Load,
    store: PuzzleStore,
    batch: Batch,
    name: str,
    overrides: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everything that a real training step multiplies, dead rows included, is within 8 % of the formula."""
    config = shrunk_config(*overrides, config_name=name).arch
    model = create_model(config, store.metadata).train()
    head = create_loss_head(config, model)
    carry = model.initial_carry(batch)
    of_attention = 0
    plain = models.attention.attend_runs

    def counting(q: Tensor, k: Tensor, v: Tensor, plan: Tensor, key_is_real: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal of_attention
        has_gradient = torch.is_grad_enabled() and q.requires_grad
        of_attention += attention_by_plan(plan, q.shape[1], q.shape[2], 6 if has_gradient else 2)
        return plain(q, k, v, plan, key_is_real)

    monkeypatch.setattr(models.attention, "attend_runs", counting)
    with FlopCounterMode(display=False) as counted:
        _, loss, _, _ = head(carry, batch)
        loss.backward()
    found = counted.get_total_flops() + of_attention
    useful = flops.training_step(batch, model.active_cells(batch), config)
    assert 0.97 * useful <= found <= 1.08 * useful


@pytest.mark.parametrize("encoder", ["hybrid_standard", "lpn_standard"])
def test_a_system_without_a_formula_is_refused_and_named(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, encoder: str
) -> None:
    config = shrunk_config(f"arch.encoder_type={encoder}").arch
    with pytest.raises(ValueError, match=f"no formula for .* with the encoder {encoder}"):
        flops.training_step(batch, create_model(config, store.metadata).active_cells(batch), config)
