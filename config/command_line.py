"""The words behind an entry script: `[--config-name NAME] [--config-dir DIR] [--cfg] [key=value ...]`.

Flags that Hydra, argparse or wandb users type are refused with what is written here instead, all of them at once, and
without a word about the overrides beside them.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from config.explain import NAMED_BY_USERS
from config.overrides import typed_in_a_shell
from config.schema import ConfigError, config_names, known_keys
from config.suggestions import ADVICE, meant

VALUED = {"--config-name": "config_name", "-cn": "config_name", "--config-dir": "config_dir", "-cd": "config_dir"}
BARE = ("--cfg", "-c", "--help", "-h")
CFG_KINDS = ("job", "hydra", "all")  # what Hydra's --cfg takes
SWEEPS = "a sweep is a job file with a command a line: python run_jobs.py FILE"
OUTSIDE = "a config file outside the repository is named by --config-dir DIR --config-name NAME"
OF_TORCHRUN = "options of torchrun stand before the script: torchrun --nproc-per-node N pretrain_etrm.py ..."
SWEEP_FLAGS = ("-m", "--multirun")
HERE = {
    "--config-name": "write --config-name NAME",
    "--config-dir": "write --config-dir DIR",
    **dict.fromkeys(SWEEP_FLAGS, SWEEPS),
    "-r": "a single run is what happens without it",
    "--config-path": OUTSIDE,
    "-cp": OUTSIDE,
    "--config": OUTSIDE,
    "--config-file": OUTSIDE,
    "--info": "--cfg prints the composed config",
    "-i": "--cfg prints the composed config",
    "--resolve": "--cfg prints the config resolved",
    "--package": "--cfg prints the whole config",
    "-p": "--cfg prints the whole config",
    "--hydra-help": "--help says what there is, --cfg prints the composed config",
    "--shell-completion": "there is no completion for shells",
    "-sc": "there is no completion for shells",
    "--experimental-rerun": "the config.yaml of a run is composed again by --config-dir RUN --config-name config",
    "--nproc-per-node": OF_TORCHRUN,
    "--nnodes": OF_TORCHRUN,
    "--standalone": OF_TORCHRUN,
}
FLAG = re.compile(r"--?(?P<no>no-|no_)?(?P<key>[A-Za-z_][\w.-]*)(?:=(?P<value>.*))?", re.DOTALL)
NO_FLAG = "no flag and no key has this name: --help lists the flags, --cfg prints the keys"


@dataclass(frozen=True)
class CommandLine:
    """What a user asks of an entry script.

    shows_config: instead of training.
    """

    config_name: str
    config_dir: str | None
    shows_config: bool
    overrides: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def read_command_line(default_config: str, words: Sequence[str]) -> CommandLine:
    """Read the words behind an entry script; `--help` ends the process.

    Raises:
        ConfigError: a flag that there is not, with what is written instead.
    """
    if faults := _foreign_flags(words):
        raise ConfigError("; ".join(dict.fromkeys(_in_words(faults))))
    arguments = _parser(default_config).parse_intermixed_args(words)
    return CommandLine(arguments.config_name, arguments.config_dir, arguments.cfg, tuple(arguments.overrides))


def _parser(default_config: str) -> _Parser:
    parser = _Parser(
        description="Train and evaluate; overrides are Hydra's: key=value, +key=value.", allow_abbrev=False
    )
    parser.add_argument(
        "--config-name", "-cn", default=default_config, metavar="NAME", help=f"one of: {', '.join(config_names())}"
    )
    parser.add_argument("--config-dir", "-cd", metavar="DIR", help="a folder in which NAME.yaml is looked for first")
    parser.add_argument("--cfg", "-c", action="store_true", help="print the composed config and exit")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


@dataclass(frozen=True)
class _Fault:
    """A flag that there is not, with its values.

    override: what sets the same key here.
    remedy: what there is instead, where it is no override.
    """

    typed: str
    override: str | None = None
    remedy: str = NO_FLAG


def _foreign_flags(words: Sequence[str]) -> list[_Fault]:
    """The flags that there are not; the values of a flag are not taken for overrides."""
    faults, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        flag = word.split("=", 1)[0]
        dashed = flag.replace("_", "-")
        if flag in VALUED:
            del rest[: word == flag]
        elif word in ("--cfg", "-c") and rest and rest[0] in CFG_KINDS:
            faults.append(_Fault(f"{word} {rest.pop(0)}", remedy="write --cfg alone; it prints the config of the run"))
        elif word.startswith("-") and word not in BARE:
            values = [] if "=" in word or dashed in SWEEP_FLAGS else _taken_values(rest)
            typed = " ".join([word, *values])
            faults.append(_Fault(typed, remedy=HERE[dashed]) if dashed in HERE else _setting(typed, word, values))
    return faults


def _taken_values(rest: list[str]) -> list[str]:
    """The words behind a flag that can be its values, taken from the rest."""
    count = next((i for i, word in enumerate(rest) if not _is_value(word)), len(rest))
    values = rest[:count]
    del rest[:count]
    return values


def _is_value(word: str) -> bool:
    return bool(re.match(r"-?[\d.]", word)) or not (word.startswith("-") or re.match(r"[+~]{0,2}[\w./@]+=", word))


def _setting(typed: str, word: str, values: Sequence[str]) -> _Fault:
    """The fault of a flag that would set a value."""
    match = FLAG.fullmatch(word)
    if match is None:
        return _Fault(typed)
    written = match["key"].replace("-", "_")
    advice = ADVICE.get(f"no_{written}".lower()) if match["no"] else None
    key = None if advice else meant(written, known_keys().known)
    if key is None:
        return _Fault(typed, remedy=advice or ADVICE.get(written.lower(), NO_FLAG))
    prefix = "+" if key in NAMED_BY_USERS else ""
    return _Fault(typed, override=typed_in_a_shell(f"{prefix}{key}={_value(key, match, values)}", known_keys()))


def _value(key: str, match: re.Match[str], values: Sequence[str]) -> str:
    if match["no"]:
        return "false"
    if match["value"] is not None:
        return match["value"]
    if len(values) > 1 or (values and key in known_keys().lists):
        return f"[{','.join(values)}]"
    return values[0] if values else "true"


def _in_words(faults: Sequence[_Fault]) -> Iterator[str]:
    """Those that are overrides in one clause, as they are typed together, then the others."""
    settings = [(fault.typed, fault.override) for fault in faults if fault.override is not None]
    if settings:
        typed, overrides = (" ".join(words) for words in zip(*settings, strict=True))
        sweep = " (a wandb sweep passes them so by ${args_no_hyphens} in its command)" if "=" in typed else ""
        yield f"{typed}: overrides have no dashes: write {overrides}{sweep}"
    for fault in faults:
        if fault.override is None:
            yield f"{fault.typed}: {fault.remedy}"
