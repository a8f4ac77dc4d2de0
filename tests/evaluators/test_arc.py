"""Voting on hand-made puzzles whose answer is known, and on real ones with a predictor that knows the labels."""

import itertools
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.augment import augment_grid
from dataset.batches import iterate
from dataset.build_arc_dataset import build_dataset
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.grids import place_grid
from dataset.store import PuzzleStore, load_store
from dataset.trained_on import is_of_seen_rule
from evaluators.arc import ARC, PASS_KS, wilson_interval

WILSON_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution

A, B, C = ([[1, 2], [3, 4]], [[5, 6, 7]], [[8], [9]])
# Three held-out puzzles: two test inputs, one, and one whose answer is not known.
PUZZLES = {
    "two": {
        "train": [{"input": [[1, 2, 3]], "output": [[1]]}],
        "test": [{"input": [[1, 2, 2]], "output": A}, {"input": [[1, 1, 2]], "output": B}],
    },
    "one": {
        "train": [{"input": [[1, 2, 3, 4]], "output": [[1]]}],
        "test": [{"input": [[1, 2, 2, 2]], "output": A}],
    },
    "unknown": {"train": [{"input": [[1], [2], [0]], "output": [[1, 1]]}], "test": [{"input": [[1, 0]]}]},
}
Vote = tuple[int, Any, float]


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> PuzzleStore:
    folder = tmp_path_factory.mktemp("own")
    (folder / "arc_held_challenges.json").write_text(json.dumps(PUZZLES))
    prefix = str(folder / "arc")
    build_dataset(folder / "set", ["held"], test_set_name="held", num_aug=3, seed=0, input_file_prefix=prefix)
    return load_store(folder / "set")


@pytest.fixture
def own(own_store: PuzzleStore) -> FewshotEvalDataset:
    """The hand-made puzzles in four versions each: queries 0-3 and 4-7 "two", 8-11 "one", 12-15 "unknown"."""
    data = FewshotEvalDataset(own_store, batch_size=4)
    assert data.query_puzzle.tolist() == [0] * 8 + [1] * 4 + [2] * 4
    return data


def cast(evaluator: ARC, votes: list[Vote]) -> ARC:
    """Give votes for un-augmented grids: each is predicted as its query's augmentation shows it."""
    data, store = evaluator.dataset, evaluator.store
    for query, grid, logit in votes:
        augmentation = data.query_augmentation[query]
        shown = augment_grid(
            np.array(grid, dtype=np.uint8), int(store.dihedral[augmentation]), store.colors[augmentation]
        )
        evaluator.update(np.array([query]), place_grid(shown)[None], np.array([logit], dtype=np.float32))
    return evaluator


def metrics_of(data: FewshotEvalDataset, votes: list[Vote]) -> dict[str, float]:
    evaluator = cast(ARC(data), votes)
    return evaluator.metrics(evaluator.puzzle_credits(evaluator.results()))


def ranking(data: FewshotEvalDataset, votes: list[Vote], query: int = 0) -> list[Any]:
    """The grids that the votes give for one test input, best first."""
    results = cast(ARC(data), votes).results()
    (result,) = [r for r in results if r.pair == data.query_pair[query]]
    return [candidate.grid.tolist() for candidate in result.candidates]


# A predictor that knows the answers


def test_a_perfect_predictor_solves_every_real_puzzle_and_submits_the_truth_in_order(store: PuzzleStore) -> None:
    # The 25th held-out puzzle is the first with two test inputs.
    data = FewshotEvalDataset(store, batch_size=16, max_groups=26, max_augmentations=4)
    evaluator = ARC(data)
    for batch in iterate(data):
        rows = batch["query_indices"].numpy()
        evaluator.update(rows, batch["labels"].numpy(), np.zeros(len(rows), dtype=np.float32))
    results = evaluator.results()
    metrics = evaluator.metrics(evaluator.puzzle_credits(results))
    assert metrics["ARC/num_puzzles"] == 26
    assert metrics["ARC/num_contaminated_puzzles"] == 0
    for k in PASS_KS:
        assert metrics[f"ARC/pass@{k}"] == 1
        assert metrics[f"ARC/pass@{k}_solved"] == 26
    assert all(len(result.candidates) == 1 and result.candidates[0].votes == 4 for result in results)

    truth: dict[str, list[Any]] = {}
    for puzzle in store.puzzles_of("test")[:26].tolist():
        for pair in range(store.puzzle_pairs[puzzle] + store.puzzle_demos[puzzle], store.puzzle_pairs[puzzle + 1]):
            grid = store.grid(2 * pair + 1).tolist()
            truth.setdefault(store.metadata.puzzle_ids[puzzle], []).append({"attempt_1": grid, "attempt_2": grid})
    submission = evaluator.submission(results)
    assert submission == truth
    assert list(submission) == list(truth)
    assert json.loads(json.dumps(submission)) == truth


