"""A vector of each demonstration pair, and the loss that makes those of one task alike (`arch.loss.pair_weight`)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dataset.batches import Batch
from dataset.grids import SEQ_LEN
from models.packing import Packing

TEMPERATURE = 0.1
FAR = -1e4  # a similarity that counts for nothing, and whose gradient is no number divided by zero


def pair_means(
    rows: Float[Tensor, "n hidden"], packing: Packing, cells: Int[Tensor, "s l"], grids: int, pairs: int
) -> Float[Tensor, "s pairs hidden"]:
    """The mean of each pair's rows, float32; zeros of a pair that has none.

    Args:
        cells: 900 · grid + cell of each position, -1 where it is no pair's; a pair's grids follow one another.
        grids: how many a sequence has at most, those of `pairs` pairs.
    """
    live, nowhere = packing.live_rows, len(packing.lengths) * pairs
    pair = packing.gather(cells)[live] // (SEQ_LEN * grids // pairs)
    index = torch.where(pair >= 0, packing.sequence[live] * pairs + pair, nowhere)
    values = rows[live].to(torch.promote_types(rows.dtype, torch.float32))
    sums = values.new_zeros(nowhere + 1, values.shape[1]).index_add(0, index, values)
    count = values.new_zeros(nowhere + 1).index_add(0, index, torch.ones_like(values[:, 0]))
    return (sums / count.clamp(min=1)[:, None])[:-1].unflatten(0, (-1, pairs))


def of_one_task(data: Batch) -> Bool[Tensor, "batch batch"]:
    """Which samples are of one puzzle in one version; of known rules, whose numbers are negative, of one rule.

    Two versions of a puzzle have different rules (colours, directions): what is alike in them must not be all that is
    told of them.
    """
    groups, identifiers = data["puzzle_groups"], data["puzzle_identifiers"]
    same_version, same_puzzle = identifiers[:, None] == identifiers, groups[:, None] == groups
    return same_version & (same_puzzle | (identifiers < 0))


def pair_loss(
    pairs: Float[Tensor, "batch demos hidden"], mask: Bool[Tensor, "batch demos"], same: Bool[Tensor, "batch batch"]
) -> Float[Tensor, " batch"]:
    """InfoNCE over normed vectors ("Representation Learning with Contrastive Predictive Coding", arXiv 1807.03748).

    Each pair is to be more like every other pair of its sample than like the pairs of other tasks, the augmented
    versions of its own among them. Pairs of other samples of its own task are left out. The mean over the sample's
    couples; 0 of a sample with one pair.

    Args:
        same: which samples are of one task.
    """
    demos = mask.shape[1]
    vectors = F.normalize(torch.where(mask[..., None], pairs.float(), 0), dim=-1).flatten(0, 1)
    likeness = vectors @ vectors.t() / TEMPERATURE
    there = mask.flatten()
    sample = torch.arange(len(vectors), device=mask.device) // demos
    both = there[:, None] & there
    is_self = torch.eye(len(vectors), dtype=torch.bool, device=mask.device)
    is_own = both & (sample[:, None] == sample) & ~is_self
    is_other = both & ~same[sample][:, sample]
    others = torch.where(is_other, likeness, FAR).logsumexp(-1, keepdim=True)
    losses = torch.where(is_own, F.softplus(others - likeness), 0).sum(-1).view(-1, demos).sum(-1)
    return losses / is_own.sum(-1).view(-1, demos).sum(-1).clamp(min=1)
