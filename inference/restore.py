"""A model from its checkpoint."""

from typing import Any

import torch

from checkpoints.checkpoint import Checkpoint, CheckpointError, load_matching
from config.schema import ConfigError, TrainConfig, validate_config
from models import create_model
from models.act import RecursiveReasoner


def config_of(checkpoint: Checkpoint) -> TrainConfig:
    """The config of a checkpoint's run.

    Raises:
        CheckpointError: it does not fit this program.
    """
    try:
        return validate_config(checkpoint.config)
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.path / 'config.yaml'}: {error}") from error


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
