"""Which generators are not trained on: the committed list, which `dataset.rearc.scan` writes, and those held out."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dataset.grids import CANVAS_SIDE

EXCLUSIONS_FILE = Path(__file__).with_name("exclusions.json")
HELD_OUT_SHARE = 0.1  # of the generators
Reason = Literal["overlap", "solves", "solved"]


class Exclusion(BaseModel):
    """Why a generator is not trained on, where a subset is held out.

    reason: `overlap`: its task has the id of held-out tasks or shares a pair. `solves`: its verifier solves them.
        `solved`: it is solved by the verifiers of held-out generators.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    subset: str
    reason: Reason
    tasks: tuple[str, ...]


class Exclusions(BaseModel):
    """What scans have found.

    scanned: by subset, the longest side of the tasks that were tried.
    undecided: by subset and generator, the tasks on which its verifier took longer than a scan waits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scanned: dict[str, int] = {}
    excluded: tuple[Exclusion, ...] = ()
    undecided: dict[str, dict[str, tuple[str, ...]]] = {}

    def of_subsets(self, subsets: Collection[str]) -> dict[str, list[Exclusion]]:
        """By generator, the reasons that the given subsets give."""
        found: dict[str, list[Exclusion]] = defaultdict(list)
        for exclusion in self.excluded:
            if exclusion.subset in subsets:
                found[exclusion.id].append(exclusion)
        return dict(found)

    def with_subset(
        self, subset: str, excluded: Sequence[Exclusion], undecided: dict[str, tuple[str, ...]]
    ) -> "Exclusions":
        """With what a new scan of a subset has found in the place of what was found before."""
        others = [exclusion for exclusion in self.excluded if exclusion.subset != subset]
        kept = {name: tasks for name, tasks in self.undecided.items() if name != subset}
        return Exclusions(
            scanned=dict(sorted({**self.scanned, subset: CANVAS_SIDE}.items())),
            excluded=tuple(sorted([*others, *excluded], key=lambda e: (e.subset, e.id, e.reason))),
            undecided=kept | ({subset: undecided} if undecided else {}),
        )


def read_exclusions(path: Path = EXCLUSIONS_FILE) -> Exclusions:
    """The committed list; an empty one where the file is not there."""
    return Exclusions.model_validate_json(path.read_text()) if path.exists() else Exclusions()


def is_held_out(generator_id: str) -> bool:
    """Whether a generator is held out whole: its id alone decides."""
    number = int.from_bytes(blake2b(generator_id.encode(), digest_size=8).digest())
    return number < HELD_OUT_SHARE * 2**64
