"""Processes that this project starts beside a run, and how they find it from any folder."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Set in everything that a job has started: what carries the job's token there ends with the job.
JOB_TOKEN_VARIABLE = "RUN_JOBS_TOKEN"


def module_command(module: str, *arguments: str) -> list[str]:
    """What starts `python -m module arguments` from any folder, without variables that its own children would get."""
    start = (
        f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); "
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-P", "-c", start, *arguments]
