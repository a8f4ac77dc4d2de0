"""What a file of weights says of itself, read without running or loading anything of it."""

import json
import pickletools
import re
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

MAX_HEADER = 100_000_000
OF_TENSORS = ("torch ", "torch._utils ", "collections ")
LIGHTNING, HRM, HUGGING_FACE = "PyTorch Lightning", "HRM", "Hugging Face"
LIGHTNING_KEY = "pytorch-lightning_version"
TRANSFORMER = re.compile(r"(self_attn\.q_proj|attn\.c_attn|attention\.self\.query)\.weight$")


def program_of(names: Collection[str]) -> str | None:
    """The program that wrote weights of these names, where it is known and not TRM's or this one."""
    if LIGHTNING_KEY in names:
        return LIGHTNING
    if any(".H_level." in f".{name}" for name in names):
        return HRM
    if any(TRANSFORMER.search(name) for name in names):
        return HUGGING_FACE
    return None


def has_foreign_objects(path: Path) -> bool:
    """Whether a file is a whole pickle that names classes or functions other than those of tensors."""
    found = [str(argument or "") for code, argument in _opcodes(path) if code in ("GLOBAL", "INST", "STACK_GLOBAL")]
    return any(not name.startswith(OF_TENSORS) for name in found)


def strings_of(path: Path) -> set[str]:
    """The names in a file of weights: the strings of its pickle, or the tensors of a `.safetensors`."""
    if path.suffix == ".safetensors":
        return set(_safetensors_header(path))
    return {argument for code, argument in _opcodes(path) if code.endswith("UNICODE") and isinstance(argument, str)}


def _safetensors_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MAX_HEADER else {}
    except (OSError, ValueError):
        return {}
    return header if isinstance(header, dict) else {}


def _opcodes(path: Path) -> Iterator[tuple[str, Any]]:
    """Of all whole pickles at the beginning of the file. Protocol 4 tells a global by the stack: its argument is
    None."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                record = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(record) as file:
                    yield from _of_one_pickle(file)
        else:
            with path.open("rb") as file:
                while True:  # an older torch.save is several pickles, then raw bytes, which end this
                    yield from _of_one_pickle(file)
    except (ValueError, OSError, StopIteration, EOFError, zipfile.BadZipFile):
        return


def _of_one_pickle(file: Any) -> list[tuple[str, Any]]:
    return [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(file)]
