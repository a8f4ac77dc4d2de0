"""The sources of a mixture: each begins with what its file in config/data says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.errors import ConfigError

OF_THE_MIXTURE = ("num_batches", "epoch_batches")


def with_sources(values: Any, searched: Sequence[Path]) -> Any:
    """A config's values with all keys of each source of a mixture: what it leaves out is as in its file, and the number
    of batches is the mixture's.

    Args:
        searched: folders of config files, the first of which wins.

    Raises:
        ConfigError: a source says how many batches there are.
    """
    data = values.get("data")
    if not isinstance(data, dict) or data.get("name") != "mixture" or not isinstance(data.get("sources"), list):
        return values
    parts = [_with_source(number, part, data, searched) for number, part in enumerate(data["sources"])]
    return {**values, "data": {**data, "sources": parts}}


def _with_source(number: int, part: Any, mixture: dict[str, Any], searched: Sequence[Path]) -> Any:
    source = part.get("source") if isinstance(part, dict) else None
    own = {"name": source} if isinstance(source, str) else source
    if not isinstance(own, dict) or not isinstance(own.get("name"), str):
        return part
    for key in OF_THE_MIXTURE:
        if key in own:
            raise ConfigError(f"data.sources.{number}.source.{key} would change nothing: data.{key} says it for all")
    shipped = _values_of(own["name"], searched)
    shared = {key: mixture.get(key) for key in OF_THE_MIXTURE if key in shipped}
    return {**part, "source": {**shipped, **shared, **own}}


def _values_of(name: str, searched: Sequence[Path]) -> dict[str, Any]:
    paths = (folder / "data" / f"{name}.yaml" for folder in searched)
    found = next((path for path in paths if path.exists()), None)
    return {} if found is None else yaml.safe_load(found.read_text())
