"""SIGTERM and SIGINT: they end a process that has nothing to save, and are a wish where something can be saved.

Handlers of Python's run in the main thread, which may be waiting in C for another rank or for data. So a thread reads
which signals have come (`signal.set_wakeup_fd`), and ends the process where nobody is going to grant a wish.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

# A launcher may pass on a signal that its processes get anyway; only a later one is a second one.
COPY_SECONDS: dict[int, float] = {signal.SIGINT: 1.0, signal.SIGTERM: 5.0}
ENDED_BY_SIGNAL = 128
INTERRUPTED = ENDED_BY_SIGNAL + signal.SIGINT


def end_now(number: int, why: str) -> NoReturn:
    """End this process, whatever it is doing, with one line and the exit status of a signal."""
    rank = os.environ.get("RANK", "0")
    prefix = "" if rank == "0" else f"rank {rank}: "
    with suppress(OSError):
        os.write(2, f"{prefix}stopped: {signal.Signals(number).name} {why}\n".encode())
    os._exit(ENDED_BY_SIGNAL + number)


def end_at_once() -> None:
    """Let SIGTERM and SIGINT end this process with one line, while it imports what takes seconds."""
    for number in COPY_SECONDS:
        signal.signal(number, _end_while_starting)


def _end_while_starting(number: int, frame: FrameType | None) -> None:
    end_now(number, "while starting")


def end_no_longer_at_once() -> None:
    """Give both signals their own effect back, where `end_at_once` took it."""
    for number, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is _end_while_starting:
            signal.signal(number, handler)


class StopRequest:
    """Whether, and by which signal, this process has been asked to stop.

    Until `hear` is called nobody would grant the wish, so a signal ends the process at once; from then on a second one
    does.

    leaving: called, by another thread, with the signal's name when it ends the process before `hear`.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self.is_heard = False
        self.leaving: list[Callable[[str], object]] = []

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def hear(self) -> None:
        """From now on somebody looks at this request."""
        self.is_heard = True

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal."""
        if not self.signal_name:
            self.signal_name = signal.Signals(number).name

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT inside the block."""
        with _handled_by(self.ask), _told_of_signals(self._watch):
            yield

    def _watch(self, arrived: Callable[[], int]) -> None:
        first = 0.0
        while number := arrived():
            now = time.monotonic()
            if not self.is_heard:
                for tell in self.leaving:
                    tell(signal.Signals(number).name)
                end_now(number, "before the first step, there is nothing to save; the same command starts again")
            if not first:
                first = now
            elif now - first > COPY_SECONDS[number]:
                end_now(number, "for the second time: ended without saving")


class StopCount:
    """How often SIGINT or SIGTERM has come; one that follows at once on a counted one is the same, sent twice."""

    def __init__(self) -> None:
        self.count, self._last = 0, 0.0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.count or now - self._last > COPY_SECONDS[signal.SIGINT]:
            self.count += 1
            self._last = now

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take both inside the block."""
        with _handled_by(self._receive):
            yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in COPY_SECONDS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _told_of_signals(watch: Callable[[Callable[[], int]], None]) -> Iterator[None]:
    """Run `watch(arrived)` in a thread; each call of `arrived()` waits for a signal of COPY_SECONDS and returns its
    number, or 0 at the end of the block."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def arrived() -> int:
        while (number := os.read(reader, 1)[0]) and number not in COPY_SECONDS:
            pass
        return number

    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, args=(arrived,), name="signal watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")
        thread.join()
        os.close(writer)
        os.close(reader)


def _forget_wakeup() -> None:
    """A process that is forked from this one does not tell it of its own signals."""
    with suppress(ValueError):  # forked by another thread than the main one
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_wakeup)
