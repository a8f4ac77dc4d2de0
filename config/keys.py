"""The keys that a config may have, and which of them hold text or lists."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from config.shorthands import SHORTHANDS


@dataclass(frozen=True)
class Keys:
    """The keys of a config, `section.key` for those of a section.

    texts: those whose value is text, or a list of texts.
    lists: those whose value is a list.
    """

    known: tuple[str, ...]
    texts: frozenset[str]
    lists: frozenset[str]


@cache
def keys_of(model: type[BaseModel]) -> Keys:
    """The keys of a config and of its sections; of a section that may be one of several, the keys of all of them."""
    found = list(_walk(model, ""))
    texts = {key for key, annotation in found if _holds_text(annotation)}
    lists = {key for key, annotation in found if _holds_list(annotation)}
    texts |= {short for short, key in SHORTHANDS.items() if key in texts}
    return Keys(tuple(dict.fromkeys(key for key, _ in found)), frozenset(texts), frozenset(lists))


def flat_config(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"arch.halting": "act", ...}: the values of a config by their whole key."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= flat_config(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _walk(model: type[BaseModel], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, info in model.model_fields.items():
        found.append((prefix + name, info.annotation))
        for part in get_args(info.annotation) or (info.annotation,):
            if get_origin(info.annotation) is not tuple and isinstance(part, type) and issubclass(part, BaseModel):
                found += _walk(part, f"{prefix}{name}.")
    return found


def _holds_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return isinstance(get_args(annotation)[0], str)
    return annotation is str or any(_holds_text(part) for part in get_args(annotation))


def _holds_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple or any(_holds_list(part) for part in get_args(annotation))
