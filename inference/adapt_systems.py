"""Which systems adapt to a task that they have never seen, and what a TRM needs for it."""

import torch

from config.arch_schema import AnyArch, HybridArch, TrmArch
from dataset.store import DatasetMetadata
from inference.adapt_options import AdaptOptions
from models import create_model
from models.act import RecursiveReasoner
from models.recursive_reasoning.trm import EMBEDDINGS


def refusal(arch: AnyArch, options: AdaptOptions) -> str | None:
    """Why a system cannot be adapted to a task; None where it can."""
    if isinstance(arch, HybridArch):
        return (
            "a TRM hybrid reads a task as text, by a language model that would have to read every view of it: it "
            "cannot be adapted; an ETRM or ETRMTRM can"
        )
    if isinstance(arch, TrmArch) and options.weights == "encoder_only":
        return "weights=encoder_only: a TRM has no encoder; use full or lora"
    if options.weights == "lora" and options.optimizer == "muon":
        return "optimizer=muon: low-rank changes are no maps between hidden vectors; weights=lora takes adam_atan2"
    if isinstance(arch, TrmArch) and options.control == "votes":
        return "control=votes: a TRM knows no new versions, so that no more can vote"
    return None


def with_new_identifiers(model: RecursiveReasoner, arch: AnyArch, metadata: DatasetMetadata) -> RecursiveReasoner:
    """A TRM that has an embedding for each version of a data set, the mean of those it knew; others as they are."""
    if not isinstance(arch, TrmArch):
        return model
    known = model.state_dict()
    fitted = create_model(arch, metadata)
    rows: torch.Tensor = known[EMBEDDINGS]
    mean = rows[1:].mean(dim=0) if len(rows) > 1 else rows[0]
    fitted.load_state_dict({**known, EMBEDDINGS: mean.expand(metadata.num_puzzle_identifiers, -1)})
    return fitted.to(rows.device).eval()
