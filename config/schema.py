"""The one place that validates configuration: Hydra composes, pydantic turns the result into a typed object, once.

Composing checks values; files are checked when a run starts. An unknown key, a wrong value, or an override of an
option that the chosen parts do not use is a `ConfigError` that names the key and what would be right.
"""

import difflib
import logging
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from config.arch_schema import (
    DEFAULT_PROJECTS,
    AnyArch,
    Beta,
    FilePath,
    HybridArch,
    NonNegative,
    NonNegativeFloat,
    PathPart,
    Positive,
    PositiveFloat,
    Probability,
    Section,
    TrmArch,
)
from config.data_schema import DEFAULT_SOURCES, AnyData, with_source
from config.shorthands import SHORTHANDS, explained, set_twice, without_shorthands
from utils.errors import ConfigError

log = logging.getLogger(__name__)
CONFIG_DIR = Path(__file__).parent
RUNS = Path("runs")
GROUPS = ("arch", "data")  # sections with a folder of files to choose from
MAX_OVERRIDE_CHARS = 4000  # a path has at most 4096


KEY = re.compile(r"(?=.{1,200}$)\w+(\.\w+)*")
REFERENCE = re.compile(r"\$\{[\w.\[\]]+\}")

# Overridden for a series of runs that differ in arch.halting: said, not refused.
SHARED_BY_HALTINGS = ("arch.halt_max_steps", "arch.halt_exploration_prob")


class EvaluatorConfig(Section):
    name: Literal["arc@ARC"]