def test_a_predictor_that_ignores_the_augmentation_is_counted_wrong(store: PuzzleStore) -> None:
    # Every query answered with its label as the task file shows it: right for the first version alone.
    data = FewshotEvalDataset(store, batch_size=16, max_groups=6, max_augmentations=2)
    evaluator = ARC(data)
    for batch in iterate(data):
        rows = batch["query_indices"].numpy()
        plain = np.stack([place_grid(store.grid(2 * pair + 1)) for pair in data.query_pair[rows]])
        evaluator.update(rows, plain, np.zeros(len(rows), dtype=np.float32))
    assert all(result.candidates[0].votes == 1 for result in evaluator.results())


# Ranking


def test_votes_beat_confidence(own: FewshotEvalDataset) -> None:
    assert ranking(own, [(0, A, -6), (1, A, -6), (2, B, 9)]) == [A, B]
    assert ranking(own, [(0, B, -6), (1, B, -6), (2, A, 9)]) == [B, A]


def test_the_mean_confidence_breaks_ties_of_votes(own: FewshotEvalDataset) -> None:
    assert ranking(own, [(0, A, 1), (1, B, 2)]) == [B, A]
    assert ranking(own, [(0, A, 2), (1, B, 1)]) == [A, B]
    # The mean of sigmoids, not of logits: 0.88 against 0.63, though the logits' means are 2 and 4.5.
    assert ranking(own, [(0, A, 2.0), (1, A, 2.0), (2, B, 10.0), (3, B, -1.0)]) == [A, B]
    assert ranking(own, [(0, B, 2.0), (1, B, 2.0), (2, A, 10.0), (3, A, -1.0)]) == [B, A]


def test_votes_for_one_grid_from_different_augmentations_are_counted_together(own: FewshotEvalDataset) -> None:
    results = cast(ARC(own), [(query, A, 0) for query in range(4)]).results()
    (candidate,) = results[0].candidates
    assert candidate.votes == 4
    assert candidate.grid.tolist() == A


def test_grids_of_the_same_cells_in_another_shape_are_different_candidates(own: FewshotEvalDataset) -> None:
    wide, tall, square = [[1, 2, 3, 4]], [[1], [2], [3], [4]], A
    assert ranking(own, [(0, wide, 3), (1, tall, 2), (2, square, 1)]) == [wide, tall, square]


def test_a_prediction_is_read_up_to_its_eos_border_at_the_corner(own: FewshotEvalDataset) -> None:
    evaluator = ARC(own)
    tokens = place_grid(np.array(A, dtype=np.uint8)).reshape(1, 30, 30).copy()
    tokens[:, 5:, 5:] = 7
    evaluator.update(np.array([0]), tokens.reshape(1, 900), np.zeros(1, dtype=np.float32))
    assert evaluator.results()[0].candidates[0].grid.tolist() == A


# Credit


def test_two_test_inputs_give_a_puzzle_half_its_credit_each(own: FewshotEvalDataset) -> None:
    assert metrics_of(own, [(0, A, 0)])["ARC/pass@1"] == pytest.approx(0.5 / 2)
    assert metrics_of(own, [(4, B, 0)])["ARC/pass@1"] == pytest.approx(0.5 / 2)
    assert metrics_of(own, [(0, A, 0), (4, B, 0)])["ARC/pass@1"] == pytest.approx(1 / 2)
    assert metrics_of(own, [(0, A, 0), (4, B, 0), (8, A, 0)])["ARC/pass@1"] == 1
    assert metrics_of(own, [(0, B, 0), (4, A, 0), (8, B, 0)])["ARC/pass@1"] == 0


