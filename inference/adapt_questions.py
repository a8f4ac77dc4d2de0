"""What weights that adapt to a task are asked at each mark: its versions' votes, and its own demonstrations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from config.schema import TrainConfig
from dataset.arc_tasks import Task
from dataset.batches import Batch
from dataset.build_arc_dataset import store_of_tasks
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.store import PuzzleStore
from evaluators.arc import ARC
from evaluators.eos_utils import compute_exact_match
from inference.adapt_answers import Votes, voted
from inference.adapt_options import AdaptOptions
from inference.adapt_views import asked_of_the_others
from models.act import RecursiveReasoner


def refuse_without_room(tasks: Sequence[Task], config: TrainConfig) -> None:
    """
    Raises:
        DatasetError: `max_context_tokens` leaves a task without any demonstration; it names the task.
    """
    if config.max_context_tokens is not None:
        FewshotEvalDataset(store_of_tasks(tasks, 0, 0), batch_size=1, max_context_tokens=config.max_context_tokens)


class Questions:
    """The questions of a task, drawn once.

    explained: each demonstration with the others shown, as they are (None: one of them has no other that could be).
    out: the demonstration that a fork leaves out.
    left_out: views of it, with the others shown (None: there is no fork).
    """

    def __init__(self, store: PuzzleStore, key: int, config: TrainConfig, options: AdaptOptions, device: torch.device):
        self.store, self.device = store, device
        self.count = int(store.puzzle_demos[0])
        limits = {"max_demos": config.max_demos, "max_context_tokens": config.max_context_tokens}
        self.data = FewshotEvalDataset(store, batch_size=config.eval_batch_size, **limits)
        self.batches = [self.data[number] for number in range(len(self.data))]
        self.explained: Batch | None = None
        self.left_out: Batch | None = None
        everything = range(self.count)
        if self.data.limit.leaves_another(np.arange(self.count)):
            self.explained = self._of_the_others(everything, 1, limits)
        self.out = key % self.count
        if options.fork_every and self.count >= 3 and self.data.limit.leaves_another(self.others):
            self.left_out = self._of_the_others([self.out], options.agreement_views, limits)

    @property
    def others(self) -> Int64[np.ndarray, " demos"]:
        """The demonstrations beside the one that a fork leaves out."""
        return np.delete(np.arange(self.count), self.out)

    def _of_the_others(self, asked: Sequence[int], views: int, limits: dict[str, Any]) -> Batch:
        return self._moved(asked_of_the_others(self.store, range(self.count), asked, views=views, **limits))

    def _moved(self, batch: Batch) -> Batch:
        return {key: value.to(self.device) for key, value in batch.items()}

    def votes(self, model: RecursiveReasoner) -> Votes:
        """What the versions of the task vote for. None is predicted again on the full canvas."""
        voting = ARC(self.data)
        for batch in self.batches:
            moved = {key: value.to(self.device) for key, value in batch.items() if key != "query_indices"}
            *_, outputs = model.rollout(moved)
            predictions = outputs["logits"].argmax(-1).to(torch.uint8).cpu().numpy()
            voting.update(batch["query_indices"].numpy(), predictions, outputs["q_halt_logits"].float().cpu().numpy())
        return tuple(voted(result.candidates) for result in voting.results())

    @staticmethod
    def right(model: RecursiveReasoner, batch: Batch) -> np.ndarray:
        """Which demonstrations of a batch are predicted exactly."""
        *_, outputs = model.rollout(batch)
        return compute_exact_match(outputs["logits"], batch["labels"]).cpu().numpy()
