"""Weights of other programs: one obvious state dict inside is read, the rest is named as what it is."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from checkpoints.checkpoint import CheckpointError, open_checkpoint
from checkpoints.cli import main
from checkpoints.published import load_pretrained_decoder, read_weights
from config.schema import TrainConfig, dump_config
from dataset.store import PuzzleStore
from models import create_model

State = dict[str, Tensor]
LIGHTNING: dict[str, Any] = {"epoch": 3, "global_step": 40, "pytorch-lightning_version": "2.5.0", "callbacks": {}}


@pytest.fixture
def model(shrunk_config: Callable[..., TrainConfig], store: PuzzleStore) -> tuple[nn.Module, dict[str, Any]]:
    """A decoder in an ETRM, and its `arch`."""
    config = shrunk_config("arch.hidden_size=32", "arch.num_heads=2", "arch.L_layers=1")
    return create_model(config.arch, store.metadata).inner, dump_config(config)["arch"]


def other_weights(decoder: nn.Module) -> State:
    """A published state dict of other values."""
    return {f"model.inner.{name}": value + 1 for name, value in decoder.state_dict().items()}


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda state: {**LIGHTNING, "state_dict": state}, "in 'state_dict' of a PyTorch Lightning checkpoint beside"),
        (lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, "in 'model' of"),
        (lambda state: {"model_state_dict": state, "loss": 0.5, "rng": torch.zeros(2)}, "in 'model_state_dict' of"),
        (
            lambda state: {"state_dict": state, "model": {"hidden_size": 32}},
            "in 'state_dict' of a checkpoint beside model",
        ),
    ],
    ids=["Lightning", "model", "model_state_dict", "a config beside"],
)
def test_the_one_state_dict_inside_is_read_and_named(
    model: tuple[nn.Module, dict[str, Any]],
    tmp_path: Path,
    wrap: Callable[[State], dict[str, Any]],
    words: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    decoder, arch = model
    expected = other_weights(decoder)
    torch.save(wrap(expected), tmp_path / "x.ckpt")
    main(["inspect", str(tmp_path / "x.ckpt")])
    assert words in capsys.readouterr().out
    with caplog.at_level(logging.INFO):
        seen = load_pretrained_decoder(decoder, str(tmp_path / "x.ckpt"), arch)
    assert words in caplog.text
    assert seen.unknown_origin
    assert all(torch.equal(value, expected[f"model.inner.{name}"]) for name, value in decoder.state_dict().items())


class Custom:
    """An object that no tensor is made of."""


def hrm(state: State) -> State:
    return state | {"model.inner.H_level.layers.0.mlp.down_proj.weight": torch.zeros(2, 2)}


FOREIGN: dict[str, tuple[Callable[[State], Any], list[str]]] = {
    "HRM": (hrm, ["an HRM", "H_level"]),
    "HRM inside": (lambda state: {"model": hrm(state)}, ["an HRM"]),
    "Hugging Face": (
        lambda state: {"model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)},
        ["Hugging Face", "text_model="],
    ),
    "several": (lambda state: {"model": state, "state_dict": state}, ["several state dicts, state_dict and model"]),
    "an optimizer": (lambda state: {"state": {}, "param_groups": []}, ["the state of an optimizer"]),
    "Lightning with objects": (
        lambda state: {**LIGHTNING, "state_dict": state, "hyper_parameters": Custom()},
        ["a file of PyTorch Lightning", "nothing of it was run"],
    ),
    "a fault inside": (
        lambda state: {"model": {**state, "version": 3}},
        ["in 'model' of a checkpoint: 'version' is a int"],
    ),
    "nothing known inside": (lambda state: {"net": state, "epoch": 3}, ["'net' is a dict", "'epoch' is a int"]),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_weights_of_another_program_are_named(
    model: tuple[nn.Module, dict[str, Any]], tmp_path: Path, kind: str
) -> None:
    make, words = FOREIGN[kind]
    torch.save(make(other_weights(model[0])), tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        read_weights(tmp_path / "x.pt")
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_safetensors_file_of_another_program_is_named(tmp_path: Path) -> None:
    save_file({"model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="Hugging Face"):
        read_weights(tmp_path / "model.safetensors")


@pytest.mark.parametrize(("name", "words"), [("x.gguf", "a file of llama.cpp"), ("x.json", "a JSON file")])
def test_a_file_of_another_format_is_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"{words}, no state dict"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_in_the_place_of_a_checkpoint_folder_are_named_with_their_program(tmp_path: Path, suffix: str) -> None:
    path, state = tmp_path / f"x{suffix}", {"inner.H_level.layers.0.mlp.down_proj.weight": torch.zeros(2, 2)}
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    with pytest.raises(CheckpointError, match=r"a file of HRM; .*load_pretrained_decoder=FILE"):
        open_checkpoint(path)