def test_pass_at_k_counts_the_truth_among_the_first_k_candidates(own: FewshotEvalDataset) -> None:
    metrics = metrics_of(own, [(8, C, 0), (9, C, 0), (10, A, 0)])
    assert metrics["ARC/pass@1"] == 0
    assert metrics["ARC/pass@2"] == metrics["ARC/pass@1000"] == pytest.approx(1 / 2)
    third = metrics_of(own, [(8, C, 3), (9, B, 2), (10, A, 1)])
    assert third["ARC/pass@2"] == 0
    assert third["ARC/pass@5"] == pytest.approx(1 / 2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 7)), max_size=30), st.integers(0, 2**32 - 1))
def test_pass_at_k_is_that_of_a_count_by_hand(
    own_store: PuzzleStore, choices: list[tuple[int, int]], seed: int
) -> None:
    data = FewshotEvalDataset(own_store, batch_size=4)
    grids = [A, B, *([[n, 0]] for n in range(6))]
    # Logits from a generator, not from hypothesis, which likes to repeat values: no two candidates tie here.
    logits = np.random.default_rng(seed).uniform(-3, 3, len(choices)).tolist()
    votes = [(query, grids[choice], logit) for (query, choice), logit in zip(choices, logits, strict=True)]
    metrics = metrics_of(data, votes)
    credits = {"two": [A, B], "one": [A]}
    test_inputs = {("two", 0): range(4), ("two", 1): range(4, 8), ("one", 0): range(8, 12)}
    for k in PASS_KS:
        solved = 0.0
        for (name, index), queries in test_inputs.items():
            cast_here = [(grid, logit) for query, grid, logit in votes if query in queries]

            def score(grid: Any, cast_here: list[tuple[Any, float]] = cast_here) -> tuple[int, float]:
                confidences = [1 / (1 + math.exp(-np.float32(logit))) for g, logit in cast_here if g == grid]
                return len(confidences), sum(confidences) / len(confidences)

            candidates = [grid for grid in grids if any(grid == g for g, _ in cast_here)]
            first_k = sorted(candidates, key=score, reverse=True)[:k]
            solved += (credits[name][index] in first_k) / len(credits[name])
        assert metrics[f"ARC/pass@{k}_solved"] == pytest.approx(solved)
        assert metrics[f"ARC/pass@{k}"] == pytest.approx(solved / 2)


def test_a_query_without_prediction_is_wrong_and_keeps_its_place_in_the_submission(own: FewshotEvalDataset) -> None:
    evaluator = cast(ARC(own), [(4, B, 0), (5, C, -1)])
    # Predictions that hold no grid are no votes.
    evaluator.update(np.array([0, 1]), np.array([[0] * 900, [1] * 900], dtype=np.uint8), np.zeros(2, dtype=np.float32))
    results = evaluator.results()
    assert [len(result.candidates) for result in results] == [0, 2, 0, 0]
    assert evaluator.metrics(evaluator.puzzle_credits(results))["ARC/pass@1"] == pytest.approx(0.5 / 2)
    nothing = {"attempt_1": [[0]], "attempt_2": [[0]]}
    assert evaluator.submission(results) == {
        "two": [nothing, {"attempt_1": B, "attempt_2": C}],
        "one": [nothing],
        "unknown": [nothing],
    }


def test_without_any_vote_everything_is_wrong_and_everything_is_submitted(own: FewshotEvalDataset) -> None:
    evaluator = ARC(own)
    metrics = evaluator.metrics(evaluator.puzzle_credits(evaluator.results()))
    assert metrics["ARC/num_puzzles"] == 2
    assert all(metrics[f"ARC/pass@{k}"] == 0 for k in PASS_KS)
    submission = evaluator.submission(evaluator.results())
    assert {name: len(attempts) for name, attempts in submission.items()} == {"two": 2, "one": 1, "unknown": 1}


def test_a_submission_has_the_first_two_candidates_and_repeats_a_single_one(own: FewshotEvalDataset) -> None:
    evaluator = cast(ARC(own), [(0, A, 1), (1, B, 2), (2, C, 3), (4, A, 0)])
    two = evaluator.submission(evaluator.results())["two"]
    assert two == [{"attempt_1": C, "attempt_2": B}, {"attempt_1": A, "attempt_2": A}]


