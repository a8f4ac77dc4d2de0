"""Which puzzles an evaluation solves: `puzzles.json` of a run folder, written at each evaluation."""

import json
from dataclasses import dataclass
from pathlib import Path

from utils.files import write_file

PUZZLES_FILE = "puzzles.json"
KEPT_KS = (1, 2)


@dataclass(frozen=True)
class PuzzleResults:
    """What one evaluation found.

    credits: {puzzle id: {k: share of its labelled test inputs whose truth is among the first k candidates}}, of every
        puzzle that was evaluated and has a known solution.
    contaminated: evaluated puzzles of which the weights may have seen a pair.
    """

    step: int
    credits: dict[str, dict[int, float]]
    contaminated: frozenset[str]

    def write(self, folder: Path) -> None:
        """`puzzles.json`, in one move."""
        puzzles = {puzzle: {f"pass@{k}": credit[k] for k in KEPT_KS} for puzzle, credit in self.credits.items()}
        content = {"step": self.step, "contaminated": sorted(self.contaminated), "puzzles": puzzles}
        write_file(folder / PUZZLES_FILE, json.dumps(content) + "\n")


def read_puzzle_results(folder: Path) -> PuzzleResults | None:
    """The results in a run folder; None where it has none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / PUZZLES_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        credits = {
            puzzle: {k: float(shares[f"pass@{k}"]) for k in KEPT_KS} for puzzle, shares in content["puzzles"].items()
        }
        return PuzzleResults(int(content["step"]), credits, frozenset(map(str, content["contaminated"])))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: not a file of solved puzzles ({type(error).__name__}: {error})") from error
