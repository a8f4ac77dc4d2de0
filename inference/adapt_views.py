"""Views of one task: its demonstrations turned, recoloured and moved, one asked for and some of the others shown.

Random numbers are keyed by (seed, content of the task, role, update, view), so that a task's views depend on nothing
beside it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8

from dataset.arc_tasks import Task
from dataset.assemble import assemble, first_by_key
from dataset.augment import NUM_DIHEDRAL
from dataset.batches import Batch
from dataset.context_limit import ContextLimit
from dataset.store import PuzzleStore
from models.act import EXPLORATION_KEY

NUM_DRAWS = 16  # of a view, beside those of its pairs: transform, colours, how many are shown, exploration


def task_key(task: Task, seed: int, role: str) -> int:
    """64 bits of the seed, the role and everything of a task that may be known: not its name, not its test outputs."""
    digest = hashlib.blake2b(f"{seed},{role}".encode(), digest_size=8)
    grids = [grid for pair in task.train for grid in (pair.input, pair.output) if grid is not None]
    for grid in (*grids, *(pair.input for pair in task.test)):
        digest.update(repr(grid.shape).encode() + grid.tobytes())
    return int.from_bytes(digest.digest(), "little")


# Of each view: transform, colours, number of the augmentation.
Versions = tuple[UInt8[np.ndarray, " views"], UInt8[np.ndarray, "views 10"], Int64[np.ndarray, " views"]]


@dataclass(frozen=True)
class DrawnGrids:
    """The grids of a task, with the augmentations of one batch."""

    cells: UInt8[np.ndarray, " cells"]
    grid_starts: Int64[np.ndarray, " grids+1"]
    grid_shapes: UInt8[np.ndarray, "grids 2"]
    dihedral: UInt8[np.ndarray, " views"]
    colors: UInt8[np.ndarray, "views 10"]


def drawn_colors(uniform: Float64[np.ndarray, "views 9"]) -> UInt8[np.ndarray, "views 10"]:
    """A permutation of the colours 1-9 for each row of random numbers; 0 stays."""
    permuted = 1 + np.argsort(uniform, axis=1)
    return np.concatenate([np.zeros((len(uniform), 1)), permuted], axis=1).astype(np.uint8)


class TaskViews:
    """Batches by number for training on some pairs of a task, each asked for in turn.

    Args:
        store: of this one task.
        pairs: two or more, of which the limit leaves each another one.
        key: as `task_key` gives it.
        max_context_tokens: see `dataset.context_limit`.
        versions: a store whose augmentations are the only views (None: any); a TRM knows them by number.
    """

    def __init__(
        self,
        store: PuzzleStore,
        pairs: Sequence[int],
        key: int,
        *,
        views: int,
        max_demos: int,
        translate: bool,
        max_context_tokens: int | None = None,
        versions: PuzzleStore | None = None,
    ):
        self.store, self.pairs, self.key, self.versions = store, np.array(pairs), key, versions
        self.views, self.translate = views, translate
        self.slots = min(len(pairs) - 1, max_demos)
        self.limit = ContextLimit(store, max_context_tokens)
        assert self.limit.leaves_another(self.pairs), "nothing to show beside one of the pairs"

    def __getitem__(self, number: int) -> Batch:
        """The batch of this number: every view shows at least one pair, at most all but the one that is asked for."""
        count, slots = len(self.pairs), self.slots
        rng = np.random.Generator(np.random.Philox(key=np.array([self.key, number], dtype=np.uint64)))
        draws = rng.random((self.views, NUM_DRAWS + count + 2 * (slots + 1)))
        asked = (number * self.views + np.arange(self.views)) % count
        keys = draws[:, NUM_DRAWS : NUM_DRAWS + count] + self.limit.too_long(self.pairs)
        shown = first_by_key(keys, np.arange(count) != asked[:, None], slots)
        shown[np.arange(slots) > np.floor(draws[:, 10:11] * slots)] = -1
        places = draws[:, NUM_DRAWS + count :].reshape(self.views, slots + 1, 2)
        batch = draw_views(
            self.store,
            *self._drawn_versions(draws),
            np.where(shown >= 0, self.pairs[shown], -1),
            self.pairs[asked],
            places if self.translate else None,
            self.limit,
        )
        return {**batch, EXPLORATION_KEY: torch.from_numpy(draws[:, 11:13].astype(np.float32))}

    def _drawn_versions(self, draws: Float64[np.ndarray, "views draws"]) -> Versions:
        if self.versions is None:
            dihedral = np.floor(draws[:, 0] * NUM_DIHEDRAL).astype(np.uint8)
            return dihedral, drawn_colors(draws[:, 1:10]), np.zeros(len(draws), dtype=np.int64)
        return versions_of(self.versions, np.floor(draws[:, 0] * len(self.versions.dihedral)).astype(np.int64))


def versions_of(store: PuzzleStore, numbers: Int64[np.ndarray, " views"]) -> Versions:
    """Augmentations of the one task of a store, by their numbers in its table."""
    return store.dihedral[numbers], store.colors[numbers], numbers


def draw_views(
    store: PuzzleStore,
    dihedral: UInt8[np.ndarray, " views"],
    colors: UInt8[np.ndarray, "views 10"],
    numbers: Int64[np.ndarray, " views"],
    demo_pairs: Int64[np.ndarray, "views demos"],
    query_pairs: Int64[np.ndarray, " views"],
    translation: Float64[np.ndarray, "views examples 2"] | None = None,
    limit: ContextLimit | None = None,
) -> Batch:
    """A batch of views of the one task of a store.

    Args:
        numbers: of the augmentations, which a TRM knows them by.
        limit: leaves out of `demo_pairs` what does not fit, and counts it (None: nothing is left out).
    """
    limit = limit or ContextLimit(store, None)
    demo_pairs, left_out = limit.apply(demo_pairs)
    grids = DrawnGrids(store.cells, store.grid_starts, store.grid_shapes, dihedral, colors)
    rows = np.arange(len(query_pairs))
    batch = assemble(grids, np.zeros_like(rows), rows, demo_pairs, query_pairs, translation)
    identifiers = torch.from_numpy((numbers + 1).astype(np.int32))
    return {**batch, **limit.counted(left_out), "puzzle_identifiers": identifiers}


def asked_of_the_others(
    store: PuzzleStore,
    pairs: Sequence[int],
    asked: Sequence[int],
    *,
    views: int,
    max_demos: int,
    max_context_tokens: int | None = None,
) -> Batch:
    """Each of the pairs in `asked`, with the others of `pairs` shown, in the store's first `views` augmentations.

    As in an evaluation, those that never fit into `max_context_tokens` come last.
    """
    limit = ContextLimit(store, max_context_tokens)
    ordered = sorted(pairs, key=lambda pair: bool(limit.too_long(np.array(pair))))
    shown = np.array([[pair for pair in ordered if pair != one][:max_demos] for one in asked])
    numbers = np.arange(min(views, len(store.dihedral)))
    return draw_views(
        store,
        *versions_of(store, np.tile(numbers, len(asked))),
        np.repeat(shown, len(numbers), axis=0),
        np.repeat(np.array(asked), len(numbers)),
        limit=limit,
    )
