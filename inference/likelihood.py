"""How likely a model finds whole grids: a second opinion on candidates, beside how often they were predicted.

Each version of a task gives a probability to every token; a candidate is as likely as its tokens are together, in the
mean over all versions (a product of experts: "The LLM ARChitect", Franzen et al. 2024). No further forward pass.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dataset.assemble import assemble
from dataset.grids import PAD, Grid
from inference.adapt_views import DrawnGrids


def likelihoods(
    log_probabilities: Float[Tensor, "versions 900 vocab"],
    grids: Sequence[Grid],
    dihedral: UInt8[np.ndarray, " versions"],
    colors: UInt8[np.ndarray, "versions 10"],
) -> list[float]:
    """Of each grid the log-probability of all its cells and EOS borders, in the mean over versions.

    Args:
        log_probabilities: of each version's tokens, its grid at the corner of the canvas.
        grids: as they are, not augmented.
        dihedral, colors: the versions' augmentations.
    """
    if not grids:
        return []
    twice = [grid for grid in grids for _ in range(2)]
    starts = np.concatenate([[0], np.cumsum([grid.size for grid in twice])])
    shapes = np.array([grid.shape for grid in twice], dtype=np.uint8)
    table = DrawnGrids(np.concatenate([grid.ravel() for grid in twice]), starts, shapes, dihedral, colors)
    pair, version = (index.ravel() for index in np.indices((len(grids), len(dihedral))))
    no_demos = np.full((len(pair), 1), -1)
    tokens = assemble(table, np.zeros_like(pair), version, no_demos, pair)["labels"].long()
    tokens = tokens.view(len(grids), len(dihedral), -1).to(log_probabilities.device)
    every = log_probabilities.expand(len(grids), *log_probabilities.shape)
    picked = every.gather(-1, tokens[..., None]).squeeze(-1)
    return torch.where(tokens != PAD, picked, 0).sum(-1).mean(-1).tolist()
