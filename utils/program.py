"""A program of the command line: one line where it is interrupted, or where the machine does not give what it needs."""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from utils.faults import of_machine
from utils.signals import ENDED_BY_SIGNAL, INTERRUPTED, end_no_longer_at_once

FAILED = 1


def run_program(main: Callable[[], object]) -> None:
    """Call the main function of a program, after everything has been imported."""
    end_no_longer_at_once()
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except BrokenPipeError:  # who read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ENDED_BY_SIGNAL + signal.SIGPIPE)
    except Exception as error:
        if (said := of_machine(error)) is not None:
            _end(f"error: {said}", FAILED)
        raise


def _end(line: str, status: int) -> NoReturn:
    sys.stderr.write(f"{line}\n")
    sys.exit(status)
