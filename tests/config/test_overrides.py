"""What a user types stays what it is; where quotes are needed they are shown, and what is shown can be typed."""

import os
import shlex
from typing import Any

import pytest

from config.schema import ConfigError, dump_config, known_keys, load_config, validate_config
from config.suggestions import ADVICE, MEANINGS, meant

NAME = "cfg_pretrain_etrm_arc_agi_1"
WORDS = ["123456", "1e3", "12e4567", "nan", "inf", "0x10", "on", "off", "yes", "true", "False", "2024-01-01", "007"]
WORDS += ["1_000", "1.0", ".5", "-3", "+1", "12:30", "None"]


def refusal(*overrides: str, name: str = NAME) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(name, overrides)
    return str(caught.value)


def value_of(*overrides: str, key: str, name: str = NAME) -> Any:
    value = dump_config(load_config(name, overrides))
    for part in key.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("key", ["wandb_group", "resume", "load_pretrained_decoder", "checkpoint_best"])
def test_a_word_for_a_key_of_text_stays_as_typed(key: str, word: str) -> None:
    assert value_of(f"{key}={word}", key=key) == word
    assert value_of(f"{key}='{word}'", key=key) == word


@pytest.mark.parametrize("word", [word for word in WORDS if ":" not in word and not word.startswith(".")])
def test_names_stay_as_typed(word: str) -> None:
    config = load_config(NAME, [f"+run_name={word}", f"++project_name={word}"])
    assert (config.run_name, config.project_name) == (word, word)


def test_each_element_of_a_list_of_texts_stays_as_typed() -> None:
    assert value_of(f"wandb_tags=[{', '.join(WORDS)}]", key="wandb_tags") == WORDS
    assert value_of("wandb_tags=[1e3, 'a, b', \"2,\"]", key="wandb_tags") == ["1e3", "a, b", "2,"]
    assert value_of("data_paths=[1e3,2]", key="data_paths") == ["1e3", "2"]


def test_a_revision_and_a_model_of_the_hybrid_stay_as_typed() -> None:
    name = "cfg_pretrain_trm_hybrid"
    assert value_of("text_model=1e3", key="arch.text_model", name=name) == "1e3"
    assert value_of("text_model=a/b", "arch.revision=12e4567", key="arch.revision", name=name) == "12e4567"
    assert value_of("arch.latents=true", key="arch.latents", name=name) == "true"


@pytest.mark.parametrize(("key", "left_out"), [("wandb_group", None), ("load_pretrained_decoder", None)])
def test_null_still_stands_for_none(key: str, left_out: None) -> None:
    assert value_of(f"{key}=null", key=key) is left_out


@pytest.mark.parametrize("word", ["nan", "inf", "on", "0x10", "2024-01-01", "10k", "true", "None", "''"])
@pytest.mark.parametrize("key", ["lr", "epochs"])
def test_a_word_that_is_no_number_is_refused_in_words(key: str, word: str) -> None:
    message = refusal(f"{key}={word}")
    assert f"{key}={word.strip(chr(39))}: expected a" in message
    assert "number" in message


@pytest.mark.parametrize(("override", "meant"), [("epochs=1e3", 1000), ("seed=007", 7), ("eval_interval=1_000", 1000)])
def test_a_number_in_another_notation_is_the_number_meant(override: str, meant: int) -> None:
    assert value_of(override, key=override.split("=")[0]) == meant


@pytest.mark.parametrize("word", ["on", "true", "True"])
def test_on_and_off_are_words_however_they_are_typed(word: str) -> None:
    assert value_of(f"compile={word}", key="compile") == "on"
    assert validate_config({**dump_config(load_config(NAME)), "compile": False}).compile == "off"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data_paths=data/x", ["data/x"]),
        ("data_paths='a, b'", ["a, b"]),
        ("wandb_tags=first", ["first"]),
        ("wandb_tags=1", ["1"]),
        ("wandb_tags=null", []),
        ("resume_override=lr", ["lr"]),
        ("evaluators=arc@ARC", [{"name": "arc@ARC"}]),
        ("evaluators=[arc@ARC]", [{"name": "arc@ARC"}]),
        ("evaluators={name: arc@ARC}", [{"name": "arc@ARC"}]),
        ("evaluators=null", []),
    ],
)
def test_one_value_where_a_list_is_wanted_is_a_list_of_one(override: str, value: list[Any]) -> None:
    assert value_of(override, key=override.split("=")[0]) == value


