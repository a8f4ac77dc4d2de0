"""The health of an encoder, as tensors: is its output alive, and does it differ from task to task?"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

HEALTH_MEASURES = (
    "encoder_output_mean",
    "encoder_output_std",
    "encoder_output_norm",
    "encoder_cross_sample_var",
    "encoder_within_group_var",
    "encoder_token_std",
)


def within_group_variance(
    context: Float[Tensor, "batch tokens hidden"], groups: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Unbiased variance over the samples of one puzzle, averaged over puzzles that repeat; NaN where none does."""
    flat = context.flatten(1)
    same = (groups[:, None] == groups[None, :]).float()
    count = same.sum(1)
    deviation = flat - same @ flat / count[:, None]
    # Each sample's share of its group's Σ(x - mean)² / (n - 1), so that each repeating puzzle weighs 1 / n · n.
    weights = torch.where(count > 1, 1 / (count - 1).clamp(min=1), 0.0)
    num_groups = torch.where(count > 1, 1 / count, 0.0).sum()
    return (deviation.square().mean(1) * weights).sum() / num_groups


def encoder_health(
    context: Float[Tensor, "batch tokens hidden"], groups: Int[Tensor, " batch"] | None
) -> dict[str, Float[Tensor, ""]]:
    """Statistics of the context of one step; NaN where the batch does not allow one.

    `encoder_output_mean|std|norm` (norm: of a token's vector, averaged), `encoder_cross_sample_var` (unbiased, over
    the batch, averaged over tokens and channels), `encoder_within_group_var` (over the samples of one puzzle),
    `encoder_token_std` (over the tokens of a sample).
    """
    x = context.detach().float()
    nan = x.new_tensor(float("nan"))
    health = {
        "encoder_output_mean": x.mean(),
        "encoder_output_std": x.std(),
        "encoder_output_norm": x.norm(dim=-1).mean(),
        "encoder_cross_sample_var": x.var(dim=0).mean() if len(x) > 1 else nan,
        "encoder_token_std": x.std(dim=1).mean() if x.shape[1] > 1 else nan,
    }
    if groups is not None:
        health["encoder_within_group_var"] = within_group_variance(x, groups)
    return health
