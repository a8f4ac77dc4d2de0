"""The health of an encoder, as tensors: is its output alive, and does it differ from task to task?

Contexts may have lengths of their own: tokens that are not valid take no part. What compares samples does so token by
token, among the samples that have the token.
"""

import torch
from jaxtyping import Bool, Float, Int
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


def masked_group_variance(
    context: Float[Tensor, "batch tokens hidden"],
    mask: Bool[Tensor, "batch tokens"],
    groups: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Unbiased variance over the samples of one group that have a token, averaged over channels and over the tokens of
    all groups that at least two samples have; NaN where there is none."""
    same = (groups[:, None] == groups[None, :]).float()
    valid = mask.float()
    count = torch.where(mask, same @ valid, 0)  # (b, t): samples of the group that have the token
    x = torch.where(mask[..., None], context, 0)
    mean = torch.einsum("bc,cth->bth", same, x) / count.clamp(min=1)[..., None]
    squares = torch.where(mask[..., None], context - mean, 0).square().mean(-1)
    variance = (squares / (count - 1).clamp(min=1) * (count > 1)).sum()
    return variance / torch.where(count > 1, 1 / count.clamp(min=1), 0.0).sum()


def encoder_health(
    context: Float[Tensor, "batch tokens hidden"],
    groups: Int[Tensor, " batch"] | None,
    mask: Bool[Tensor, "batch tokens"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Statistics of the context of one step; NaN where the batch does not allow one.

    `encoder_output_mean|std|norm` (norm: of a token's vector, averaged), `encoder_cross_sample_var` (unbiased, over
    the batch, averaged over tokens and channels), `encoder_within_group_var` (over the samples of one puzzle),
    `encoder_token_std` (over the tokens of a sample).

    Args:
        mask: which tokens are valid (None: all).
    """
    x = context.detach().float()
    if mask is not None:
        return _masked_health(x, mask, groups)
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


def _masked_health(x: Tensor, mask: Tensor, groups: Tensor | None) -> dict[str, Float[Tensor, ""]]:
    tokens = x[mask]
    count = mask.sum(1, keepdim=True)  # (b, 1)
    mean = torch.where(mask[..., None], x, 0).sum(1) / count.clamp(min=1)
    squares = torch.where(mask[..., None], x - mean[:, None], 0).square().sum(1)  # (b, hidden)
    has_several = count.squeeze(1) > 1
    token_std = (squares / (count - 1).clamp(min=1)).sqrt().mean(1)[has_several].mean()
    everyone = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    health = {
        "encoder_output_mean": tokens.mean(),
        "encoder_output_std": tokens.std(),
        "encoder_output_norm": tokens.norm(dim=-1).mean(),
        "encoder_cross_sample_var": masked_group_variance(x, mask, everyone),
        "encoder_token_std": token_std,
    }
    if groups is not None:
        health["encoder_within_group_var"] = masked_group_variance(x, mask, groups)
    return health
