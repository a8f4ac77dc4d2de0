"""The schema: what composes, what is refused, and what the refusal says."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from config.data_schema import KnownRulesData, RearcData
from config.schema import CONFIG_DIR, ConfigError, TrainConfig, config_names, dump_config, load_config
from config.shorthands import SHORTHANDS
from dataset.whereabouts import build_command

NAME = "cfg_pretrain_etrm_arc_agi_1"
ROOT = Path(__file__).parents[2]


def refusal(*overrides: str, name: str = NAME) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(name, overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", config_names())
def test_every_run_config_composes(name: str) -> None:
    config = load_config(name)
    assert load_config(f"{name}.yaml") == config
    assert TrainConfig.model_validate(dump_config(config)) == config
    assert TrainConfig.model_validate(yaml.safe_load(yaml.safe_dump(dump_config(config)))) == config


def test_the_names_are_those_of_the_files() -> None:
    assert NAME in config_names()
    assert {f"{name}.yaml" for name in config_names()} == {path.name for path in CONFIG_DIR.glob("cfg_*.yaml")}


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.rglob("*.yaml")), ids=lambda path: path.name)
def test_project_and_run_name_stand_in_no_config_file(path: Path) -> None:
    """So that `+project_name=...` works with every config."""
    assert not {"project_name", "run_name"} & set(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("name", config_names())
def test_project_and_run_name_can_be_added(name: str) -> None:
    config = load_config(name, ["+project_name=etrm-semi-final", '+run_name="E0a ETRM, 0.5"'])
    assert (config.project_name, config.run_name) == ("etrm-semi-final", "E0a ETRM, 0.5")


@pytest.mark.parametrize("key", ["project_name", "run_name"])
def test_a_name_without_plus_tells_to_write_it(key: str) -> None:
    assert f"+{key}=" in refusal(f"{key}=x")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("arch.encoder_num_layer=3", "arch.encoder_num_layers"),
        ("arch.hiden_size=64", "arch.hidden_size"),
        ("+arch.loss.kl_weigth=1", "arch.loss.kl_weight"),
        ("grad_clip=1.0", "grad_clip_norm"),
        ("+max_train_group=3", "max_train_groups"),
        ("halt_max_steps=3", "arch.halt_max_steps"),
    ],
)
def test_an_unknown_key_names_itself_and_the_nearest(written: str, meant: str) -> None:
    message = refusal(written)
    assert f"unknown key '{written.lstrip('+').split('=')[0]}'" in message
    assert f"'{meant}'" in message


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("arch.encoder_pooling_method=max", ["mean", "attention", "weighted"]),
        ("arch.encoder_norm_style=both", ["post", "pre"]),
        ("arch.canvas=half", ["task", "full"]),
        ("arch.forward_dtype=float16", ["auto", "bfloat16", "float32"]),
        ("arch.loss.loss_type=mse", ["stablemax_cross_entropy", "softmax_cross_entropy"]),
        ("arch.encoder_type=hybrid", ["standard"]),
        ("arch.H_layers=2", ["0"]),
        ("query_sampling=all", ["test", "leave_one_out"]),
        ("device=tpu", ["auto", "cpu", "cuda"]),
        ("evaluators=[{name: arc@Other}]", ["arc@ARC"]),
        ("arch.name=os@system", ["recursive_reasoning.etrm@TRMWithEncoder"]),
    ],
)
def test_a_wrong_choice_names_its_key_and_the_choices(override: str, allowed: list[str]) -> None:
    message = refusal(override)
    assert override.split("=")[0] in message
    assert all(choice in message for choice in allowed)


@pytest.mark.parametrize(
    "override",
    [
        "lr=abc",
        "lr=nan",
        "lr=inf",
        "lr=true",
        "lr_min_ratio=nan",
        "lr_decay_share=0",
        "beta1=1",
        "ema_rate=1",
        "ema=maybe",
        "epochs=0",
        "epochs=1.5",
        "epochs=true",
        "seed=-1",
        "max_train_groups=0",
        "data_paths=[]",
        "arch.halt_max_steps=0",
        "arch.halt_exploration_prob=1.1",
        "arch.halt_exploration_prob=nan",
        "arch.encoder_layer_scale_init=0",
        "+run_name=a/b",
        "+run_name=../outside",
        "+run_name=.hidden",
        '+run_name=""',
        "+project_name=../outside",
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(override: str) -> None:
    key = override.lstrip("+").split("=")[0]
    assert key in refusal(override)


@pytest.mark.parametrize(
    "override",
    ["lr=[1", "lr=1,2", "lr", "lr=${nothing}", "=1", "load_pretrained_decoder=a=b", "lr={"],
)
def test_an_override_that_cannot_be_read_is_shown_in_one_line(override: str) -> None:
    message = refusal(override)
    assert override in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("override", ["arch=../cfg_demo", "arch=/etc/passwd", "arch=nosuch", "+arch=../../x"])
def test_a_config_group_choice_stays_in_its_folder(override: str) -> None:
    assert override.lstrip("+").split("=")[1] in refusal(override)


@pytest.mark.parametrize("name", ["", "nosuch", "../config/cfg_demo", "/etc/passwd", "arch/etrm", "schema"])
def test_an_unknown_config_name_lists_those_there_are(name: str) -> None:
    message = refusal(name=name)
    assert all(known in message for known in config_names())


def test_a_deleted_key_is_missing() -> None:
    assert "missing key 'lr'" in refusal("~lr")


@pytest.mark.parametrize(
    ("overrides", "unused"),
    [
        (["arch.loss.kl_weight=1"], "arch.loss.kl_weight"),
        (["++arch.loss.kl_weight=1"], "arch.loss.kl_weight"),
        (["arch.loss={kl_weight: 1}"], "arch.loss.kl_weight"),
        (["ema=false", "ema_rate=0.9"], "ema_rate"),
        (["ema_rate=0.9", "ema=false"], "ema_rate"),
        (["freeze_encoder=true", "encoder_lr_scale=0.5"], "encoder_lr_scale"),
        (["muon_lr=1e-3"], "muon_lr"),
        (["lr_decay_share=0.5"], "lr_decay_share"),
        (["arch.halt_max_steps=1", "arch.halt_exploration_prob=0.3"], "arch.halt_exploration_prob"),
        (["arch.context_tokens=two"], "arch.context_tokens"),
        (["arch.encoder_type=in_context", "arch.encoder_num_layers=1"], "arch.encoder_num_layers"),
        (["arch.encoder_type=in_context", "arch.encoder_set_layers=2"], "arch.encoder_set_layers"),
        (["arch.encoder_type=in_context", "arch.encoder_aligned_cells=true"], "arch.encoder_aligned_cells"),
        (
            ["arch.encoder_type=in_context", "arch.pos_encodings=rope2d", "arch.puzzle_emb_len=8"],
            "arch.puzzle_emb_len",
        ),
        (["arch.query_as_context=true"], "arch.query_as_context"),
        (["arch.mlp_t=true", "arch.canvas=full", "arch.qk_norm_gain=true"], "arch.qk_norm_gain"),
        (["arch.mlp_t=true", "arch.canvas=full", "arch.grid_conv=true"], "arch.grid_conv"),
        (["hydra.run.dir=elsewhere"], "hydra.run.dir"),
    ],
)
def test_overriding_an_option_that_changes_nothing_is_refused(overrides: list[str], unused: str) -> None:
    message = refusal(*overrides)
    assert unused in message


@pytest.mark.parametrize(
    ("overrides", "unused"),
    [
        (["arch.recurrent_encoder_type=in_context", "arch.encoder_num_layers=1"], "arch.encoder_num_layers"),
        (["arch.recurrent_encoder_type=in_context", "arch.encoder_memory=cells"], "arch.encoder_memory"),
        (["arch.recurrent_encoder_type=in_context", "arch.encoder_h_cycles=2"], "arch.encoder_h_cycles"),
        (["arch.encoder_memory=cells", "arch.encoder_pooling_method=attention"], "arch.encoder_pooling_method"),
        (["arch.context_tokens=two"], "arch.context_tokens"),
    ],
)
def test_a_recurrent_encoder_refuses_what_it_does_not_read(overrides: list[str], unused: str) -> None:
    assert unused in refusal(*overrides, name="cfg_pretrain_etrmtrm_arc_agi_1")


def test_no_more_cycles_have_a_gradient_than_there_are() -> None:
    assert "arch.grad_cycles=4 is more than the arch.H_cycles=3" in refusal("arch.grad_cycles=4")


@pytest.mark.parametrize(
    "overrides", [[], ["ema=false"], ["freeze_encoder=true"], ["arch.halt_max_steps=1"]], ids=" ".join
)
def test_a_config_file_may_hold_options_that_are_not_used(overrides: list[str]) -> None:
    assert load_config(NAME, overrides).unused_keys()


def test_options_are_used_again_when_their_condition_is_given_back() -> None:
    config = load_config(NAME, ["ema=true", "ema_rate=0.9", "encoder_lr_scale=0.5", "arch.halt_exploration_prob=0.3"])
    assert (config.ema_rate, config.encoder_lr_scale, config.arch.halt_exploration_prob) == (0.9, 0.5, 0.3)
    assert load_config(NAME, ["optimizer=muon", "muon_lr=1e-3"]).muon_lr == 1e-3


@pytest.mark.parametrize("overrides", [["arch.hidden_size=60"], ["arch.num_heads=5"], ["arch.hidden_size=8"]])
def test_a_hidden_size_that_the_heads_cannot_share_names_both_keys(overrides: list[str]) -> None:
    message = refusal(*overrides)
    assert "arch.hidden_size" in message
    assert "arch.num_heads" in message


def test_mixing_over_positions_needs_the_full_canvas() -> None:
    message = refusal("arch.mlp_t=true")
    assert "arch.mlp_t" in message
    assert "arch.canvas=full" in message
    assert load_config(NAME, ["arch.mlp_t=true", "arch.canvas=full"]).arch.mlp_t


@pytest.mark.parametrize("name", config_names())
def test_the_default_project_is_that_of_the_system(name: str) -> None:
    config = load_config(name)
    assert config.project_name == ("arc-trm-hybrid" if "trm_hybrid" in config.arch.name else "etrm-arc")


@cache
def composed(name: str) -> dict[str, Any]:
    return dump_config(load_config(name))


NAMES_ITS_SOURCE = [
    *("cfg_known_rules", "cfg_known_rules_recurrent", "cfg_arc_base_rules"),
    *("cfg_permutations", "cfg_permutations_recurrent", "cfg_dihedral", "cfg_spatial_rules"),
    *("cfg_first_lesson", "cfg_first_spatial_lesson"),
    *("cfg_mixture", "cfg_arc_base"),
    "cfg_rearc",
]
HYBRIDS = [name for name in config_names() if "trm_hybrid" in name]


@pytest.mark.parametrize("name", HYBRIDS)
@pytest.mark.parametrize("short", SHORTHANDS)
def test_each_override_of_the_hybrid_sets_its_key_and_nothing_else(name: str, short: str) -> None:
    value = "some/model" if short == "text_model" else "48"
    changed = dump_config(load_config(name, [f"{short}={value}"]))
    assert dump_config(load_config(name, [f"{SHORTHANDS[short]}={value}"])) == changed != composed(name)


def test_an_override_of_the_hybrid_and_its_key_at_once_are_refused_and_a_fault_names_both() -> None:
    message = refusal("batch_size=4", "global_batch_size=8", name=HYBRIDS[0])
    assert "batch_size and global_batch_size are both overridden" in message
    message = refusal("num_epochs=0", name=HYBRIDS[0])
    assert "epochs=0" in message
    assert "num_epochs stands for epochs" in message
    assert "unknown key 'num_epochs'" in refusal("num_epochs=3")


@pytest.mark.parametrize("override", ["freeze_decoder_steps=3", "load_pretrained_decoder=some/run"])
def test_the_hybrid_refuses_what_its_decoder_cannot_do(override: str) -> None:
    assert "not for the TRM hybrid" in refusal(override, name=HYBRIDS[0])


@pytest.mark.parametrize(
    "override", ["arch.revision=main", "arch.local_files_only=true", "freeze_encoder=true", "encoder_lr_scale=0.5"]
)
def test_an_option_that_the_embedded_model_does_not_read_is_refused(override: str) -> None:
    assert "would change nothing" in refusal(override, name=HYBRIDS[0])


def test_freezing_everything_is_refused() -> None:
    message = refusal("freeze_encoder=true", "freeze_decoder_steps=5")
    assert "freeze_encoder" in message
    assert "freeze_decoder_steps" in message


def test_the_last_of_two_overrides_wins() -> None:
    assert load_config(NAME, ["lr=1", "lr=2"]).lr == 2


def test_several_faults_are_all_named() -> None:
    message = refusal("lr=abc", "epochs=0", "arch.canvas=half")
    assert all(key in message for key in ("lr=abc", "epochs=0", "arch.canvas=half"))


def fields_of(config: BaseModel) -> list[tuple[BaseModel, str, Any]]:
    found = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        found += [(config, name, value), *(fields_of(value) if isinstance(value, BaseModel) else [])]
    return found


def test_a_config_cannot_be_changed() -> None:
    config = load_config(NAME)
    for section, name, value in fields_of(config):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, value)
    with pytest.raises(ValidationError, match="frozen"):
        config.arch.new_key = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_no_section_takes_an_unknown_key() -> None:
    values = dump_config(load_config(NAME))
    insert: list[Callable[[dict[str, Any]], Any]] = [
        lambda v: v.update(other=1),
        lambda v: v["arch"].update(other=1),
        lambda v: v["arch"]["loss"].update(other=1),
        lambda v: v["evaluators"][0].update(other=1),
    ]
    for change in insert:
        changed = dump_config(load_config(NAME))
        change(changed)
        assert changed != values
        with pytest.raises(ValidationError, match="other"):
            TrainConfig.model_validate(changed)


def test_composing_does_not_look_at_files(tmp_path: Path) -> None:
    """Job lines validate without the files that they name, from any directory."""
    config = load_config(NAME, ["data_paths=[no/such/data]", "load_pretrained_decoder=no/such/run"])
    assert config.load_pretrained_decoder == "no/such/run"
    assert not list(tmp_path.iterdir())


def test_loading_twice_gives_equal_configs_and_leaves_no_global_state() -> None:
    first = load_config(NAME, ["lr=1e-3"])
    refusal("lr=abc")
    assert load_config(NAME, ["lr=1e-3"]) == first
    assert load_config(NAME) != first


def test_the_schema_composes_in_a_fresh_process(tmp_path: Path) -> None:
    """Without torch: job files are validated in a second, so the schema must not import the models."""
    code = f"from config.schema import load_config; import sys; load_config({NAME!r}); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("override", ["+batch_size=4", "++num_epochs=3", "+hidden_size=7"])
def test_a_shorthand_of_another_system_is_an_unknown_key(override: str) -> None:
    assert f"unknown key '{override.lstrip('+').split('=')[0]}'" in refusal(override)


@pytest.mark.parametrize(
    "name", [name for name in NAMES_ITS_SOURCE if "arc_base" not in name and "mixture" not in name]
)
def test_what_is_trained_on_is_what_is_asked(name: str) -> None:
    """A source that makes its tasks is evaluated on held-out ones of its own kind, not on the puzzles of the demo."""
    config = load_config(name)
    (path,) = config.data_paths
    built = build_command(Path(path)).split()
    if isinstance(config.data, RearcData):
        assert config.data_paths == config.data.data_paths
        return
    assert isinstance(config.data, KnownRulesData)
    assert built[2] == "dataset.build_known_rules"
    flags = " ".join(built).split(" --")[1:]
    asked = {flag.split()[0]: tuple(flag.split()[1:]) for flag in flags}
    assert set(asked.get("families", config.data.families)) == set(config.data.families)
    assert asked["sides"] == tuple(map(str, config.data.sides))
    assert asked.get("colors", ("9",)) == (str(config.data.colors),)
    assert asked.get("demos", ("3", "4")) == tuple(map(str, config.data.demos))
    assert ("distinct" in asked) == config.data.distinct


def test_a_config_may_name_its_source() -> None:
    assert [load_config(name).data.name for name in NAMES_ITS_SOURCE] == [
        *["known_rules"] * 9,
        *["mixture"] * 2,
        "rearc",
    ]


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        (
            "cfg_known_rules",
            "data.curriculum=[{families:[permutation],levels:[{}]},{families:[dihedral_permutation],"
            "levels:[{},{sides:[2,3],demos:[1,1],distinct:true}]}]",
            "data.curriculum.1.levels.1: no well-posed task of the family 'dihedral_permutation'",
        ),
        ("cfg_known_rules", "max_demos=1", "max_demos=1 would show fewer demonstrations in evaluation"),
        (
            "cfg_mixture",
            "data.sources=[{share:4,source:{name:known_rules,families:[tile]}},"
            "{share:4,source:{name:known_rules,families:[swap,tile]}}]",
            "two sources of known rules have the family 'tile'",
        ),
    ],
)
def test_known_rules_that_cannot_be_drawn_shown_or_told_apart_are_refused(name: str, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(name, [override])


@pytest.mark.parametrize("name", [name for name in config_names() if name not in NAMES_ITS_SOURCE])
def test_the_source_of_batches_is_the_one_that_the_arch_reads(name: str) -> None:
    config = load_config(name)
    source = "puzzle_id" if "trm@TRM" in config.arch.name and "etrm" not in config.arch.name else "fewshot"
    source = "text" if name in HYBRIDS else source
    assert config.data.name == source
    assert load_config(name, [f"data={source}"]) == load_config(name, [f"data.name={source}"]) == config


@pytest.mark.parametrize("written", [None, {}, {"name": "auto"}], ids=str)
@pytest.mark.parametrize("name", [name for name in config_names() if name not in NAMES_ITS_SOURCE])
def test_a_config_that_names_no_source_takes_the_default(name: str, written: dict[str, str] | None) -> None:
    """So that configs of runs from before there were sources can be read."""
    config = load_config(name)
    values = dump_config(config)
    del values["data"]
    assert TrainConfig.model_validate(values if written is None else {**values, "data": written}) == config


@pytest.mark.parametrize(
    ("arch", "source", "reads"),
    [
        ("etrm", "puzzle_id", "demonstrations: data.name=auto takes fewshot"),
        ("etrm", "text", "demonstrations: data.name=auto takes fewshot"),
        ("etrmtrm", "puzzle_id", "demonstrations: data.name=auto takes fewshot"),
        ("trm", "fewshot", "puzzle identifiers: data.name=auto takes puzzle_id"),
        ("trm", "text", "puzzle identifiers: data.name=auto takes puzzle_id"),
    ],
)
@pytest.mark.parametrize("key", ["data", "data.name"])
def test_a_source_for_another_system_is_refused(arch: str, source: str, reads: str, key: str) -> None:
    message = refusal(f"arch={arch}", f"{key}={source}")
    assert f"data.name={source} gives" in message
    assert reads in message


def test_the_hybrid_trains_on_texts_alone() -> None:
    assert "texts: data.name=auto takes text" in refusal("data=fewshot", name=HYBRIDS[0])


@pytest.mark.parametrize("override", ["data.name=other", "data=other", "data={name: text}", "data=[text]", "+data.x=1"])
def test_an_unknown_source_is_refused_by_its_key(override: str) -> None:
    message = refusal(override)
    assert "data" in message
    if "x" not in override.split("=")[0]:
        assert "fewshot" in message


def test_two_evaluators_are_refused() -> None:
    message = refusal("evaluators=[{name: arc@ARC},{name: arc@ARC}]")
    assert "evaluators" in message
    assert "one evaluator or none" in message
    assert load_config(NAME).evaluator == "arc@ARC"
    assert load_config(NAME, ["evaluators=[]"]).evaluator is None
