"""Muon against its formula in float64, which parameters are its own, and then in a real training step."""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from config.schema import TrainConfig
from learning.adam_atan2 import AdamATan2
from learning.groups import GroupOptions, gradient_norms, set_learning_rates
from learning.muon import by_kind, hidden_matrices, orthogonalized
from learning.optim import OPTIMIZERS, OptimizerOptions, create_optimizer
from models.layers import CrossAttention, SelfAttention, SwiGLU
from training.loop import Trainer
from training.metrics import step_metrics

MakeTrainer = Callable[..., Trainer]
ETRM, ETRMTRM = "cfg_pretrain_etrm_arc_agi_1", "cfg_pretrain_etrmtrm_arc_agi_1"
TRM = "cfg_pretrain_trm_arc_agi_1"


def reference(start: Tensor, gradients: list[Tensor], lr: float, weight_decay: float) -> Tensor:
    """One matrix after all gradients, as the rule is written down."""
    p, m = start.clone(), torch.zeros_like(start)
    for g in gradients:
        m = 0.95 * m + 0.05 * g
        x = 0.05 * g + 0.95 * m
        x = x / x.square().sum().sqrt()
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
        p = (1 - lr * weight_decay) * p - lr * math.sqrt(max(1, p.shape[0] / p.shape[1])) * x
    return p


