"""Controls: what they make of a query, and that they tell a model that reads from one that does not."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from config.schema import TrainConfig
from dataset.batches import DEMONSTRATION_KEYS, Batch
from dataset.build_known_rules import build_known_rules
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.grids import COLOR_OFFSET, PAD, VOCAB_SIZE
from dataset.known_rules.family import TaskSettings
from dataset.store import PuzzleStore, load_store
from dataset.token_batches import cells_of_queries
from inference.control_measures import ControlMeasures, choose_queries
from inference.controls import Control, deranged, first_demonstrations, recolored, reordered, unconditioned
from inference.donors import Donors
from inference.evaluation import evaluate
from models import create_model
from models.canvas import task_canvas, with_canvas
from models.encoders.base import EncoderOutput
from models.losses import create_loss_head
from models.recursive_reasoning.etrm import TRMWithEncoder
from models.recursive_reasoning.joint import TRMWithJointEncoder
from utils.distributed import Ranks

Config = Callable[..., TrainConfig]
TINY = ("arch.hidden_size=16", "arch.H_cycles=1", "arch.L_cycles=1", "arch.halt_max_steps=1")
GAIN = "eval/reading_gain"


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> PuzzleStore:
    """Held-out tasks of three families, two of which change no size."""
    folder = tmp_path_factory.mktemp("rules") / "data"
    settings = TaskSettings(("permutation", "shift", "tile"), sides=(3, 4), colors=6)
    build_known_rules(folder, settings, train=0, held_out=18, seed=1)
    return load_store(folder)


@pytest.fixture(scope="module")
def permutations(tmp_path_factory: pytest.TempPathFactory) -> PuzzleStore:
    folder = tmp_path_factory.mktemp("rules") / "data"
    build_known_rules(folder, TaskSettings(("permutation",), sides=(3, 4), colors=6), train=0, held_out=16, seed=2)
    return load_store(folder)


class Reader(TRMWithEncoder):
    """Makes of each colour of the query what the demonstrations make of it; EOS and PAD stay."""

    def rollout(self, batch: Batch, canvas: str | None = None) -> Iterator[dict[str, Tensor]]:
        size = len(batch["inputs"])
        seen = torch.zeros(size, VOCAB_SIZE, VOCAB_SIZE)
        shown = batch["demo_mask"][..., None].expand_as(batch["demo_inputs"])
        pairs = batch["demo_inputs"].long() * VOCAB_SIZE + batch["demo_labels"].long()
        seen.view(size, -1).scatter_add_(1, pairs.flatten(1), shown.flatten(1).float())
        seen[:, :COLOR_OFFSET] = torch.eye(VOCAB_SIZE)[:COLOR_OFFSET]
        logits = F.one_hot(seen.argmax(-1).gather(1, self.asked(batch)), VOCAB_SIZE).float()
        q_halt = torch.ones(size)
        context = torch.zeros(size, 1, self.config.hidden_size)
        for _ in range(self.max_steps):
            yield {"logits": logits, "q_halt_logits": q_halt, "kl_loss": 0 * q_halt, "context": context}

    def asked(self, batch: Batch) -> Tensor:
        return batch["inputs"].long()


class Copier(Reader):
    """Answers with the query's input, whatever the demonstrations are."""

    def rollout(self, batch: Batch, canvas: str | None = None) -> Iterator[dict[str, Tensor]]:
        copied = batch | {"demo_inputs": batch["inputs"][:, None], "demo_labels": batch["inputs"][:, None]}
        return super().rollout(copied | {"demo_mask": torch.ones_like(batch["demo_mask"][:, :1])}, canvas)


class Seeing(TRMWithEncoder):
    """Untrained, its decoder heeds the context hardly at all: here its deviations from the mean are made larger."""

    loudness = 50

    def encode(self, data: Batch) -> EncoderOutput:
        found = super().encode(data)
        context = self.loudness * (found.context - found.context.mean(dim=1, keepdim=True))
        return EncoderOutput(context, found.mask, found.positions, found.kl_loss)


