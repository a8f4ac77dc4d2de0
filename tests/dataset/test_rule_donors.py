"""What a stored set says of its rules: a donor that shows on the same inputs and answers otherwise, and chance."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from dataset.build_known_rules import DONORS, FIXED_SET, draw_tasks
from dataset.known_rules.color_families import cycle_lengths, is_drawn
from dataset.known_rules.family import RuleSplit, TaskSettings, shows
from dataset.known_rules.generator import FAMILIES, KnownTask, draw_donor, draw_task, generator_of, visible_rule
from dataset.store import ManifestPuzzle, PuzzleRule
from tests.dataset.rule_oracles import ORACLES, turn

NAMES = tuple(FAMILIES)
BY_RULE = tuple(name for name in NAMES if FAMILIES[name].holds_out == "rules")
MARKED = ("crop", "count")
SPLITS: tuple[RuleSplit, ...] = ("train", "held_out")
ALL = TaskSettings(NAMES)
FEW_COLORS = TaskSettings(NAMES, sides=(2, 4), colors=5)


def tasks_with_donors(options: TaskSettings, split: RuleSplit, count: int) -> list[tuple[KnownTask, KnownTask]]:
    """Tasks, and what their donors make of the same inputs."""
    found = []
    for number in range(count):
        task = draw_task(generator_of(0, FIXED_SET, number, split), options, split)
        donor = draw_donor(generator_of(0, DONORS, number, split), options, split, task)
        if donor is not None:
            grids = [grid for grid, _ in task.pairs]
            outputs = [ORACLES[task.family](donor, grid.tolist()) for grid in grids]
            pairs = tuple((g, np.array(output, dtype=np.uint8)) for g, output in zip(grids, outputs, strict=True))
            found.append((task, KnownTask(task.family, donor, pairs)))
    return found


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_a_donor_answers_otherwise_and_shows_in_a_demonstration(name: str, split: RuleSplit) -> None:
    found = tasks_with_donors(replace(ALL, families=(name,)), split, 12)
    assert len(found) >= 10
    for task, donated in found:
        assert donated.pairs[-1][1].tolist() != task.pairs[-1][1].tolist()
        assert donated.rule != task.rule
        assert any(grid.tolist() != output.tolist() for grid, output in donated.pairs[:-1])
        assert FAMILIES[name].is_well_posed(ALL, donated.rule, donated.pairs)


@pytest.mark.parametrize("name", BY_RULE)
def test_a_donor_is_of_the_split_of_its_task(name: str) -> None:
    """No held-out donor looks like a rule that training has."""
    options = replace(ALL, sides=(2, 4), families=(name,))
    trained = {visible_rule(draw_task(generator_of(0, number, 0), options)) for number in range(300)}
    donated = [visible_rule(donor) for _, donor in tasks_with_donors(options, "held_out", 40)]
    assert donated
    assert not trained & set(donated)


@pytest.mark.parametrize("name", ["mirror", "dihedral", "crop", "count", "gravity"])
def test_a_donor_has_the_sizes_of_the_task_where_one_has(name: str) -> None:
    """Where it has not, no other rule of the family that shows on the inputs has either."""
    family, of_same_sizes = FAMILIES[name], 0
    for task, donated in tasks_with_donors(replace(ALL, families=(name,)), "held_out", 12):
        shapes = [output.shape for _, output in task.pairs]
        if [output.shape for _, output in donated.pairs] == shapes:
            of_same_sizes += 1
            continue
        for rule in family.rules(ALL):
            pairs = tuple((grid, family.apply(rule, grid)) for grid, _ in task.pairs)
            of_its_sizes = rule != task.rule and [output.shape for _, output in pairs] == shapes
            is_other = pairs[-1][1].tolist() != task.pairs[-1][1].tolist()
            assert not (of_its_sizes and is_other and shows(pairs) and family.is_well_posed(ALL, rule, pairs))
    assert of_same_sizes >= {"count": 0, "crop": 0}.get(name, 9)


@pytest.mark.parametrize("name", ["tile", "scale", "count"])
def test_a_donors_outputs_fit_the_canvas(name: str) -> None:
    found = tasks_with_donors(TaskSettings((name,), sides=(8, 15)), "held_out", 12)
    assert len(found) >= 10
    assert all(max(output.shape) <= 30 for _, donated in found for _, output in donated.pairs)


def changes_all(name: str, rule: tuple[int, ...], grids: list[list[list[int]]]) -> bool:
    """Whether the rule changes every grid."""
    return all(ORACLES[name](rule, grid) != grid for grid in grids)


@pytest.mark.parametrize("name", [name for name in NAMES if "permutation" not in name])
def test_chance_is_the_share_of_rules_that_give_the_answer(name: str) -> None:
    rules, objects = FAMILIES[name], ("fill", "outline")
    for task, known in draw_tasks(replace(FEW_COLORS, families=(name,)), "held_out", 6, 0):
        grids = [pair.input for pair in (*task.train, *task.test)]
        colors = {int(color) for grid in grids for color in grid.ravel()}
        possible = [rule for rule in rules.rules(FEW_COLORS) if rules.is_held_out(rule) or name not in BY_RULE]
        possible = [rule for rule in possible if name not in objects or rule[0] in colors]
        possible = [rule for rule in possible if name not in MARKED or all((grid == rule[0]).any() for grid in grids)]
        possible = [rule for rule in possible if changes_all(name, rule, [grid.tolist() for grid in grids])]
        (query,) = task.test
        assert query.output is not None
        right = [ORACLES[name](rule, query.input.tolist()) == query.output.tolist() for rule in possible]
        assert known.chance == pytest.approx(sum(right) / len(right))
        assert known.chance > 0


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("name", "transforms", "rules"),
    [("permutation", [0], None), ("dihedral_permutation", range(1, 8), None), ("dihedral_permutation", [1, 2], 2)],
)
def test_chance_of_permutations_counts_those_of_the_demonstrations_colors(
    name: str, transforms: Sequence[int], rules: int | None, split: RuleSplit
) -> None:
    for task, known in draw_tasks(replace(FEW_COLORS, families=(name,), rules=rules), split, 6, 0):
        palette = sorted({int(color) for pair in task.train for color in pair.input.ravel()})
        images = [dict(zip(palette, order, strict=True)) for order in permutations(palette)]
        allowed = [image for image in images if is_drawn(cycle_lengths([image.get(c, c) for c in range(10)]), split)]
        (query,) = task.test
        assert query.output is not None
        turned = [turn(t, query.input.tolist()) for t in transforms]
        answers = [[[image[c] for c in row] for row in grid] for grid in turned for image in allowed]
        assert known.chance == pytest.approx(sum(a == query.output.tolist() for a in answers) / len(answers))


def test_a_task_without_other_rule_has_no_donor() -> None:
    """Of four colours one couple is held out for each colour of objects."""
    for _, known in draw_tasks(TaskSettings(("fill",), sides=(3, 4), colors=4), "held_out", 5, 0):
        assert (known.donor, known.chance) == (None, 1)


def test_a_manifest_says_nothing_of_rules_that_are_not_known() -> None:
    puzzle = ManifestPuzzle(id="a", subset="s", split="test", puzzle_hash="1", pair_hashes=("2",))
    assert "rule" not in puzzle.model_dump_json()
    known = puzzle.model_copy(update={"rule": PuzzleRule(family="shift", rule=(1, 0), donor=None, chance=0.5)})
    assert ManifestPuzzle.model_validate_json(known.model_dump_json()) == known


@pytest.mark.parametrize("sides", [(2, 3), (3, 6)])
@pytest.mark.parametrize("name", MARKED)
def test_which_colour_is_marked_is_nowhere_but_in_the_outputs(name: str, sides: tuple[int, int]) -> None:
    """All inputs of a task have the same colours; the marked one is each of them as often, with as many cells."""
    ranks, shares, options = [], [], TaskSettings((name,), sides=sides)
    for number in range(200):
        task = draw_task(generator_of(0, number, 0), options)
        palettes = [sorted(set(grid.ravel().tolist()) - {0}) for grid, _ in task.pairs]
        assert all(palette == palettes[0] for palette in palettes)
        assert 2 <= len(palettes[0]) <= 4
        ranks.append(palettes[0].index(task.rule[0]) / (len(palettes[0]) - 1))
        cells = np.concatenate([grid.ravel() for grid, _ in task.pairs])
        shares.append((cells == task.rule[0]).sum() / (cells > 0).sum() * len(palettes[0]))
    assert np.mean(ranks) == pytest.approx(0.5, abs=0.1)
    assert np.mean(shares) == pytest.approx(1, abs=0.1)
