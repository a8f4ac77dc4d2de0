"""`python -m reports RUN... -o report.html`: a page about one or several runs."""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until torch is imported

from reports.report import main
from utils.program import run_program

if __name__ == "__main__":
    run_program(main)