class TrainConfig(Section):
    """A whole run."""

    arch: Annotated[AnyArch, Field(discriminator="name")]
    data: Annotated[AnyData, Field(discriminator="name")]
    data_paths: Annotated[tuple[FilePath, ...], Field(min_length=1)]
    evaluators: tuple[EvaluatorConfig, ...]

    global_batch_size: Positive
    max_demos: Positive
    max_train_groups: Positive | None
    max_eval_groups: Positive | None
    query_sampling: Literal["test", "leave_one_out"]
    epochs: Positive
    eval_interval: Positive

    lr: PositiveFloat
    lr_min_ratio: Probability
    lr_warmup_steps: NonNegative
    beta1: Beta
    beta2: Beta
    weight_decay: NonNegativeFloat
    puzzle_emb_lr: PositiveFloat
    puzzle_emb_weight_decay: NonNegativeFloat
    train_on_held_out_demonstrations: bool
    grad_clip_norm: NonNegativeFloat
    encoder_lr_scale: NonNegativeFloat
    freeze_encoder: bool
    freeze_decoder_steps: NonNegative
    ema: bool
    ema_rate: Beta
    load_pretrained_decoder: FilePath | None

    max_eval_augmentations: Positive | None
    eval_batch_size: Positive
    log_interval: Positive
    log_predictions_every: NonNegative
    checkpoint_every_eval: bool

    # Defaults here too, so that configs of runs from before these keys existed can be read.
    checkpoint_interval: NonNegative = 0
    checkpoint_minutes: NonNegativeFloat = 0
    checkpoint_keep: Positive | None = None
    checkpoint_best: str | None = None
    resume: str = "auto"
    resume_override: tuple[str, ...] = ()
    on_nonfinite: Literal["stop", "skip"] = "stop"
    nonfinite_limit: Positive = 10
    distributed_timeout_s: Annotated[PositiveFloat, Field(le=1e6)] = 1800.0

    seed: NonNegative
    device: Literal["auto", "cpu", "cuda"]
    # Keys that came after the first checkpoints have a default, with which those go on as they were.
    optimizer: Literal["adam_atan2", "muon"] = "adam_atan2"
    muon_lr: PositiveFloat = 1e-2
    compile: Literal["auto", "on", "off"] = "auto"
    data_workers: NonNegative
    project_name: PathPart = "etrm-arc"
    run_name: PathPart | None = None
    wandb_group: str | None = None
    wandb_tags: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _source_of_the_arch(cls, values: Any) -> Any:
        return with_source(values) if isinstance(values, dict) else values

    @model_validator(mode="before")
    @classmethod
    def _project_of_the_arch(cls, values: Any) -> Any:
        arch = values.get("arch") if isinstance(values, dict) else None
        if isinstance(arch, dict) and arch.get("name") in DEFAULT_PROJECTS:
            return {"project_name": DEFAULT_PROJECTS[arch["name"]], **values}
        return values

    @field_validator("project_name", "run_name")
    @classmethod
    def _stays_in_its_folder(cls, value: str | None) -> str | None:
        if value is not None and (".." in value or value.startswith(".") or value != value.strip()):
            raise ValueError("must not contain '..', begin with a dot, or begin or end with a space")
        return value

    @field_validator("evaluators")
    @classmethod
    def _one_at_most(cls, value: tuple[EvaluatorConfig, ...]) -> tuple[EvaluatorConfig, ...]:
        if len(value) > 1:
            raise ValueError("one evaluator or none: a run has one submission.json and one puzzles.json")
        return value

    @field_validator("resume")
    @classmethod
    def _is_auto_never_or_a_path(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must be auto, never, or the path of a checkpoint or of a run folder")
        return value

    @field_validator("resume_override")
    @classmethod
    def _names_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for key in value:
            if key not in _all_keys(TrainConfig):
                raise ValueError(f"'{key}' is not a key of the config{_nearest(key)}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        if self.data.condition != self.arch.condition:
            fitting = DEFAULT_SOURCES.get(self.arch.name, "fewshot")
            raise ValueError(
                f"data.name={self.data.name} gives {self.data.condition}, but arch.name={self.arch.name} reads "
                f"{self.arch.condition}: data.name=auto takes {fitting}"
            )
        if self.freeze_encoder and self.freeze_decoder_steps:
            raise ValueError("freeze_encoder=true with freeze_decoder_steps > 0 would train nothing at first")
        if self.train_on_held_out_demonstrations and not isinstance(self.arch, TrmArch):
            raise ValueError(
                "train_on_held_out_demonstrations=true is for TRM: the other systems are measured on puzzles of which "
                "they have seen nothing"
            )
        if isinstance(self.arch, HybridArch) and (self.freeze_decoder_steps or self.load_pretrained_decoder):
            raise ValueError(
                "freeze_decoder_steps and load_pretrained_decoder are not for the TRM hybrid: its decoder is all that "
                "trains, and has no context slots as the others have"
            )
        return self

    @property
    def evaluator(self) -> str | None:
        """The name of the evaluator, where there is one."""
        return self.evaluators[0].name if self.evaluators else None

    def unused_keys(self) -> dict[str, str]:
        """Keys that the chosen options do not read, with the reason."""
        unused = {f"arch.{key}": why for key, why in self.arch.unused_keys().items()} | self.data.unused_keys()
        if not self.ema:
            unused["ema_rate"] = "ema=false"
        if isinstance(self.arch, TrmArch):
            unused |= dict.fromkeys(("encoder_lr_scale", "freeze_encoder"), "TRM has no encoder")
        else:
            unused |= dict.fromkeys(("puzzle_emb_lr", "puzzle_emb_weight_decay"), "only TRM embeds puzzles")
        if isinstance(self.arch, HybridArch):
            why = "the TRM hybrid's language model is frozen, and nothing else encodes"
            unused |= dict.fromkeys(("encoder_lr_scale", "freeze_encoder"), why)
        if self.optimizer != "muon":
            unused["muon_lr"] = f"optimizer={self.optimizer} has no matrices of its own rate; optimizer=muon has"
        if self.freeze_encoder:
            unused["encoder_lr_scale"] = "freeze_encoder=true trains nothing in the encoder"
        if self.on_nonfinite == "stop":
            unused["nonfinite_limit"] = "on_nonfinite=stop stops at the first"
        if self.resume == "never":
            unused["resume_override"] = "resume=never resumes nothing"
        return unused


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, info in model.model_fields.items():
        keys.append(prefix + name)
        for part in get_args(info.annotation) or (info.annotation,):
            if isinstance(part, type) and issubclass(part, BaseModel) and part is not EvaluatorConfig:
                keys += _all_keys(part, f"{prefix}{name}.")
    return list(dict.fromkeys(keys))


def _nearest(key: str) -> str:
    known = [name for name in _all_keys(TrainConfig) if name != key]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not close:
        last = {name.rsplit(".", 1)[-1]: name for name in known}
        close = [last[m] for m in difflib.get_close_matches(key.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.5)]
    return f"; the nearest key is '{close[0]}'" if close else ""


def _explain(error: ValidationError) -> str:
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for i, part in enumerate(fault["loc"]) if i != 1 or fault["loc"][0] not in GROUPS)
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden" and key in _all_keys(TrainConfig):
            lines.append(f"the key '{key}' does not belong to the chosen {key.split('.')[0]}")
        elif fault["type"] == "extra_forbidden":
            lines.append(f"unknown key '{key}'{_nearest(key)}")
        elif fault["type"] == "union_tag_invalid":
            context = fault.get("ctx", {})
            lines.append(f"{key}.name={context.get('tag')} is not one of {context.get('expected_tags')}")
        elif fault["type"] == "missing":
            lines.append(f"missing key '{key}'")
        else:
            value = "" if not key or isinstance(fault["input"], dict) else f"{key}={_shown(fault['input'])}: "
            lines.append(f"{value}{message}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _override_keys(overrides: Sequence[str]) -> list[str]:
    """The keys that the overrides set, `a.b` for `a={b: ...}`.

    Raises:
        ConfigError: an override that cannot be read, or that is no value of this project's config.
    """
    keys = []
    for text in overrides:
        if len(text) > MAX_OVERRIDE_CHARS:
            raise ConfigError(f"'{_shown(text)}': an override has at most {MAX_OVERRIDE_CHARS} characters")
        try:
            (override,) = OverridesParser.create().parse_overrides([text])
        except HydraException as error:
            raise ConfigError(f"'{text}' is not an override of the form key=value: {_first_line(error)}") from error
        key = override.key_or_group
        if override.is_sweep_override():
            raise ConfigError(f"'{text}' names several values: sweeps are lines of a job file")
        if not key or key.split(".")[0].split("/")[0] == "hydra":
            raise ConfigError(f"'{text}' changes nothing here: overrides set keys of the run's config")
        if override.package is not None or not KEY.fullmatch(key):
            raise ConfigError(f"'{_shown(text)}': a key is a path such as arch.canvas, without '@' or '/'")
        value = override.value()
        if override.is_delete() and value is not None:
            raise ConfigError(f"'{text}': to leave a key out, write ~{key}")
        _refuse_resolvers(value, key)
        if key in GROUPS and not (isinstance(value, str) and re.fullmatch(r"\w+", value)):
            raise ConfigError(f"'{text}': {key} is one of {', '.join(_names_in(key))}")
        if not override.is_delete():
            keys += [key, *_nested_keys(key, value)]
    return keys


def _refuse_resolvers(value: Any, key: str = "") -> None:
    """What a resolver gives, such as a variable of the environment, would be logged with the config.

    Raises:
        ConfigError: an interpolation other than a reference to another key.
    """
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_resolvers(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and "${" in REFERENCE.sub("", value):
        raise ConfigError(
            f"{key}={_shown(value)}: is not resolved, for the config is logged; write the value itself, or a reference "
            "to another key such as ${arch.num_heads}. Secrets stay in the environment of the process, out of the "
            "command line too (wandb reads WANDB_API_KEY)"
        )


def _nested_keys(prefix: str, value: Any) -> list[str]:
    if not isinstance(value, dict):
        return []
    keys = [(f"{prefix}.{getattr(key, 'text', key)}", inner) for key, inner in value.items()]
    return [found for key, inner in keys for found in (key, *_nested_keys(key, inner))]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _names_in(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml") if not path.stem.startswith("base"))


def config_names() -> list[str]:
    """The run configs that `--config-name` may name."""
    return sorted(path.stem for path in CONFIG_DIR.glob("cfg_*.yaml"))


def load_config(config_name: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Compose `config/<config_name>.yaml` with Hydra overrides and validate the result.

    Raises:
        ConfigError: an unknown config, key or value, or an override that changes nothing.
    """
    name = config_name.removesuffix(".yaml")
    if name not in config_names():
        raise ConfigError(f"--config-name '{_shown(config_name)}' is not one of {', '.join(config_names())}")
    try:
        keys = _override_keys(overrides)
        GlobalHydra.instance().clear()
        with initialize_config_dir(version_base=None, config_dir=str(CONFIG_DIR)):
            unresolved = compose(name, overrides=list(overrides))
            declared = compose(name) if SHORTHANDS.keys() & unresolved.keys() else unresolved
        _refuse_resolvers(OmegaConf.to_container(unresolved))
        composed = OmegaConf.to_container(unresolved, resolve=True)
        composed = without_shorthands(composed, declared)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain_hydra(error, overrides)) from error
    except RecursionError as error:
        raise ConfigError(f"{name}: the overrides are nested too deeply") from error
    try:
        config = validate_config(composed)
    except ConfigError as error:
        raise ConfigError(explained(f"{name}: {error}", keys)) from error
    if fault := set_twice(keys):
        raise ConfigError(fault)
    unused = config.unused_keys()
    for key in keys:
        if key in unused and key in SHARED_BY_HALTINGS and config.arch.halting == "fixed":
            log.warning("%s has no say: %s", key, unused[key])
        elif key in unused:
            raise ConfigError(f"{key} is overridden, but would change nothing: {unused[key]}")
    return config


def validate_config(values: Any) -> TrainConfig:
    """A config from plain values, as `dump_config` gives them.

    Raises:
        ConfigError: names each key that is missing, unknown or wrong.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def _explain_hydra(error: Exception, overrides: Sequence[str]) -> str:
    message = str(error).strip()
    if missing := re.search(rf"Could not find '({'|'.join(GROUPS)})/(.+)'", message):
        group, name = missing.groups()
        return f"{group}={name} is not one of {', '.join(_names_in(group))}"
    match = re.search(r"Key '([^']+)' is not in struct|Could not override '([^']+)'", message)
    if match:
        key = re.search(r"Could not override '([^']+)'", message)
        name = key.group(1) if key else match.group(1) or match.group(2)
        if name in ("project_name", "run_name"):
            return f"'{name}' stands in no config file: write +{name}=..."
        if name in _all_keys(TrainConfig):
            return f"the key '{name}' does not belong to the chosen {name.split('.')[0]}"
        return f"unknown key '{name}'{_nearest(name)}"
    found = re.search(r"full_key: (\S+)", message)
    key = found.group(1) if found else ""
    shown = next((text for text in overrides if key and text.lstrip("+").startswith(f"{key}=")), key)
    return f"{shown}: {_first_line(error)}" if shown else _first_line(error)


def with_dtype(config: TrainConfig, dtype: str) -> TrainConfig:
    """The config with `arch.forward_dtype: auto` replaced, so that what is written down is what was computed."""
    if config.arch.forward_dtype != "auto":
        return config
    return config.model_copy(update={"arch": config.arch.model_copy(update={"forward_dtype": dtype})})


def run_folder(config: TrainConfig) -> Path:
    """`runs/<project_name>/<run_name>`."""
    arch = config.arch
    system = arch.name.split("@")[0].rsplit(".", 1)[-1] + (
        f"-fct{arch.num_act_steps}" if arch.halting == "fixed" else ""
    )
    default = f"{system}-{arch.encoder_name}-seed{config.seed}"
    return RUNS / config.project_name / (config.run_name or default)


def dump_config(config: TrainConfig) -> dict[str, Any]:
    """The config as plain values, as it is written into the run folder."""
    return config.model_dump(mode="json")
