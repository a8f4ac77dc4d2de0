"""Hostile overrides: nothing outside `config/` is read, no resolver runs, and each refusal is one short ConfigError."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from config import schema
from config.fields import MAX_INT
from config.schema import MAX_OVERRIDE_CHARS, ConfigError, dump_config, load_config, run_folder, validate_config
from tests.run_fixtures import new_run_folder
from training.loop import main

NAME = "cfg_pretrain_etrm_arc_agi_1"
VALUES = dump_config(load_config(NAME))
SECRET = "hunter2-of-the-environment"


def refusal(*overrides: str, name: str = NAME) -> str:
    """The message of the ConfigError; however large the input, the message is not."""
    with pytest.raises(ConfigError) as caught:
        load_config(name, overrides)
    message = str(caught.value)
    assert len(message) < 2 * MAX_OVERRIDE_CHARS
    return message


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Arguments of each call of the resolver `spy`; the environment holds a secret."""
    monkeypatch.setenv("SECRET_KEY", SECRET)
    seen: list[str] = []
    OmegaConf.register_new_resolver("spy", lambda text: seen.append(text) or "seen", replace=True)
    yield seen
    OmegaConf.clear_resolver("spy")


RESOLVERS = [
    "${oc.env:SECRET_KEY}",
    "'${oc.env:SECRET_KEY}'",
    "'x/${oc.env:SECRET_KEY}'",
    "'${ oc.env : SECRET_KEY }'",
    "${oc.env:SECRET_KEY,default}",
    "${oc.decode:'1'}",
    "'${oc.decode:${oc.env:SECRET_KEY}}'",
    "${oc.dict.keys:arch}",
    "${hydra:runtime.cwd}",
    "${spy:x}",
    "'${nosuch:x}'",
    "'${${project_name}:SECRET_KEY}'",
    "'${oc.${project_name}:SECRET_KEY}'",
    "'${arch.${spy:x}}'",
    "'${beta1}${spy:x}'",
    r"$\{oc.env\:SECRET_KEY\}",
    r"str($\{spy\:x\})",
    r"'\\${oc.env:SECRET_KEY}'",
]


@pytest.mark.parametrize("value", RESOLVERS)
@pytest.mark.parametrize("override", ["load_pretrained_decoder={}", "+run_name={}", "data_paths=[{}]"])
def test_an_override_with_a_resolver_is_refused_before_it_runs(calls: list[str], override: str, value: str) -> None:
    message = refusal("+project_name=env", override.format(value))
    assert override.lstrip("+").split("=")[0] in message
    assert "is not resolved" in message
    assert "${arch.num_heads}" in message
    assert "WANDB_API_KEY" in message
    assert SECRET not in message
    assert not calls


@pytest.mark.parametrize(
    "override",
    [
        "arch=${spy:x}",
        "arch.loss={loss_type: '${spy:x}'}",
        "arch={loss: {loss_type: '${spy:x}'}}",
        "lr={a:${spy:x}}",
        "evaluators=[{name: '${spy:x}'}]",
        "+new_key=${spy:x}",
        "++lr=${spy:x}",
        "~lr=${spy:x}",
        "${spy:x}=1",
        "+${spy:x}=1",
        "arch.${spy:x}=1",
        "lr={'${spy:x}': 1}",
    ],
)
def test_no_place_of_an_override_runs_a_resolver(calls: list[str], override: str) -> None:
    refusal(override)
    assert not calls


@pytest.mark.parametrize(
    "second", ["~load_pretrained_decoder", "+load_pretrained_decoder=x", "~load_pretrained_decoder=x"]
)
def test_a_second_override_of_the_key_does_not_run_the_resolver_either(calls: list[str], second: str) -> None:
    """Hydra looks at the value before it deletes it or refuses to add another."""
    refusal("load_pretrained_decoder=${spy:x}", second)
    assert not calls


def test_deleting_by_value_does_not_tell_the_value(calls: list[str]) -> None:
    message = refusal("load_pretrained_decoder=x", "~load_pretrained_decoder=guess")
    assert "write ~load_pretrained_decoder" in message
    assert not calls


