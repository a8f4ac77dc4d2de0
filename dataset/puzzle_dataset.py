"""TRM's training batches: every pair of a puzzle is a query, and held-out puzzles train with their demonstrations.

That is TRM's published protocol: it learns an embedding for each puzzle id, so an id that it is to be asked about must
be in training. Test pairs of held-out puzzles never are. Batches look like those of `dataset.fewshot_puzzle_dataset`;
the other demonstrations of the puzzle come along because the task canvas is computed from their sizes.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from dataset.fewshot_puzzle_dataset import FewshotTrainDataset, QuerySampling, select_puzzles
from dataset.store import PuzzleStore


class PuzzleTrainDataset(FewshotTrainDataset):
    """Training batches by number; an epoch draws each puzzle once, with one augmentation and one pair.

    Args:
        held_out_demonstrations: whether held-out puzzles train with their demonstrations.
        max_held_out_groups: the first N of them (None: all), the ones that are evaluated.

    Raises:
        DatasetError: as `FewshotTrainDataset`.
    """

    def __init__(
        self,
        store: PuzzleStore,
        *,
        held_out_demonstrations: bool,
        max_held_out_groups: int | None = None,
        **options: Any,
    ):
        self.held_out_demonstrations, self.max_held_out_groups = held_out_demonstrations, max_held_out_groups
        super().__init__(store, **options)

    def _choose_puzzles(self, max_groups: int | None) -> Int64[np.ndarray, " n"]:
        puzzles = super()._choose_puzzles(max_groups)
        if not self.held_out_demonstrations:
            return puzzles
        held_out = select_puzzles(self.store, "test", self.max_held_out_groups, "max_eval_groups")
        return np.concatenate([puzzles, held_out])

    def _choose_pairs(
        self, query_sampling: QuerySampling
    ) -> tuple[Bool[np.ndarray, "puzzles pairs"], Bool[np.ndarray, "puzzles pairs"]]:
        is_held_out = np.isin(self.puzzles, self.store.puzzles_of("test"))
        demonstrations = self.pairs.is_demo & self.pairs.is_labelled
        return np.where(is_held_out[:, None], demonstrations, self.pairs.is_labelled), demonstrations