class Blind(Seeing):
    """Its context is zeroed."""

    loudness = 0


def measured(
    config: TrainConfig, model: type[TRMWithEncoder], store: PuzzleStore, *, count: int = 256, **options: Any
) -> dict[str, float]:
    """The metrics of an evaluation with its controls."""
    torch.manual_seed(0)
    head = create_loss_head(config.arch, model(config.arch))
    dataset = FewshotEvalDataset(store, **{"batch_size": 8, "max_demos": 4, **options})
    ranks = Ranks(0, 1, torch.device("cpu"))
    return evaluate(head, dataset, ranks, controls=ControlMeasures(head, dataset, ranks, count)).metrics


def exact(metrics: dict[str, float], control: str) -> float:
    return metrics[f"eval/controls/{control}_exact_accuracy"]


def test_a_perfect_reader_answers_as_its_demonstrations_do(shrunk_config: Config, permutations: PuzzleStore) -> None:
    metrics = measured(shrunk_config(*TINY), Reader, permutations)
    assert metrics["eval/controls/queries"] == 16
    assert exact(metrics, "right") == exact(metrics, "order") == exact(metrics, "colors") == 1
    assert exact(metrics, "donor") == exact(metrics, "deranged") == exact(metrics, "none") == 0
    assert metrics["eval/controls/donor_answer_share"] == 1
    assert metrics[GAIN] == 1
    assert metrics["eval/controls/donor_same_size"] == 1
    assert exact(metrics, "demos_1") < exact(metrics, "demos_2") <= exact(metrics, "demos_3") <= 1
    assert metrics["eval/controls/permutation/right_exact_accuracy"] == 1
    assert metrics["eval/controls/permutation/donor_exact_accuracy"] == 0
    assert metrics["eval/controls/permutation/donor_answer_share"] == 1


def test_a_model_that_ignores_its_demonstrations_gains_nothing(
    shrunk_config: Config, permutations: PuzzleStore
) -> None:
    metrics = measured(shrunk_config(*TINY), Copier, permutations)
    assert metrics[GAIN] == 0
    assert metrics["eval/controls/donor_answer_share"] == 0
    right = metrics["eval/controls/right_accuracy"]
    assert 0 < right == metrics["eval/controls/chance_copy_accuracy"]
    for control in ("donor", "deranged", "none", "order", "demos_1"):
        assert metrics[f"eval/controls/{control}_accuracy"] == right, control


def test_a_zeroed_context_gives_the_same_figures_with_right_and_donors_demonstrations(
    shrunk_config: Config, rules: PuzzleStore
) -> None:
    blind, seeing = (measured(shrunk_config(*TINY), model, rules) for model in (Blind, Seeing))
    key = "eval/controls/{}_accuracy"
    for control in ("donor", "deranged", "none", "order", "demos_1", "demos_2"):
        assert blind[key.format(control)] == blind[key.format("right")], control
        assert control == "order" or seeing[key.format(control)] != seeing[key.format("right")], control
    assert blind[GAIN] == 0


ETRM, ETRMTRM = "cfg_pretrain_etrm_arc_agi_1", "cfg_pretrain_etrmtrm_arc_agi_1"


