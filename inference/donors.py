"""Whose demonstrations a query is asked with instead of its own, and what the answer would be then.

Where the puzzle's rule is known the donor is another rule on the same inputs, and its answer is known. Else it is
another puzzle of the data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from dataset.augment import SWAPS_AXES, augment_grid
from dataset.batches import DEMONSTRATION_KEYS, Batch
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.grids import SEQ_LEN, Grid, place_grid
from dataset.known_rules.family import Rule, same
from dataset.known_rules.generator import FAMILIES
from dataset.store import PuzzleRule
from inference.controls import Control


@dataclass(frozen=True)
class Donation:
    """The donor's demonstrations.

    answers: the donor's answers to the queries.
    is_known: for which queries the donor's answer is known.
    same_size: whose donor's query and answer have the sizes of its own.
    """

    control: Control
    answers: Int[Tensor, "batch 900"]
    is_known: Bool[Tensor, " batch"]
    same_size: Bool[Tensor, " batch"]


class Donors:
    """The donor of each query of a data set, fixed by a seed.

    Args:
        keys: the keys of a batch that tell which puzzle it is.
    """

    def __init__(self, dataset: FewshotEvalDataset, keys: Sequence[str]):
        self.dataset, self.keys = dataset, keys
        store = dataset.store
        version = dataset.query_augmentation - store.puzzle_augmentations[dataset.query_puzzle]
        self.candidates = np.flatnonzero(version == 0)
        self.reads_demonstrations = tuple(keys) == DEMONSTRATION_KEYS

    def rule_of(self, query: int) -> PuzzleRule | None:
        """What is known of the rule of a query's puzzle."""
        return self.dataset.store.manifest.puzzles[int(self.dataset.query_puzzle[query])].rule

    def of(self, batch: Batch, queries: Int64[np.ndarray, " batch"], rngs: Sequence[np.random.Generator]) -> Donation:
        """The batch of the given queries with their donors' demonstrations."""
        donated = {key: batch[key].clone() for key in self.keys if key in batch}
        possible, known, same_size = (torch.zeros(len(queries), dtype=torch.bool) for _ in range(3))
        answers = torch.zeros(len(queries), SEQ_LEN, dtype=torch.uint8)
        for sample, (query, rng) in enumerate(zip(queries.tolist(), rngs, strict=True)):
            rule = self.rule_of(query)
            if rule is not None and self.reads_demonstrations:
                if rule.donor is None:
                    continue
                outputs = self._outputs(query, rule.family, rule.donor)
                for slot, output in enumerate(outputs[:-1]):
                    donated["demo_labels"][sample, slot] = torch.from_numpy(place_grid(output))
                answers[sample], known[sample] = torch.from_numpy(place_grid(outputs[-1])), True
                same_size[sample] = outputs[-1].shape == self._answer(query).shape
            else:
                donor = self._other_query(query, rng)
                if donor is None:
                    continue
                other = self.dataset.queries(np.array([donor]))
                for key in donated:
                    donated[key][sample] = other[key][0]
                same_size[sample] = self._sizes(np.array([query])).tolist() == self._sizes(np.array([donor])).tolist()
            possible[sample] = True
        return Donation(Control(batch | donated, possible), answers, known, same_size)

    def _outputs(self, query: int, family: str, rule: Rule) -> list[Grid]:
        """What a rule makes of the inputs of a query's demonstrations, and last of its own, as augmented there."""
        dataset, augmentation = self.dataset, int(self.dataset.query_augmentation[query])
        pairs = [*dataset.demo_pairs(np.array([query]))[0], dataset.query_pair[query]]
        grids = [FAMILIES[family].apply(rule, dataset.store.grid(2 * int(pair))) for pair in pairs if pair >= 0]
        transform, colors = int(dataset.store.dihedral[augmentation]), dataset.store.colors[augmentation]
        return [augment_grid(grid, transform, colors) for grid in grids]

    def _answer(self, query: int) -> Grid:
        store, augmentation = self.dataset.store, int(self.dataset.query_augmentation[query])
        grid = store.grid(2 * int(self.dataset.query_pair[query]) + 1)
        return augment_grid(grid, int(store.dihedral[augmentation]), store.colors[augmentation])

    def _sizes(self, queries: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, "n 4"]:
        """Heights and widths of the queries' inputs and answers (0 where unknown)."""
        dataset, pair = self.dataset, self.dataset.query_pair[queries]
        shapes = dataset.store.grid_shapes[2 * pair[:, None] + np.arange(2)].astype(np.int64)  # (n, 2, 2)
        swaps = SWAPS_AXES[dataset.store.dihedral[dataset.query_augmentation[queries]]]
        return np.where(swaps[:, None, None], shapes[..., ::-1], shapes).reshape(-1, 4)

    def _other_query(self, query: int, rng: np.random.Generator) -> int | None:
        """A query of another puzzle as it is, with another answer: one of the same sizes where there is any, else one
        whose input has the same size; None where no answer differs."""
        dataset = self.dataset
        others = self.candidates[dataset.query_puzzle[self.candidates] != dataset.query_puzzle[query]]
        others = rng.permutation(others)
        is_equal = self._sizes(others) == self._sizes(np.array([query]))
        likeness = is_equal[:, :2].all(axis=1).astype(np.int64) + is_equal.all(axis=1)
        answer = self._answer(query)
        ordered = others[np.argsort(-likeness, kind="stable")].tolist()
        return next((donor for donor in ordered if not same(self._answer(donor), answer)), None)
