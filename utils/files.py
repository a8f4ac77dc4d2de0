"""Files: replaced in one move, read with patience, hashed."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name into an error that the system raised without one, as it does for a disk that is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        if error.errno is None:  # numpy's, which has counted bytes
            error.errno, error.strerror = errno.EIO, str(error.args[0] if error.args else error)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what the block leaves there takes the place of `path` in one move.

    A reader never sees half of a file. Where the block raises, or leaves nothing, `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with naming(path):
            yield temporary
        if os.path.lexists(temporary):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file in one move; text is written as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one move."""
    write_file(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    """The SHA-256 of a text in UTF-8; bytes that were no text are hashed as they were."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()


def sha256_of_json(value: dict[str, Any]) -> str:
    """The SHA-256 of an object, whatever the order of its keys."""
    return sha256_of_text(json.dumps(value, sort_keys=True))
