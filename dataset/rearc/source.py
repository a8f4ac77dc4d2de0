"""Training batches of RE-ARC's generators: each sample is a new task of pairs that were made before."""

from typing import Any

from dataset.fewshot_puzzle_dataset import FewshotTrainDataset
from dataset.store import PuzzleStore


class RearcSource(FewshotTrainDataset):
    """Batches without end: any pair of a generator is asked for, with a random number of its other pairs.

    Args:
        num_batches: of the run; an epoch has `epoch_batches`.
    """

    def __init__(
        self, store: PuzzleStore, *, num_batches: int, epoch_batches: int, global_batch_size: int, **options: Any
    ):
        super().__init__(
            store,
            epochs=num_batches * global_batch_size,
            query_sampling="leave_one_out",
            global_batch_size=global_batch_size,
            **options,
        )
        self.num_batches, self.epoch_batches = num_batches, epoch_batches

    def epoch_of(self, num_batches: int) -> int:
        return num_batches // self.epoch_batches

    @property
    def description(self) -> str:
        return f"tasks without end of {len(self.puzzles)} generators"
