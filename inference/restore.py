"""A model from its checkpoint."""

import argparse
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch

from checkpoints.checkpoint import Checkpoint, CheckpointError, load_matching
from config.arch_schema import ForwardDtype
from config.schema import ConfigError, TrainConfig, validate_config
from dataset.store import SplitManifest, describe
from models import create_model
from models.act import RecursiveReasoner
from models.recursive_reasoning.trm import EMBEDDINGS

FORWARD_DTYPES: tuple[str, ...] = get_args(ForwardDtype)


def config_of(checkpoint: Checkpoint) -> TrainConfig:
    """The config of a checkpoint's run.

    Raises:
        CheckpointError: it does not fit this program.
    """
    try:
        return validate_config(checkpoint.config)
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.path / 'config.yaml'}: {error}") from error


def in_dtype(checkpoint: Checkpoint, forward_dtype: str | None) -> Checkpoint:
    """The checkpoint as if its run had had this `arch.forward_dtype` (None: as it is); weights stay in float32."""
    if forward_dtype is None:
        return checkpoint
    arch = {**checkpoint.config["arch"], "forward_dtype": forward_dtype}
    return replace(checkpoint, config={**checkpoint.config, "arch": arch})


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """`--forward-dtype`."""
    parser.add_argument(
        "--forward-dtype",
        choices=FORWARD_DTYPES,
        help="compute in it, not in the run's own; auto: this machine's best",
    )


def restore_without_data(
    checkpoint: Checkpoint, device: torch.device, *, averaged: bool = True
) -> tuple[RecursiveReasoner, TrainConfig]:
    """As `restore_model`, for what is asked about no puzzle of a data set. A TRM has the embeddings that it was
    trained with."""
    known = checkpoint.model_state().get(EMBEDDINGS)
    augmentations = 0 if known is None else max(0, len(known) - 1)
    metadata = describe({"dihedral": np.zeros(augmentations)}, SplitManifest(puzzles=(), dropped=()), {}, {})
    return restore_model(checkpoint, metadata, device, averaged=averaged)


def restore_model(
    checkpoint: Checkpoint, metadata: Any, device: torch.device, *, averaged: bool = True
) -> tuple[RecursiveReasoner, TrainConfig]:
    """The model of a checkpoint in evaluation mode, with averaged weights where there are any, and its config.

    Args:
        metadata: the data set's; TRM has an embedding for each of its puzzle identifiers.

    Raises:
        CheckpointError: its config or weights do not fit this program.
    """
    config = config_of(checkpoint)
    model = create_model(config.arch, metadata)
    load_matching(model, checkpoint.model_state(ema=averaged), str(checkpoint.path))
    return model.to(device).eval(), config
