"""ARC evaluation by voting: each augmented version of a puzzle gives a prediction; candidates rank by votes.

Predictions are cropped, un-augmented and counted; candidates rank by votes, then by mean sigmoid(q_halt). pass@k asks
whether the truth is among the first k, with fractional credit over a puzzle's test inputs. An evaluator serves one
evaluation of one checkpoint and is then thrown away, so nothing accumulates.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, UInt8

from dataset.augment import unaugment_grid
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.grids import Grid
from dataset.store import ManifestPuzzle
from dataset.trained_on import is_of_seen_rule
from evaluators.eos_utils import crop_grid_from_eos

PASS_KS = (1, 2, 5, 10, 100, 1000)
NUM_ATTEMPTS = 2
NO_PREDICTION = [[0]]
WILSON_Z = 1.959963984540054

GridKey = tuple[tuple[int, ...], bytes]
# By puzzle, for each test input in order: `attempt_1`, `attempt_2`, ... as nested lists.
Submission = dict[str, list[dict[str, list[list[int]]]]]
# One vote: (row of the query table, un-augmented grid, probability that the model thinks it is right).
Vote = tuple[int, Grid, float]


@dataclass
class Candidate:
    """A grid that was predicted, how often, and how sure the model was."""

    grid: Grid
    confidences: list[float] = field(default_factory=list)

    @property
    def votes(self) -> int:
        return len(self.confidences)

    @property
    def rank_key(self) -> tuple[int, float]:
        return self.votes, math.fsum(self.confidences) / self.votes


@dataclass
class QueryResult:
    """One test input: ranked candidates, and the rank of the truth (None: not among them, or unknown)."""

    puzzle: int
    pair: int
    candidates: list[Candidate] = field(default_factory=list)
    truth_rank: int | None = None
    has_truth: bool = True


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    p, z2 = successes / trials, WILSON_Z**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = WILSON_Z * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_metrics(credits: dict[str, dict[int, float]], prefix: str) -> dict[str, float]:
    """pass@k over puzzles, with the count and the 95 % Wilson interval behind each, under names after `prefix`.

    Args:
        credits: {puzzle id: {k: share of its test inputs whose truth is among the first k candidates}}.
    """
    metrics: dict[str, float] = {}
    for k in PASS_KS:
        solved = sum(credit[k] for credit in credits.values())
        low, high = wilson_interval(solved, len(credits))
        metrics[f"{prefix}pass@{k}"] = solved / len(credits) if credits else 0.0
        metrics[f"{prefix}pass@{k}_solved"] = solved
        metrics[f"{prefix}pass@{k}_low"] = low
        metrics[f"{prefix}pass@{k}_high"] = high
    return metrics


def credits_of_ranks(ranks: Sequence[int | None]) -> dict[int, float]:
    """{k: pass@k of a puzzle}: the share of its test inputs whose truth is among the first k candidates.

    Args:
        ranks: of the truth among the candidates of each test input, from 0 (None: it is not among them).
    """
    return {k: sum(rank is not None and rank < k for rank in ranks) / len(ranks) for k in PASS_KS}


def attempts_of(grids: Sequence[Grid], num_attempts: int = NUM_ATTEMPTS) -> dict[str, list[list[int]]]:
    """Kaggle's format of the answer to a test input: where candidates are fewer than attempts, the last stands in the
    remaining ones; without any, an attempt is `[[0]]`."""
    shown = [grid.tolist() for grid in grids[:num_attempts]] or [NO_PREDICTION]
    return {f"attempt_{i + 1}": shown[min(i, len(shown) - 1)] for i in range(num_attempts)}


def shares_with(puzzle_id: str, hashes: Collection[str], pairs: frozenset[str], puzzles: Collection[str]) -> bool:
    """Whether a puzzle has a pair or a rule of what was trained on: the hashes of its pairs, the ids of its puzzles."""
    return not pairs.isdisjoint(hashes) or is_of_seen_rule(puzzle_id, puzzles)


class ARC:
    """Votes of one evaluation. `name` in configs: `arc@ARC`.

    Args:
        dataset: the queries evaluated.
        seen_pairs: pair hashes of everything that the weights were trained on; puzzles among them make the metric
            contaminated, which its name says.
        unknown_origin: nobody wrote down what some of the weights were trained on, so every puzzle may be among it.
        seen_puzzles: ids of the puzzles that the weights were trained on: new pairs of their rules are contaminated too
            (`dataset.trained_on.is_of_seen_rule`).
    """

    def __init__(
        self,
        dataset: FewshotEvalDataset,
        seen_pairs: Collection[str] = (),
        unknown_origin: bool = False,
        seen_puzzles: Collection[str] = (),
    ):
        self.dataset, self.store = dataset, dataset.store
        self.seen_pairs, self.unknown_origin = frozenset(seen_pairs), unknown_origin
        self.seen_puzzles = frozenset(seen_puzzles)
        self.votes: list[Vote] = []

    def update(
        self,
        query_indices: Int[np.ndarray, " batch"],
        predictions: UInt8[np.ndarray, "batch 900"],
        q_halt_logits: Float[np.ndarray, " batch"],
    ) -> None:
        """Take a batch of final predictions."""
        confidences = 1 / (1 + np.exp(-q_halt_logits.astype(np.float64)))
        for query, grid, confidence in zip(query_indices, crop_grid_from_eos(predictions), confidences, strict=True):
            if grid.size:
                augmentation = self.dataset.query_augmentation[query]
                transform, colors = int(self.store.dihedral[augmentation]), self.store.colors[augmentation]
                self.votes.append((int(query), unaugment_grid(grid, transform, colors), float(confidence)))

    def results(self, votes: list[Vote] | None = None) -> list[QueryResult]:
        """Each test input of each puzzle, in order, with its ranked candidates.

        Args:
            votes: those of all ranks (None: this rank's).
        """
        counted: dict[int, dict[GridKey, Candidate]] = {int(pair): {} for pair in self.dataset.query_pair}
        for query, grid, confidence in self.votes if votes is None else votes:
            candidates = counted[int(self.dataset.query_pair[query])]
            candidate = candidates.setdefault((grid.shape, grid.tobytes()), Candidate(grid))
            candidate.confidences.append(confidence)
        puzzle_of = dict(zip(self.dataset.query_pair.tolist(), self.dataset.query_puzzle.tolist(), strict=True))
        results = []
        for pair, candidates in counted.items():
            # Equal votes and confidences fall back on the grid itself, so that the order of arrival has no say.
            ranked = sorted(candidates.items(), key=lambda item: (item[1].rank_key, item[0]), reverse=True)
            truth = self.store.grid(2 * pair + 1)
            matches = [i for i, (_, c) in enumerate(ranked) if np.array_equal(c.grid, truth)]
            results.append(
                QueryResult(
                    puzzle=puzzle_of[pair],
                    pair=pair,
                    candidates=[c for _, c in ranked],
                    truth_rank=matches[0] if matches and truth.size else None,
                    has_truth=truth.size > 0,
                )
            )
        return results

    def contaminated_puzzles(self) -> list[str]:
        """Ids of evaluated puzzles that share a pair or a rule with what the weights saw; all of them where that is
        unknown."""
        evaluated = {self.store.metadata.puzzle_ids[p] for p in self.dataset.puzzles}
        return [p.id for p in self.store.manifest.puzzles if p.id in evaluated and self._is_contaminated(p)]

    def _is_contaminated(self, puzzle: ManifestPuzzle) -> bool:
        return self.unknown_origin or shares_with(puzzle.id, puzzle.pair_hashes, self.seen_pairs, self.seen_puzzles)

    def puzzle_credits(self, results: list[QueryResult]) -> dict[str, dict[int, float]]:
        """{puzzle id: {k: pass@k}}: the share of the puzzle's test inputs whose truth is among the first k candidates.

        Puzzles without any known solution are not counted; a test input without a prediction counts as wrong.
        """
        by_puzzle: dict[str, list[QueryResult]] = {}
        for result in results:
            if result.has_truth:
                by_puzzle.setdefault(self.store.metadata.puzzle_ids[result.puzzle], []).append(result)
        return {puzzle: credits_of_ranks([q.truth_rank for q in queries]) for puzzle, queries in by_puzzle.items()}

    def metrics(self, credits: dict[str, dict[int, float]]) -> dict[str, float]:
        """`ARC/pass@k`, the count and the 95 % Wilson interval behind each, and the number of puzzles.

        The names begin with `ARC/contaminated_` when a puzzle was seen in training.

        Args:
            credits: as `puzzle_credits` gives them.
        """
        seen = self.contaminated_puzzles()
        counts: dict[str, float] = {"ARC/num_puzzles": len(credits), "ARC/num_contaminated_puzzles": len(seen)}
        return counts | pass_metrics(credits, "ARC/contaminated_" if seen else "ARC/")

    def submission(self, results: list[QueryResult], num_attempts: int = NUM_ATTEMPTS) -> Submission:
        """Kaggle's format: attempts (there two) for each test input of each puzzle, in order; see `attempts_of`."""
        submission: Submission = {}
        for result in results:
            attempts = attempts_of([c.grid for c in result.candidates], num_attempts)
            submission.setdefault(self.store.metadata.puzzle_ids[result.puzzle], []).append(attempts)
        return submission


EVALUATORS = {"arc@ARC": ARC}