def test_a_reference_to_another_key_is_resolved() -> None:
    config = load_config(NAME, ["lr=${arch.loss.kl_weight}"])
    assert config.lr == config.arch.loss.kl_weight
    assert load_config(NAME, ["+run_name='seed ${seed}'", "seed=7"]).run_name == "seed 7"


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the config folder, which `load_config` reads."""
    folder = Path(shutil.copytree(schema.CONFIG_DIR, tmp_path / "config"))
    monkeypatch.setattr(schema, "CONFIG_DIR", folder)
    return folder


@pytest.mark.parametrize("overrides", [[], ["lr=1"], ["~lr"]], ids=str)
def test_a_config_file_with_a_resolver_is_refused_too(
    own_configs: Path, calls: list[str], overrides: list[str]
) -> None:
    path = own_configs / f"{NAME}.yaml"
    content = yaml.safe_load(path.read_text())
    content["data_paths"] = ["${oc.env:SECRET_KEY}", "${spy:x}"]
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    message = refusal(*overrides)
    assert "data_paths.0=${oc.env:SECRET_KEY}: is not resolved" in message
    assert SECRET not in message
    assert not calls


def test_a_dumped_config_is_taken_literally(calls: list[str]) -> None:
    """As it comes from a checkpoint, which somebody else may have written."""
    values = {**VALUES, "load_pretrained_decoder": "${spy:x}"}
    assert validate_config(values).load_pretrained_decoder == "${spy:x}"
    assert not calls


def test_the_environment_does_not_reach_what_is_printed_or_written(
    calls: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(NAME, ["--cfg", "load_pretrained_decoder=${oc.env:SECRET_KEY}"])
    assert ended.value.code == 2
    main(NAME, ["--cfg", "load_pretrained_decoder=somewhere"])
    printed = capsys.readouterr()
    assert "load_pretrained_decoder: somewhere" in printed.out
    new_run_folder(load_config(NAME))
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not [text for text in (printed.out, printed.err, *written) if SECRET in text]


@pytest.mark.parametrize(
    "override",
    [
        "arch=../../etc",
        "arch=..",
        "arch=/abs",
        "arch='etrm\n'",
        "arch='etrm\0'",
        "arch=[etrm,trm]",
        "arch=null",
        "+arch=../etrm",
        "++arch=../etrm",
        "~arch=etrm",
        "~arch",
        "arch=base",
        "arch@foo=trm",
        "+arch@foo=trm",
        "+arch@_global_=trm",
        "+arch@hydra=etrm",
        "+arch@arch.loss=trm",
        "+arch@data_paths=../../x",
        "+arch/..=cfg_demo",
        "+arch/x@_global_=y",
        "+/arch=trm",
        "+../config=cfg_demo",
        "+foo@bar=1",
        "hydra.run.dir=/tmp/x",
        "hydra.searchpath=[file:///tmp]",
        "++hydra.searchpath=[file:///tmp]",
        "hydra/job_logging=none",
        "+hydra/launcher=x",
        "+hydra.x=1",
        "+hydra@foo=x",
        "+include=x",
        "+defaults=[x]",
        "defaults=[../x]",
        "+cfg_demo=x",
        "+_target_=os.system",
        "+arch._target_=os.system",
        "arch.name=os@system",
        "arch.name=../models/x@Y",
        "arch.name=recursive_reasoning.trm@__builtins__",
        "arch.loss.name=os@system",
        "evaluators=[{name: os@system}]",
        "lr=$(id)",
        "lr=`id`",
        "lr=\ud800",
        "--config-dir=/tmp",
        "--multirun",
        "@lr=1",
        "",
    ],
)
def test_what_would_leave_the_config_folder_or_the_registry_is_refused(override: str) -> None:
    refusal(override)


@pytest.mark.parametrize("key", ["arch@foo", "+arch@_global_", "+arch@hydra", "+arch@arch.loss", "+foo@bar", "~arch@x"])
def test_a_part_cannot_be_put_elsewhere(key: str) -> None:
    assert "a key is a path such as arch.canvas, without '@' or '/'" in refusal(f"{key}=trm")


def test_a_group_choice_outside_the_folder_is_not_read(own_configs: Path) -> None:
    shutil.copy(own_configs / "arch" / "etrm.yaml", own_configs.parent / "outside.yaml")
    for choice in ("../../outside", str(own_configs.parent / "outside")):
        assert "arch is one of etrm, etrm_evolve, etrm_read, etrmtrm, trm" in refusal(f"arch={choice}")


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/b", "..", ".", "cfg_demo\n", "cfg_demo\0", "arch/etrm", "x" * 10_000]
)
def test_a_config_name_outside_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--config-name"):
        load_config(name)


NAMES = {
    "parent": "../x",
    "parent alone": "..",
    "dots inside": "a..b",
    "absolute": "/x",
    "folder": "a/b",
    "backslash": "a\\\\b",
    "hidden": ".x",
    "dot": ".",
    "NUL": "a\0b",
    "newline": "a\nb",
    "newline at the end": "a\n",
    "escape sequence": "a\x1b[31m",
    "letters that look alike": "а",
    "surrogate": "\ud800",
    "empty": "",
    "space": " ",
    "space at the end": "a ",
    "129 characters": "x" * 129,
    "3,000 characters": "x" * 3000,
}


@pytest.mark.parametrize("key", ["run_name", "project_name"])
@pytest.mark.parametrize("kind", NAMES)
def test_a_name_that_is_no_plain_folder_name_is_refused(key: str, kind: str) -> None:
    assert f"{key}=" in refusal(f"+{key}='{NAMES[kind]}'")
    with pytest.raises(ConfigError, match=key):
        validate_config({**VALUES, key: NAMES[kind]})


def test_the_longest_name_is_a_folder_in_runs(tmp_path: Path) -> None:
    config = load_config(NAME, [f"+run_name={'x' * 128}", f"+project_name={'y' * 128}"])
    for _ in range(2):  # the second moves the first aside, under a longer name
        new_run_folder(config)
    assert run_folder(config).resolve().is_relative_to(tmp_path / "runs")


OVERSIZED = {
    "a long value": "load_pretrained_decoder=" + "x" * 1_000_000,
    "a long list": f"data_paths=[{','.join(['x'] * 5000)}]",
    "a long key": "x" * 1000 + "=1",
    "a long key of many parts": ".".join(["x"] * 1000) + "=1",
    "an integer of 5,000 digits": f"seed={'9' * 5000}",
    "an integer of 3,900 digits": f"seed={'9' * 3900}",
    "an integer over 64 bits": f"seed={MAX_INT + 1}",
    "as many digits in quotes": f"epochs='{'9' * 3900}'",
    "brackets": f"data_paths={'[' * 100}x{']' * 100}",
    "more brackets": f"data_paths={'[' * 1900}x{']' * 1900}",
    "open brackets": "data_paths=" + "[" * 3900,
    "braces": f"data_paths={'{a:' * 300}1{'}' * 300}",
    "calls": f"lr={'str(' * 700}1{')' * 700}",
    "open interpolations": "load_pretrained_decoder=" + "${" * 1900,
    "interpolations": f"load_pretrained_decoder='{'${a.' * 300}b{'}' * 300}'",
}


@pytest.mark.parametrize("kind", OVERSIZED)
def test_an_oversized_or_deeply_nested_override_is_refused(kind: str) -> None:
    refusal(OVERSIZED[kind])


def test_the_largest_integer_is_accepted() -> None:
    assert load_config(NAME, [f"seed={MAX_INT}"]).seed == MAX_INT


@pytest.mark.parametrize("override", ["load_pretrained_decoder='a\0b'", "data_paths=['a\0b']", "data_paths=['']"])
def test_a_path_that_no_file_can_have_is_refused(override: str) -> None:
    assert override.split("=")[0] in refusal(override)


def test_values_of_many_shared_references_are_refused_at_once() -> None:
    """As a YAML file with aliases gives them: small in memory, beyond any memory when written out."""
    bomb: Any = ["x"]
    for _ in range(60):
        bomb = [bomb] * 10
    for key in ("lr", "data_paths", "run_name", "load_pretrained_decoder", "arch", "evaluators", "other"):
        with pytest.raises(ConfigError, match=key) as caught:
            validate_config({**VALUES, key: bomb})
        assert len(str(caught.value)) < 2000


def test_nan_in_a_dumped_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="lr=nan"):
        validate_config({**VALUES, "lr": float("nan")})
