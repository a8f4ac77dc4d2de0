"""What weights that adapt to a task are asked at each mark: its versions' votes, and its own demonstrations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from config.schema import TrainConfig
from dataset.arc_tasks import Task
from dataset.batches import Batch
from dataset.build_arc_dataset import store_of_tasks
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.store import PuzzleStore
from evaluators.arc import ARC
from evaluators.eos_utils import compute_exact_match
from inference.adapt_answers import Votes, key_of
from inference.adapt_options import AdaptOptions
from inference.adapt_views import asked_of_the_others
from inference.likelihood import likelihoods
from inference.traces import VotedGrid, voted
from models.act import RecursiveReasoner
from models.losses import LOG_PROBABILITIES

MOST_JUDGED = 16  # candidates of a mark, and as many of the marks before it


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
        self.log_probabilities_of = LOG_PROBABILITIES[config.arch.loss.loss_type]
        limits = {"max_demos": config.max_demos, "max_context_tokens": config.max_context_tokens}
        sizes = {"batch_size": config.eval_batch_size, "batch_tokens": config.eval_batch_tokens}
        self.data = FewshotEvalDataset(store, **sizes, **limits)
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

    @property
    def beside_votes(self) -> int:
        """How many queries a mark asks beside the versions of the task."""
        return sum(len(batch["labels"]) for batch in (self.explained, self.left_out) if batch is not None)

    def _of_the_others(self, asked: Sequence[int], views: int, limits: dict[str, Any]) -> Batch:
        return self._moved(asked_of_the_others(self.store, range(self.count), asked, views=views, **limits))

    def _moved(self, batch: Batch) -> Batch:
        return {key: value.to(self.device) for key, value in batch.items()}

    def votes(self, model: RecursiveReasoner, earlier: Votes = ()) -> Votes:
        """What the versions of the task vote for. None is predicted again on the full canvas.

        Args:
            earlier: of each test input (or of none) what earlier weights voted for; what these do not vote for stands
                behind their own candidates, without a vote, for they too are asked how likely it is.
        """
        voting = ARC(self.data)
        log_probabilities = []
        for batch in self.batches:
            moved = {key: value.to(self.device) for key, value in batch.items() if key != "query_indices"}
            *_, outputs = model.rollout(moved)
            predictions = outputs["logits"].argmax(-1).to(torch.uint8).cpu().numpy()
            voting.update(batch["query_indices"].numpy(), predictions, outputs["q_halt_logits"].float().cpu().numpy())
            log_probabilities.append(self.log_probabilities_of(outputs["logits"]).float())
        results, table = voting.results(), torch.cat(log_probabilities)
        asked = torch.cat([batch["query_indices"] for batch in self.batches]).numpy()
        return tuple(
            self._judged(table, asked, result.pair, voted(result.candidates), before)
            for result, before in zip(results, earlier or [()] * len(results), strict=True)
        )

    def _judged(
        self,
        log_probabilities: Float[Tensor, "queries 900 vocab"],
        asked: Int32[np.ndarray, " queries"],
        pair: int,
        votes: tuple[VotedGrid, ...],
        earlier: tuple[VotedGrid, ...],
    ) -> tuple[VotedGrid, ...]:
        """The candidates of a test input with the likelihood of the first ones, and of the first ones of before."""
        own = {key_of(vote) for vote in votes}
        others = [replace(vote, votes=0, confidence=0.0) for vote in earlier if key_of(vote) not in own]
        judged = [*votes[:MOST_JUDGED], *others[:MOST_JUDGED]]
        rows = np.flatnonzero(self.data.query_pair[asked] == pair)
        versions = self.data.query_augmentation[asked[rows]]
        found = likelihoods(
            log_probabilities[rows],
            [vote.grid for vote in judged],
            self.store.dihedral[versions],
            self.store.colors[versions],
        )
        judged = [replace(vote, likelihood=value) for vote, value in zip(judged, found, strict=True)]
        count = len(votes[:MOST_JUDGED])
        return *judged[:count], *votes[count:], *judged[count:]

    @staticmethod
    def right(model: RecursiveReasoner, batch: Batch) -> np.ndarray:
        """Which demonstrations of a batch are predicted exactly."""
        *_, outputs = model.rollout(batch)
        return compute_exact_match(outputs["logits"], batch["labels"]).cpu().numpy()
