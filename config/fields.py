"""The kinds of values that a config's keys take, each with what is said of a value of another kind."""

import math
import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MAX_INT = 2**63 - 1  # of a tensor's element
NAME = re.compile(r"[A-Za-z0-9_=+,@ .-]+")


def _refuse_what_is_no_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def _refuse_what_yaml_typed(value: Any) -> Any:
    if value is None or isinstance(value, str | list | tuple | dict):
        return value
    kind = {bool: "true or false", int: "a number", float: "a number"}.get(type(value), f"a {type(value).__name__}")
    raise ValueError(f"expected text, but this is {kind} in YAML: write it in quotes")


def _plain_name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("a name is made of the letters A to Z and a to z, digits, spaces and _=+,@.-")
    return value


def _on_or_off(value: Any) -> Any:
    words = {"true": "on", "false": "off"}
    return words.get(str(value).lower(), value) if isinstance(value, bool | str) else value


def _true_as_word(value: Any) -> Any:
    return "true" if value is True else value


def _as_list(value: Any) -> Any:
    """A list of one where a list is wanted and one value is given, an empty one for null."""
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


Number = BeforeValidator(_refuse_what_is_no_number)  # pydantic takes true for 1
Positive = Annotated[int, Number, Field(ge=1, le=MAX_INT)]
NonNegative = Annotated[int, Number, Field(ge=0, le=MAX_INT)]
PositiveFloat = Annotated[float, Number, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Number, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Number, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Number, Field(gt=0, le=1)]
Beta = Annotated[float, Number, Field(ge=0, lt=1)]

Text = Annotated[str, BeforeValidator(_refuse_what_yaml_typed)]
PathPart = Annotated[Text, Field(max_length=128), AfterValidator(_plain_name)]
Home = AfterValidator(os.path.expanduser)  # `~` is the home folder, which a shell puts only where a word begins with it
FilePath = Annotated[Text, Field(pattern=r"^[^\x00]+$"), Home]
ListOrOne = BeforeValidator(_as_list)
OnOrOff = BeforeValidator(_on_or_off)  # YAML takes on and off for true and false
TrueAsWord = BeforeValidator(_true_as_word)


class Section(BaseModel):
    """Fixed values, and no keys but those declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)
