"""`python -m checkpoints inspect PATH` and `python -m checkpoints export PATH --to trm | weights`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from checkpoints.checkpoint import CheckpointError, open_checkpoint
from checkpoints.published import Weights, read_weights
from checkpoints.state_dicts import (
    DECODER,
    OF_OPTIONS,
    PUZZLE_EMBEDDINGS,
    num_parameters,
    refuse_incomplete,
    refuse_non_finite,
)
from checkpoints.writer import SaveError, write_weights
from utils.files import replacing

PUBLISHED_PREFIX = "_orig_mod.model."
# Besides the sizes and cycles that are compared when weights are loaded.
EXPORTED_KEYS = ("H_layers", "halt_max_steps", "halt_exploration_prob", "forward_dtype")


def _encoder_name(weights: Weights) -> str:
    if not weights.encoder:
        return "none"
    name = weights.arch.get("recurrent_encoder_type") or weights.arch.get("encoder_type")
    return str(name or "unknown (no config)")


def _mixing(weights: Weights) -> str:
    if weights.measured.get("mlp_t"):
        return "mlp_t"
    heads = weights.told.get("num_heads")
    return f"attention, {heads} heads" if heads else "attention"


def _datasets(weights: Weights) -> list[tuple[str, str]]:
    """A row for each data set: its path and the hash of its metadata, where known."""
    known = weights.trained_on.datasets
    configured = weights.config.get("data_paths")
    paths = dict.fromkeys([*known, *map(str, configured if isinstance(configured, list) else ())])
    return [("data set", f"{path}  sha256 {known.get(path, 'unknown')}") for path in paths] or [("data set", "unknown")]


def inspection(weights: Weights) -> list[tuple[str, str]]:
    """The rows that `inspect` prints."""
    decoder, encoder, table = (
        num_parameters(part) for part in (weights.decoder, weights.encoder, weights.puzzle_embeddings)
    )
    tensors = [*weights.decoder.values(), *weights.encoder.values(), *weights.puzzle_embeddings.values()]
    shapes = ", ".join(str(tuple(value.shape)) for value in weights.puzzle_embeddings.values())
    seen = weights.trained_on
    return [
        ("layout", weights.layout),
        ("path", str(weights.path)),
        ("hidden size", str(weights.measured["hidden_size"])),
        ("layers", str(weights.measured["L_layers"])),
        ("mixing", _mixing(weights)),
        ("vocabulary", str(len(weights.decoder["lm_head.weight"]))),
        ("cycles", ", ".join(f"{key} {weights.told.get(f'{key}_cycles', 'unknown')}" for key in ("H", "L"))),
        ("encoder", _encoder_name(weights)),
        ("decoder parameters", f"{decoder:,}"),
        ("encoder parameters", f"{encoder:,}"),
        ("total parameters", f"{decoder + encoder:,}"),
        ("puzzle embeddings", f"{table:,} {shapes}" if table else "none"),
        ("dtype", ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in tensors}))),
        ("step", "unknown" if weights.step is None else str(weights.step)),
        *_datasets(weights),
        ("puzzles seen", str(len(seen.puzzle_ids))),
        ("pairs seen", str(len(seen.pair_hashes))),
        ("held-out puzzles whose demonstrations were seen", str(len(seen.held_out_demonstrations))),
        ("unknown origin", ", ".join(seen.unknown_origin) or "none"),
    ]


def inspect(arguments: argparse.Namespace) -> str:
    """The table of `inspect`."""
    weights = read_weights(arguments.path)
    refuse_incomplete(weights.decoder, weights.path)
    rows = inspection(weights)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _puzzle_table(weights: Weights, num_rows: int | None) -> tuple[Tensor, str]:
    """The weights' own table or one of zeros, and what to say of it."""
    hidden_size = weights.measured["hidden_size"]
    own = weights.puzzle_embeddings.get("weights")
    if own is not None:
        if num_rows not in (None, len(own)):
            raise CheckpointError(
                f"{weights.path}: it has puzzle embeddings of its own, {len(own)} rows: leave out "
                f"--puzzle-identifiers {num_rows}"
            )
        return own, f"puzzle embeddings {tuple(own.shape)}: its own"
    table = torch.zeros(1 if num_rows is None else num_rows, hidden_size)
    return table, f"puzzle embeddings {tuple(table.shape)}: zeros, {weights.layout} has none"


