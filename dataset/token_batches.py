"""Batches of queries that hold about as many cells each, however large the grids are: small tasks come many at once."""

import numpy as np
from jaxtyping import Int64

from dataset.grids import CANVAS_SIDE
from dataset.store import PuzzleStore


def with_borders(store: PuzzleStore, grids: Int64[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape 2"]:
    """Rows and columns of grids by number, each with its border on the canvas; zeros for a number below 0."""
    sizes = np.minimum(store.grid_shapes[grids].astype(np.int64) + 1, CANVAS_SIDE)
    return np.where((grids >= 0)[..., None], sizes, 0)


def cells_of_queries(
    store: PuzzleStore, demos: Int64[np.ndarray, "queries demos"], queries: Int64[np.ndarray, " queries"]
) -> Int64[np.ndarray, " queries"]:
    """The cells of the demonstrations, and of the smallest canvas on which all inputs and demonstrated outputs fit.

    Args:
        demos, queries: pairs of the store by number, -1 where there is none.
    """
    grids = np.stack([np.where(demos >= 0, 2 * demos + side, -1) for side in (0, 1)])  # (2, queries, demos)
    shown = with_borders(store, grids)
    canvas = np.maximum(shown.max(axis=(0, 2), initial=0), with_borders(store, 2 * queries))
    return shown.prod(axis=-1).sum(axis=(0, 2)) + canvas.prod(axis=-1)


def bounds_by_cells(cells: Int64[np.ndarray, " queries"], budget: int) -> Int64[np.ndarray, " batches+1"]:
    """Where batches begin, and the end of the last: each goes on as long as its cells stay within the budget, and has
    one query at least."""
    ends = np.cumsum(cells)
    bounds = [0]
    while bounds[-1] < len(cells):
        before = ends[bounds[-1] - 1] if bounds[-1] else 0
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(ends, before + budget, side="right"))))
    return np.array(bounds, dtype=np.int64)