@pytest.mark.parametrize(
    ("kind", "config_name", "overrides"),
    [
        (TRMWithEncoder, ETRM, ()),
        (TRMWithEncoder, ETRM, ("arch.encoder_type=in_context",)),
        (TRMWithEncoder, ETRM, ("arch.encoder_type=in_context", "arch.context_mode=read")),
        (TRMWithJointEncoder, ETRMTRM, ("arch.recurrent_encoder_type=in_context",)),
    ],
)
def test_where_the_context_is_zeroed_the_logits_are_equal_under_exchanged_demonstrations(
    shrunk_config: Config, permutations: PuzzleStore, kind: Any, config_name: str, overrides: tuple[str, ...]
) -> None:
    class Zeroed(kind):
        def encode(self, data: Batch) -> EncoderOutput:
            found = super().encode(data)
            return replace(found, context=torch.zeros_like(found.context))

    arch = shrunk_config(*TINY, *overrides, config_name=config_name).arch
    dataset = FewshotEvalDataset(permutations, batch_size=8, max_demos=4)
    queries = np.arange(8)
    batch = dataset.queries(queries)
    donated = Donors(dataset, DEMONSTRATION_KEYS).of(batch, queries, [np.random.default_rng(q) for q in queries])
    assert donated.same_size.all()
    found = []
    for model in (Zeroed, kind):
        torch.manual_seed(0)
        reasoner = model(arch).eval()
        with torch.no_grad():
            for asked in (batch, donated.control.batch):
                *_, outputs = reasoner.rollout({key: asked[key] for key in batch if key != "query_indices"})
                found.append(outputs["logits"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[2], found[3])


def test_the_right_figures_are_those_of_the_evaluation(shrunk_config: Config, rules: PuzzleStore) -> None:
    metrics = measured(shrunk_config(*TINY), TRMWithEncoder, rules)
    assert metrics["eval/controls/right_accuracy"] == pytest.approx(metrics["eval/accuracy"])


def test_no_figure_depends_on_the_batch_size(shrunk_config: Config, rules: PuzzleStore) -> None:
    one, other = (measured(shrunk_config(*TINY), TRMWithEncoder, rules, batch_size=size) for size in (1, 7))
    keys = [key for key in one if "controls" in key or key == GAIN]
    assert len(keys) > 30
    assert {key: one[key] for key in keys} == pytest.approx({key: other[key] for key in keys})


class Counting(Copier):
    """Says how many queries it was asked at a time."""

    asked_at_once: ClassVar[list[int]] = []

    def rollout(self, batch: Batch, canvas: str | None = None) -> Iterator[dict[str, Tensor]]:
        self.asked_at_once.append(len(batch["inputs"]))
        return super().rollout(batch, canvas)


def test_controls_are_asked_in_batches_within_the_tokens_of_an_evaluation(
    shrunk_config: Config, rules: PuzzleStore
) -> None:
    """Here of three queries at most, and of two kinds of batches: the evaluation's and the controls'."""
    whole = FewshotEvalDataset(rules, batch_size=100, max_demos=4)
    cells = cells_of_queries(rules, whole.demo_pairs(whole.mine), whole.query_pair)
    most = []
    for tokens in (int(2 * cells.max()), None):
        Counting.asked_at_once.clear()
        measured(shrunk_config(*TINY), Counting, rules, batch_tokens=tokens, batch_size=100)
        most.append(max(Counting.asked_at_once))
        assert len(Counting.asked_at_once) >= 9  # once right, and under eight controls
    few, all_at_once = most
    assert all_at_once == len(whole.query_row)
    assert few <= 2 * cells.max() / cells.min() < all_at_once


def batch_of(store: PuzzleStore, **options: Any) -> tuple[FewshotEvalDataset, np.ndarray, Batch]:
    dataset = FewshotEvalDataset(store, **{"batch_size": 8, "max_demos": 4, **options})
    queries = np.arange(len(dataset.query_row))
    batch = dataset.queries(queries)
    del batch["query_indices"]
    return dataset, queries, with_canvas(batch)


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng((0, number)) for number in range(count)]


def all_controls(dataset: FewshotEvalDataset, queries: np.ndarray, batch: Batch) -> dict[str, Control]:
    count = len(queries)
    return {
        "donor": Donors(dataset, DEMONSTRATION_KEYS).of(batch, queries, generators(count)).control,
        "deranged": deranged(batch, generators(count)),
        "order": reordered(batch, generators(count)),
        "colors": recolored(batch, generators(count)),
        "none": unconditioned(batch, DEMONSTRATION_KEYS),
        "demos_1": first_demonstrations(batch, 1),
    }


