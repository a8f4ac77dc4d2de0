"""Weights of any layout, read as one thing: published TRM state dicts, our checkpoints, bare files of either.

What is written beside the weights goes with them: sizes and cycles from the config, and what they were trained on.
"""

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from checkpoints.checkpoint import MANIFEST_FILE, CheckpointError, load_matching, open_checkpoint
from checkpoints.state_dicts import State, num_parameters, read_state_dict, refuse_non_finite, sort_parts
from dataset.grids import SEQ_LEN
from dataset.trained_on import TrainedOn
from models.layers import swiglu_width
from models.positions import POSITION_ENCODINGS

log = logging.getLogger(__name__)
COMPARED = (
    *("hidden_size", "num_heads", "L_layers", "expansion", "H_cycles", "L_cycles"),
    *("puzzle_emb_len", "mlp_t", "pos_encodings"),
)

Size = Annotated[int, Field(strict=True, ge=1)] | None


class DecoderConfig(BaseModel):
    """What an `arch` section tells of the decoder; other keys are not read."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    hidden_size: Size = None
    num_heads: Size = None
    L_layers: Size = None
    H_cycles: Size = None
    L_cycles: Size = None
    expansion: Annotated[float, Field(strict=True, gt=0)] | None = None
    puzzle_emb_len: Annotated[int, Field(strict=True, ge=0)] | None = None
    puzzle_emb_ndim: Annotated[int, Field(strict=True, ge=0)] = 0
    mlp_t: Annotated[bool, Field(strict=True)] | None = None
    pos_encodings: str | None = None


@dataclass(frozen=True)
class Weights:
    """A state dict sorted into its parts, with what is written beside it.

    Names are those within each part (`lm_head.weight`). `arch` is the plain section of the config file (empty without
    one), `config` the whole file. `told` is what `arch` says of the decoder, `measured` what the tensors' shapes say.
    """

    path: Path
    layout: str
    decoder: State
    puzzle_embeddings: State
    encoder: State
    config: dict[str, Any]
    arch: dict[str, Any]
    told: dict[str, Any]
    trained_on: TrainedOn
    step: int | None

    @property
    def measured(self) -> dict[str, Any]:
        return measured_sizes(self.decoder)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: not a readable config: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("arch", {}), dict):
        raise CheckpointError(f"{path}: not a config: it must hold keys and values, or a section arch of them")
    return config


def told_sizes(arch: dict[str, Any], hidden_size: int | None, source: Path) -> dict[str, Any]:
    """What a config says of the decoder, by this project's keys.

    Raises:
        CheckpointError: a value that is none, or positions that this decoder does not have.
    """
    try:
        config = DecoderConfig.model_validate(arch)
    except ValidationError as error:
        fault = error.errors()[0]
        key = str(fault["loc"][0])
        raise CheckpointError(f"{source}: arch.{key}={arch[key]}: {fault['msg']}") from error
    # Without attention no positions are read: such configs say `none`.
    if config.mlp_t and config.pos_encodings == "none":
        config = config.model_copy(update={"pos_encodings": None})
    if config.pos_encodings not in (None, *POSITION_ENCODINGS):
        known = ", ".join(POSITION_ENCODINGS)
        raise CheckpointError(f"{source}: arch.pos_encodings={config.pos_encodings}: the decoder here has {known}")
    told = {key: getattr(config, key) for key in COMPARED if getattr(config, key) is not None}
    if told:
        told.setdefault("pos_encodings", "rope")  # what everything from before the key had
    hidden_size = config.hidden_size or hidden_size
    if config.puzzle_emb_len == 0 and hidden_size:
        told["puzzle_emb_len"] = math.ceil(config.puzzle_emb_ndim / hidden_size)
        if not told["puzzle_emb_len"]:
            raise CheckpointError(f"{source}: arch.puzzle_emb_ndim=0: the decoder here needs context slots")
    return told


def measured_sizes(decoder: State) -> dict[str, Any]:
    """The sizes that the shapes of a decoder's tensors tell; of incomplete ones, those that can be told."""
    sizes: dict[str, Any] = {}
    embedding = decoder.get("embed_tokens.embedding_weight")
    if embedding is not None and embedding.dim() == 2:
        sizes["hidden_size"] = embedding.shape[1]
    blocks = [name for name in decoder if name.startswith("L_level.layers.")]
    if blocks:
        sizes["L_layers"] = len({name.split(".")[2] for name in blocks})
        sizes["mlp_t"] = any(".mlp_t." in name for name in blocks)
    mixer = decoder.get("L_level.layers.0.mlp_t.down_proj.weight")
    if mixer is not None and mixer.dim() == 2 and len(mixer) > SEQ_LEN:
        sizes["puzzle_emb_len"] = len(mixer) - SEQ_LEN
    return sizes


