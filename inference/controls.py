"""Control batches: the same queries with other demonstrations, on the canvas of the right ones.

Each is made query by query, from a generator keyed by (seed, query, control): it does not depend on what else is in a
batch, nor on how many ranks there are. What a control cannot be made of is not measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from dataset.batches import Batch
from dataset.grids import COLOR_OFFSET, NUM_COLORS, VOCAB_SIZE

# What a text brings along besides latents says where it ends, not what it is about.
KEPT_WITHOUT_CONDITION = ("text_mask", "text_tokens")
Generators = Sequence[np.random.Generator]


@dataclass(frozen=True)
class Control:
    """The queries of a batch under a control.

    is_possible: for which of them the control can be made.
    is_right: which of these have the right demonstrations all the same (None: none).
    """

    batch: Batch
    is_possible: Bool[Tensor, " batch"]
    is_right: Bool[Tensor, " batch"] | None = None


def _shown(batch: Batch, sample: int) -> Int64[np.ndarray, " shown"]:
    """The slots of a sample's demonstrations."""
    return np.flatnonzero(batch["demo_mask"][sample].numpy())


def _rearranged(batch: Batch, order: Int64[np.ndarray, "batch demos"], keys: Sequence[str]) -> Batch:
    """The batch with the slots of some keys in another order."""
    index = torch.from_numpy(order)
    return batch | {
        key: torch.take_along_dim(batch[key], index[(..., *[None] * (batch[key].dim() - 2))], dim=1) for key in keys
    }


def _unmoved(batch: Batch) -> Int64[np.ndarray, "batch demos"]:
    size, slots = batch["demo_mask"].shape
    return np.tile(np.arange(slots), (size, 1))


def derangement(kinds: Sequence[bytes], rng: np.random.Generator) -> Int64[np.ndarray, " n"] | None:
    """An order of n things, drawn at random, in which each place gets one of another kind than it had; None where there
    is none, which is where more than half are of one kind."""
    values, kind, counts = np.unique(np.array(kinds, dtype=object), return_inverse=True, return_counts=True)
    if not len(kinds) or 2 * counts.max() > len(kinds):
        return None
    # Kind after kind, in a circle; a step as long as the longest run leads to another kind from everywhere.
    rank = rng.permutation(len(values))
    places = np.lexsort((rng.random(len(kinds)), rank[kind]))
    order = np.empty(len(kinds), dtype=np.int64)
    order[places] = np.roll(places, -counts.max())
    return order


def deranged(batch: Batch, rngs: Generators) -> Control:
    """Inputs with the outputs of other demonstrations, each of which differs from the right one."""
    order, possible = _unmoved(batch), np.zeros(len(rngs), dtype=bool)
    for sample, rng in enumerate(rngs):
        slots = _shown(batch, sample)
        found = derangement([batch["demo_labels"][sample, k].numpy().tobytes() for k in slots], rng)
        if found is not None:
            order[sample, slots], possible[sample] = slots[found], True
    return Control(_rearranged(batch, order, ("demo_labels",)), torch.from_numpy(possible))


def reordered(batch: Batch, rngs: Generators) -> Control:
    """The demonstrations in another order; a single one has none."""
    order, possible = _unmoved(batch), np.zeros(len(rngs), dtype=bool)
    for sample, rng in enumerate(rngs):
        slots = _shown(batch, sample)
        if len(slots) > 1:
            found = derangement([bytes([k]) for k in slots], rng)
            assert found is not None, "single things have a derangement from two on"
            order[sample, slots], possible[sample] = slots[found], True
    return Control(_rearranged(batch, order, ("demo_inputs", "demo_labels")), torch.from_numpy(possible))


def first_demonstrations(batch: Batch, count: int) -> Control:
    """The first `count` demonstrations; who has no more has the right ones."""
    mask = batch["demo_mask"]
    shown = mask & (mask.cumsum(1) <= count)
    return Control(batch | {"demo_mask": shown}, torch.ones(len(mask), dtype=torch.bool), (shown == mask).all(1))


def unconditioned(batch: Batch, keys: Sequence[str]) -> Control:
    """Nothing that tells which puzzle it is: no demonstration, the blank identifier, latents of zeros."""
    told = [key for key in keys if key in batch and key not in KEPT_WITHOUT_CONDITION]
    zeros = {key: torch.zeros_like(batch[key]) for key in told}
    return Control(batch | zeros, torch.ones(len(batch["inputs"]), dtype=torch.bool))


def color_cycle(colors: Sequence[int], rng: np.random.Generator) -> Int64[np.ndarray, " 12"]:
    """The image of each token under a permutation that moves each of the colours, and no other."""
    images = np.arange(VOCAB_SIZE)
    order = rng.permutation(colors)
    for old, new in pairwise((*order, order[0])):
        images[old + COLOR_OFFSET] = new + COLOR_OFFSET
    return images


def recolored(batch: Batch, rngs: Generators) -> Control:
    """The colours that occur in a task's demonstrations and query input exchanged in all of its grids, the answer
    included: each becomes another. 0, which is the background of many tasks, stays; so does what does not occur."""
    table, possible = np.tile(np.arange(VOCAB_SIZE), (len(rngs), 1)), np.zeros(len(rngs), dtype=bool)
    for sample, rng in enumerate(rngs):
        slots = _shown(batch, sample)
        grids = (batch["demo_inputs"][sample, slots], batch["demo_labels"][sample, slots], batch["inputs"][sample])
        tokens = torch.cat([grid.flatten() for grid in grids]).numpy()
        colors = np.unique(tokens[tokens > COLOR_OFFSET]).astype(np.int64) - COLOR_OFFSET
        if len(colors) > 1:
            table[sample], possible[sample] = color_cycle(colors.tolist(), rng), True
    images = torch.from_numpy(table)
    keys = ("demo_inputs", "demo_labels", "inputs", "labels")
    return Control(batch | {key: _looked_up(images, batch[key]) for key in keys}, torch.from_numpy(possible))


def _looked_up(images: Int[Tensor, "batch 12"], tokens: Int[Tensor, "batch *rest"]) -> Tensor:
    found = images.gather(1, tokens.flatten(1).long())
    return found.view_as(tokens).to(tokens.dtype)


def most_frequent_color(batch: Batch) -> Int[Tensor, "batch 900"]:
    """The query's input with all its cells in the colour that is most frequent in the demonstrations' outputs."""
    tokens = torch.where(batch["demo_mask"][..., None], batch["demo_labels"], 0).flatten(1).long()
    counts = torch.zeros(len(tokens), VOCAB_SIZE, dtype=torch.int64).scatter_add(1, tokens, torch.ones_like(tokens))
    color = COLOR_OFFSET + counts[:, COLOR_OFFSET : COLOR_OFFSET + NUM_COLORS].argmax(1)
    inputs = batch["inputs"].long()
    return torch.where(inputs >= COLOR_OFFSET, color[:, None], inputs)
