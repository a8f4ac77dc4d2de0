"""Config files of the user's, outside the repository: what they may name, how their words are read, what is refused."""

import os
from pathlib import Path

import pytest
import yaml

from config.schema import ConfigError, dump_config, load_config

NAME = "cfg_pretrain_etrm_arc_agi_1"
WORDS = ("123456", "1e3", "12e4567", "nan", "0x10", "on", "yes", "true", "2024-01-01", "007", "1_000", "1.0", "12:30")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own" / "arch").mkdir(parents=True)
    (tmp_path / "own" / "small.yaml").write_text("defaults: [cfg_demo, _self_]\nlr: 0.25\n")
    return tmp_path / "own"


def write(folder: Path, text: str) -> str:
    (folder / "other.yaml").write_text(text)
    return "other"


def test_a_folder_of_the_users_comes_first_and_may_name_what_is_shipped(folder: Path) -> None:
    (folder / "arch" / "wide.yaml").write_text("defaults: [etrm, _self_]\nhidden_size: 1024\n")
    name = write(folder, f"defaults: [{NAME}, override arch: wide, _self_]\n")
    assert load_config("small", (), folder).lr == 0.25
    assert load_config("small.yaml", ["arch=trm"], folder).arch.name == "recursive_reasoning.trm@TRM"
    assert load_config(name, (), folder).arch.hidden_size == 1024
    assert load_config(NAME, ["arch=wide"], folder).arch.hidden_size == 1024
    assert load_config("cfg_demo", (), folder) == load_config("cfg_demo")
    with pytest.raises(ConfigError, match="etrmtrm, trm, trm_hybrid, wide"):
        load_config(NAME, ["arch=x"], folder)


def test_texts_in_a_users_file_stay_as_typed(folder: Path) -> None:
    tags = ", ".join(WORDS)
    name = write(
        folder,
        f"defaults: [cfg_demo, _self_]\nrun_name: 1e3\nwandb_group: 2024-01-01\nwandb_tags: [{tags}]\n"
        "compile: on\nresume: 0x10\ndata_paths: ~/x\n",
    )
    config = load_config(name, (), folder)
    assert (config.run_name, config.wandb_group, config.compile, config.resume) == ("1e3", "2024-01-01", "on", "0x10")
    assert config.wandb_tags == WORDS
    assert config.data_paths == (os.path.expanduser("~/x"),)
    assert load_config(name, ["run_name=2e3"], folder).run_name == "2e3"


def test_the_config_of_a_run_is_a_config_file(folder: Path) -> None:
    config = load_config("cfg_demo", ["+run_name=1e3", "lr=0.5"])
    name = write(folder, yaml.safe_dump(dump_config(config)))
    assert load_config(name, (), folder) == config
    assert load_config(name, ["seed=3", "run_name=other"], folder).run_name == "other"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: [1\n", "is not YAML"),
        ("lr: 1\nlr: 2\n", "duplicate key lr"),
        ("- lr\n", "keys and values"),
        ("lr: 1\n", "begins with 'defaults: [cfg_pretrain_etrm_arc_agi_1, _self_]'"),
        ("defaults: [cfg_demo]\nlr: 1\n", "_self_"),
        ("defaults: [other, _self_]\n", "this file itself"),
        ("defaults: [nothing, _self_]\n", "the defaults of 'other' name 'nothing'"),
        ("defaults: [cfg_demo, _self_]\nhydra: {job: {name: x}}\n", "'hydra' section changes nothing"),
        ("defaults: [cfg_demo, _self_]\nlearning_rate: 1\n", "the nearest key is 'lr'"),
        ("defaults: [cfg_demo, _self_]\nlr: fast\n", "lr=fast: expected a number"),
        ("defaults: [cfg_demo, _self_]\nlr: ${oc.env:HOME}\n", "is not resolved"),
        ("defaults: [_self_, cfg_demo]\nrun_name: 1e3\n", "this is a number in YAML: write it in quotes"),
    ],
)
def test_a_fault_of_a_users_file_is_named(folder: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), (), folder)
    assert said in str(caught.value)
    assert "other" in str(caught.value) or "lr=" in str(caught.value)


def test_a_folder_or_name_that_there_is_not_is_named_with_what_would_be_right(folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"there is no folder {folder / 'none'}"):
        load_config("small", (), folder / "none")
    with pytest.raises(ConfigError, match=f"is a file: write --config-dir {folder} --config-name small"):
        load_config("small", (), folder / "small.yaml")
    with pytest.raises(ConfigError, match=f"named by --config-dir {folder} --config-name small"):
        load_config(str(folder / "small.yaml"))
    with pytest.raises(ConfigError, match="'large' is not one of small, cfg_"):
        load_config("large", (), folder)