def _trained_on(path: Path, config: dict[str, Any], config_file: Path | None) -> TrainedOn:
    """The record of a bare file: the config's section, else the file beside it, else that it is unknown."""
    record, source = config.get("trained_on"), config_file
    try:
        if record is not None:
            return TrainedOn.model_validate(record)
        source = path.with_name("trained_on.json")
        if source.exists():
            return TrainedOn.model_validate_json(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}: not a readable record of training data: {error}") from error
    return TrainedOn(unknown_origin=(str(path),))


def read_weights(path: str | Path, *, ema: bool = True) -> Weights:
    """Weights from a run folder, a checkpoint folder, a `.safetensors` file or a `torch.save` of a state dict.

    The config of a file `a/b.pt` is `a/b.yaml`, `a/all_config.yaml` or `a/config.yaml`, the first that exists.

    Args:
        ema: the averaged weights of a checkpoint folder, where there are any.

    Raises:
        CheckpointError: missing, damaged, of no known layout, or with an unreadable config beside it.
    """
    path, inside = Path(path), ""
    if path.is_dir():
        checkpoint = open_checkpoint(path)
        path, config, config_file = checkpoint.path, checkpoint.config, checkpoint.path / "config.yaml"
        step, trained_on, state = checkpoint.step, checkpoint.trained_on, checkpoint.model_state(ema=ema)
    else:
        state, inside = read_state_dict(path)
        in_checkpoint = path.with_name(MANIFEST_FILE).exists()
        named = re.search(r"step_(\d+)", path.name)
        step = open_checkpoint(path.parent).step if in_checkpoint else int(named.group(1)) if named else None
        beside = (path.with_suffix(".yaml"), path.with_name("all_config.yaml"), path.with_name("config.yaml"))
        config_file = next((file for file in beside if file.exists()), None)
        config = {} if config_file is None else _read_yaml(config_file)
        trained_on = _trained_on(path, config, config_file)
    decoder, puzzle_embeddings, encoder = sort_parts(state, path)
    arch = config.get("arch", config)
    told = told_sizes(arch, measured_sizes(decoder).get("hidden_size"), config_file or path)
    layout = _layout(arch, is_folder=path.is_dir(), has_encoder=bool(encoder))
    layout += f", {inside}" if inside else ""
    return Weights(path, layout, decoder, puzzle_embeddings, encoder, config, arch, told, trained_on, step)


def _layout(arch: dict[str, Any], *, is_folder: bool, has_encoder: bool) -> str:
    if not is_folder and not has_encoder:
        return "published TRM state dict"
    # "recursive_reasoning.etrm@TRMWithEncoder" is ETRM
    name = str(arch.get("name", "")).split("@")[0].rsplit(".", 1)[-1].upper() or "ETRM or ETRMTRM"
    return f"{name} {'checkpoint' if is_folder else 'state dict'}"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | str) else f"{value:g}"


