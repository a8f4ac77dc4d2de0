"""The report's curves: runs that differ in their seed alone become one line with a band, all lines in each panel."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from jaxtyping import Float

from config.keys import flat_config
from dataset.known_rules.generator import FAMILIES
from dataset.sources import LESSONS_READ
from reports.compare import COLORS, model_name
from reports.run_reader import Run

MAX_POINTS = 300
WIDTH, HEIGHT = 380, 190
DASH = 4
DASHES = ("", "7 3", "2 3", "9 3 2 3")
NOT_COMPARED = ("seed", "run_name")
MAX_TICKS = 6
# Metric, title, whether it is a share of one.
PANELS = (
    ("train/loss", "Training loss", False),
    ("train/accuracy", "Training token accuracy", True),
    ("train/exact_accuracy", "Training exact match", True),
    ("eval/accuracy", "Held-out token accuracy", True),
    ("eval/reading_gain", "Reading gain: exact match, right minus donor's", False),
    (LESSONS_READ, "Lessons of the curriculum that are read", False),
    *((f"{LESSONS_READ}/{family}", f"Lessons read: {family}", False) for family in FAMILIES),
    ("train/steps", "ACT steps until halting", False),
    ("train/q_halt_accuracy", "q_halt accuracy", True),
    ("train/encoder_cross_sample_var", "Encoder variance over samples", False),
    ("grad/encoder_share", "Encoder's share of the gradient", True),
)

Points = list[tuple[int, float]]
Array = Float[np.ndarray, " points"]


@dataclass(frozen=True)
class Curve:
    """A metric of one or several runs: mean, least and most over the runs, in buckets of steps."""

    steps: Array
    mean: Array
    low: Array
    high: Array


def bucket_curve(series: Sequence[Points], most: int = MAX_POINTS) -> Curve:
    """At most `most` buckets of equally many logged steps; in each the mean of a run's values, then over the runs.

    With no more than `most` logged steps a bucket is a step. A run that has not got to a bucket takes no part in it.

    Args:
        series: (step, value) of each run; at least one value in all.
    """
    logged = np.unique([step for points in series for step, _ in points])
    count = min(most, len(logged))
    means = np.full((len(series), count), np.nan)
    for row, points in enumerate(series):
        places = np.searchsorted(logged, [step for step, _ in points]) * count // len(logged)
        totals = np.bincount(places, weights=[value for _, value in points], minlength=count)
        sizes = np.bincount(places, minlength=count)
        means[row, sizes > 0] = totals[sizes > 0] / sizes[sizes > 0]
    buckets = np.arange(len(logged)) * count // len(logged)
    steps = np.bincount(buckets, weights=logged) / np.bincount(buckets)
    return Curve(steps, np.nanmean(means, axis=0), np.nanmin(means, axis=0), np.nanmax(means, axis=0))


@dataclass(frozen=True)
class Line:
    """One entry of the legend: a run, or runs that differ in their seed alone."""

    number: int
    runs: tuple[Run, ...]

    @property
    def color(self) -> str:
        return COLORS[self.number % len(COLORS)]

    @property
    def dash(self) -> str:
        return DASHES[self.number // len(COLORS) % len(DASHES)]

    @property
    def is_group(self) -> bool:
        return len(self.runs) > 1

    @property
    def label(self) -> str:
        if not self.is_group:
            return self.runs[0].name
        letters = takewhile(lambda letters: len(set(letters)) == 1, zip(*(run.name for run in self.runs), strict=False))
        start = "".join(first for first, *_ in letters)
        name = re.sub(r"[-_. ,(]*(seed|s)?[-_. =]*\d*$", "", start) or model_name(self.runs[0].config)
        seeds = [str(run.config.get("seed")) for run in self.runs]
        kind = "seeds" if len(set(seeds)) == len(seeds) else "runs, of seeds"
        return f"{name} ({len(self.runs)} {kind}: {', '.join(seeds)}{self._shorter_runs})"

    @property
    def _shorter_runs(self) -> str:
        """Where the runs end at different steps, the mean is over fewer of them from there on."""
        ends = {run.last_step for run in self.runs}
        return f"; not all of them after step {min(ends):,}" if len(ends) > 1 else ""


def seed_groups(runs: Sequence[Run]) -> list[Line]:
    """The runs in the order given, those that differ in seed and name alone together."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        config = {key: value for key, value in flat_config(run.config).items() if key not in NOT_COMPARED}
        groups.setdefault(repr(sorted(config.items())), []).append(run)
    return [Line(number, tuple(group)) for number, group in enumerate(groups.values())]


def nice_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, at most six of them from `low` or below to `high` or above."""
    rough = (high - low) / (MAX_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [step * i for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


@dataclass(frozen=True)
class Drawn:
    """A line in a panel, as SVG attributes."""

    line: Line
    points: str
    band: str
    end: str


@dataclass(frozen=True)
class Panel:
    """A metric's drawing."""

    title: str
    lines: tuple[Drawn, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]

    @property
    def description(self) -> str:
        """In words, for who does not see the drawing."""
        return f"{self.title} by step. At the end: " + "; ".join(f"{d.line.label} {d.end}" for d in self.lines)


def _shown(value: float, is_share: bool) -> str:
    return f"{100 * value:.0f} %" if is_share else f"{value:.3g}"


def draw_panel(title: str, curves: Sequence[tuple[Line, Curve]], is_share: bool) -> Panel:
    """All lines on common axes, which have zero on them."""
    low = min(0.0, *(float(curve.low.min()) for _, curve in curves))
    high = max(1.0 if is_share else low, *(float(curve.high.max()) for _, curve in curves))
    y_ticks = nice_ticks(low, high if high > low else low + 1.0)
    last_step = float(max(1, *(run.last_step for line, _ in curves for run in line.runs)))
    x_ticks = [tick for tick in nice_ticks(0, last_step) if tick <= last_step and tick == int(tick)]

    def x_of(steps: Array) -> Array:
        return steps / last_step * WIDTH

    def y_of(values: Array) -> Array:
        return HEIGHT * (y_ticks[-1] - values) / (y_ticks[-1] - y_ticks[0])

    def path(steps: Array, values: Array) -> str:
        xs, ys = x_of(steps), y_of(values)
        if len(xs) == 1:  # a point by itself is drawn as a dash
            xs, ys = np.array([xs[0] - DASH, xs[0] + DASH]), np.repeat(ys, 2)
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs.tolist(), ys.tolist(), strict=True))

    lines = tuple(
        Drawn(
            line,
            points=path(curve.steps, curve.mean),
            band=f"{path(curve.steps, curve.high)} {path(curve.steps[::-1], curve.low[::-1])}" if line.is_group else "",
            end=_shown(float(curve.mean[-1]), is_share),
        )
        for line, curve in curves
    )
    return Panel(
        title,
        lines,
        x_ticks=tuple(zip(x_of(np.array(x_ticks)).tolist(), [f"{tick:,.0f}" for tick in x_ticks], strict=True)),
        y_ticks=tuple(zip(y_of(np.array(y_ticks)).tolist(), [_shown(tick, is_share) for tick in y_ticks], strict=True)),
    )


def draw_panels(lines: Sequence[Line]) -> list[Panel]:
    """The panels of the metrics that any run has logged."""
    panels = []
    for key, title, is_share in PANELS:
        series = [(line, [points for run in line.runs if (points := run.logged(key))]) for line in lines]
        curves = [(line, bucket_curve(found)) for line, found in series if found]
        if curves:
            panels.append(draw_panel(title, curves, is_share))
    return panels
