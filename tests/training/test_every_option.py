"""Every option acts: two values of it give two runs that differ where the option says, and nowhere that it must not.

A key of the schema without a case here fails the first test.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from torch.utils.data import DataLoader

import dataset.batches
from config.data_schema import MixturePart
from config.schema import TrainConfig
from tests.option_outcomes import BASE, IN_A_FOLDER, FirstSteps, Outcomes, WholeRun
from tests.tiny_llama import CHAT_TEMPLATE, save_tiny_llama
from utils.distributed import Ranks


@dataclass(frozen=True)
class Case:
    """Values of an option, the part of the run that they change, and the parts that they must leave alone."""

    values: tuple[str, ...]
    acts_on: str
    keeps: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    config_name: str = "cfg_pretrain_etrm_arc_agi_1"

    @property
    def kind(self) -> type[FirstSteps | WholeRun]:
        """A whole run only where a part lies in its folder."""
        return WholeRun if IN_A_FOLDER & {self.acts_on, *self.keeps} else FirstSteps


TRAINING = ("losses", "weights")
RECURRENT = Case((), "", config_name="cfg_pretrain_etrmtrm_arc_agi_1")
TRM_STYLE = replace(RECURRENT, given=("arch.recurrent_encoder_type=trm_style",))
TRM = Case((), "", config_name="cfg_pretrain_trm_arc_agi_1", given=("max_eval_groups=2",))
HYBRID = Case(
    (),
    "losses",
    config_name="cfg_pretrain_trm_hybrid",
    given=("arch.text_model={llama}", "arch.text_cache={latents}", "arch.max_text_tokens=400"),
)
RULES = Case(
    (),
    "losses",
    keeps=("parameters",),
    given=("data=known_rules", "data.num_batches=4", "data.families=[permutation]", "data.sides=[2,3]"),
)
# A curriculum is followed in a whole run alone.
CURRICULUM = (
    *RULES.given,
    "data.families=[permutation,swap]",
    "data.curriculum=[{{families:[permutation,swap],levels:[{{}}],threshold:0}}]",
    "data.at_once=1",
    "data.patience=1",
    "data.measure_steps=2",
    "data.measure_samples=1",
)
FOLLOWED = replace(RULES, keeps=("parameters", "log_lines"), given=CURRICULUM)
REARC = Case(
    (),
    "losses",
    keeps=("parameters",),
    given=("data=rearc", "data.num_batches=4", "data.data_paths=[{data}]", "data.demos=[1,2]"),
)
# `%s` stands for the share.
RULES_PART = "{{share:%s,source:{{name:known_rules,families:[permutation],sides:[2,3]}}}}"
FEWSHOT_PART = "{{share:%s,source:fewshot}}"
MIXED = Case((), "losses", keeps=("parameters",), given=("data=mixture", "data.num_batches=4", "global_batch_size=6"))
# Weights are refused by a decoder of other cycles.
EAGER_CYCLES = ("arch.H_cycles=2", "arch.L_cycles=2")
EAGER = ("load_pretrained_decoder={eager_decoder}", *EAGER_CYCLES)
# `{other_data}`, `{eager_decoder}`, `{llama}` and the like stand for paths.
CASES = {
    "arch.hidden_size": Case(("32", "64"), "parameters"),
    "arch.num_heads": Case(("2", "4"), "losses", keeps=("parameters",)),
    "arch.expansion": Case(("4", "16"), "parameters"),
    "arch.H_cycles": Case(("1", "2"), "losses", keeps=("parameters",)),
    "arch.L_cycles": Case(("1", "2"), "losses", keeps=("parameters",)),
    "arch.L_layers": Case(("1", "2"), "parameters"),
    "arch.puzzle_emb_len": Case(("16", "8"), "parameters"),
    "arch.mlp_t": Case(
        ("false", "true"), "parameters", given=("arch.canvas=full", "global_batch_size=2", "max_train_groups=2")
    ),
    "arch.pos_encodings": Case(("rope", "rope2d", "learned"), "losses"),
    "arch.forward_dtype": Case(("float32", "bfloat16"), "losses", keeps=("parameters",)),
    "arch.canvas": Case(("task", "full"), "losses", keeps=("parameters",)),
    "arch.halting": Case(("act", "fixed"), "log_lines", keeps=("parameters",)),
    "arch.num_act_steps": Case(("1", "2"), "log_lines", keeps=("parameters",), given=("arch.halting=fixed",)),
    "arch.puzzle_emb_ndim": replace(TRM, values=("64", "32"), acts_on="parameters"),
    "arch.halt_max_steps": Case(("1", "2", "3"), "halted_steps"),
    "arch.halt_exploration_prob": Case(("0", "1"), "halted_steps", given=(*EAGER, "arch.halt_max_steps=4")),
    "arch.encoder_num_layers": Case(("1", "2"), "parameters"),
    "arch.encoder_norm_style": Case(("post", "pre"), "losses", keeps=("parameters",)),
    "arch.encoder_layer_scale_init": Case(("null", "0.1", "1.0"), "losses"),
    "arch.encoder_qk_norm": Case(("false", "true"), "losses", keeps=("parameters",)),
    "arch.encoder_pooling_method": Case(("mean", "attention", "weighted"), "losses"),
    "arch.encoder_aligned_cells": Case(("false", "true"), "parameters"),
    "arch.encoder_set_layers": Case(("1", "2"), "parameters"),
    "arch.encoder_type": Case(
        ("standard", "hybrid_standard", "hybrid_variational", "lpn_standard", "lpn_variational", "in_context"),
        "parameters",
    ),
    "arch.context_tokens": Case(("one", "two"), "parameters", given=("arch.encoder_type=in_context",)),
    "arch.context_mode": Case(("evolve", "read"), "parameters", given=("arch.encoder_type=in_context",)),
    "arch.targets": Case(
        ("query", "all_pairs"),
        "losses",
        keeps=("parameters",),
        given=("arch.encoder_type=in_context", "arch.context_mode=read", "arch.context_attention=pair"),
    ),
    "arch.context_attention": Case(
        ("all", "alternate", "pair"),
        "losses",
        keeps=("parameters",),
        given=("arch.encoder_type=in_context", "arch.context_mode=read"),
    ),
    "arch.grid_coordinates": Case(("none", "corner", "both"), "parameters"),
    "arch.query_as_context": Case(
        ("false", "true"), "losses", keeps=("parameters",), given=("arch.encoder_type=in_context",)
    ),
    "arch.grad_cycles": Case(("1", "2"), "losses", keeps=("parameters",), given=("arch.H_cycles=2",)),
    "arch.qk_norm_gain": Case(("false", "true"), "parameters"),
    "arch.grid_conv": Case(("false", "true"), "parameters"),
    "arch.random_depth": Case(("false", "true"), "losses", keeps=("parameters",), given=("arch.H_cycles=2",)),
    "arch.lpn_latent_dim": Case(("8", "16"), "parameters", given=("arch.encoder_type=lpn_variational",)),
    "arch.loss.pair_weight": Case(("0", "0.5"), "losses", keeps=("parameters",)),
    "arch.loss.kl_weight": Case(("0", "0.1"), "losses", given=("arch.encoder_type=hybrid_variational",)),
    "arch.recurrent_encoder_type": replace(
        RECURRENT, values=("recurrent_standard", "trm_style", "in_context"), acts_on="parameters"
    ),
    "arch.encoder_memory": replace(RECURRENT, values=("pairs", "cells"), acts_on="losses"),
    "arch.encoder_h_cycles": replace(TRM_STYLE, values=("1", "2"), acts_on="losses"),
    "arch.encoder_l_cycles": replace(TRM_STYLE, values=("1", "2"), acts_on="losses"),
    "arch.encoder_l_layers": replace(TRM_STYLE, values=("1", "2"), acts_on="parameters"),
    "arch.encoder_grad_cycles": replace(TRM_STYLE, values=("last", "all"), acts_on="losses"),
    "arch.encoder_state_ema": replace(RECURRENT, values=("0", "0.5"), acts_on="losses"),
    "arch.encoder_residual_scale": replace(RECURRENT, values=("1.0", "0.5"), acts_on="losses"),
    "arch.encoder_context_norm": replace(RECURRENT, values=("false", "true"), acts_on="parameters"),
    "arch.loss.loss_type": Case(("stablemax_cross_entropy", "softmax_cross_entropy"), "losses", keeps=("parameters",)),
    "arch.text_model": replace(HYBRID, values=("{llama}", "{other_llama}"), keeps=("parameters",)),
    "arch.text_dtype": replace(HYBRID, values=("float32", "bfloat16"), keeps=("parameters",)),
    "arch.layer": replace(HYBRID, values=("-1", "1", "0"), keeps=("parameters",)),
    "arch.pooling": replace(HYBRID, values=("mean", "last"), keeps=("parameters",)),
    "arch.chat_template": replace(
        HYBRID, values=("auto", "none"), given=(*HYBRID.given, "arch.text_model={chatty_llama}")
    ),
    "arch.max_text_tokens": replace(HYBRID, values=("400", "100"), keeps=("parameters",)),
    "arch.text_augmentations": replace(HYBRID, values=("1", "3"), keeps=("parameters", "total_steps")),
    "arch.conditioning": replace(HYBRID, values=("z_init", "cross_attention"), acts_on="parameters"),
    "arch.latents": replace(HYBRID, values=("true", "shuffled", "zero"), keeps=("parameters",)),
    "arch.curriculum": replace(HYBRID, values=("none", "grid_size"), keeps=("parameters", "total_steps")),
    "arch.loss.include_eos": replace(HYBRID, values=("true", "false"), keeps=("parameters",)),
    "data.num_batches": replace(RULES, values=("4", "6"), acts_on="total_steps", keeps=("losses", "weights")),
    "data.epoch_batches": replace(
        RULES, values=("1", "2"), acts_on="evaluated_at", keeps=TRAINING, given=(*RULES.given, "eval_interval=1")
    ),
    "data.families": replace(RULES, values=("[permutation]", "[swap]", "[tile]")),
    "data.sides": replace(RULES, values=("[2,3]", "[3,4]")),
    "data.colors": replace(RULES, values=("9", "4")),
    "data.demos": replace(RULES, values=("[3,4]", "[1,2]")),
    "data.distinct": replace(RULES, values=("false", "true")),
    "data.data_paths": replace(REARC, values=("[{data}]", "[{other_data}]")),
    "data.share_batches": replace(
        MIXED,
        values=("2", "4"),
        given=(*MIXED.given, f"data.sources=[{RULES_PART % '[4,2]'},{FEWSHOT_PART % '[2,4]'}]"),
    ),
    "data.sources": replace(
        MIXED,
        values=(
            f"[{RULES_PART % 4},{FEWSHOT_PART % 2}]",
            f"[{FEWSHOT_PART % 2},{RULES_PART % 4}]",
            f"[{RULES_PART % 2},{FEWSHOT_PART % 4}]",
        ),
    ),
    "data.translate": replace(RULES, values=("false", "true"), given=(*RULES.given, "arch.canvas=full")),
    "data.versions": Case(("1", "2"), "losses", keeps=("parameters",), given=("data=fewshot",)),
    "data.curriculum": replace(RULES, values=("[]", "[{{families:[permutation],levels:[{{sides:[5,5]}}]}}]")),
    "data.at_once": replace(FOLLOWED, values=("1", "2")),
    # As long as nothing is measured, patience alone lets a family begin.
    "data.patience": replace(FOLLOWED, values=("1", "100"), given=CURRICULUM[:-1]),
    "data.earlier_share": replace(FOLLOWED, values=("0", "1")),
    "data.review": replace(FOLLOWED, values=("even", "forgotten"), given=(*CURRICULUM, "data.earlier_share=1")),
    "data.settle_after": replace(FOLLOWED, values=("null", "2")),
    "data.measure_steps": replace(FOLLOWED, values=("2", "100")),
    "data.measure_samples": replace(FOLLOWED, values=("1", "64")),
    "data_paths": Case(("[{data}]", "[{other_data}]"), "losses"),
    "evaluators": Case(("[{{name: arc@ARC}}]", "[]"), "files", keeps=TRAINING),
    "global_batch_size": Case(("4", "2"), "losses"),
    "max_demos": Case(("4", "1"), "losses"),
    "max_train_groups": Case(("8", "4"), "losses"),
    "max_eval_groups": Case(("1", "2"), "submission", keeps=TRAINING),
    "max_context_tokens": Case(
        ("null", "120"), "losses", keeps=("parameters",), given=("max_train_groups=1", "global_batch_size=1")
    ),
    "min_demos": Case(("null", "1"), "losses", keeps=("total_steps",), given=("query_sampling=leave_one_out",)),
    "query_sampling": Case(("test", "leave_one_out"), "losses", keeps=("total_steps",)),
    "epochs": Case(("1", "2"), "log_lines"),
    "eval_interval": Case(("1", "2"), "evaluated_at", keeps=TRAINING),
    "optimizer": Case(("adam_atan2", "muon"), "losses", keeps=("parameters",)),
    "muon_lr": Case(("1e-2", "1e-3"), "losses", keeps=("parameters",), given=("optimizer=muon",)),
    "lr": Case(("1e-2", "1e-3"), "losses"),
    "lr_min_ratio": Case(("1.0", "0.1"), "losses"),
    "lr_decay_share": Case(("1.0", "0.5"), "losses", given=("lr_min_ratio=0.1",)),
    "lr_warmup_steps": Case(("0", "3"), "losses"),
    "beta1": Case(("0.9", "0.5"), "losses"),
    "beta2": Case(("0.95", "0.5"), "losses"),
    "weight_decay": Case(("0.1", "1.0"), "losses"),
    "puzzle_emb_lr": replace(TRM, values=("1e-2", "1e-1"), acts_on="weights", keeps=("parameters",)),
    "puzzle_emb_weight_decay": replace(TRM, values=("0", "1"), acts_on="weights", keeps=("parameters",)),
    "train_on_held_out_demonstrations": replace(TRM, values=("true", "false"), acts_on="losses"),
    "grad_clip_norm": Case(("0", "0.5"), "losses"),
    "encoder_lr_scale": Case(("0", "0.5"), "losses"),
    "freeze_encoder": Case(("false", "true"), "losses"),
    "freeze_decoder_steps": Case(("0", "1", "2"), "losses"),
    "ema": Case(("true", "false"), "files", keeps=TRAINING),
    "ema_rate": Case(("0.9", "0.1"), "evaluation", keeps=TRAINING),
    "load_pretrained_decoder": Case(("null", "{eager_decoder}"), "losses", keeps=("parameters",), given=EAGER_CYCLES),
    "load_pretrained_encoder": Case(("null", "{eager_decoder}"), "losses", keeps=("parameters",)),
    "max_eval_augmentations": Case(("1", "3"), "evaluation", keeps=TRAINING),
    # Variance over the samples of a batch of one is not defined, so it is not logged.
    "eval_batch_size": Case(("8", "1"), "evaluation", keeps=(*TRAINING, "submission")),
    "eval_batch_tokens": Case(("null", "1"), "evaluation", keeps=(*TRAINING, "submission")),
    "eval_controls": Case(("false", "true"), "evaluation", keeps=(*TRAINING, "submission")),
    "eval_control_queries": Case(
        ("1", "2"), "evaluation", keeps=(*TRAINING, "submission"), given=("eval_controls=true",)
    ),
    "log_interval": Case(("1", "2"), "log_lines", keeps=("weights", "submission")),
    "log_predictions_every": Case(("0", "1"), "files", keeps=(*TRAINING, "submission")),
    "checkpoint_every_eval": Case(
        ("false", "true"), "files", keeps=TRAINING, given=("eval_interval=1", "checkpoint_best=null")
    ),
    "checkpoint_interval": Case(("0", "1"), "files", keeps=(*TRAINING, "evaluation")),
    "checkpoint_minutes": Case(("0", "1e-9"), "files", keeps=(*TRAINING, "evaluation")),
    "checkpoint_keep": Case(("1", "2"), "files", keeps=TRAINING, given=("checkpoint_interval=1",)),
    "checkpoint_best": Case(
        ("null", "eval/accuracy"), "files", keeps=TRAINING, given=("eval_interval=1", "checkpoint_every_eval=false")
    ),
    "seed": Case(("0", "1"), "losses", keeps=("parameters",)),
    "project_name": Case(("one", "two"), "folder", keeps=(*TRAINING, "submission", "files")),
    "run_name": Case(("one", "two"), "folder", keeps=(*TRAINING, "submission", "files")),
}


def schema_keys(model: type[BaseModel], prefix: str = "") -> dict[str, list[Any]]:
    """Every key of a schema with its annotations (one for each arch that has it), without the sections themselves."""
    keys: dict[str, list[Any]] = {}
    for name, info in model.model_fields.items():
        parts = (info.annotation, *get_args(info.annotation))
        sections = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        for section in sections:
            for key, annotations in schema_keys(section, f"{prefix}{name}.").items():
                keys.setdefault(key, []).extend(annotations)
        if not sections or get_origin(info.annotation) is tuple:
            keys.setdefault(prefix + name, []).append(info.annotation)
    return keys


TESTED_ELSEWHERE = {
    **{
        f"data.curriculum.{key}": "a track of a list: test_known_rules_training.py"
        for key in (
            "families",
            "levels",
            "threshold",
            *(f"levels.{key}" for key in ("sides", "colors", "demos", "distinct", "rules")),
        )
    },
    **dict.fromkeys(schema_keys(MixturePart, "data.sources."), "as in a run of that source alone: test_mixture.py"),
    "data.name": "each arch reads one kind of source: test_sources.py",
    "data_workers": "test_batches_come_from_as_many_workers_as_asked_for, below",
    "compile": "tests/models/test_cuda_ready.py: it must not change a result",
    "resume": "it takes a run before: test_resume.py",
    "resume_override": "it takes a run before: test_resume.py",
    "on_nonfinite": "it takes a loss that is not finite: test_reliability.py",
    "nonfinite_limit": "it takes losses that are not finite: test_reliability.py",
    "distributed_timeout_s": "it takes a rank that hangs: test_reliability.py",
    "wandb_group": "it acts outside the run: test_wandb_mirror.py",
    "wandb_tags": "it acts outside the run: test_wandb_mirror.py",
    "device": "a second device cannot be had everywhere: test_distributed.py",
    "arch.text_device": "a second device cannot be had everywhere",
    "arch.revision": "there is no hub to ask in a run: tests/models/test_text_reasoning.py",
    "arch.local_files_only": "there is no hub to ask in a run: tests/models/test_text_reasoning.py",
    "arch.demo_overflow": "`error` refuses the run: tests/models/test_text_reasoning.py",
    "arch.text_hidden_size": "another value than the model's refuses the run: test_trm_hybrid_training.py",
    "arch.text_cache": "where latents lie changes no figure: test_trm_hybrid_training.py",
    "arch.text_batch_size": "batches change latents by rounding alone: test_latent_cache.py",
}
SINGLE_VALUE = ("arch.name", "arch.loss.name", "evaluators.name", "arch.H_layers")


def test_every_key_of_the_schema_has_a_case_or_a_reason() -> None:
    covered = [*CASES, *TESTED_ELSEWHERE, *SINGLE_VALUE]
    assert sorted(covered) == sorted(schema_keys(TrainConfig))


@pytest.mark.parametrize("key", SINGLE_VALUE)
def test_a_key_without_case_has_a_single_value(key: str) -> None:
    for annotation in schema_keys(TrainConfig)[key]:
        assert get_origin(annotation) is Literal
        assert len(get_args(annotation)) == 1


@pytest.fixture(scope="session")
def paths(toy_dataset: Callable[..., Path], eager_decoder: Path) -> dict[str, Path]:
    return {
        "data": toy_dataset(num_aug=20),
        "other_data": toy_dataset(num_aug=20, seed=1),
        "eager_decoder": eager_decoder,
    }


@pytest.fixture(scope="session")
def hybrid_paths(paths: dict[str, Path], tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    models = tmp_path_factory.mktemp("models")
    return paths | {
        "llama": tiny_llama,
        "other_llama": save_tiny_llama(models / "other", seed=1),
        "chatty_llama": save_tiny_llama(models / "chatty", chat_template=CHAT_TEMPLATE),
        "latents": models / "latents",
    }


@pytest.fixture(scope="session")
def outcomes(
    shrunk_config: Callable[..., TrainConfig], ranks: Ranks, tmp_path_factory: pytest.TempPathFactory
) -> Outcomes:
    return Outcomes(shrunk_config, ranks, lambda: tmp_path_factory.mktemp("outcome"))


@pytest.mark.parametrize("key", CASES)
def test_option_acts(key: str, outcomes: Outcomes, request: pytest.FixtureRequest) -> None:
    case = CASES[key]
    paths = request.getfixturevalue("hybrid_paths" if case.config_name == HYBRID.config_name else "paths")
    name = f"+{key}" if key in ("project_name", "run_name") else key
    found = [
        outcomes.of(
            *(text.format(**paths) for text in ("data_paths=[{data}]", *case.given, f"{name}={value}")),
            config_name=case.config_name,
            kind=case.kind,
        )
        for value in case.values
    ]
    for one, other in itertools.combinations(found, 2):
        assert getattr(one, case.acts_on) != getattr(other, case.acts_on)
        for part in case.keeps:
            assert getattr(one, part) == getattr(other, part), part


def test_batches_come_from_as_many_workers_as_asked_for(
    train: Callable[..., Path],
    metrics_of: Callable[[Path], list[dict[str, float]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training and evaluation; and who makes a batch does not change it."""
    asked: list[int] = []

    class WatchedLoader(DataLoader):
        def __init__(self, *arguments: Any, **options: Any):
            asked.append(options["num_workers"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(dataset.batches, "DataLoader", WatchedLoader)
    runs = [metrics_of(train(*BASE, f"data_workers={workers}")) for workers in (0, 2)]
    assert asked == [0, 0, 2, 2]
    losses = [[line["train/loss"] for line in lines if "train/loss" in line] for lines in runs]
    assert losses[0] == losses[1]
    assert runs[0][-1]["eval/lm_loss"] == runs[1][-1]["eval/lm_loss"]
