"""Faults of the machine, in a sentence: memory that has run out, a disk that takes no more, a process that is gone."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from utils.errors import MachineError

DISK_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR)
)
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "bad_alloc")
ENFORCED = re.compile(r"^\[enforce fail at [^\]]*\] [^.]*\. ")
READER_GONE = "DataLoader worker"  # how torch begins its message, wherever the main process is then


class OutOfMemory(MachineError):
    """Memory has run out; the message says what to lower."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, numpy, torch on the CPU or on CUDA says that memory has run out."""
    is_said = isinstance(error, RuntimeError) and any(word in str(error) for word in OUT_OF_MEMORY)
    return is_said or isinstance(error, MemoryError)


@contextmanager
def memory_for(what: str, remedy: str) -> Iterator[None]:
    """Say, where memory runs out inside the block, what it was wanted for and what to lower.

    Raises:
        OutOfMemory: it has run out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory {what} ({_first_sentences(error)}); {remedy}") from error


def _first_sentences(error: BaseException) -> str:
    """Of a message that goes on with the state of the allocator, or begins with a place in its source."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ". ".join(ENFORCED.sub("", text).split(". ")[:2])[:200].rstrip(".")


def of_machine(error: BaseException) -> str | None:
    """What is said of an error that is the machine's; None where it is another's, or the program's own."""
    if isinstance(error, MachineError):
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        where = "a file" if error.filename is None else str(error.filename)
        return f"{where} could not be written or read: {error.strerror}"
    if is_out_of_memory(error):
        return f"out of memory ({_first_sentences(error)})"
    if isinstance(error, RuntimeError) and str(error).startswith(READER_GONE):
        return f"a process that reads data is gone: {str(error).splitlines()[0]}"
    return None