def test_unlabelled_queries_are_not_counted_but_are_submitted(own: FewshotEvalDataset) -> None:
    evaluator = cast(ARC(own), [(12, C, 0)])
    results = evaluator.results()
    assert [result.has_truth for result in results] == [True, True, True, False]
    assert results[-1].truth_rank is None
    assert evaluator.metrics(evaluator.puzzle_credits(results))["ARC/num_puzzles"] == 2
    assert evaluator.submission(results)["unknown"] == [{"attempt_1": C, "attempt_2": C}]


def test_only_unlabelled_puzzles_give_zero_of_zero(tmp_path: Path) -> None:
    (tmp_path / "arc_held_challenges.json").write_text(json.dumps({"unknown": PUZZLES["unknown"]}))
    build_dataset(tmp_path / "set", ["held"], test_set_name="held", num_aug=0, input_file_prefix=str(tmp_path / "arc"))
    evaluator = ARC(FewshotEvalDataset(load_store(tmp_path / "set"), batch_size=4))
    metrics = evaluator.metrics(evaluator.puzzle_credits(evaluator.results()))
    assert metrics["ARC/num_puzzles"] == metrics["ARC/pass@1"] == 0
    assert (metrics["ARC/pass@1_low"], metrics["ARC/pass@1_high"]) == (0, 1)


# Memory and order


def test_a_fresh_evaluator_remembers_nothing(own: FewshotEvalDataset) -> None:
    cast(ARC(own), [(8, A, 0)]).results()
    assert all(not result.candidates for result in ARC(own).results())


def test_asking_twice_for_results_counts_no_vote_twice(own: FewshotEvalDataset) -> None:
    evaluator = cast(ARC(own), [(8, A, 0), (9, B, 1)])
    first, second = evaluator.results(), evaluator.results()
    assert [[c.votes for c in r.candidates] for r in first] == [[c.votes for c in r.candidates] for r in second]
    assert evaluator.metrics(evaluator.puzzle_credits(first)) == evaluator.metrics(evaluator.puzzle_credits(second))


def summary(evaluator: ARC, votes: list[Any] | None = None) -> object:
    results = evaluator.results(votes)
    return evaluator.submission(results), evaluator.metrics(evaluator.puzzle_credits(results))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 15), st.sampled_from([A, B, C]), st.sampled_from([-2.0, -1.0, 3.0])), max_size=16
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_in_which_votes_arrive_has_no_influence(
    own_store: PuzzleStore, votes: list[Vote], random: Random
) -> None:
    data = FewshotEvalDataset(own_store, batch_size=4)
    shuffled = random.sample(votes, len(votes))
    assert summary(cast(ARC(data), shuffled)) == summary(cast(ARC(data), votes))