def refuse_other_sizes(weights: Weights, arch: dict[str, Any]) -> None:
    """Compare sizes and cycles with this run's `arch`.

    Raises:
        CheckpointError: names each value that differs, this run's, and the overrides that would fit.
    """
    measured = weights.measured
    contradicted = [key for key in measured if weights.told.get(key, measured[key]) != measured[key]]
    if contradicted:
        key = contradicted[0]
        raise CheckpointError(
            f"{weights.path}: its tensors have {key} {_shown(measured[key])}, but its config says "
            f"arch.{key}={_shown(weights.told[key])}: they do not belong together"
        )
    theirs = {**measured, **weights.told}
    down = weights.decoder.get("L_level.layers.0.mlp.down_proj.weight")
    if "expansion" not in theirs and theirs.get("hidden_size") and down is not None and down.dim() == 2:
        theirs["expansion"] = _expansion(theirs["hidden_size"], down.shape[1], arch["expansion"])
    different = [key for key in COMPARED if key in theirs and theirs[key] != arch[key]]
    if not different:
        return
    values = ", ".join(f"{key} {_shown(theirs[key])} (this run: {_shown(arch[key])})" for key in different)
    overrides = " ".join(f"arch.{key}={_shown(theirs[key])}" for key in different)
    if theirs.get("mlp_t") and not arch["mlp_t"]:
        overrides += " arch.canvas=full"
    raise CheckpointError(f"{weights.path}: it has {values}; these overrides would fit: {overrides}")


def _expansion(hidden_size: int, inner: int, own: float) -> float:
    """An expansion that gives SwiGLUs of this inner width: `own` if it does, else a whole number if one does."""
    candidates = [own, *range(1, 17)]
    return next((e for e in candidates if swiglu_width(hidden_size, e) == inner), 1.5 * inner / hidden_size)


def load_pretrained_decoder(decoder: nn.Module, path: str, arch: dict[str, Any]) -> TrainedOn:
    """Load the decoder's weights (averaged, where there are averages); its puzzle embeddings stay as they are.

    Args:
        path: whatever `read_weights` reads.
        arch: this run's `arch` section, whose sizes and cycles must be those of the weights.

    Returns:
        What the weights were trained on.

    Raises:
        CheckpointError: missing, damaged, not finite, of other sizes, or trained with other cycles.
    """
    try:
        weights = read_weights(path)
        refuse_other_sizes(weights, arch)
        own = decoder.state_dict()
        kept = {name: value for name, value in own.items() if name.startswith("puzzle_emb.")}
        refuse_non_finite({name: value for name, value in weights.decoder.items() if name in own}, weights.path)
        load_matching(decoder, {**weights.decoder, **kept}, str(weights.path))
    except CheckpointError as error:
        raise CheckpointError(f"load_pretrained_decoder: {error}") from error
    _log_loaded(weights)
    return weights.trained_on


def load_pretrained_encoder(encoder: nn.Module, path: str) -> TrainedOn:
    """Load the encoder's weights (averaged, where there are averages).

    Args:
        path: whatever `read_weights` reads.

    Returns:
        What the weights were trained on.

    Raises:
        CheckpointError: missing, damaged, not finite, without an encoder, or with one of other parts or sizes.
    """
    try:
        weights = read_weights(path)
        if not weights.encoder:
            raise CheckpointError(f"{weights.path}: it has no encoder ({weights.layout})")
        refuse_non_finite(weights.encoder, weights.path)
        load_matching(encoder, weights.encoder, str(weights.path))
    except CheckpointError as error:
        raise CheckpointError(f"load_pretrained_encoder: {error}") from error
    log.info("load_pretrained_encoder: %s, %s parameters", weights.path, f"{num_parameters(weights.encoder):,}")
    return weights.trained_on


def _log_loaded(weights: Weights) -> None:
    left_out = [f"puzzle embeddings {tuple(v.shape)}" for v in weights.puzzle_embeddings.values()]
    left_out += [f"encoder ({num_parameters(weights.encoder):,} parameters)"] if weights.encoder else []
    sizes = weights.measured
    parts = [
        f"{weights.path} ({weights.layout}): hidden size {sizes['hidden_size']}, {sizes['L_layers']} layers",
        f"{num_parameters(weights.decoder):,} parameters; left out: {', '.join(left_out) or 'nothing'}",
    ]
    log.info("load_pretrained_decoder: %s", ", ".join(parts))
    if weights.path.name == "model.safetensors" and weights.path.with_name("ema.safetensors").exists():
        log.warning("%s: unaveraged weights; name the folder to load the averaged ones", weights.path)
    if not weights.told:
        log.warning("%s: no config beside it: nobody checks that it was trained with these cycles", weights.path)
    for file in weights.trained_on.unknown_origin:
        log.warning("%s: unknown training data: figures on held-out puzzles will be named contaminated", file)
