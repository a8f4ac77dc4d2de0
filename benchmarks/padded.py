"""The padded form of the same blocks: every position of every sequence is computed, invalid ones are only masked."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor

import models.encoders.cells
import models.encoders.grid
import models.recursive_reasoning.decoder
from models.packing import Packing
from models.segments import Runs

MODULES = (models.encoders.cells, models.encoders.grid, models.recursive_reasoning.decoder)


def pad(mask: Bool[Tensor, "s l"], *, by_view: bool, rounded: bool = False) -> Packing:
    """In place of `models.packing.pack`: all s · l rows, one batch, with a key mask."""
    num_sequences, length = mask.shape
    lengths = mask.sum(dim=1)
    keys = torch.where(lengths[:, None] > 0, mask, True)  # an empty sequence attends to itself: no NaN, nobody reads it
    rows = torch.arange(mask.numel(), device=mask.device)
    return Packing(
        rows=rows,
        live=mask.flatten().nonzero().squeeze(-1),
        sequence=rows // length,
        first_row=torch.arange(num_sequences, device=mask.device) * length,
        lengths=lengths,
        cu_seqlens=torch.arange(0, mask.numel() + 1, length, dtype=torch.int32, device=mask.device),
        max_seqlen=length,
        padded_length=length,
        runs=Runs(torch.tensor([(mask.numel(), mask.numel(), num_sequences)]), keys.flatten()),
    )


@contextmanager
def padded_form() -> Iterator[None]:
    """Inside the block, encoders and decoder compute every position."""
    originals = [module.pack for module in MODULES]
    try:
        for module in MODULES:
            module.pack = pad
        yield
    finally:
        for module, original in zip(MODULES, originals, strict=True):
            module.pack = original
