"""The faults that pydantic and Hydra find in a config, in words: the key, its value and what would be right."""

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from config.keys import Keys
from config.suggestions import suggestion

SECTIONS = ("arch", "data")  # each may be one of several
MANY = 4  # missing keys: then the file is not one of few changes
NAMED_BY_USERS = ("project_name", "run_name")  # keys that stand in no config file that is shipped
WHOLE = "a config file of few keys begins with 'defaults: [cfg_pretrain_etrm_arc_agi_1, _self_]'"
NULL_WORDS = ("none", "nil", "~", "all", "")

EXPECTED = {
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "int_parsing_size": "expected a smaller whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "is not one of {expected}",
    "too_short": "needs at least {min_length} entry",
    "string_too_short": "must not be empty",
    "string_too_long": "has at most {max_length} characters",
    "string_pattern_mismatch": "must not be empty or hold a NUL character",
    "tuple_type": "expected a list: [a,b]",
    "model_type": "expected keys and values",
    "model_attributes_type": "expected keys and values",
}


def explain_validation(error: ValidationError, known: Keys) -> str:
    """A line for each fault."""
    faults = error.errors()
    missing = [_key(fault) for fault in faults if fault["type"] == "missing"]
    if len(missing) < MANY:
        return "\n".join(_fault(fault, known) for fault in faults)
    others = [_fault(fault, known) for fault in faults if fault["type"] != "missing"]
    named = ", ".join(f"'{key}'" for key in missing[:MANY])
    more = f" and {len(missing) - MANY} more" if len(missing) > MANY else ""
    return "\n".join([*others, f"missing keys {named}{more}: {WHOLE}"])


def _key(fault: ErrorDetails) -> str:
    loc = fault["loc"]  # of a section that may be one of several, the second part names which
    return ".".join(str(part) for index, part in enumerate(loc) if index != 1 or loc[0] not in SECTIONS)


def _fault(fault: ErrorDetails, known: Keys) -> str:
    key = _key(fault)
    if fault["type"] == "extra_forbidden":
        return _foreign(key, known)
    if fault["type"] == "union_tag_invalid":
        context = fault.get("ctx", {})
        return f"{key}.name={context.get('tag')} is not one of {context.get('expected_tags')}"
    if fault["type"] == "missing":
        return f"missing key '{key}'"
    message = EXPECTED.get(fault["type"], fault["msg"].removeprefix("Value error, ")).format(**fault.get("ctx", {}))
    value = fault["input"]
    if not key or isinstance(value, dict):
        return message
    if isinstance(value, str) and value.lower() in NULL_WORDS and "number" in message:
        message += "; null stands for none, where there may be none"
    return f"{key}={shown(value)}: {message}"


def _foreign(key: str, known: Keys) -> str:
    if key in known.known:
        return f"the key '{key}' does not belong to the chosen {key.split('.')[0]}"
    return f"unknown key '{key}'{suggestion(key, known.known)}"


def explain_hydra(
    error: Exception, overrides: Sequence[str], known: Keys, choices: Mapping[str, Callable[[], list[str]]]
) -> str:
    """What Hydra could not compose.

    Args:
        choices: the names that there are for a section of files.
    """
    message = str(error).strip()
    if missing := re.search(rf"Could not find '({'|'.join(choices)})/(.+)'", message):
        group, name = missing.groups()
        return f"{group}={name} is not one of {', '.join(choices[group]())}"
    if lost := re.search(r"In '([^']+)': Could not (?:load|find) '([^']+)'", message):
        return f"the defaults of '{lost.group(1)}' name '{lost.group(2)}', of which there is no file"
    if there := re.search(r"An item is already at '([^']+)'", message):
        return f"'{there.group(1)}' stands in the config file already: write {there.group(1)}=... without '+'"
    found = re.search(r"Could not override '([^']+)'", message) or re.search(r"Key '([^']+)' is not in struct", message)
    if found:
        name = found.group(1)
        return (
            f"'{name}' stands in no config file: write +{name}=..." if name in NAMED_BY_USERS else _foreign(name, known)
        )
    full = re.search(r"full_key: (\S+)", message)
    key = full.group(1) if full else ""
    text = next((text for text in overrides if key and text.lstrip("+").startswith(f"{key}=")), key)
    return f"{text}: {first_line(error)}" if text else first_line(error)


def shown(value: Any) -> str:
    """A value as YAML writes it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = value if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
