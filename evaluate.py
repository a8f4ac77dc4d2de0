"""Evaluate a checkpoint: python evaluate.py --checkpoint RUN [--split train|test] [--controls] [--shuffle] ...

`--controls` also asks some queries with a donor's demonstrations, with none, in another order and so on, and tells how
often they are answered rightly (by default as the run does). `--shuffle` asks every query with what belongs to another
puzzle (TRM: the puzzle's id, the others: the demonstrations). A model that reads them does far worse then.
"""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until torch is imported

from inference.evaluate_cli import main
from utils.program import run_program

if __name__ == "__main__":
    run_program(main)
