"""Solve ARC tasks with a trained model: python solve.py --checkpoint RUN FILE... [--puzzle SUBSET/ID] [--explain] ...

A FILE is one task, `{"train": [...], "test": [...]}`, a challenges file, `{id: task, ...}`, or any other that
docs/dataset.md lists, a folder of files, a glob pattern, or `-` for standard input. Test outputs may be missing; a
solutions file beside a challenges file, or of `--solutions FILE`, is scored against. Grids are drawn in the terminal;
`solutions/submission.json` and `solutions/solve.html` are written.

    from solve import Solver
    Solver.load("runs/etrm/first").predict(task)
"""

from collections.abc import Sequence

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until torch is imported

from inference import solve_cli
from inference.solver import Solution, Solver
from reports.pages import predictions_page
from utils.program import run_program

__all__ = ["Solution", "Solver", "main"]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    solve_cli.main(predictions_page, argv)


if __name__ == "__main__":
    run_program(main)
