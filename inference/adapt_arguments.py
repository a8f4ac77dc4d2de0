"""The options of adaptation on a command line, for `solve.py` and `evaluate.py` alike."""

import argparse
from dataclasses import dataclass

from inference.adapt_options import CONTROLS, AdaptError, AdaptOptions, Budget, parse_options, unused
from inference.shipped import Card


@dataclass(frozen=True)
class Asked:
    """What a command line asks for."""

    options: AdaptOptions
    budget: Budget
    total_seconds: float | None = None


def add_adapt_arguments(parser: argparse.ArgumentParser) -> None:
    """`--adapt`, `--adapt-updates`, `--total-seconds`, `--adapt-with`."""
    parser.add_argument(
        "--adapt", type=float, metavar="SECONDS", help="train on a task's demonstrations for so long; 0: not at all"
    )
    parser.add_argument("--adapt-updates", type=int, metavar="N", help="the same, for a number of updates: repeatable")
    parser.add_argument("--total-seconds", type=float, help="adapt within this time for all tasks together")
    parser.add_argument(
        "--adapt-with",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help=f"how: {', '.join(AdaptOptions.model_fields)}",
    )


def add_control_argument(parser: argparse.ArgumentParser) -> None:
    """`--adapt-control`."""
    parser.add_argument("--adapt-control", choices=CONTROLS, help="what is done at the same cost instead")


def asked_of(arguments: argparse.Namespace, card: Card | None = None, **values: object) -> Asked | None:
    """What is asked for; None where nothing is adapted.

    Args:
        card: of the base, whose options hold where the command line has no others.
        values: options that have a place of their own on the command line; None is left out.

    Raises:
        AdaptError: options without a budget, or values that are out of range or do not go together.
    """
    given = {key: value for key, value in values.items() if value is not None}
    total = getattr(arguments, "total_seconds", None)
    if not arguments.adapt and arguments.adapt_updates is None and total is None:
        for name in ("adapt_with", "adapt_control"):
            if getattr(arguments, name, None):
                raise AdaptError(f"--{name.replace('_', '-')}: needs --adapt SECONDS or --adapt-updates N")
        return None
    for name in ("adapt", "adapt_updates", "total_seconds"):
        value = getattr(arguments, name, None)
        if value is not None and not 0 < value < float("inf"):
            raise AdaptError(f"--{name.replace('_', '-')} {value:g}: must be above 0")
    own = () if card is None else card.adapt_with
    options = parse_options([*own, *arguments.adapt_with], **given)
    if total is not None and arguments.adapt_updates is not None:
        raise AdaptError("--total-seconds divides time: give --adapt SECONDS with it, or nothing, not --adapt-updates")
    if total is not None:  # what one task does not need the others get, where nothing else was asked for
        ends_early = {"give_up": True, "stop_when_explained": True}
        options = options.model_copy(
            update={key: value for key, value in ends_early.items() if key not in options.model_fields_set}
        )
    budget = Budget(updates=arguments.adapt_updates, seconds=arguments.adapt or total)
    budget.check(options)
    for key, why in unused(options, budget).items():
        if any(setting.partition("=")[0] == key for setting in arguments.adapt_with):
            raise AdaptError(f"--adapt-with {key}=...: would change nothing, for {why}")
    return Asked(options, budget, total)
