"""Which tasks a RE-ARC verifier solves: it does, if under one dihedral transform it gives every pair's output."""

from collections.abc import Sequence
from dataclasses import dataclass

from dataset.arc_tasks import Pair
from dataset.augment import NUM_DIHEDRAL, apply_dihedral
from dataset.grids import Grid
from dataset.rearc.package import RearcGrid, Verifier
from dataset.rearc.pairs import OWN_FAULTS, as_tuples

# Verifiers take any grid; one that is too much for them counts as not solved.
FAULTS = (*OWN_FAULTS, AssertionError, MemoryError)


@dataclass(frozen=True)
class Traits:
    """What all pairs of a rule have in common, and no dihedral transform changes.

    keeps_size: whether each output is as large as its input; None where some are.
    outputs_have: the colours of every output.
    adds: the colours of any output that its input does not have.
    """

    keeps_size: bool | None
    outputs_have: frozenset[int]
    adds: frozenset[int]

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "Traits":
        both = [(pair.input, pair.output) for pair in pairs if pair.output is not None]
        kept = {given.shape == made.shape for given, made in both}
        colors = [(_colors(given), _colors(made)) for given, made in both]
        return cls(
            kept.pop() if len(kept) == 1 else None,
            frozenset.intersection(*(made for _, made in colors)),
            frozenset.union(*(made - given for given, made in colors)),
        )

    def allow(self, task: "Traits") -> bool:
        """Whether a task may be of this rule."""
        sizes = {self.keeps_size, task.keeps_size}
        return sizes != {True, False} and self.outputs_have <= task.outputs_have and task.adds <= self.adds


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
