"""The folders in which config files are looked for: one that the user names, then the one that is shipped."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra.core.override_parser.types import Quote, QuotedString

from config.explain import first_line, shown
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
        elsewhere = "; a file elsewhere is named by --config-dir DIR --config-name NAME" if "/" in written else ""
        raise ConfigError(f"--config-name '{shown(written)}' is not one of {', '.join(names)}{elsewhere}")
    if (path := searched[0] / f"{name}.yaml").exists() and len(searched) > 1:
        _check(path, name)
    return name


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
    if name in _defaults(content):
        raise ConfigError(f"{path}: its defaults name {name}, which is this file itself: give it another name")


def _defaults(content: dict[str, Any]) -> list[Any]:
    defaults = content.get("defaults")
    return [entry for entry in defaults if isinstance(entry, str)] if isinstance(defaults, list) else []


def composing_from(searched: Sequence[Path]) -> AbstractContextManager[Any]:
    """Inside the block Hydra composes; `search_path` has to be among the overrides."""
    return initialize_config_dir(version_base=None, config_dir=str(searched[0]))


def search_path(searched: Sequence[Path]) -> list[str]:
    """The override that tells Hydra where else to look."""
    others = ",".join(QuotedString(f"file://{folder}", Quote.single).with_quotes() for folder in searched[1:])
    return [f"hydra.searchpath=[{others}]"] if others else []
