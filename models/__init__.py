"""Encoders, recursive decoders, ACT and losses, on packed tokens; models by name, through an explicit registry."""

from collections.abc import Callable
from typing import Any

from config.arch_schema import AnyArch
from dataset.grids import SEQ_LEN, VOCAB_SIZE
from dataset.store import DatasetMetadata
from models.act import RecursiveReasoner
from models.recursive_reasoning.etrm import TRMWithEncoder
from models.recursive_reasoning.etrmtrm import TRMWithRecurrentEncoder
from models.recursive_reasoning.joint import TRMWithJointEncoder
from models.recursive_reasoning.targets import TRMWithTargets
from models.recursive_reasoning.trm import TRM
from models.recursive_reasoning.trm_hybrid import HybridTRMModel
from models.vector_math import settle_vector_functions

settle_vector_functions()  # at import: whatever builds a model or a layer has passed here

# Each is built from the `arch` config and the data set's metadata.
MODELS: dict[str, Callable[[Any, Any], RecursiveReasoner]] = {
    "recursive_reasoning.trm@TRM": lambda config, metadata: TRM(config, metadata.num_puzzle_identifiers),
    "recursive_reasoning.etrm@TRMWithEncoder": lambda config, metadata: (
        TRMWithTargets if config.targets == "all_pairs" else TRMWithEncoder
    )(config),
    "recursive_reasoning.etrmtrm@TRMWithRecurrentEncoder": lambda config, metadata: (
        TRMWithJointEncoder if config.recurrent_encoder_type == "in_context" else TRMWithRecurrentEncoder
    )(config),
    "recursive_reasoning.trm_hybrid@HybridTRMModel": lambda config, metadata: HybridTRMModel(config),
}


def create_model(config: AnyArch, metadata: DatasetMetadata) -> RecursiveReasoner:
    """The model named by `config.name`.

    Args:
        config: a validated `arch` config.
        metadata: the data set's (`vocab_size`, `seq_len`, `num_puzzle_identifiers`).

    Raises:
        ValueError: an unknown name, or a data set of another vocabulary or sequence length.
    """
    if config.name not in MODELS:
        raise ValueError(f"arch.name '{config.name}' is not one of {', '.join(MODELS)}")
    if (metadata.vocab_size, metadata.seq_len) != (VOCAB_SIZE, SEQ_LEN):
        raise ValueError(
            f"the data set has {metadata.vocab_size} tokens and {metadata.seq_len} cells; "
            f"models read {VOCAB_SIZE} and {SEQ_LEN}"
        )
    return MODELS[config.name](config, metadata)
