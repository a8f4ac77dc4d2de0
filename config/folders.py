"""The folders in which config files are looked for: one that the user names, then the one that is shipped."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml
from hydra.core.override_parser.types import Quote, QuotedString

from config.explain import first_line, shown
from config.keys import Keys
from config.overrides import MAX_OVERRIDE_CHARS
from config.typed_yaml import as_typed
from utils.errors import ConfigError


def folders(shipped: Path, config_dir: str | Path | None) -> tuple[Path, ...]:
    """The user's folder, where there is one, and the shipped one, both absolute.

    Raises:
        ConfigError: the user's is no folder.
    """
    if config_dir is None:
        return (shipped,)
    folder = Path(config_dir).expanduser().absolute()
    if folder.is_file():
        raise ConfigError(
            f"--config-dir {config_dir} is a file: write --config-dir {folder.parent} --config-name {folder.stem}"
        )
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: there is no folder {folder}")
    return (folder, shipped)


def run_configs(searched: Sequence[Path]) -> list[str]:
    """What `--config-name` may name: every file of the user's folder, of the shipped folder those of whole runs."""
    *own, shipped = searched
    names = {path.stem for folder in own for path in folder.glob("*.yaml")}
    return sorted(names) + sorted({path.stem for path in shipped.glob("cfg_*.yaml")} - names)


def choices_of(group: str, searched: Sequence[Path]) -> list[str]:
    """The files that a section of files may be: `arch=NAME`."""
    names = {path.stem for folder in searched for path in (folder / group).glob("*.yaml")}
    return sorted(name for name in names if not name.startswith("base"))


def chosen_name(written: str, searched: Sequence[Path]) -> str:
    """The config that `--config-name` names.

    Raises:
        ConfigError: there is none of that name; or the user's file cannot be read or holds what would have no effect.
    """
    name, names = written.removesuffix(".yaml"), run_configs(searched)
    if name not in names:
        raise ConfigError(f"--config-name '{shown(written)}' is not one of {', '.join(names)}{_elsewhere(name)}")
    if _is_own(name, searched):
        _check(searched[0] / f"{name}.yaml", name)
    return name


def _elsewhere(name: str) -> str:
    path = PurePath(name)
    if path.name == name or len(name) > MAX_OVERRIDE_CHARS:
        return ""
    return f"; a file elsewhere is named by --config-dir {path.parent} --config-name {path.name}"


def _is_own(name: str, searched: Sequence[Path]) -> bool:
    return len(searched) > 1 and (searched[0] / f"{name}.yaml").exists()


def _check(path: Path, name: str) -> None:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {first_line(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config file holds keys and values, such as lr: 0.001")
    if "hydra" in content:
        raise ConfigError(f"{path}: its 'hydra' section changes nothing here: a config file holds keys of the run")
    defaults = content.get("defaults")
    if isinstance(defaults, list) and name in defaults:
        raise ConfigError(f"{path}: its defaults name {name}, which is this file itself: give it another name")
    if isinstance(defaults, list) and "_self_" not in defaults:
        raise ConfigError(f"{path}: its defaults lack '_self_', last in the list, by which the file's own keys count")


@dataclass(frozen=True)
class Composing:
    """How Hydra is told where to look.

    folder: of the config that is composed.
    overrides: come before the user's.
    """

    folder: Path
    overrides: tuple[str, ...]


def composing(name: str, searched: Sequence[Path], known: Keys) -> Composing:
    """Hydra finds a config in its first folder alone, and what the config's defaults name in all of them."""
    if len(searched) == 1:
        return Composing(searched[0], ())
    own = _is_own(name, searched)
    first, second = searched if own else reversed(searched)
    path = QuotedString(f"file://{second}", Quote.single).with_quotes()
    typed = as_typed(first / f"{name}.yaml", known) if own else ()
    return Composing(first, (f"hydra.searchpath=[{path}]", *typed))
