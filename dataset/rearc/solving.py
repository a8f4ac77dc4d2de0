"""Which tasks a RE-ARC verifier solves: it does, if under one dihedral transform it gives every pair's output."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from dataset.arc_tasks import Pair
from dataset.augment import NUM_DIHEDRAL, apply_dihedral
from dataset.grids import Grid
from dataset.rearc.package import RearcGrid, Verifier
from dataset.rearc.pairs import OWN_FAULTS, as_tuples

# Verifiers take any grid; one that is too much for them counts as not solved.
FAULTS = (*OWN_FAULTS, AssertionError, MemoryError)


FEW, MANY = 2, 10  # a property that has at most FEW values in at least MANY pairs has no others


@dataclass(frozen=True)
class Traits:
    """What the pairs of a rule are like, in what no dihedral transform changes.

    outputs_have: the colours of every output.
    values: by property, what it is in any of the pairs.
    fixed: the properties of which all values are known.
    """

    outputs_have: frozenset[int]
    values: dict[str, frozenset[Hashable]]
    fixed: frozenset[str]

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "Traits":
        both = [(pair.input, pair.output) for pair in pairs if pair.output is not None]
        found = [_properties(given, made) for given, made in both]
        told = {name: [each[name] for each in found if name in each] for name in PROPERTIES}
        values = {name: frozenset().union(*sets) for name, sets in told.items()}
        few = {name for name, sets in told.items() if len(values[name]) <= FEW and len(sets) >= MANY}
        fixed = few | (told.keys() & {"adds"})
        return cls(frozenset.intersection(*(_colors(made) for _, made in both)), values, frozenset(fixed))

    def allow(self, task: "Traits") -> bool:
        """Whether a task may be of this rule."""
        has_only = (task.values[name] <= self.values[name] for name in self.fixed)
        return self.outputs_have <= task.outputs_have and all(has_only)


PROPERTIES = ("keeps_size", "output_sides", "growth", "adds", "changed", "changed_to")


def _properties(given: Grid, made: Grid) -> dict[str, set[Hashable]]:
    """Of a pair: is the size kept, the output's sides, how they compare with the input's, colours that only the output
    has, and where the size is kept, the colours of cells that change, before and after."""
    growth = (Fraction(made.shape[0], given.shape[0]), Fraction(made.shape[1], given.shape[1]))
    found: dict[str, set[Hashable]] = {
        "keeps_size": {given.shape == made.shape},
        "output_sides": {tuple(sorted(made.shape))},
        "growth": {tuple(sorted(growth))},
        "adds": set(_colors(made) - _colors(given)),
    }
    if given.shape == made.shape:
        differ = given != made
        found |= {"changed": set(_colors(given[differ])), "changed_to": set(_colors(made[differ]))}
    return found


@dataclass(frozen=True)
class Problem:
    """A task as verifiers take it: for each dihedral transform its pairs, the smallest first."""

    name: str
    traits: Traits
    versions: tuple[tuple[tuple[RearcGrid, RearcGrid], ...], ...]

    @classmethod
    def of(cls, name: str, pairs: Sequence[Pair]) -> "Problem":
        labelled = [(pair.input, pair.output) for pair in pairs if pair.output is not None]
        ordered = sorted(labelled, key=lambda both: both[0].size + both[1].size)
        versions = dict.fromkeys(
            tuple((as_tuples(apply_dihedral(i, t)), as_tuples(apply_dihedral(o, t))) for i, o in ordered)
            for t in range(NUM_DIHEDRAL)
        )
        return cls(name, Traits.of(pairs), tuple(versions))

    def solved_by(self, verify: Verifier) -> bool:
        """Whether the verifier gives every output of one version."""
        return any(all(_gives(verify, *pair) for pair in version) for version in self.versions)


def _colors(grid: Grid) -> frozenset[int]:
    return frozenset(grid.ravel().tolist())


def _gives(verify: Verifier, given: RearcGrid, wanted: RearcGrid) -> bool:
    try:
        return verify(given) == wanted
    except FAULTS:
        return False
