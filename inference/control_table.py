"""The figures of controls as rows, for the end of a run, the report, and `evaluate.py`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "eval/controls"
READING_GAIN = "eval/reading_gain"
# Controls that some queries do not allow; their places number the streams of what is drawn for them.
CONDITIONAL = ("donor", "deranged", "order", "colors")
FAMILY_MEASURES = (
    "right_exact_accuracy",
    "donor_exact_accuracy",
    "donor_answer_share",
    "chance_rule_exact_accuracy",
)
MISSING = "-"
MEANINGS = {
    "right": "what belongs to the puzzle",
    "donor": "another rule's, or puzzle's",
    "deranged": "inputs with wrong outputs",
    "none": "no demonstration",
    "demos_1": "the first one alone",
    "order": "in another order",
    "colors": "colours permuted everywhere",
    "chance_copy": "the query's input",
    "chance_color": "the outputs' most frequent colour",
    "chance_rule": "a random rule of the family",
}


@dataclass(frozen=True)
class ControlRow:
    """What a control gives; shares of one."""

    name: str
    meaning: str
    exact: float
    accuracy: float | None
    note: str = ""


@dataclass(frozen=True)
class FamilyRow:
    """The controls of one family of rules; shares of one, in the order of `FAMILY_MEASURES`."""

    family: str
    queries: int
    shares: tuple[float | None, ...]


def control_rows(metrics: Mapping[str, float]) -> list[ControlRow]:
    """A row for each control of the metrics of an evaluation; none where it had none."""
    fewer = [f"demos_{n}" for n in range(2, 100) if f"{PREFIX}/demos_{n}_accuracy" in metrics]
    names = list(MEANINGS)
    names[names.index("order") : names.index("order")] = fewer
    rows = []
    for name in names:
        exact = metrics.get(f"{PREFIX}/{name}_exact_accuracy")
        if exact is not None:
            meaning = MEANINGS.get(name, f"the first {name.removeprefix('demos_')}")
            rows.append(
                ControlRow(name, meaning, exact, metrics.get(f"{PREFIX}/{name}_accuracy"), _note(name, metrics))
            )
    return rows


def _note(name: str, metrics: Mapping[str, float]) -> str:
    """What else is known of a control."""
    notes = []
    if name == "donor":
        for key, text in (("answer_share", "are the donor's answer"), ("same_size", "have a donor of their sizes")):
            if (share := metrics.get(f"{PREFIX}/donor_{key}")) is not None:
                notes.append(f"{100 * share:.1f} % {text}")
    if name in CONDITIONAL and (impossible := metrics.get(f"{PREFIX}/{name}_impossible")):
        notes.append(f"{impossible:g} queries do not allow it")
    return ", ".join(notes)


def family_rows(metrics: Mapping[str, float]) -> list[FamilyRow]:
    """A row for each family of known rules."""
    found = [match.group(1) for key in metrics if (match := re.fullmatch(f"{PREFIX}/([^/]+)/queries", key))]
    return [
        FamilyRow(
            family,
            int(metrics[f"{PREFIX}/{family}/queries"]),
            tuple(metrics.get(f"{PREFIX}/{family}/{measure}") for measure in FAMILY_MEASURES),
        )
        for family in found
    ]


def control_table(metrics: Mapping[str, float]) -> str:
    """The controls as lines of text; empty where there are none."""
    rows, families = control_rows(metrics), family_rows(metrics)
    if not rows:
        return ""
    queries = f"{metrics[f'{PREFIX}/queries']:g} queries"
    lines = [f"{'controls, ' + queries:<48}{'exact match':>12}{'tokens':>9}"]
    for row in rows:
        figures = f"{_percent(row.exact):>12}{_percent(row.accuracy):>9}"
        lines.append(f"  {row.name:<13}{row.meaning:<33}{figures}  {row.note}".rstrip())
    if READING_GAIN in metrics:
        lines.append(f"{'reading gain (right minus donor)':<48}{_percent(metrics[READING_GAIN]):>12}")
    if families:
        lines.append(
            f"{'exact match by family':<24}{'queries':>8}{'right':>9}{'donor':>9}{'as donor':>10}{'chance':>9}"
        )
    for row in families:
        right, donor, share, chance = map(_percent, row.shares)
        lines.append(f"  {row.family:<22}{row.queries:>8}{right:>9}{donor:>9}{share:>10}{chance:>9}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f} %"
