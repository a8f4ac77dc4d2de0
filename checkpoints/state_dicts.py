"""State-dict files: reading them without running anything, and sorting their tensors into the parts of a model.

A published state dict maps `_orig_mod.model.inner.<name>` to tensors; which of the prefixes stand there varies. Ours
have the same names under `inner.`, the encoder's under `encoder.`.
"""

import pickle
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from checkpoints.checkpoint import CheckpointError
from checkpoints.pickles import HRM, HUGGING_FACE, LIGHTNING, has_foreign_objects, program_of, strings_of
from utils.path_kinds import kind_of

DECODER, PUZZLE_EMBEDDINGS, ENCODER = "inner.", "inner.puzzle_emb.", "encoder."
WRAPPERS = ("model", "module")
BUFFERS = ("H_init", "L_init")

# The decoder's tensors besides those of its blocks, and of a block, both without and with `mlp_t`.
TOP_NAMES = ("embed_tokens.embedding_weight", "lm_head.weight", "q_head.weight", "q_head.bias", *BUFFERS)
BLOCK_NAMES = ("mlp.gate_up_proj.weight", "mlp.down_proj.weight")
ATTENTION_NAMES = ("self_attn.qkv_proj.weight", "self_attn.o_proj.weight")
MIXER_NAMES = ("mlp_t.gate_up_proj.weight", "mlp_t.down_proj.weight")

# Tensors of options that the published program does not have: `pos_encodings`, `grid_coordinates`, `context_mode: read`
# and variant C, `qk_norm_gain`, `grid_conv`.
OF_OPTIONS = re.compile(
    r"(coordinates|position_encoding)\..*|L_level\.layers\.\d+\.(cross_attn\..*|self_attn\.gain|grid_conv\..*)"
)

State = dict[str, Tensor]

# Where training programs keep the model's state dict in their checkpoints.
NESTED = ("state_dict", "model_state_dict", "model")
OTHER_FORMATS = {
    ".gguf": "a file of llama.cpp",
    ".h5": "an HDF5 file",
    ".json": "a JSON file",
    ".keras": "a Keras model",
    ".msgpack": "weights of Flax",
    ".npz": "arrays of numpy",
    ".onnx": "an ONNX graph",
    ".yaml": "a YAML file",
}


def plain_name(key: str) -> str:
    """A key without the prefixes that compiling and wrapping leave behind."""
    parts = [part for part in key.split(".") if part != "_orig_mod"]
    while parts and parts[0] in WRAPPERS:
        parts.pop(0)
    return ".".join(parts)


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # what then cannot be read is an error
        return torch.load(path, weights_only=True, map_location="cpu", mmap=is_zip)


def read_state_dict(path: Path) -> tuple[State, str]:
    """The tensors of a `.safetensors` file or a `torch.save`, under the names they have there, and in which of its
    entries they were found (`` where they are the file's own).

    Raises:
        CheckpointError: missing, damaged, not a dict of tensors, a pickle of anything else than tensors, or weights of
            a known program that do not fit this one.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {kind_of(path)}") from error
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(f"{path}: {_unreadable(path, error)}") from error
    if not isinstance(state, dict) or not state:
        what = "an empty dict" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise CheckpointError(f"{path}: it holds {what} instead of a dict of names and tensors")
    state, inside = _unwrapped(state, path)
    faults = [f"{key!r} is a {type(value).__name__}" for key, value in state.items() if not isinstance(value, Tensor)]
    faults += [f"the key {key!r} is not a name" for key in state if not isinstance(key, str)]
    if faults:
        where = f"{inside}: " if inside else ""
        raise CheckpointError(f"{path}: not a state dict of names and tensors: {where}{_some(faults)}")
    refuse_foreign(state, path)
    return {key: value.detach() for key, value in state.items()}, inside


def _unreadable(path: Path, error: Exception) -> str:
    """Why a file cannot be read as tensors, and by which program it was written, where that can be told."""
    if isinstance(error, pickle.UnpicklingError) and has_foreign_objects(path):
        program = program_of(strings_of(path))
        origin = f"a file of {program}: " if program else ""
        return (
            f"{origin}it holds code or objects that are not tensors: refused, and nothing of it was run; "
            "a state dict is a torch.save of names and tensors alone"
        )
    if path.suffix in OTHER_FORMATS:
        return f"{OTHER_FORMATS[path.suffix]}, no state dict (a torch.save or .safetensors of names and tensors)"
    if "TorchScript" in str(error):
        return "a TorchScript program, no state dict: save the state_dict() of its model"
    detail = "not a torch.save of tensors"
    if not isinstance(error, pickle.UnpicklingError):
        detail = str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
    return f"damaged, truncated, or no state dict ({detail if path.stat().st_size else 'the file is empty'})"


def _unwrapped(state: dict[Any, Any], path: Path) -> tuple[dict[Any, Any], str]:
    """The one state dict that a training program's checkpoint holds, and the words for where it was."""
    if "param_groups" in state:
        raise CheckpointError(f"{path}: the state of an optimizer, not the weights of a model")
    found = [key for key in NESTED if isinstance(state.get(key), dict) and _has_tensors(state[key])]
    if not found:
        return state, ""
    if len(found) > 1:
        raise CheckpointError(
            f"{path}: it holds several state dicts, {' and '.join(found)}: save one of them by itself"
        )
    program = f"a {LIGHTNING} checkpoint" if program_of(state) == LIGHTNING else "a checkpoint"
    left_out = [str(key) for key in state if key != found[0]]
    beside = f" beside {_some(left_out)}" if left_out else ""
    return state[found[0]], f"in '{found[0]}' of {program}{beside}"


