"""Solve ARC tasks with a trained model: python solve.py --checkpoint RUN FILE... [--puzzle SUBSET/ID] [--explain] ...

A FILE is one task, `{"train": [...], "test": [...]}`, or a challenges file, `{id: task, ...}`; test outputs may be
missing. Grids are drawn in the terminal; `solutions/submission.json` and `solutions/solve.html` are written.

    from solve import Solver
    Solver.load("runs/etrm/first").predict(task)
"""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until torch is imported

from inference.solve_cli import main
from inference.solver import Solution, Solver
from reports.pages import predictions_page
from utils.program import run_program

__all__ = ["Solution", "Solver", "main"]

if __name__ == "__main__":
    run_program(lambda: main(predictions_page))
