"""TRM's training batches: every pair of a puzzle is a query, and held-out puzzles train with their demonstrations.

That is TRM's published protocol: it learns an embedding for each puzzle id, so an id that it is to be asked about must
be in training. Test pairs of held-out puzzles never are. The other demonstrations of the puzzle come along because the
task canvas is computed from their sizes.
"""

from typing import Any

import numpy as np

from dataset.assemble import select_puzzles
from dataset.store import PuzzleStore
from dataset.store_train_dataset import PairChoice, StoreTrainDataset


class PuzzleTrainDataset(StoreTrainDataset):
    """Training batches by number; an epoch draws each puzzle once, with one augmentation and one pair.

    Args:
        held_out_demonstrations: whether held-out puzzles train with their demonstrations.
        max_held_out_groups: the first N of them (None: all), the ones that are evaluated.
        max_groups: the first N training puzzles (None: all).

    Raises:
        DatasetError: as `StoreTrainDataset`; also when there are fewer puzzles.
    """

    def __init__(
        self,
        store: PuzzleStore,
        *,
        held_out_demonstrations: bool,
        max_held_out_groups: int | None = None,
        max_groups: int | None = None,
        **options: Any,
    ):
        puzzles = select_puzzles(store, "train", max_groups, "max_train_groups")
        if held_out_demonstrations:
            held_out = select_puzzles(store, "test", max_held_out_groups, "max_eval_groups")
            puzzles = np.concatenate([puzzles, held_out])
        super().__init__(store, puzzles, **options)

    def _choose_pairs(self) -> PairChoice:
        is_held_out = np.isin(self.puzzles, self.store.puzzles_of("test"))
        demonstrations = self.pairs.is_demo & self.pairs.is_labelled
        return np.where(is_held_out[:, None], demonstrations, self.pairs.is_labelled), demonstrations
