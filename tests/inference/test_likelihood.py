"""Candidates are as likely as the loss that the model would have with them as labels says, in every version."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.augment import augment_grid
from dataset.grids import PAD, place_grid
from inference.likelihood import likelihoods
from models.losses import LOG_PROBABILITIES, TOKEN_LOSSES


@pytest.mark.parametrize("loss_type", sorted(TOKEN_LOSSES))
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), versions=st.integers(1, 5))
def test_the_likelihood_is_minus_the_loss_of_the_candidate_as_label(loss_type: str, seed: int, versions: int) -> None:
    """Version by version: grids of any size, up to the whole canvas, which has no EOS border."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 3, (versions, 900, 12)))
    dihedral = rng.integers(0, 8, versions).astype(np.uint8)
    colors = np.stack([rng.permutation(10) for _ in range(versions)]).astype(np.uint8)
    shapes = [rng.integers(1, 31, 2) for _ in range(2)] + [(30, 30)]
    grids = [rng.integers(0, 10, shape).astype(np.uint8) for shape in shapes]
    found = likelihoods(LOG_PROBABILITIES[loss_type](logits), grids, dihedral, colors)
    for grid, value in zip(grids, found, strict=True):
        total = 0.0
        for version in range(versions):
            tokens = place_grid(augment_grid(grid, int(dihedral[version]), colors[version]))
            total -= float(TOKEN_LOSSES[loss_type](logits[version], torch.from_numpy(tokens).long()).sum())
        assert value == pytest.approx(total / versions, rel=1e-4)


def test_what_stands_outside_of_the_border_has_no_say() -> None:
    grid = np.ones((2, 3), dtype=np.uint8)
    one = torch.log_softmax(torch.randn(1, 900, 12), dim=-1)
    other = one.clone()
    other[:, torch.from_numpy(place_grid(grid) == PAD)] = -7.0
    versions = np.zeros(1, dtype=np.uint8), np.arange(10, dtype=np.uint8)[None]
    assert likelihoods(one, [grid], *versions) == likelihoods(other, [grid], *versions)
    assert likelihoods(one, [], *versions) == []
