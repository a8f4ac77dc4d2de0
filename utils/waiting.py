"""A wait that may be long says what it waits for."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)
FIRST_SECONDS, EVERY_SECONDS = 3.0, 30.0


@contextmanager
def saying(what: str) -> Iterator[None]:
    """Inside the block, log after FIRST_SECONDS and then every EVERY_SECONDS that this process waits for `what`."""
    is_over = threading.Event()

    def say() -> None:
        began, pause = time.monotonic(), FIRST_SECONDS
        while not is_over.wait(pause):
            log.info("waiting for %s (%.0f s so far)", what, time.monotonic() - began)
            pause = EVERY_SECONDS

    thread = threading.Thread(target=say, name="wait", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
