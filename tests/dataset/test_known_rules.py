"""Tasks of known rules: each is well posed and obeys its rule, its key makes it again, what is held out stays so."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

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
from dataset.known_rules.family import RuleError, RuleSplit, Stage, TaskSettings, is_held_out_grid, same
from dataset.known_rules.generator import (
    FAMILIES,
    KnownTask,
    check_settings,
    draw_task,
    generator_of,
    visible_rule,
)
from dataset.known_rules.source import KnownRulesSource, draw_batch
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


def source(
    *stages: Stage, rank: int = 0, world_size: int = 1, batch: int = 8, translate: bool = False, measure_steps: int = 2
) -> KnownRulesSource:
    curriculum = Curriculum(stages or (Stage(ALL),), 0.5, measure_steps, Ranks(rank, world_size, torch.device("cpu")))
    options = {"num_batches": 100, "epoch_batches": 10, "global_batch_size": batch, "seed": 3}
    return KnownRulesSource(curriculum, translate=translate, **options)


def read_grid(tokens: torch.Tensor) -> Grid:
    """The grid on a canvas, wherever it stands."""
    canvas = tokens.reshape(30, 30).numpy()
    rows, columns = np.nonzero(canvas >= COLOR_OFFSET)
    return canvas[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] - COLOR_OFFSET


def tasks_of(batch: Batch) -> Iterator[KnownTask]:
    """The tasks of a batch, read from its tokens."""
    for i, family in enumerate(batch["puzzle_groups"].tolist()):
        shown = batch["demo_mask"][i].nonzero()[:, 0].tolist()
        tokens = [(batch["demo_inputs"][i, k], batch["demo_labels"][i, k]) for k in shown]
        tokens.append((batch["inputs"][i], batch["labels"][i]))
        yield KnownTask(NAMES[family], (), tuple((read_grid(one), read_grid(other)) for one, other in tokens))


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
    assert not same(*task.pairs[-1])
    assert any(not same(*pair) for pair in task.pairs[:-1])


def test_distinct_colours_stand_once_where_a_grid_is_small_enough() -> None:
    for task in tasks(replace(SMALL, families=("dihedral", "permutation", "tile"), demos=(4, 4)), "train", 50):
        for grid in inputs_of(task)[:-1]:
            assert len(set(grid.ravel().tolist())) == grid.size


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
    for slot, read in enumerate(tasks_of(data[7])):
        task = draw_task(generator_of(3, 7, slot), ALL)
        assert read.family == task.family
        for read_pair, pair in zip(read.pairs, task.pairs, strict=True):
            assert all(same(one, other) for one, other in zip(read_pair, pair, strict=True))
    assert bool((corners >= COLOR_OFFSET).all()) is not translate


def test_empty_slots_are_padding() -> None:
    few, many = (next(tasks(replace(ALL, families=("swap",), demos=(n, n)), "train", 1)) for n in (2, 4))
    batch = draw_batch([few, many], 5)
    assert batch["demo_mask"].tolist() == [[True] * 2 + [False] * 3, [True] * 4 + [False]]
    assert not batch["demo_inputs"][~batch["demo_mask"]].any()
    assert not batch["demo_labels"][~batch["demo_mask"]].any()
    assert batch["puzzle_identifiers"].tolist() == [0, 0]


@pytest.fixture(scope="module")
def trained() -> list[KnownTask]:
    """What the training loader yields in three stages."""
    stages = [Stage(replace(ALL, colors=5), max_batches=20), Stage(replace(SMALL), max_batches=20), Stage(ALL)]
    data = source(*stages, batch=48)
    for number in range(40):
        data.observe(number + 1, {"exact_accuracy": torch.tensor(0.0), "count": torch.tensor(1.0)})
    assert data.curriculum.began == [0, 20, 40]
    return [task for number in range(80) for task in tasks_of(data[number])]


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


def observed(data: KnownRulesSource, steps: Iterable[int], exact: float) -> None:
    for step in steps:
        data.observe(step, {"exact_accuracy": torch.tensor(exact), "count": torch.tensor(4.0)})


STAGES = (
    Stage(replace(ALL, families=("swap",)), threshold=0.75),
    Stage(replace(ALL, families=("tile",)), 0.75, 5),
    Stage(ALL),
)


def families_in(data: KnownRulesSource, numbers: Iterable[int]) -> set[str]:
    return {NAMES[group] for number in numbers for group in data[number]["puzzle_groups"].tolist()}


def test_a_stage_is_left_when_it_is_read() -> None:
    data = source(*STAGES)
    observed(data, range(1, 5), exact=2.0)
    assert data.metrics() == {"train/stage": 0, "train/stage_exact_accuracy": 0.5}
    observed(data, range(5, 7), exact=3.0)
    assert data.metrics() == {"train/stage": 1, "train/stage_exact_accuracy": 0.75}
    assert data.curriculum.began == [0, 6]
    assert families_in(data, range(6)) == {"swap"}  # batches of the past are made again as they were
    assert families_in(data, range(6, 30)) == {"swap", "tile"}


def test_a_stage_is_left_after_its_longest_time() -> None:
    data = source(*STAGES)
    observed(data, range(1, 3), exact=4.0)
    observed(data, range(3, 8), exact=0.0)
    assert data.curriculum.began == [0, 2, 7]
    observed(data, range(8, 40), exact=4.0)
    assert data.curriculum.began == [0, 2, 7]  # the last stage stays


def test_samples_of_the_batch_in_which_a_stage_ended_do_not_count_for_the_next() -> None:
    data = source(*STAGES, measure_steps=1)
    data.steps_per_batch = 4
    observed(data, range(1, 5), exact=4.0)
    assert data.curriculum.began == [0, 1]


def test_the_curriculum_goes_on_with_its_state() -> None:
    straight, first, second = source(*STAGES), source(*STAGES), source(*STAGES)
    observed(straight, range(1, 10), exact=3.0)
    observed(first, range(1, 6), exact=3.0)
    second.load_state_dict(first.state_dict())
    observed(second, range(6, 10), exact=3.0)
    assert second.state_dict().keys() == straight.state_dict().keys()
    assert second.curriculum.began == straight.curriculum.began
    assert torch.equal(second.curriculum.totals, straight.curriculum.totals)


def test_one_stage_has_no_state_so_that_workers_may_read_it() -> None:
    data = source()
    observed(data, range(1, 10), exact=4.0)
    assert (data.state_dict(), data.metrics()) == ({}, {})


def test_the_record_names_the_settings() -> None:
    first, second = source(Stage(SMALL), Stage(ALL)).trained_on().generators
    assert "seed=3" in first
    assert "sides=(2, 3)" in first
    assert "sides=(3, 6)" in second
