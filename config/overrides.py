"""Overrides as a user types them: which keys they set, what Hydra is to read, and how one must be written instead.

The value of a key that holds text stays as it is typed: `+run_name=1e3` names a run `1e3`, and a path may begin with
`~`, which Hydra's grammar has no place for. Where that grammar needs quotes, the refusal shows them.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from config.explain import first_line, shown
from config.keys import Keys
from config.suggestions import suggestion
from utils.errors import ConfigError

MAX_OVERRIDE_CHARS = 4000  # a path has at most 4096
KEY = re.compile(r"(?=.{1,200}$)\w+(\.\w+)*")
REFERENCE = re.compile(r"\$\{[\w.\[\]]+\}")
ASSIGNMENT = re.compile(r"(\+{0,2})([\w.]+)=(.*)", re.DOTALL)
SPACED = re.compile(r"\s*(\+{0,2}[\w.]+)\s*[=:]\s*(.*?)\s*", re.DOTALL)
BARE = re.compile(r"""[^,'"\[\]{}()=\\]+""")
ELEMENT = re.compile(rf"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|{BARE.pattern})\s*(?:,|$)""", re.DOTALL)


@dataclass(frozen=True)
class ReadOverrides:
    """Overrides that can be composed.

    texts: for Hydra.
    keys: that they set, `a.b` for `a={b: ...}`.
    """

    texts: tuple[str, ...]
    keys: tuple[str, ...]


def read_overrides(overrides: Sequence[str], known: Keys, choices: dict[str, Callable[[], list[str]]]) -> ReadOverrides:
    """Read overrides before anything is composed.

    Args:
        choices: the names that there are for a section of files.

    Raises:
        ConfigError: an override that cannot be read, or that is no value of this project's config.
    """
    texts, keys = [], []
    for i, text in enumerate(overrides):
        if len(text) > MAX_OVERRIDE_CHARS:
            raise ConfigError(f"'{shown(text)}': an override has at most {MAX_OVERRIDE_CHARS} characters")
        texts.append(_as_typed(text, known))
        try:
            override = _parsed(texts[-1])
        except HydraException as error:
            before = overrides[i - 1] if i else None
            raise ConfigError(f"'{text}' {_misread(text, before, known, first_line(error))}") from error
        keys += _keys_of(override, text, known, choices)
    return ReadOverrides(tuple(texts), tuple(keys))


def _keys_of(override: Override, text: str, known: Keys, choices: dict[str, Callable[[], list[str]]]) -> list[str]:
    key = override.key_or_group
    if override.is_sweep_override():
        raise ConfigError(f"'{text}' names several values: {_instead_of_a_sweep(text, known)}")
    if not key or key.split(".")[0].split("/")[0] == "hydra":
        raise ConfigError(f"'{text}' changes nothing here: overrides set keys of the run's config")
    if override.package is not None or not KEY.fullmatch(key):
        raise ConfigError(f"'{shown(text)}': a key is a path such as arch.canvas, without '@' or '/'")
    value = override.value()
    if override.is_delete() and value is not None:
        raise ConfigError(f"'{text}': to leave a key out, write ~{key}")
    refuse_resolvers(value, key)
    if key in choices and not (isinstance(value, str) and re.fullmatch(r"\w+", value)):
        raise ConfigError(f"'{text}': {key} is one of {', '.join(choices[key]())}")
    return [] if override.is_delete() else [key, *_nested_keys(key, value)]


def _parsed(text: str) -> Override:
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
    except RecursionError as error:
        raise ConfigError(f"'{shown(text)}' is nested too deeply") from error
    return override


def _as_typed(text: str, known: Keys) -> str:
    """The override with quotes around the words of a key of text that Hydra would take for something else."""
    match = ASSIGNMENT.fullmatch(text)
    if match is None or match.group(2) not in known.texts | known.lists:
        return text
    prefix, key, value = match.groups()
    value = value.strip()
    if key in known.lists and value.startswith("{"):
        return f"{prefix}{key}=[{value}]"
    if key in known.lists and value.startswith("[") and (elements := _elements(value)) is not None:
        return f"{prefix}{key}=[{','.join(map(_word, elements))}]"
    return f"{prefix}{key}={_word(value)}"


def _elements(value: str) -> list[str] | None:
    """The elements of `[a, b]` as they are typed; None where it is no plain list of words."""
    inner = value[1:-1].strip()
    found = ELEMENT.findall(inner)
    is_whole = value.endswith("]") and ELEMENT.sub("", inner) == "" and not inner.endswith(",")
    return [element.strip() for element in found] if is_whole else None


def _word(value: str) -> str:
    return value if not BARE.fullmatch(value) or _is_text(value) else _quoted(value)


def _is_text(value: str) -> bool:
    """Whether Hydra takes a bare word for text, or for null."""
    try:
        return isinstance(_parsed(f"x={value}").value(), str | None)
    except HydraException:
        return False


def _quoted(value: str, quote: Quote = Quote.single) -> str:
    return QuotedString(value, quote).with_quotes()


def _misread(text: str, before: str | None, known: Keys, reason: str) -> str:
    """What is wrong with an override that cannot be read, and how it is written."""
    if text.lstrip("+") in known.known:
        return f"has no value: write {text}=VALUE, without spaces around '='"
    if (spaced := SPACED.fullmatch(text)) and (tight := "{}={}".format(*spaced.groups())) != text and _is_read(tight):
        return f"is not of the form key=value: write {shlex.quote(tight)}"
    if "=" not in text:
        belongs = before is not None and ASSIGNMENT.fullmatch(before)
        joined = typed_in_a_shell(f"{before} {text}", known)
        hint = f"; if it belongs to the value before it, write {joined}" if belongs else ""
        return f"is not an override of the form key=value{suggestion(text, known.known)}{hint}"
    if _with_quotes(text, known):
        return f"cannot be read without quotes: write {typed_in_a_shell(text, known)}"
    return f"is not an override of the form key=value: {_in_words(reason)}"


def _instead_of_a_sweep(text: str, known: Keys) -> str:
    match = ASSIGNMENT.fullmatch(text)
    if match and match.group(2) in known.lists:
        prefix, key, value = match.groups()
        return f"a list is written {typed_in_a_shell(f'{prefix}{key}=[{value}]', known)}"
    if _with_quotes(text, known):
        return f"a comma or a call needs quotes: write {typed_in_a_shell(text, known)}"
    return "sweeps are lines of a job file"


def typed_in_a_shell(text: str, known: Keys) -> str:
    """An override as one word of a shell, with the quotes that Hydra needs inside."""
    readable = text if _is_read(_as_typed(text, known)) else _with_quotes(text, known)
    return shlex.quote(readable or text)


def _with_quotes(text: str, known: Keys) -> str | None:
    """The override of a key of text with its value in quotes; None for another key, or where that cannot be read."""
    match = ASSIGNMENT.fullmatch(text)
    if match is None or match.group(2) not in known.texts:
        return None
    prefix, key, value = match.groups()
    if value.startswith("[") and value.endswith("]") and key in known.lists:
        words = [_quoted(part.strip().strip("'\""), Quote.double) for part in value[1:-1].split(",")]
        correct = f"{prefix}{key}=[{','.join(words)}]"
    else:
        correct = f"{prefix}{key}={_quoted(value.strip(), Quote.double)}"
    return correct if "${" not in value and _is_read(correct) else None


def _is_read(text: str) -> bool:
    try:
        return not _parsed(text).is_sweep_override()
    except HydraException:
        return False


def _in_words(reason: str) -> str:
    return "its value cannot be read" if reason.startswith(("Lexer", "Error parsing")) else reason


def refuse_resolvers(value: Any, key: str = "") -> None:
    """What a resolver gives, such as a variable of the environment, would be logged with the config.

    Raises:
        ConfigError: an interpolation other than a reference to another key.
    """
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            refuse_resolvers(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and "${" in REFERENCE.sub("", value):
        raise ConfigError(
            f"{key}={shown(value)}: is not resolved, for the config is logged; write the value itself, or a reference "
            "to another key such as ${arch.num_heads}. Secrets stay in the environment of the process, out of the "
            "command line too (wandb reads WANDB_API_KEY)"
        )


def _nested_keys(prefix: str, value: Any) -> list[str]:
    if not isinstance(value, dict):
        return []
    keys = [(f"{prefix}.{getattr(key, 'text', key)}", inner) for key, inner in value.items()]
    return [found for key, inner in keys for found in (key, *_nested_keys(key, inner))]