@pytest.mark.parametrize("source", ["store", "rules"])
def test_every_control_keeps_the_canvas_and_all_but_colors_the_query(
    source: str, request: pytest.FixtureRequest
) -> None:
    dataset, queries, batch = batch_of(request.getfixturevalue(source), max_groups=12, max_augmentations=2)
    canvas = task_canvas(batch, include_labels=False)
    for name, control in all_controls(dataset, queries, batch).items():
        assert torch.equal(task_canvas(control.batch, include_labels=False), canvas), name
        assert control.is_possible.any(), name
        changed = {key for key, value in control.batch.items() if not torch.equal(value, batch[key])}
        assert changed <= ({"inputs", "labels"} if name == "colors" else set()) | set(DEMONSTRATION_KEYS), name
        assert changed, name


def test_each_deranged_output_differs_from_the_right_one(store: PuzzleStore) -> None:
    _, queries, batch = batch_of(store, max_groups=60, max_augmentations=1, max_demos=10)
    control = deranged(batch, generators(len(queries)))
    for row in range(len(queries)):
        mask = batch["demo_mask"][row]
        right, other = (b["demo_labels"][row][mask] for b in (batch, control.batch))
        assert sorted(map(tuple, right.tolist())) == sorted(map(tuple, other.tolist()))
        if control.is_possible[row]:
            assert (right != other).any(dim=1).all()
    assert control.is_possible.float().mean() > 0.9


def test_a_derangement_is_impossible_where_more_than_half_of_the_outputs_are_alike() -> None:
    labels = torch.tensor([[1, 1, 1, 2], [1, 1, 2, 3], [1, 2, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]])[..., None]
    mask = torch.tensor([4, 4, 2, 1, 2])[:, None] > torch.arange(4)
    for seed in range(20):
        rngs = [np.random.default_rng((seed, row)) for row in range(5)]
        control = deranged({"demo_labels": labels, "demo_mask": mask}, rngs)
        assert control.is_possible.tolist() == [False, True, True, False, False]
        found = control.batch["demo_labels"]
        assert (found != labels)[mask & control.is_possible[:, None]].all()
        assert torch.equal(found[[0, 3, 4]], labels[[0, 3, 4]])


def test_colors_are_permuted_alike_in_every_grid_and_the_background_stays(store: PuzzleStore) -> None:
    _, queries, batch = batch_of(store, max_groups=20, max_augmentations=1)
    control = recolored(batch, generators(len(queries)))
    for row in range(len(queries)):
        images = {}
        for key in ("demo_inputs", "demo_labels", "inputs", "labels"):
            olds, news = batch[key][row].flatten().tolist(), control.batch[key][row].flatten().tolist()
            for old, new in zip(olds, news, strict=True):
                assert images.setdefault(old, new) == new
        assert len(set(images.values())) == len(images)
        shown = torch.cat([batch[key][row].flatten() for key in ("demo_inputs", "demo_labels", "inputs")])
        for token, image in images.items():
            moves = token > COLOR_OFFSET and token in shown and bool(control.is_possible[row])
            assert (image != token) == moves


def test_a_donor_of_another_puzzle_has_its_sizes_where_it_can_and_another_answer(store: PuzzleStore) -> None:
    dataset, queries, batch = batch_of(store, max_groups=60, max_augmentations=1)
    donors = Donors(dataset, DEMONSTRATION_KEYS)
    donation = donors.of(batch, queries, generators(len(queries)))
    everything = dataset.queries(queries)
    assert donation.control.is_possible.all()
    assert not donation.is_known.any()
    shapes = dataset.store.grid_shapes[2 * dataset.query_pair].tolist()
    for row in range(len(queries)):
        given = donation.control.batch["demo_labels"][row]
        (found,) = {int(dataset.query_row[q]) for q in queries if torch.equal(everything["demo_labels"][q], given)}
        assert found != dataset.query_row[row]
        has_like = any(shapes[q] == shapes[row] for q in queries if dataset.query_row[q] != dataset.query_row[row])
        likes = [q for q in queries if dataset.query_row[q] == found and shapes[q] == shapes[row]]
        assert bool(likes) == has_like


