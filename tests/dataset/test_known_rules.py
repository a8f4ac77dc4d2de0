"""Tasks of known rules: each is well posed and obeys its rule, its key makes it again, what is held out stays so."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.augment import apply_dihedral
from dataset.batches import Batch
from dataset.grids import COLOR_OFFSET, Grid
from dataset.known_rules.color_families import cycle_lengths, moved_colors
from dataset.known_rules.curriculum import Curriculum
from dataset.known_rules.family import Lesson, Review, RuleError, RuleSplit, TaskSettings, is_held_out_grid, same
from dataset.known_rules.generator import (
    FAMILIES,
    KnownTask,
    check_settings,
    draw_task,
    generator_of,
    visible_rule,
)
from dataset.known_rules.source import KnownRulesSource, draw_batch
from dataset.sources import SampleResults
from dataset.store import DatasetError
from tests.dataset.rule_oracles import ORACLES, turn
from utils.distributed import Ranks

NAMES = tuple(FAMILIES)
BY_RULE = tuple(name for name in NAMES if FAMILIES[name].holds_out == "rules")
COLORS_ALONE = ("permutation", "recolor", "swap")
ALL = TaskSettings(NAMES)
SMALL = TaskSettings(NAMES, sides=(2, 3), distinct=True)
SPLITS: tuple[RuleSplit, ...] = ("train", "held_out")


def tasks(options: TaskSettings, split: RuleSplit, count: int, seed: int = 0) -> Iterator[KnownTask]:
    return (draw_task(generator_of(seed, number, 0, split), options, split) for number in range(count))


def lesson(family: str, options: TaskSettings = ALL, threshold: float = 0.75) -> Lesson:
    return Lesson(replace(options, families=(family,)), threshold)


def source(
    *ladders: Sequence[Lesson],
    rank: int = 0,
    world_size: int = 1,
    batch: int = 8,
    translate: bool = False,
    **options: Any,
) -> KnownRulesSource:
    """Of one ladder for each family or, without any, of all families at once."""
    options = {"at_once": 1, "earlier_share": 0.5, "measure_steps": 2, "patience": 100} | options
    if not ladders:
        options["at_once"] = len(NAMES)
    ranks = Ranks(rank, world_size, torch.device("cpu"))
    curriculum = Curriculum(ladders or [[lesson(name)] for name in NAMES], ranks, **options)
    sizes = {"num_batches": 100, "epoch_batches": 10, "global_batch_size": batch, "seed": 3}
    return KnownRulesSource(curriculum, translate=translate, has_curriculum=bool(ladders), **sizes)


def families_of(data: KnownRulesSource, batch: Batch) -> list[str]:
    """The families of its samples, by the number of their lesson."""
    return [data.curriculum.lessons[number].family for number in batch["puzzle_groups"].tolist()]


def read_grid(tokens: torch.Tensor) -> Grid:
    """The grid on a canvas, wherever it stands."""
    canvas = tokens.reshape(30, 30).numpy()
    rows, columns = np.nonzero(canvas >= COLOR_OFFSET)
    return canvas[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] - COLOR_OFFSET


def tasks_of(data: KnownRulesSource, number: int) -> Iterator[KnownTask]:
    """The tasks of a batch, read from its tokens."""
    batch = data[number]
    for i, family in enumerate(families_of(data, batch)):
        shown = batch["demo_mask"][i].nonzero()[:, 0].tolist()
        tokens = [(batch["demo_inputs"][i, k], batch["demo_labels"][i, k]) for k in shown]
        tokens.append((batch["inputs"][i], batch["labels"][i]))
        yield KnownTask(family, (), tuple((read_grid(one), read_grid(other)) for one, other in tokens))


def versions(grids: Iterable[Grid]) -> set[tuple[tuple[int, ...], bytes]]:
    """The grids in all their dihedral versions."""
    turned = [apply_dihedral(grid, t) for grid in grids for t in range(8)]
    return {(grid.shape, grid.tobytes()) for grid in turned}


def inputs_of(task: KnownTask) -> list[Grid]:
    return [grid for grid, _ in task.pairs]


def test_there_is_an_independent_rule_for_each_family() -> None:
    assert tuple(ORACLES) == NAMES


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "options", [ALL, SMALL, TaskSettings(NAMES, sides=(8, 12), colors=4)], ids=["all", "small", "large"]
)
@pytest.mark.parametrize("name", NAMES)
def test_every_pair_obeys_the_rule(name: str, options: TaskSettings, split: RuleSplit) -> None:
    for task in tasks(replace(options, families=(name,)), split, 25):
        for grid, output in task.pairs:
            assert output.tolist() == ORACLES[name](task.rule, grid.tolist())


@pytest.mark.parametrize("options", [ALL, SMALL], ids=["all", "small"])
@pytest.mark.parametrize("name", NAMES)
def test_no_other_rule_of_the_family_fits_the_demonstrations_and_answers_otherwise(
    name: str, options: TaskSettings
) -> None:
    oracle = ORACLES[name]
    for task in tasks(replace(options, families=(name,)), "train", 25):
        pairs = [(grid.tolist(), output.tolist()) for grid, output in task.pairs]
        rules = [*FAMILIES[name].rules(options), task.rule]
        fitting = [rule for rule in rules if all(oracle(rule, grid) == output for grid, output in pairs[:-1])]
        assert task.rule in fitting
        assert all(oracle(rule, pairs[-1][0]) == pairs[-1][1] for rule in fitting)


def test_one_transform_alone_turns_the_demonstrations_into_a_permutation_of_colours() -> None:
    for task in tasks(TaskSettings(("dihedral_permutation",), sides=(2, 3), colors=4, demos=(1, 2)), "train", 200):
        pairs = [(grid.tolist(), output.tolist()) for grid, output in task.pairs[:-1]]
        for transform in range(8):
            turned = [(turn(transform, grid), output) for grid, output in pairs]
            fits = all(len(one) == len(other) and len(one[0]) == len(other[0]) for one, other in turned)
            rows = [row for one, other in turned for row in zip(one, other, strict=False)]
            seen = {couple for one, other in rows for couple in zip(one, other, strict=False)}
            fits = fits and len(seen) == len({old for old, _ in seen})
            assert fits == (transform == task.rule[0])


@pytest.mark.parametrize("name", ["permutation", "recolor", "swap", "dihedral_permutation"])
def test_what_moves_in_the_query_has_been_seen_in_a_demonstration(name: str) -> None:
    for task in tasks(TaskSettings((name,), sides=(2, 4), demos=(1, 3)), "train", 200):
        *shown, asked = inputs_of(task)
        seen = set(np.concatenate([grid.ravel() for grid in shown]).tolist())
        images = task.rule[-10:] if "permutation" in name else None
        moved = set(asked.ravel().tolist()) & ({c for c in range(10) if images[c] != c} if images else set(task.rule))
        assert moved - seen <= ({task.rule[1]} if name == "recolor" else set())  # which recolor does not move


@given(
    name=st.sampled_from(NAMES),
    split=st.sampled_from(SPLITS),
    low=st.integers(3, 8),
    more=st.integers(0, 2),
    colors=st.integers(5, 9),
    fewest=st.integers(2, 4),
    distinct=st.booleans(),
    number=st.integers(0, 2**63),
)
@settings(max_examples=150, deadline=None)
def test_a_task_is_of_its_settings_and_shows_its_rule(
    name: str, split: RuleSplit, low: int, more: int, colors: int, fewest: int, distinct: bool, number: int
) -> None:
    options = TaskSettings((name,), (low, low + more), colors, (fewest, fewest + 1), distinct)
    task = draw_task(generator_of(0, number, 1, split), options, split)
    assert fewest + 1 <= len(task.pairs) <= fewest + 2
    for grid, output in task.pairs:
        assert grid.dtype == output.dtype == np.uint8
        assert all(low <= side <= low + more for side in grid.shape)
        assert grid.max() <= colors
        assert output.max() <= colors
        assert all(1 <= side <= 30 for side in output.shape)
    assert not any(same(*pair) for pair in task.pairs)


def test_distinct_colours_stand_once_where_a_grid_is_small_enough() -> None:
    for task in tasks(replace(SMALL, families=("dihedral", "permutation", "tile"), demos=(4, 4)), "train", 50):
        for grid in inputs_of(task)[:-1]:
            assert len(set(grid.ravel().tolist())) == grid.size


@pytest.mark.parametrize("name", [name for name in NAMES if name != "permutation"])
@pytest.mark.parametrize("count", [1, 3])
def test_with_few_rules_tasks_have_the_first_of_the_list(name: str, count: int) -> None:
    options = replace(SMALL, families=(name,), sides=(3, 4), rules=count)
    drawn = {task.rule for task in tasks(options, "train", 60)}
    if name == "dihedral_permutation":
        assert {rule[0] for rule in drawn} == set(range(1, 1 + count))
    else:
        trained = [rule for rule in FAMILIES[name].rules(options) if not FAMILIES[name].is_held_out(rule)]
        assert drawn == set(trained[:count])


@pytest.mark.parametrize("name", ["mirror", "tile", "scale"])
def test_outputs_fit_where_sides_are_long(name: str) -> None:
    for task in tasks(TaskSettings((name,), sides=(11, 15)), "train", 20):
        assert all(max(output.shape) <= 30 for _, output in task.pairs)
    with pytest.raises(RuleError, match=f"'{name}' has no rule for split=train with sides=11-16"):
        check_settings(TaskSettings((name,), sides=(11, 16)), "train")


@pytest.mark.parametrize(
    ("options", "split", "message"),
    [
        (TaskSettings(("nosuch",)), "train", "'nosuch' is not one of permutation, recolor"),
        (TaskSettings(()), "train", "must be a family"),
        (TaskSettings(("dihedral",), sides=(4, 3)), "train", "sides=4-3"),
        (TaskSettings(("dihedral",), sides=(3, 31)), "train", "sides=3-31"),
        (TaskSettings(("dihedral",), demos=(0, 3)), "train", "demos=0-3"),
        (TaskSettings(("dihedral",), colors=10), "train", "colors=10"),
        (TaskSettings(("fill",), sides=(2, 2)), "train", "'fill' has no rule"),
        (TaskSettings(("permutation",), colors=3), "held_out", "'permutation' needs colors=4"),
        (TaskSettings(("permutation",), rules=2), "train", "'permutation' draws its rules, it lists none: rules=2"),
        (TaskSettings(("swap",), colors=2), "held_out", "'swap' has no rule for split=held_out"),
    ],
)
def test_settings_without_rules_are_refused_by_name(options: TaskSettings, split: RuleSplit, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        check_settings(options, split)


def test_settings_that_leave_no_well_posed_task_end_after_a_number_of_attempts() -> None:
    with pytest.raises(RuleError, match="no well-posed task of the family 'dihedral'"):
        draw_task(generator_of(0, 0, 0), TaskSettings(("dihedral",), sides=(1, 1)))


def test_a_key_makes_the_same_task_and_another_key_another() -> None:
    def cells(seed: int, number: int, slot: int, split: RuleSplit) -> bytes:
        task = draw_task(generator_of(seed, number, slot, split), ALL, split)
        return b"".join(grid.tobytes() for pair in task.pairs for grid in pair)

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    made = [cells(*key, split) for key in keys for split in SPLITS]
    assert made == [cells(*key, split) for key in keys for split in SPLITS]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("translate", [False, True])
def test_the_ranks_parts_joined_are_the_batch_of_one(translate: bool) -> None:
    whole = source(translate=translate)[5]
    parts = [source(translate=translate, rank=rank, world_size=2)[5] for rank in range(2)]
    for key, value in whole.items():
        assert torch.equal(value, torch.cat([part[key] for part in parts])), key


@pytest.mark.parametrize("translate", [False, True])
def test_a_batch_holds_the_tasks_of_its_keys(translate: bool) -> None:
    data = source(translate=translate)
    corners = data[7]["inputs"][:, 0]
    for slot, read in enumerate(tasks_of(data, 7)):
        rng = generator_of(3, 7, slot)
        task = draw_task(rng, data.curriculum.lessons[data.curriculum.lesson_of(7, rng)].settings)
        assert read.family == task.family
        for read_pair, pair in zip(read.pairs, task.pairs, strict=True):
            assert all(same(one, other) for one, other in zip(read_pair, pair, strict=True))
    assert bool((corners >= COLOR_OFFSET).all()) is not translate


def test_empty_slots_are_padding() -> None:
    few, many = (next(tasks(replace(ALL, families=("swap",), demos=(n, n)), "train", 1)) for n in (2, 4))
    batch = draw_batch([few, many], [6, 7], 5)
    assert batch["demo_mask"].tolist() == [[True] * 2 + [False] * 3, [True] * 4 + [False]]
    assert not batch["demo_inputs"][~batch["demo_mask"]].any()
    assert not batch["demo_labels"][~batch["demo_mask"]].any()
    assert batch["puzzle_groups"].tolist() == [6, 7]


def test_the_identifier_is_below_zero_and_tells_rules_apart() -> None:
    drawn = list(tasks(replace(ALL, families=("swap", "recolor"), demos=(2, 2)), "train", 60))
    identifiers = draw_batch(drawn, [0] * len(drawn), 2)["puzzle_identifiers"].tolist()
    assert max(identifiers) < 0
    rules = [(task.family, task.rule) for task in drawn]
    assert len(set(identifiers)) == len(set(rules)) == len(set(zip(rules, identifiers, strict=True))) < len(rules)


@pytest.fixture(scope="module")
def trained() -> list[KnownTask]:
    """What the training loader yields while all families climb three levels."""
    levels = (replace(ALL, colors=5), SMALL, ALL)
    data = source(*([lesson(name, level) for level in levels] for name in NAMES), at_once=len(NAMES), batch=48)
    found = []
    for number in range(80):
        found += tasks_of(data, number)
        observed(data, [number + 1], exact=float(number in (18, 19, 38, 39)), lessons=range(3 * len(NAMES)))
    assert [place.batch for place in data.curriculum.places] == [0, 20, 40]
    return found


@pytest.fixture(scope="module")
def held_out() -> list[KnownTask]:
    return [
        task for options in (ALL, SMALL, replace(ALL, colors=5)) for task in tasks(options, "held_out", 500, seed=9)
    ]


@pytest.mark.parametrize("name", BY_RULE)
def test_no_visible_rule_is_both_trained_and_held_out(
    name: str, trained: list[KnownTask], held_out: list[KnownTask]
) -> None:
    rules = [{visible_rule(task) for task in part if task.family == name} for part in (trained, held_out)]
    assert all(len(part) >= 3 for part in rules)
    assert rules[0].isdisjoint(rules[1])


def test_no_colour_rule_of_one_family_is_held_out_in_another(
    trained: list[KnownTask], held_out: list[KnownTask]
) -> None:
    parts = [{moved_colors(t.pairs) for t in part if t.family in COLORS_ALONE} for part in (trained, held_out)]
    assert parts[0].isdisjoint(parts[1])


def test_permutations_are_held_out_by_cycle_type(trained: list[KnownTask], held_out: list[KnownTask]) -> None:
    for task in held_out:
        if task.family == "permutation":
            assert visible_rule(task) == (task.family, cycle_lengths(task.rule))
    assert {visible_rule(t)[1] for t in trained if t.family == "permutation"} >= {(3,), (9,), (2, 2, 2)}  # pyright: ignore


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BY_RULE])
def test_families_of_few_rules_hold_out_the_grids_that_are_asked_for(
    name: str, trained: list[KnownTask], held_out: list[KnownTask]
) -> None:
    asked = [inputs_of(task)[-1] for task in held_out if task.family == name]
    shown = [grid for task in trained if task.family == name for grid in inputs_of(task)]
    assert len(shown) > 500
    assert versions(asked).isdisjoint(versions(shown))
    assert all(is_held_out_grid(grid) for grid in asked)
    assert {task.rule for task in held_out if task.family == name} <= set(FAMILIES[name].rules(ALL))


def observed(data: KnownRulesSource, steps: Iterable[int], exact: float, lessons: Iterable[int]) -> None:
    """Steps in which 128 samples of each of these lessons end, this share of them right."""
    groups = torch.tensor(list(lessons)).repeat_interleave(128)
    right = (torch.arange(len(groups)) % 128 < 128 * exact).float()
    for step in steps:
        data.observe(step, {}, SampleResults({"puzzle_groups": groups}, torch.ones(len(groups)), right))


SWAP = (lesson("swap", replace(ALL, colors=4)), lesson("swap"))
LADDERS = (SWAP, (lesson("tile"),), (lesson("scale"),))


def families_in(data: KnownRulesSource, numbers: Iterable[int]) -> set[str]:
    return {name for number in numbers for name in families_of(data, data[number])}


def lessons_in(data: KnownRulesSource, numbers: Iterable[int]) -> set[int]:
    return {lesson for number in numbers for lesson in data[number]["puzzle_groups"].tolist()}


def test_a_lesson_that_is_read_makes_way_for_the_next_and_stays_in_the_mix() -> None:
    data = source(*LADDERS)
    observed(data, range(1, 5), exact=0.5, lessons=[0])
    assert data.metrics()["train/lesson_exact_accuracy/swap"] == 0.5
    assert lessons_in(data, range(20)) == {0}
    observed(data, range(5, 7), exact=0.75, lessons=[0])
    assert data.metrics()["train/lessons_read/swap"] == 1
    assert lessons_in(data, range(6)) == {0}  # batches of the past are made again as they were
    assert lessons_in(data, range(6, 30)) == {0, 1}
    observed(data, range(7, 9), exact=1.0, lessons=[0, 1])
    assert lessons_in(data, range(8, 40)) == {1, 2}
    observed(data, range(9, 13), exact=1.0, lessons=[2, 3])
    assert {name: read for name, read in data.metrics().items() if "lessons_read" in name} == {
        "train/lessons_read": 4,
        "train/lessons_read/swap": 2,
        "train/lessons_read/tile": 1,
        "train/lessons_read/scale": 1,
    }
    assert lessons_in(data, range(12, 60)) == {1, 2, 3}


def test_a_lesson_is_judged_by_its_own_samples_and_by_enough_of_them() -> None:
    data = source(*LADDERS)
    observed(data, range(1, 9), exact=1.0, lessons=[1, 2])
    few = SampleResults({"puzzle_groups": torch.zeros(20)}, torch.ones(20), torch.ones(20))
    for step in (9, 10):
        data.observe(step, {}, few)
    assert data.metrics()["train/lessons_read/swap"] == 0
    for step in (11, 12):  # with these there are 80
        data.observe(step, {}, few)
    assert data.metrics()["train/lessons_read/swap"] == 1


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ((*LADDERS, (lesson("mirror"),)), "more or fewer"),
        ((SWAP[:1], *LADDERS[1:]), "TaskSettings.*swap"),
        ((SWAP, (lesson("scale"),), (lesson("tile"),)), "TaskSettings.*tile"),
    ],
    ids=["a family more", "a level less", "in another order"],
)
def test_a_place_among_other_lessons_is_refused(others: Any, said: str) -> None:
    data = source(*LADDERS)
    observed(data, range(1, 3), exact=1.0, lessons=[0])
    with pytest.raises(DatasetError, match=f"curriculum is of other lessons.*{said}"):
        source(*others).load_state_dict(data.state_dict())
    easier = tuple(tuple(replace(lesson, threshold=0.1) for lesson in ladder) for ladder in LADDERS)
    goes_on = source(*easier)
    goes_on.load_state_dict(data.state_dict())
    assert goes_on.metrics() == data.metrics()


def test_samples_that_go_on_are_not_counted() -> None:
    data = source(*LADDERS)
    groups, halted = torch.zeros(200), (torch.arange(200) < 100).float()
    for step in (1, 2):
        data.observe(step, {}, SampleResults({"puzzle_groups": groups}, halted, 1 - halted))
    assert data.metrics()["train/lesson_exact_accuracy/swap"] == 0.0


def test_after_its_patience_a_family_goes_on_and_the_next_begins_beside_it() -> None:
    data = source(*LADDERS, patience=10)
    observed(data, range(1, 11), exact=0.0, lessons=[0])
    assert families_in(data, range(10)) == {"swap"}
    assert families_in(data, range(10, 40)) == {"swap", "tile"}
    observed(data, range(11, 21), exact=0.0, lessons=[0, 2])
    assert families_in(data, range(20, 60)) == {"swap", "tile", "scale"}


def test_several_families_are_learned_at_once() -> None:
    data = source(*LADDERS, at_once=2)
    assert families_in(data, range(20)) == {"swap", "tile"}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_lessons_that_are_read_have_their_share(share: float) -> None:
    data = source(*LADDERS, earlier_share=share, batch=100)
    observed(data, range(1, 3), exact=1.0, lessons=[0])
    drawn = [number == 0 for batch in range(2, 22) for number in data[batch]["puzzle_groups"].tolist()]
    assert abs(sum(drawn) / len(drawn) - share) < 0.04


def test_a_settled_curriculum_begins_no_lesson_and_leaves_out_families_of_which_none_is_read() -> None:
    """Whatever is measured then, also after a resume."""
    ladders = [SWAP, (lesson("tile", SMALL), lesson("tile")), (lesson("scale"),)]
    data = source(*ladders, at_once=2, settle_after=20)
    assert lessons_in(data, range(20, 30)) == {0, 2}, "nothing is read yet"
    observed(data, range(1, 3), exact=1.0, lessons=[0])
    assert lessons_in(data, range(3, 20)) == {0, 1, 2}
    assert lessons_in(data, range(20, 40)) == {0, 1}
    observed(data, range(20, 30), exact=1.0, lessons=[0, 1, 2])
    again = source(*ladders, at_once=2, settle_after=20)
    again.load_state_dict(data.state_dict())
    assert lessons_in(again, range(30, 60)) == lessons_in(data, range(30, 60)) == {0, 1}


def test_a_block_that_ends_where_the_curriculum_settles_lets_no_lesson_begin() -> None:
    data = source(*LADDERS, settle_after=4)
    observed(data, range(1, 3), exact=1.0, lessons=[0])
    observed(data, range(3, 5), exact=1.0, lessons=[1])  # the batches 2 and 3
    assert lessons_in(data, range(4, 20)) == {0, 1}


def test_a_settled_curriculum_asks_for_what_is_forgotten() -> None:
    """Lessons that have begun among those that are read, each by the share that was wrong when measured last."""
    ladders = [(lesson("swap"),), (lesson("tile", SMALL), lesson("tile"))]
    data = source(*ladders, at_once=2, review="forgotten", settle_after=4, batch=100)
    observed(data, range(1, 3), exact=1.0, lessons=[0, 1])
    for step, (exact, number) in zip((5, 7, 9), ((0.5, 0), (0.75, 1), (0.0, 2)), strict=True):
        observed(data, (step, step + 1), exact=exact, lessons=[number])
    drawn = np.bincount([number for batch in range(12, 42) for number in data[batch]["puzzle_groups"].tolist()])
    assert drawn / drawn.sum() == pytest.approx(np.array([0.5, 0.25, 1]) / 1.75, abs=0.03)


def test_what_is_forgotten_is_asked_for_by_the_share_that_was_wrong() -> None:
    data = source((lesson("swap"),), (lesson("tile"),), (lesson("scale"),), review="forgotten", batch=100)
    for number in range(3):
        observed(data, (2 * number + 1, 2 * number + 2), exact=0.75, lessons=[number])
    for number, exact in enumerate((1.0, 0.75, 0.5)):
        observed(data, (2 * number + 7, 2 * number + 8), exact=exact, lessons=[number])
    drawn = np.bincount([number for batch in range(12, 42) for number in data[batch]["puzzle_groups"].tolist()])
    assert drawn / drawn.sum() == pytest.approx(np.array([0.05, 0.25, 0.5]) / 0.8, abs=0.03)
    again = source((lesson("swap"),), (lesson("tile"),), (lesson("scale"),), review="forgotten", batch=100)
    again.load_state_dict(data.state_dict())
    for batch in (5, 9, 20):
        assert torch.equal(again[batch]["puzzle_groups"], data[batch]["puzzle_groups"])


@pytest.mark.parametrize("review", ["even", "forgotten"])
def test_the_curriculum_goes_on_with_its_state(review: Review) -> None:
    straight, first, second = (source(*LADDERS, review=review) for _ in range(3))
    observed(straight, range(1, 10), exact=0.8, lessons=[0, 1])
    observed(first, range(1, 6), exact=0.8, lessons=[0, 1])
    second.load_state_dict(first.state_dict())
    observed(second, range(6, 10), exact=0.8, lessons=[0, 1])
    ours, theirs = second.state_dict(), straight.state_dict()
    assert torch.equal(ours.pop("totals"), theirs.pop("totals"))
    assert ours == theirs
    assert len(ours["places"]) == 3


def test_other_ranks_take_over_what_was_counted_once() -> None:
    ranks = [source(*LADDERS) for _ in range(2)]
    for data, exact in zip(ranks, (1.0, 0.0), strict=True):
        observed(data, range(1, 2), exact=exact, lessons=[0, 1])
    states = [data.state_dict() for data in ranks]
    totals = sum(state["totals"] for state in states)
    for world_size in (1, 3):
        taken = []
        for rank in range(world_size):
            data = source(*LADDERS)
            data.load_state_dict(data.joined_states(states, rank))
            taken.append(data.state_dict()["totals"])
        assert torch.equal(torch.stack(taken).sum(0), totals)
    assert totals.sum() > states[0]["totals"].sum() > 0


def test_the_state_of_a_checkpoint_without_weights_of_lessons_is_taken() -> None:
    data, older = source(*LADDERS), source(*LADDERS)
    observed(data, range(1, 6), exact=0.8, lessons=[0, 1])
    state = data.state_dict()
    older.load_state_dict(state | {"places": [place[:4] for place in state["places"]]})
    assert older.state_dict()["places"] == state["places"]


def test_without_a_curriculum_there_is_no_state_so_that_workers_may_read_it() -> None:
    data = source()
    observed(data, range(1, 10), exact=1.0, lessons=[0])
    assert (data.state_dict(), data.metrics()) == ({}, {})


def test_the_record_names_the_settings() -> None:
    first, second = source([lesson("swap", SMALL), lesson("swap")]).trained_on().generators
    assert "seed=3" in first
    assert "sides=(2, 3)" in first
    assert "sides=(3, 6)" in second
