"""Queries asked with what belongs to another puzzle: what a model that reads its condition cannot answer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from dataset.assemble import exchanged
from dataset.batches import Batch
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset


class ShuffledConditions(FewshotEvalDataset):
    """Each query with the demonstrations (or the puzzle identifier) of another puzzle, drawn once from a seed."""

    def __init__(self, *args: Any, keys: Sequence[str], seed: int = 0, **options: Any):
        super().__init__(*args, **options)
        partner = exchanged(len(self.puzzles), seed, "--shuffle")
        first = np.searchsorted(self.query_row, np.arange(len(self.puzzles)))
        self.keys, self.donor = keys, first[partner[self.query_row]]

    def queries(self, indices: Int64[np.ndarray, " batch"]) -> Batch:
        batch, other = super().queries(indices), super().queries(self.donor[indices])
        return batch | {key: other[key] for key in self.keys if key in other}