def test_equal_confidences_tie_whatever_the_order_of_their_sum(own: FewshotEvalDataset) -> None:
    # The mean of these three confidences depends on the order of a running sum in its last bit: the order of arrival
    # (which differs between one rank and several) would then decide between candidates that are equal.
    logits = (-2.0, -1.0, 3.0)
    votes = [(0, grid, logit) for grid in (A, C) for logit in logits]
    outcomes = {
        json.dumps(ranking(own, [votes[i] for i in order])) for order in itertools.permutations(range(len(votes)))
    }
    assert len(outcomes) == 1


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_votes_of_all_ranks_joined_give_the_result_of_one(own_store: PuzzleStore, world_size: int) -> None:
    def predict(data: FewshotEvalDataset) -> ARC:
        evaluator = ARC(data)
        for batch in iterate(data):
            rows = batch["query_indices"].numpy()
            # Some right, some wrong: every third query gives its input as the answer.
            wrong = (rows % 3 == 0)[:, None]
            tokens = np.where(wrong, batch["inputs"].numpy(), batch["labels"].numpy())
            evaluator.update(rows, tokens, np.sin(rows).astype(np.float32))
        return evaluator

    alone = predict(FewshotEvalDataset(own_store, batch_size=4))
    ranks = [
        predict(FewshotEvalDataset(own_store, batch_size=4, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    joined = [vote for evaluator in ranks for vote in evaluator.votes]
    assert 0 < len(ranks[0].votes) < len(joined)
    for evaluator in ranks:
        assert summary(evaluator, joined) == summary(alone)


# Contamination


def test_puzzles_seen_in_training_are_counted_and_named_in_every_metric(own: FewshotEvalDataset) -> None:
    pair_hashes = {puzzle.id: puzzle.pair_hashes for puzzle in own.store.manifest.puzzles}
    votes: list[Vote] = [(0, A, 0), (8, A, 0)]
    clean = cast(ARC(own, seen_pairs=["another hash"]), votes)
    clean_metrics = clean.metrics(clean.puzzle_credits(clean.results()))
    assert clean.contaminated_puzzles() == []
    assert clean_metrics["ARC/num_contaminated_puzzles"] == 0
    assert "ARC/contaminated_pass@1" not in clean_metrics

    # One pair is enough, and it may be a demonstration.
    seen = cast(ARC(own, seen_pairs=["another hash", pair_hashes["two"][0], *pair_hashes["unknown"]]), votes)
    metrics = seen.metrics(seen.puzzle_credits(seen.results()))
    assert seen.contaminated_puzzles() == ["two", "unknown"]
    assert metrics["ARC/num_contaminated_puzzles"] == 2
    assert metrics["ARC/num_puzzles"] == 2
    assert not any(name.startswith("ARC/pass@") for name in metrics)
    for k, suffix in itertools.product(PASS_KS, ("", "_solved", "_low", "_high")):
        assert metrics[f"ARC/contaminated_pass@{k}{suffix}"] == clean_metrics[f"ARC/pass@{k}{suffix}"]


@pytest.mark.parametrize(
    ("puzzle", "trained", "known"),
    [
        ("held_out_generators/1f0c79e5/0", ("a", "1f0c79e5"), True),
        ("held_out_generators/1f0c79e5/1", ("training/1f0c79e5",), True),
        ("held_out_generators/1f0c79e5/1", ("1f0c79e6", "rearc/00d62c1b"), False),
        ("rearc_new_instances/1f0c79e5/0", ("rearc/1f0c79e5", "1f0c79e5"), False),
        ("1f0c79e5", ("1f0c79e5",), False),
    ],
)
def test_a_generator_is_not_held_out_whole_where_its_own_task_was_trained_on(
    puzzle: str, trained: tuple[str, ...], known: bool
) -> None:
    assert is_of_seen_rule(puzzle, trained) == known


def test_only_puzzles_that_are_evaluated_can_be_contaminated(own_store: PuzzleStore) -> None:
    everything = [value for puzzle in own_store.manifest.puzzles for value in puzzle.pair_hashes]
    first_alone = FewshotEvalDataset(own_store, batch_size=4, max_groups=1)
    assert ARC(first_alone, seen_pairs=everything).contaminated_puzzles() == ["two"]


def test_training_on_the_real_training_split_contaminates_no_held_out_puzzle(store: PuzzleStore) -> None:
    seen = [value for p in store.manifest.puzzles if p.split == "train" for value in p.pair_hashes]
    assert ARC(FewshotEvalDataset(store, batch_size=4), seen).contaminated_puzzles() == []
    trained = FewshotEvalDataset(store, batch_size=4, split="train")
    assert len(ARC(trained, seen).contaminated_puzzles()) == 398


# Wilson interval


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 1000), st.floats(0, 1))
def test_the_wilson_bounds_are_the_proportions_at_which_the_observed_one_is_z_deviations_away(
    trials: int, share: float
) -> None:
    successes = share * trials
    p = successes / trials
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= p + 1e-12
    assert p - 1e-12 <= high <= 1
    for bound in (low, high):
        # Squared, as the root is too steep near 0 for a comparison in floating point.
        assert (p - bound) ** 2 == pytest.approx(WILSON_Z**2 * bound * (1 - bound) / trials, abs=1e-12)


def test_the_wilson_bounds_are_two_different_ones_around_any_proportion_and_all_there_is_without_trials() -> None:
    for successes in range(11):
        low, high = wilson_interval(successes, 10)
        assert high - low > 0.25
        assert low - 1e-12 <= successes / 10 <= high + 1e-12
    assert wilson_interval(0, 0) == (0, 1)


def test_the_bounds_logged_are_those_of_the_solved_puzzles(own: FewshotEvalDataset) -> None:
    metrics = metrics_of(own, [(0, A, 0), (8, A, 0)])
    assert metrics["ARC/pass@1_solved"] == pytest.approx(1.5)
    assert (metrics["ARC/pass@1_low"], metrics["ARC/pass@1_high"]) == wilson_interval(1.5, 2)
