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
from models.canvas import task_canvas
from models.losses import create_loss_head
from tests.models.test_in_context import naive_context as naive_tokens
from tests.models.test_in_context import naive_evidence
from tests.models.test_joint import naive_step as joint_step
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
        ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_type=in_context", *overrides))
        for overrides in (
            ("arch.context_tokens=one",),
            ("arch.context_tokens=two",),
            ("arch.context_attention=alternate", "arch.L_layers=2"),
            ("arch.context_mode=read",),
            ("arch.context_mode=read", "arch.context_attention=pair"),
            ("arch.context_mode=read", "arch.context_attention=pair", "arch.targets=all_pairs"),
        )
    ),
    *(
        ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=in_context", *overrides))
        for overrides in ((), ("arch.context_attention=alternate", "arch.encoder_l_cycles=2"))
    ),
]


Latents = tuple[Tensor, ...]


def naive_step(model: Any, batch: Batch, sample: int, cells: Tensor, config: Any) -> Tensor:
    """The logits of one sample in its first ACT step, by the naive loops of the models' own tests."""
    inner, query = model.inner, batch["inputs"][sample]

    def started(rows: int) -> Latents:
        return tuple(init.expand(rows, -1) for init in (inner.H_init, inner.L_init))

    if config.encoder_name in ("recurrent_standard", "trm_style", "standard"):
        context = standard_context(model.encoder, batch, sample, config)
        return decoder_step(inner, *started(len(context) + len(cells)), query, context, cells, config)[2]
    tokens, made_of = naive_tokens(model.encoder, batch, sample)
    if config.encoder_type == "standard":
        z_e = model.encoder.E_init.expand(len(made_of), -1)
        return joint_step(model, batch, sample, cells, config, (z_e, *started(1 + len(cells))))[1]
    if config.context_mode == "read":
        first, evidence, places = naive_evidence(model.encoder, batch, sample, config)
        read = {"evidence": (evidence, places)}
        return decoder_step(inner, *started(1 + len(cells)), query, first, cells, config, **read)[2]
    stand = torch.tensor([0, *(16 + cell for _, _, cell in made_of)])
    of_pair = torch.tensor([-1, *(pair for pair, *_ in made_of), *([-1] * len(cells))])
    scope = of_pair if config.context_attention == "alternate" else None
    return decoder_step(inner, *started(len(of_pair)), query, tokens, cells, config, stand, scope)[2]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("etrm", ("arch.encoder_set_layers=2",)),
        *(
            ("etrm", ("arch.encoder_type=in_context", *overrides))
            for overrides in (
                ("arch.context_tokens=one",),
                ("arch.context_tokens=two",),
                ("arch.context_attention=alternate",),
                ("arch.context_mode=read", "arch.encoder_num_layers=3"),
                ("arch.context_mode=read", "arch.context_attention=pair", "arch.context_tokens=two"),
                ("arch.context_mode=read", "arch.context_attention=alternate", "arch.encoder_num_layers=3"),
            )
        ),
        *(
            ("etrmtrm", ("arch.recurrent_encoder_type=in_context", *overrides))
            for overrides in (
                (),
                ("arch.encoder_l_cycles=2", "arch.encoder_l_layers=3", "arch.context_attention=alternate"),
                ("arch.context_tokens=two", "arch.context_attention=pair", "arch.encoder_l_layers=1"),
            )
        ),
    ],
    ids=str,
)
def test_a_step_needs_what_a_naive_loop_over_samples_computes(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, training: bool, name: str, overrides: tuple[str, ...]
) -> None:
    """Exactly: the loop has no padding, so its matrix products are the useful ones."""
    sizes = ("arch.L_layers=2", "arch.H_cycles=3")
    config = shrunk_config(*sizes, *overrides, config_name=f"cfg_pretrain_{name}_arc_agi_1").arch
    model = create_model(config, store.metadata).train(training)
    batch = {key: value[:2] for key, value in batch.items()}
    active = model.active_cells(batch)
    loss: Tensor = torch.zeros(())
    with FlopCounterMode(display=False) as counted, torch.set_grad_enabled(training):
        for i in range(2):
            cells = torch.nonzero(active[i]).squeeze(-1)
            loss = loss + naive_step(model, batch, i, cells, config).sum()
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


def test_every_pair_as_a_target_needs_what_tasks_of_their_own_would_but_for_the_evidence(
    shrunk_config: Load, store: PuzzleStore, batch: Batch
) -> None:
    """A target is the decoder's work on a task of its own: its input, and the demonstrations without it."""
    chosen = ("arch.encoder_type=in_context", "arch.context_mode=read", "arch.context_attention=pair")
    one, every = (shrunk_config(*chosen, f"arch.targets={targets}").arch for targets in ("query", "all_pairs"))
    active = create_model(every, store.metadata).train().active_cells(batch)
    assert flops.evaluation(batch, active, every) == flops.evaluation(batch, active, one)
    expected = flops.training_step(batch, active, one)
    shown = batch["demo_mask"]
    for slot in range(shown.shape[1]):
        is_target = shown[:, slot] & (shown.sum(1) > 1)
        left = shown.clone()
        left[:, slot] = False
        task = {key: value[is_target] for key, value in {**batch, "demo_mask": left}.items()}
        task |= {"inputs": batch["demo_inputs"][is_target, slot], "labels": batch["demo_labels"][is_target, slot]}
        cells = task_canvas(task, include_labels=False)
        part = flops.decoder(task, cells, one, training=True)
        expected += part.forward + part.backward
    assert flops.training_step(batch, active, every) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("encoder", ["hybrid_standard", "lpn_standard"])
def test_a_system_without_a_formula_is_refused_and_named(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, encoder: str
) -> None:
    config = shrunk_config(f"arch.encoder_type={encoder}").arch
    with pytest.raises(ValueError, match=f"no formula for .* with the encoder {encoder}"):
        flops.training_step(batch, create_model(config, store.metadata).active_cells(batch), config)


@pytest.mark.parametrize(
    ("name", "overrides", "option"),
    [
        ("etrm", ("arch.encoder_pooling_method=weighted",), "encoder_pooling_method=weighted"),
        ("trm", ("arch.mlp_t=true", "arch.canvas=full"), "mlp_t=True"),
        ("etrmtrm", ("arch.encoder_memory=cells",), "encoder_memory=cells"),
    ],
)
def test_an_option_without_a_formula_is_refused_and_named(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, name: str, overrides: tuple[str, ...], option: str
) -> None:
    config = shrunk_config(*overrides, config_name=f"cfg_pretrain_{name}_arc_agi_1").arch
    active = create_model(config, store.metadata).active_cells(batch)
    for count in (flops.training_step, flops.evaluation):
        with pytest.raises(ValueError, match=f"no formula for arch.{option}"):
            count(batch, active, config)
