"""Pages for a person: grids drawn as inline SVG in one self-contained HTML file."""

from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from dataset.grids import Grid
from utils.traces import QueryTrace

# The colours 0-9 as ARC's own page shows them.
PALETTE = (
    "#000000",
    "#0074d9",
    "#ff4136",
    "#2ecc40",
    "#ffdc00",
    "#aaaaaa",
    "#f012be",
    "#ff851b",
    "#7fdbff",
    "#870c25",
)
CELL_PIXELS = 9

templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape(["html", "j2"])
)


def grid_svg(grid: Grid | None, label: str) -> Markup:
    """A grid as an inline SVG, one path for each colour; a dash where there is no grid."""
    if grid is None or not grid.size:
        return Markup('<span class="none" role="img" aria-label="{}: no grid">–</span>').format(label)
    height, width = grid.shape
    paths = []
    for color in np.unique(grid):
        cells = "".join(f"M{c} {r}h1v1h-1z" for r, c in np.argwhere(grid == color))
        paths.append(f'<path fill="{PALETTE[color]}" d="{cells}"/>')
    size = f'width="{width * CELL_PIXELS}" height="{height * CELL_PIXELS}" viewBox="0 0 {width} {height}"'
    opening = Markup('<svg {} role="img" aria-label="{}, {} by {}">').format(Markup(size), label, height, width)
    return opening + Markup("".join(paths) + "</svg>")


def predictions_page(title: str, sections: dict[str, list[QueryTrace]]) -> str:
    """The HTML of `predictions.html`: demonstrations, input, prediction and truth of each query."""
    template = templates.get_template("predictions.html.j2")
    return template.render(title=title, sections=sections, svg=grid_svg)
