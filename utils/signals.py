"""SIGTERM and SIGINT as a wish that the training loop grants at the end of its step."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# A launcher may pass on a signal that its processes get anyway; only a later one is the user's second.
SECOND_SIGINT_AFTER_S = 1.0


class StopRequest:
    """Whether, and by which signal, this process has been asked to stop."""

    def __init__(self) -> None:
        self.signal_name = ""
        self.asked_at = 0.0

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: a second SIGINT, from someone who does not want to wait.
        """
        now = time.monotonic()
        if number == signal.SIGINT and self and now - self.asked_at > SECOND_SIGINT_AFTER_S:
            raise KeyboardInterrupt("a second SIGINT")
        if not self:
            self.signal_name, self.asked_at = signal.Signals(number).name, now

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT inside the block."""
        with _handled_by(self.ask):
            yield


class StopCount:
    """How often SIGINT or SIGTERM has come; one that follows at once on a counted one is the same, sent twice."""

    def __init__(self) -> None:
        self.count, self._last = 0, 0.0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.count or now - self._last > SECOND_SIGINT_AFTER_S:
            self.count += 1
            self._last = now

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take both inside the block."""
        with _handled_by(self._receive):
            yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
