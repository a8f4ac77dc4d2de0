"""Solve ARC tasks with a trained model: python solve.py --checkpoint RUN FILE... [--puzzle SUBSET/ID] [--explain] ...

A FILE is one task, `{"train": [...], "test": [...]}`, or a challenges file, `{id: task, ...}`; test outputs may be
missing. Grids are drawn in the terminal; `solutions/submission.json` and `solutions/solve.html` are written.

    from solve import Solver
    Solver.load("runs/etrm/first").predict(task)
"""

from collections.abc import Sequence

from inference import solve_cli
from inference.solver import Solution, Solver
from reports.pages import predictions_page

__all__ = ["Solution", "Solver", "main"]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    solve_cli.main(predictions_page, argv)


if __name__ == "__main__":
    main()