def _exported_config(weights: Weights, table: Tensor) -> dict[str, Any]:
    arch = {**weights.measured, **weights.told}
    if (encoding := arch.get("pos_encodings", "rope")) != "rope":
        raise CheckpointError(f"{weights.path}: arch.pos_encodings={encoding}: the published layout has rope alone")
    if own := [name for name in weights.decoder if OF_OPTIONS.fullmatch(name)]:
        raise CheckpointError(f"{weights.path}: the published layout has no inner.{own[0]}")
    arch |= {key: weights.arch[key] for key in EXPORTED_KEYS if key in weights.arch}
    arch |= {"puzzle_emb_ndim": table.shape[1], "pos_encodings": "none" if arch["mlp_t"] else "rope"}
    return {"arch": arch, "trained_on": weights.trained_on.model_dump(mode="json")}


def default_output(path: Path) -> Path:
    """`<run>/<step>-trm.pt` for a checkpoint folder, else beside the weights."""
    if path.is_dir():
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        return folder / f"{path.name}-trm.pt"
    return path.with_name(f"{path.stem}-trm.pt")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        with replacing(path) as temporary:
            write(temporary)
    except (OSError, RuntimeError) as error:  # torch.save turns a missing folder into a RuntimeError
        raise CheckpointError(f"{path}: cannot be written ({error})") from error


def export(arguments: argparse.Namespace) -> str:
    """Write what `--to` asks for; returns what was written.

    Raises:
        CheckpointError: weights that cannot be read or are incomplete, or an output that exists or cannot be written.
    """
    return EXPORTS[arguments.to](arguments)


def _export_weights(arguments: argparse.Namespace) -> str:
    """A checkpoint folder without what only going on needs."""
    if arguments.puzzle_identifiers is not None or arguments.force:
        raise CheckpointError("--puzzle-identifiers and --force belong to --to trm")
    checkpoint = open_checkpoint(arguments.path)
    output = arguments.output or Path(f"{checkpoint.path.name}-weights")
    try:
        write_weights(output, checkpoint, ema=not arguments.raw)
    except SaveError as error:
        raise CheckpointError(f"--output {error}") from error
    return f"{output}: the weights of {checkpoint.path}, {sum(f.stat().st_size for f in output.iterdir()):,} bytes"


def _export_trm(arguments: argparse.Namespace) -> str:
    """The published state dict and its config."""
    weights = read_weights(arguments.path, ema=not arguments.raw)
    refuse_incomplete(weights.decoder, weights.path)
    refuse_non_finite(weights.decoder, weights.path)
    output = arguments.output or default_output(weights.path)
    if output.suffix in (".yaml", ".safetensors"):
        raise CheckpointError(f"--output {output}: a torch.save is written, whose name ends in .pt")
    config_file = output.with_suffix(".yaml")
    existing = [str(path) for path in (output, config_file) if path.exists()]
    if existing and not arguments.force:
        raise CheckpointError(f"{' and '.join(existing)}: exists; --force overwrites")
    table, of_table = _puzzle_table(weights, arguments.puzzle_identifiers)
    named = {f"{DECODER}{name}": value for name, value in weights.decoder.items()}
    named[f"{PUZZLE_EMBEDDINGS}weights"] = table
    # A clone, for torch.save writes the whole storage that a tensor is part of.
    state = {f"{PUBLISHED_PREFIX}{name}": value.clone() for name, value in named.items()}
    config = yaml.safe_dump(_exported_config(weights, table), sort_keys=False)
    _write(config_file, lambda path: path.write_text(config, encoding="utf-8"))
    _write(output, lambda path: torch.save(state, path))
    return f"{output}: {num_parameters(weights.decoder):,} decoder parameters of {weights.path}\n{of_table}"


EXPORTS: dict[str, Callable[[argparse.Namespace], str]] = {"trm": _export_trm, "weights": _export_weights}


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of rows, 1 or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m checkpoints", description="Look into weights, convert them.")
    commands = parser.add_subparsers(required=True, metavar="inspect | export")
    what = "a run folder, a checkpoint folder, or a file of a state dict (.safetensors or torch.save)"
    show = commands.add_parser("inspect", help="sizes, parameters, cycles, and what the weights were trained on")
    show.add_argument("path", help=what)
    show.set_defaults(command=inspect)
    convert = commands.add_parser("export", help="write weights for others")
    convert.add_argument("path", help=what)
    convert.add_argument(
        "--to", choices=list(EXPORTS), required=True, help="a published state dict; a folder of weights"
    )
    convert.add_argument(
        "--output", type=Path, help="default: <checkpoint>-trm.pt in the run folder, <checkpoint>-weights"
    )
    convert.add_argument("--raw", action="store_true", help="the weights as trained, not their averages")
    convert.add_argument(
        "--puzzle-identifiers", type=_positive, metavar="N", help="rows of a table of zeros; default 1"
    )
    convert.add_argument("--force", action="store_true", help="overwrite the output")
    convert.set_defaults(command=export)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; errors are one line on stderr and exit status 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        sys.stdout.write(arguments.command(arguments) + "\n")
    except CheckpointError as error:
        parser.exit(2, f"error: {error}\n")
