"""`python -m checkpoints inspect PATH`, `python -m checkpoints export PATH --to trm`."""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until torch is imported

from checkpoints.cli import main
from utils.program import run_program

if __name__ == "__main__":
    run_program(main)
