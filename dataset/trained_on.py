"""The record of what weights have seen, which every checkpoint carries."""

from collections.abc import Collection

from pydantic import BaseModel, ConfigDict

HELD_OUT_GENERATORS = "held_out_generators"  # the subset of RE-ARC's generators that no training has


def is_of_seen_rule(puzzle_id: str, seen_puzzles: Collection[str]) -> bool:
    """Whether a puzzle is of a generator that is held out whole, and the ARC task that it was written for is among the
    puzzles that were trained on: new pairs, but a known rule."""
    subset, _, rest = puzzle_id.partition("/")
    task = rest.partition("/")[0]
    return subset == HELD_OUT_GENERATORS and any(name.rpartition("/")[2] == task for name in seen_puzzles)


class TrainedOn(BaseModel):
    """What weights have seen, with what the decoder they started from had seen.

    puzzle_ids, pair_hashes: the puzzles of the training split, and all their pairs.
    held_out_demonstrations: ids of held-out puzzles whose demonstrations were trained on.
    unknown_origin: files of weights whose training data nobody wrote down.
    datasets: path of each data set to the SHA-256 of its metadata.
    generators: settings of the generators whose tasks were trained on; each task is made anew, so no pair is named.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    puzzle_ids: tuple[str, ...] = ()
    pair_hashes: tuple[str, ...] = ()
    held_out_demonstrations: tuple[str, ...] = ()
    unknown_origin: tuple[str, ...] = ()
    datasets: dict[str, str] = {}
    generators: tuple[str, ...] = ()

    def joined(self, other: "TrainedOn") -> "TrainedOn":
        """Both, each entry once; where both name a data set of one path, the hash is that of `self`."""
        return TrainedOn(
            puzzle_ids=tuple(dict.fromkeys((*self.puzzle_ids, *other.puzzle_ids))),
            pair_hashes=tuple(dict.fromkeys((*self.pair_hashes, *other.pair_hashes))),
            held_out_demonstrations=tuple(
                dict.fromkeys((*self.held_out_demonstrations, *other.held_out_demonstrations))
            ),
            unknown_origin=tuple(dict.fromkeys((*self.unknown_origin, *other.unknown_origin))),
            datasets={**other.datasets, **self.datasets},
            generators=tuple(dict.fromkeys((*self.generators, *other.generators))),
        )
