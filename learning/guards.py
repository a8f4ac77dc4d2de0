"""What stops a run whose numbers have left the range of floats, before they reach the weights."""

import math

import torch
from torch import Tensor, nn

from utils import distributed
from utils.distributed import Ranks


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step and what went wrong."""


class NonFiniteError(TrainingError):
    """The loss or a gradient is not a finite number; no weight has been changed by it."""


def non_finite_parts(model: nn.Module, loss: Tensor, sums: list[float], ranks: Ranks) -> str:
    """Names the tensors that are not finite; every rank must call it.

    Args:
        loss: this rank's.
        sums: over ranks, of the loss and of the norm of the puzzle embeddings' gradients.
    """
    faults = []
    if not math.isfinite(sums[0]):
        where = distributed.gather_lists([] if torch.isfinite(loss) else [ranks.rank], ranks)
        faults.append(f"train/loss is {sums[0]} (on rank {', '.join(map(str, where)) or 'none, but summed'})")
    names = [name for name, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    if not math.isfinite(sums[1]):
        names.append("the puzzle embeddings")
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        faults.append(f"the gradient of {', '.join(names[:3])}{more} is not finite")
    return "; ".join(faults) or "grad/total_norm is too large for a float"
