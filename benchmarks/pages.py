"""Tables of measurements, and where they stand in the documentation."""

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
