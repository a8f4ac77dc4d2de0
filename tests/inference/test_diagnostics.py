"""Encoder health against numpy, and NaN where a batch does not define a number."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.diagnostics import encoder_health, within_group_variance


def naive_within_group_variance(context: np.ndarray, groups: list[int]) -> float:
    """The unbiased variance of each puzzle's samples, averaged over channels and tokens, then over the puzzles."""
    values = np.array(groups)
    repeated = [g for g in set(groups) if groups.count(g) > 1]
    return float(np.mean([context[values == g].var(axis=0, ddof=1).mean() for g in repeated]))


@pytest.fixture
def context() -> Tensor:
    """Six samples of five tokens and seven channels, each sample and channel with a mean of its own."""
    return torch.randn(6, 5, 7) + 2 * torch.randn(6, 1, 7) + 0.5


def test_health_is_what_numpy_computes(context: Tensor) -> None:
    x = context.numpy().astype(np.float64)
    groups = [3, 8, 3, 3, 9, 8]
    expected = {
        "encoder_output_mean": x.mean(),
        "encoder_output_std": x.std(ddof=1),
        "encoder_output_norm": np.mean([np.linalg.norm(token) for sample in x for token in sample]),
        "encoder_cross_sample_var": np.mean([np.var(x[:, t, c], ddof=1) for t in range(5) for c in range(7)]),
        "encoder_token_std": np.mean([np.std(x[b, :, c], ddof=1) for b in range(6) for c in range(7)]),
        "encoder_within_group_var": naive_within_group_variance(x, groups),
    }
    found = {key: float(value) for key, value in encoder_health(context, torch.tensor(groups)).items()}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("groups", [[0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1], [5, 1, 2, 3, 4, 5], [2, 2, 2, 2, 7, 9]])
def test_within_group_variance_is_the_mean_over_repeating_puzzles(context: Tensor, groups: list[int]) -> None:
    found = float(within_group_variance(context, torch.tensor(groups, dtype=torch.int32)))
    assert found == pytest.approx(naive_within_group_variance(context.numpy(), groups), rel=1e-4)


def test_an_encoder_that_ignores_the_task_has_no_variance_over_samples() -> None:
    health = encoder_health(torch.randn(1, 5, 7).expand(6, -1, -1), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert float(health["encoder_cross_sample_var"]) == pytest.approx(0.0, abs=1e-10)
    assert float(health["encoder_within_group_var"]) == pytest.approx(0.0, abs=1e-10)
    assert float(health["encoder_token_std"]) > 0.1


def test_an_encoder_that_tells_puzzles_apart_but_not_their_versions_varies_over_puzzles_alone() -> None:
    versions = torch.randn(3, 5, 7).repeat_interleave(2, dim=0)
    health = encoder_health(versions, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert float(health["encoder_cross_sample_var"]) > 0.1
    assert float(health["encoder_within_group_var"]) == pytest.approx(0.0, abs=1e-10)


def test_what_a_batch_does_not_define_is_nan(context: Tensor) -> None:
    no_repeat = encoder_health(context, torch.arange(6))
    assert math.isnan(no_repeat["encoder_within_group_var"])
    assert sum(math.isnan(value) for value in no_repeat.values()) == 1
    one_sample = encoder_health(context[:1], torch.zeros(1, dtype=torch.int32))
    assert math.isnan(one_sample["encoder_cross_sample_var"])
    assert math.isnan(one_sample["encoder_within_group_var"])
    assert math.isnan(encoder_health(context[:, :1], None)["encoder_token_std"])


def test_without_groups_there_is_no_variance_within_them(context: Tensor) -> None:
    assert "encoder_within_group_var" not in encoder_health(context, None)


def test_health_does_not_hold_on_to_the_graph(context: Tensor) -> None:
    health = encoder_health(context.requires_grad_(), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert not any(value.requires_grad for value in health.values())


def test_health_of_half_precision_is_computed_in_float32() -> None:
    large = (torch.randn(64, 16, 32) + 100).to(torch.bfloat16)
    health = encoder_health(large, None)
    assert all(value.dtype == torch.float32 for value in health.values())
    exact = large.double().numpy()
    assert float(health["encoder_output_mean"]) == pytest.approx(exact.mean(), rel=1e-5)
    assert float(health["encoder_cross_sample_var"]) == pytest.approx(exact.var(axis=0, ddof=1).mean(), rel=1e-3)


def test_only_valid_tokens_count() -> None:
    """With every token valid, the figures are those without a mask; what is not valid changes none of them."""
    torch.manual_seed(0)
    context, groups = torch.randn(6, 5, 8), torch.tensor([0, 0, 1, 1, 1, 2])
    plain, masked = encoder_health(context, groups), encoder_health(context, groups, torch.ones(6, 5, dtype=torch.bool))
    for name, value in plain.items():
        torch.testing.assert_close(masked[name], value, msg=name)
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 4, 2, 5])[:, None]
    valid = encoder_health(torch.where(mask[..., None], context, float("nan")), groups, mask)
    other = encoder_health(torch.where(mask[..., None], context, 100.0), groups, mask)
    for name, value in valid.items():
        assert torch.isfinite(value), name
        assert torch.equal(value, other[name]), name
    tokens = context[mask]
    torch.testing.assert_close(valid["encoder_output_std"], tokens.std())
    by_token = torch.stack([context[mask[:, t], t].var(dim=0).mean() for t in range(5)]).mean()
    torch.testing.assert_close(valid["encoder_cross_sample_var"], by_token)