class Block(nn.Module):
    """Every kind of fused projection, a plain map, and what is no matrix between hidden vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = SelfAttention(8, 2)
        self.cross_attn = CrossAttention(8, 2)
        self.mlp = SwiGLU(8, 1)
        self.gate = nn.Linear(8, 1, bias=False)
        self.lm_head = nn.Linear(8, 4, bias=False)
        self.queries = nn.Parameter(torch.randn(3, 8))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Block()
        self.inner = nn.Sequential(nn.Linear(6, 9))


LAYER_SCALE = "encoder.grid_encoder.layers.0.attn_residual.layer_scale.scale"
PARTS = {"qkv_proj": 3, "kv_proj": 2, "gate_up_proj": 2}


def test_each_matrix_follows_the_formula_and_fused_ones_are_several() -> None:
    model = Model().double()
    options = OptimizerOptions("muon", lr=0.1, muon_lr=0.02, betas=(0.8, 0.9), weight_decay=0.5)
    optimizer = create_optimizer(model, options)
    adam_params = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    adam = AdamATan2(list(adam_params.values()), lr=0.1, betas=(0.8, 0.9), weight_decay=0.5)
    starts = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients: dict[str, list[Tensor]] = {name: [] for name in starts}
    for step in range(4):
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p) * 10.0 ** (2 * step - 6)
            adam_params[name].grad = p.grad.clone()
            gradients[name].append(p.grad.clone())
        set_learning_rates(optimizer, 0.1, step)
        optimizer.step()
        adam.step()
    muons = 0
    for name, p in model.named_parameters():
        layer = name.split(".")[-2]
        if p.dim() == 2 and layer not in ("gate", "lm_head", "encoder"):
            pieces = PARTS.get(layer, 1)
            histories = zip(*(g.chunk(pieces) for g in gradients[name]), strict=True)
            start = starts[name].chunk(pieces)
            expected = torch.cat([reference(s, list(h), 0.02, 0.5) for s, h in zip(start, histories, strict=True)])
            muons += 1
        else:
            expected = adam_params[name].detach()
        torch.testing.assert_close(p.detach(), expected, rtol=1e-9, atol=1e-12, msg=name)
    assert muons == 8


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 40, 8), (2, 8, 40)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonalized(torch.randn(shape) * 1e-6))
    assert values.min() > 0.3  # of square ones, the smallest start near zero
    assert values.max() < 1.3


def test_a_zero_gradient_moves_no_matrix() -> None:
    assert torch.equal(orthogonalized(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize(
    ("config_name", "overrides", "adams"),
    [
        (ETRM, (), {"encoder.set_encoder.queries"}),
        (ETRM, ("arch.encoder_pooling_method=attention",), {"encoder.grid_encoder.pooling.query"}),
        (ETRM, ("arch.encoder_pooling_method=weighted",), {"encoder.grid_encoder.pooling.gate.weight"}),
        (ETRM, ("arch.encoder_type=hybrid_variational",), {"encoder.grid_encoder.cls_embedding"}),
        (
            ETRM,
            ("arch.encoder_layer_scale_init=0.1",),
            {"encoder.grid_encoder.layers.0.attn_residual.layer_scale.scale"},
        ),
        (ETRMTRM, (), {"encoder.z_e_init"}),
        (ETRMTRM, ("arch.recurrent_encoder_type=trm_style",), set()),
        (ETRMTRM, ("arch.recurrent_encoder_type=in_context",), {"encoder.first"}),
        (TRM, ("max_eval_groups=2",), set()),
    ],
)
def test_embeddings_queries_heads_and_vectors_are_not_hidden_matrices(
    config_name: str, overrides: tuple[str, ...], adams: set[str], make_trainer: MakeTrainer
) -> None:
    model = make_trainer(*overrides, config_name=config_name).model
    matrices = {id(p) for module in model.children() for p in hidden_matrices(module)}
    rest = {name for name, p in model.named_parameters() if id(p) not in matrices}
    heads = {"inner.lm_head.weight", "inner.q_head.weight", "inner.q_head.bias", "inner.embed_tokens.embedding_weight"}
    assert heads | adams <= rest
    named = dict(model.named_parameters())
    for name in rest - heads - adams:
        assert named[name].dim() == 1 or name.endswith(("embedding_weight", ".queries", "cls_embedding")), name
    assert not [name for name in rest if "_proj" in name]


def test_kinds_divide_each_submodule_and_modules_options_act_on_both() -> None:
    model = Model()
    encoder, inner = GroupOptions(lr_scale=0.5), GroupOptions(frozen_steps=3)
    optimizer = create_optimizer(model, OptimizerOptions("muon", lr=0.1, muon_lr=0.02, encoder=encoder, inner=inner))
    groups = optimizer.param_groups
    assert [(g["name"], "fused" in g) for g in groups] == [
        *(("encoder", True), ("encoder", False)),
        *(("inner", True), ("inner", False)),
    ]
    placed = [id(p) for group in groups for p in group["params"]]
    assert sorted(placed) == sorted(id(p) for p in model.parameters())
    for step, base in ((0, 0.1), (3, 0.05)):  # the schedule has halved the rate
        set_learning_rates(optimizer, base, step)
        ratios = [group["lr"] / base for group in groups]
        assert ratios == pytest.approx([0.1, 0.5, 0.2, 1.0] if step else [0.1, 0.5, 0.0, 0.0])
    frozen = create_optimizer(Model(), OptimizerOptions("muon", encoder=GroupOptions(frozen=True)))
    assert {group["name"] for group in frozen.param_groups} == {"inner"}


def test_the_norm_of_a_submodule_is_that_of_both_its_kinds() -> None:
    model = Model()
    optimizer = create_optimizer(model, OptimizerOptions("muon"))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    norms = gradient_norms(optimizer)
    for name in ("encoder", "inner"):
        flat = torch.cat([p.grad.flatten() for p in model.get_submodule(name).parameters() if p.grad is not None])
        torch.testing.assert_close(norms[name], flat.norm())
    torch.testing.assert_close(norms["total"], torch.stack([norms["encoder"], norms["inner"]]).norm())


def test_a_parameter_of_no_kind_trips_the_assertion() -> None:
    model = Model()
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    with pytest.raises(AssertionError, match="partition"):
        create_optimizer(model, OptimizerOptions("muon"))


def test_groups_without_matrices_or_without_a_rest_are_left_out() -> None:
    assert [bool(part["params"]) for part in by_kind(nn.Linear(1, 1), 1.0)] == [False, True]
    model = nn.ModuleDict({"inner": nn.ModuleList([nn.Linear(4, 4, bias=False)])})
    optimizer = create_optimizer(model, OptimizerOptions("muon"))
    assert ["fused" in group for group in optimizer.param_groups] == [True]


# In the training loop


def test_every_optimizer_of_the_schema_is_in_the_registry() -> None:
    assert set(get_args(TrainConfig.model_fields["optimizer"].annotation)) == set(OPTIMIZERS)


def test_muon_trains_every_parameter_and_a_frozen_decoder_waits(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("optimizer=muon", "freeze_decoder_steps=1", "lr=1e-2", "weight_decay=0.5")
    for number in range(3):
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.train_step(trainer.train_data[number])
        still = {name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])}
        assert still == ({name for name in before if name.startswith("inner.")} if number == 0 else set())


def test_a_frozen_encoder_does_not_change_in_any_bit_under_muon(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("optimizer=muon", "freeze_encoder=true", "weight_decay=0.5", "lr_warmup_steps=0")
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for number in range(2):
        trainer.train_step(trainer.train_data[number])
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith("inner.")}


def test_the_logged_rates_keep_their_ratio_through_warm_up(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        *("optimizer=muon", "lr=0.4", "muon_lr=0.02", "lr_warmup_steps=4", "encoder_lr_scale=0.5", "epochs=40")
    )
    for number in range(3):
        base_lr = trainer.base_lr
        sums, outputs = trainer.train_step(trainer.train_data[number])
        metrics = step_metrics(trainer, sums, outputs, base_lr)
        share = (number + 1) / 4
        assert metrics["train/lr"] == pytest.approx(0.4 * share)
        assert metrics["train/encoder_lr"] == pytest.approx(0.2 * share)
        assert metrics["train/muon_lr"] == pytest.approx(0.02 * share)
    assert "train/muon_lr" not in step_metrics(make_trainer(), sums, outputs, base_lr)
