"""A limit on the demonstrations of a sample: whole ones are left out, none is cut, and one always stays."""

import numpy as np
import torch
from jaxtyping import Bool, Int64

from dataset.assemble import PairTable
from dataset.batches import Batch
from dataset.store import DatasetError, PuzzleStore

LEFT_OUT_KEY = "demos_left_out"  # (B) int32: demonstrations that each sample lacks for the limit's sake


class ContextLimit:
    """At most so many cells of demonstrations, inputs and outputs together.

    Args:
        most: None for no limit.
    """

    def __init__(self, store: PuzzleStore, most: int | None):
        self.most = most
        self.cells = store.grid_shapes.astype(np.int64).prod(axis=1).reshape(-1, 2).sum(axis=1)

    def too_long(self, pairs: Int64[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
        """Which pairs do not fit even alone: others are shown before them."""
        return self.cells[pairs] > self.most if self.most is not None else np.zeros(pairs.shape, dtype=bool)

    def leaves_another(self, pairs: Int64[np.ndarray, " pairs"]) -> bool:
        """Whether beside each of these pairs another of them fits."""
        short = ~self.too_long(pairs)
        return bool((short.sum() - short > 0).all())

    def check(
        self,
        store: PuzzleStore,
        puzzles: Int64[np.ndarray, " puzzles"],
        pairs: PairTable,
        may_show: Bool[np.ndarray, "puzzles pairs"],
        may_query: Bool[np.ndarray, "puzzles pairs"],
    ) -> None:
        """Refuse a limit that leaves a query without demonstrations.

        Raises:
            DatasetError: names the puzzle, and the least limit for it.
        """
        if self.most is None:
            return
        short = may_show & ~self.too_long(pairs.index)
        needed = 1 + (short & may_query).any(axis=1)  # the query itself may be one of them
        lacking = np.flatnonzero(short.sum(axis=1) < needed)
        if not len(lacking):
            return
        row = lacking[0]
        enough = 1 + int((may_show & may_query)[row].any())
        least = int(np.sort(self.cells[pairs.index[row][may_show[row]]])[:enough].max())
        raise DatasetError(
            f"max_context_tokens={self.most} leaves puzzle '{store.metadata.puzzle_ids[puzzles[row]]}' without any "
            f"demonstration; it needs {least}, or a data set of smaller grids (--max-side)"
        )

    def counted(self, left_out: Int64[np.ndarray, " batch"]) -> Batch:
        """What a batch says of it; nothing without a limit."""
        return {} if self.most is None else {LEFT_OUT_KEY: torch.from_numpy(left_out.astype(np.int32))}

    def apply(
        self, demo_pairs: Int64[np.ndarray, "batch demos"]
    ) -> tuple[Int64[np.ndarray, "batch demos"], Int64[np.ndarray, " batch"]]:
        """The demonstrations that fit with those before them, in their order, and how many are left out.

        Args:
            demo_pairs: pair indices, -1 where a slot is empty.
        """
        is_pair = demo_pairs >= 0
        if self.most is None:
            return demo_pairs, np.zeros(len(demo_pairs), dtype=np.int64)
        cells = np.where(is_pair, self.cells[demo_pairs], 0)
        kept, total = np.zeros_like(is_pair), np.zeros(len(demo_pairs), dtype=np.int64)
        for slot in range(demo_pairs.shape[1]):
            kept[:, slot] = is_pair[:, slot] & (total + cells[:, slot] <= self.most)
            total += np.where(kept[:, slot], cells[:, slot], 0)
        order = np.argsort(~kept, axis=1, kind="stable")
        fitting = np.where(kept, demo_pairs, -1)
        return np.take_along_axis(fitting, order, axis=1), is_pair.sum(axis=1) - kept.sum(axis=1)