def test_a_rules_donor_shows_the_same_inputs_and_answers_otherwise(rules: PuzzleStore) -> None:
    dataset, queries, batch = batch_of(rules)
    donation = Donors(dataset, DEMONSTRATION_KEYS).of(batch, queries, generators(len(queries)))
    assert donation.is_known.all()
    assert torch.equal(donation.control.batch["demo_inputs"], batch["demo_inputs"])
    assert torch.equal(donation.control.batch["demo_mask"], batch["demo_mask"])
    assert (donation.answers != batch["labels"]).any(dim=1).all()
    changes_size = np.array([rule.family == "tile" for rule in map(Donors(dataset, ()).rule_of, queries.tolist())])
    assert donation.same_size.numpy()[~changes_size].all()
    is_grid = batch["demo_labels"] != PAD
    kept = torch.equal(is_grid[~changes_size], (donation.control.batch["demo_labels"] != PAD)[~changes_size])
    assert kept


def test_the_choice_of_queries_begins_with_puzzles_as_they_are_and_keeps_its_draw(store: PuzzleStore) -> None:
    small, large = (batch_of(store, max_groups=groups, max_augmentations=3)[0] for groups in (6, 12))
    plain = int((small.query_augmentation == store.puzzle_augmentations[small.query_puzzle]).sum())
    few, more = choose_queries(small, plain, 0), choose_queries(small, plain + 4, 0)
    assert (small.query_augmentation[few] == store.puzzle_augmentations[small.query_puzzle[few]]).all()
    assert more[:plain].tolist() == few.tolist()
    assert len(choose_queries(small, 10**6, 0)) == len(small.query_row)
    drawn = large.query_pair[choose_queries(large, 10**6, 0)].tolist()
    shared = set(small.query_pair.tolist())
    assert [pair for pair in drawn if pair in shared] == small.query_pair[choose_queries(small, 10**6, 0)].tolist()
    assert few.tolist() != sorted(few.tolist())


ENCODERS = ("standard", "hybrid_standard", "hybrid_variational", "lpn_standard", "lpn_variational", "in_context")
CASES = [("cfg_pretrain_etrm_arc_agi_1", f"arch.encoder_type={name}") for name in ENCODERS]
CASES += [("cfg_pretrain_etrm_arc_agi_1", f"arch.encoder_pooling_method={name}") for name in ("attention", "weighted")]
CASES += [
    ("cfg_pretrain_etrmtrm_arc_agi_1", f"arch.recurrent_encoder_type={name}")
    for name in ("recurrent_standard", "trm_style")
]
CASES += [("cfg_pretrain_trm_arc_agi_1", "arch.halt_max_steps=2")]


@pytest.mark.parametrize(("name", "override"), CASES)
def test_every_system_can_be_asked_without_demonstrations(
    shrunk_config: Config, rules: PuzzleStore, name: str, override: str
) -> None:
    config = shrunk_config("arch.H_cycles=1", "arch.L_cycles=1", override, config_name=name)
    model = create_model(config.arch, rules.metadata).eval()
    _, _, batch = batch_of(rules)
    control = unconditioned(batch, model.condition_keys)
    for mixed in (False, True):
        asked = dict(control.batch)
        if mixed:  # beside queries that have theirs
            asked |= {key: torch.cat([batch[key][:3], asked[key][3:]]) for key in model.condition_keys}
        *_, outputs = model.rollout(asked)
        assert outputs["logits"].shape == (*batch["inputs"].shape, VOCAB_SIZE)
        assert outputs["logits"].isfinite().all()
        assert outputs["q_halt_logits"].isfinite().all()