def _has_tensors(values: dict[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in values.values())


def refuse_foreign(names: Iterable[str], path: Path) -> None:
    """Raises a CheckpointError where the names are those of another program's model."""
    remedies = {
        HRM: "the weights of an HRM, whose H_level and L_level are two networks: TRM's decoder here has one, L_level",
        HUGGING_FACE: "the weights of a transformer of Hugging Face's layout, not TRM's: a TRM hybrid reads its folder "
        "by text_model=",
    }
    program = program_of(list(names))
    if program in remedies:
        raise CheckpointError(f"{path}: {remedies[program]}")


def _some(faults: list[str]) -> str:
    return "; ".join(faults[:5]) + (f" and {len(faults) - 5} more" if len(faults) > 5 else "")


def sort_parts(state: State, path: Path) -> tuple[State, State, State]:
    """Decoder, puzzle embeddings and encoder, by their names without prefixes.

    Raises:
        CheckpointError: two keys of one name, a key of no part, or a decoder's tensor that is not floating-point.
    """
    origin: dict[str, str] = {}
    parts: dict[str, State] = {PUZZLE_EMBEDDINGS: {}, DECODER: {}, ENCODER: {}}
    unexpected = []
    for key, value in state.items():
        name = plain_name(key)
        if name in origin:
            raise CheckpointError(f"{path}: {origin[name]} and {key} are both {name}")
        origin[name] = key
        part = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if part is None:
            unexpected.append(f"unexpected {key}")
        else:
            parts[part][name.removeprefix(part)] = value
    if unexpected:
        raise CheckpointError(f"{path}: neither decoder (inner.*) nor encoder (encoder.*): {_some(unexpected)}")
    unfit = [
        f"{origin[DECODER + name]} is {value.layout} {value.dtype}".replace("torch.", "")
        for name, value in parts[DECODER].items()
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta
    ]
    if unfit:
        raise CheckpointError(f"{path}: weights are strided floating-point tensors: {_some(unfit)}")
    return parts[DECODER], parts[PUZZLE_EMBEDDINGS], parts[ENCODER]


def decoder_names(num_layers: int, *, mlp_t: bool) -> set[str]:
    """The names of a decoder's tensors, puzzle embeddings apart."""
    block = (*BLOCK_NAMES, *(MIXER_NAMES if mlp_t else ATTENTION_NAMES))
    return {*TOP_NAMES, *(f"L_level.layers.{layer}.{name}" for layer in range(num_layers) for name in block)}


def refuse_incomplete(decoder: State, path: Path) -> None:
    """Check a decoder that is not loaded into a module.

    Raises:
        CheckpointError: names the tensors that are missing or of no decoder, and those of no plausible shape.
    """
    layers = {name.split(".")[2] for name in decoder if name.startswith("L_level.layers.")}
    expected = decoder_names(max(len(layers), 1), mlp_t=any(".mlp_t." in name for name in decoder))
    faults = [f"missing inner.{name}" for name in sorted(expected - decoder.keys())]
    own = [name for name in decoder if OF_OPTIONS.fullmatch(name)]
    faults += [f"unexpected inner.{name}" for name in decoder if name not in (*expected, *own)]
    faults += [
        f"inner.{name} is {tuple(value.shape)}"
        for name, value in decoder.items()
        if name in expected and value.dim() != (1 if name in (*BUFFERS, "q_head.bias") else 2)
    ]
    if faults:
        raise CheckpointError(f"{path}: not a whole decoder: {_some(faults)}")


def refuse_non_finite(state: State, path: Path) -> None:
    """Raises a CheckpointError that names the tensors with NaN or infinite values."""
    faults = [name for name, value in state.items() if not value.float().isfinite().all()]
    if faults:
        raise CheckpointError(f"{path}: NaN or infinite values in {_some(faults)}")


def num_parameters(state: State) -> int:
    """Elements of all tensors but the fixed initial latents."""
    return sum(value.numel() for name, value in state.items() if name.rsplit(".", 1)[-1] not in BUFFERS)