def test_a_list_in_a_dumped_config_may_be_one_value_too() -> None:
    assert validate_config({**dump_config(load_config(NAME)), "data_paths": "data/x"}).data_paths == ("data/x",)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("+run_name=a,b", "a,b"),
        ("+run_name=a=b", "a=b"),
        ("wandb_group=a(b)", "a(b)"),
        ("wandb_group=it's", "it's"),
        ('wandb_group=5" disk', '5" disk'),
        ("wandb_group=a: b, c", "a: b, c"),
        ("wandb_group={a}", "{a}"),
        ("load_pretrained_decoder=runs/lr=0.1/best (1).pt", "runs/lr=0.1/best (1).pt"),
        ("resume=a,b", "a,b"),
        ("wandb_tags=[a=b,c]", ["a=b", "c"]),
        ("data_paths=data/a,data/b", ["data/a", "data/b"]),
        ("data_paths=[data (1),data/b]", ["data (1)", "data/b"]),
    ],
)
def test_where_quotes_are_needed_the_override_is_shown_as_it_is_typed_in_a_shell(override: str, value: Any) -> None:
    message = refusal(override)
    assert override in message
    (written,) = shlex.split(message.partition("write ")[2] or message.partition("is written ")[2])
    assert value_of(written, key=written.lstrip("+").split("=")[0]) == value


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["lr = 0.1"], "write lr=0.1"),
        (["lr: 0.1"], "write lr=0.1"),
        (["lr", "=", "0.1"], "write lr=VALUE"),
        (["+run_name=E0a", "second", "lr=1"], "write '+run_name=E0a second'"),
        (["+run_name=E0a", "second,", "lr=1"], """write '+run_name="E0a second,"'"""),
        (["lr=1,2"], "lines of a job file"),
        (["+seed=3"], "without '+'"),
    ],
)
def test_an_override_that_a_shell_has_split_or_that_is_mistyped_is_shown_as_it_is_right(
    overrides: list[str], remedy: str
) -> None:
    assert remedy in refusal(*overrides)


PATHS = ["resume=~/x", "load_pretrained_decoder=~/x", "data_paths=~/x", "data_paths=[~/x]", "data_paths='~/x'"]


@pytest.mark.parametrize("override", PATHS)
def test_the_home_folder_is_put_into_a_path(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    value = value_of(override, key=override.split("=")[0])
    assert value in ("/home/somebody/x", ["/home/somebody/x"])


@pytest.mark.parametrize("key", ["arch.text_cache", "arch.text_model"])
def test_the_home_folder_is_put_into_the_paths_of_the_hybrid(key: str) -> None:
    override = f"{key}=~/x"
    assert value_of(override, key=key, name="cfg_pretrain_trm_hybrid") == os.path.expanduser("~/x")


def test_a_path_may_have_letters_that_the_grammar_of_overrides_lacks() -> None:
    assert value_of("data_paths=[daten/größe,b#1]", key="data_paths") == ["daten/größe", "b#1"]


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("learning_rate", "lr"),
        ("LR", "lr"),
        ("warmup", "lr_warmup_steps"),
        ("batch_size", "global_batch_size"),
        ("wd", "weight_decay"),
        ("grad_clip", "grad_clip_norm"),
        ("max_grad_norm", "grad_clip_norm"),
        ("ema_decay", "ema_rate"),
        ("num_workers", "data_workers"),
        ("num_epochs", "epochs"),
        ("heads", "arch.num_heads"),
        ("arch.n_heads", "arch.num_heads"),
        ("hidden_dim", "arch.hidden_size"),
        ("arch.d_model", "arch.hidden_size"),
        ("num_layers", "arch.L_layers"),
        ("depth", "arch.L_layers"),
        ("name", "run_name"),
        ("data_dir", "data_paths"),
        ("dtype", "arch.forward_dtype"),
        ("halt_max_steps", "arch.halt_max_steps"),
        ("weight_decy", "weight_decay"),
    ],
)
def test_a_foreign_key_is_told_by_what_it_means(written: str, near: str) -> None:
    assert f"unknown key '{written}'; the nearest key is '{near}'" in refusal(f"+{written}=1")


@pytest.mark.parametrize("written", ["dropout", "new", "foo", "arch.bias", "label_smoothing", "x"])
def test_a_key_that_nothing_is_near_to_has_no_suggestion(written: str) -> None:
    assert refusal(f"+{written}=1").endswith(f"unknown key '{written}'")


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        ("output_dir", "runs/<project_name>"),
        ("max_steps", "'epochs'"),
        ("num_gpus", "torchrun"),
        ("wandb", "WANDB_MODE"),
    ],
)
def test_what_is_no_key_here_is_told_by_what_there_is_instead(written: str, remedy: str) -> None:
    assert remedy in refusal(f"+{written}=1")


def test_the_table_of_meanings_leads_to_keys_and_shadows_none() -> None:
    known = known_keys().known
    assert set(MEANINGS.values()) <= set(known)
    assert not (MEANINGS.keys() | ADVICE.keys()) & set(known)
    assert not MEANINGS.keys() & ADVICE.keys()
    assert all(meant(key, known) == key for key in known)
