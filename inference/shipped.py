"""The base that comes along, and how it is meant to be adapted (`weights/README.md`)."""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from checkpoints.checkpoint import CheckpointError
from config.fields import Positive, PositiveFloat, Section
from dataset.arc_tasks import Task
from dataset.build_arc_dataset import largest_side, without_outputs

CARD_FILE = "card.json"
SHOWN = 5


class Card(Section):
    """What a base says of its use.

    largest_side: of the grids that it was trained on.
    adapt_seconds: on each task, where nobody says anything else.
    adapt_with: `KEY=VALUE`, as it was measured; what is given on a command line goes first.
    beyond: what it is worth on larger grids, a sentence.
    """

    largest_side: Positive
    adapt_seconds: PositiveFloat
    adapt_with: tuple[str, ...]
    beyond: str


def shipped_base() -> Path:
    """The folder of the base that comes along.

    Raises:
        CheckpointError: the installation lacks it.
    """
    folder = Path(str(files("weights"))) / "arc_base"
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist: this installation came without a base; name a --checkpoint")
    return folder


def card_of(checkpoint: str | Path) -> Card | None:
    """The card in a checkpoint's folder; None where there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = Path(checkpoint) / CARD_FILE
    if not path.is_file():
        return None
    try:
        return Card.model_validate_json(path.read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: no card of a base: {error}") from error


def larger_than(card: Card, tasks: Iterable[Task]) -> list[str]:
    """The ids of tasks with a known grid that is larger than any that the base was trained on."""
    return [task.id for task in tasks if largest_side(without_outputs(task)) > card.largest_side]


def size_warning(card: Card, larger: Sequence[str], tasks: int) -> str:
    """What a user should know of tasks beyond the sizes that the base knows."""
    names = ", ".join(larger[:SHOWN]) + (", ..." if len(larger) > SHOWN else "")
    over = f"grids over {card.largest_side} x {card.largest_side}, unlike any that the base was trained on"
    return f"{len(larger)} of {tasks} tasks have {over} ({names}): {card.beyond}"
