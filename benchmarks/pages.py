"""Tables of measurements, and where they stand in the documentation."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

DOC = Path(__file__).parents[1] / "docs" / "performance.md"
Row = tuple[str, ...]


def table(head: Row, rows: list[Row]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *rows))


def write_between(name: str, text: str, page: Path = DOC) -> None:
    """Put a text between a page's marks `<!-- name:begin -->` and `<!-- name:end -->`.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = (f"<!-- {name}:{where} -->" for where in ("begin", "end"))
    before, found, rest = page.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f"{page} has no {begin} with {end} behind it, between which the table is to stand")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def show_or_write(name: str, description: str | None, report: Callable[[int], str], rounds: int) -> None:
    """The command line of a benchmark of one table: `--rounds N`, and `--write` between a page's marks.

    Args:
        report: the table, given how many rounds.
        rounds: where the command line says nothing.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--write", action="store_true", help="write docs/performance.md's table")
    arguments = parser.parse_args()
    text = report(arguments.rounds)
    sys.stdout.write(text + "\n")
    if arguments.write:
        write_between(name, text)
