"""The one place that validates configuration: Hydra composes, pydantic turns the result into a typed object, once.

Composing checks values; files are checked when a run starts. An unknown key, a wrong value, or an override of an
option that the chosen parts do not use is a `ConfigError` that names the key and what would be right.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, field_validator, model_validator
from yaml import YAMLError

from config.arch_schema import DEFAULT_PROJECTS, AnyArch, HybridArch, TrmArch, no_graphs
from config.data_schema import DEFAULT_SOURCES, AnyData, KnownRulesData, MixtureData, RearcData, with_source
from config.explain import explain_hydra, explain_validation
from config.fields import (
    Beta,
    FilePath,
    Home,
    ListOrOne,
    NonNegative,
    NonNegativeFloat,
    OnOrOff,
    PathPart,
    Positive,
    PositiveFloat,
    PositiveShare,
    Probability,
    Section,
    Text,
)
from config.folders import choices_of, chosen_name, composing, folders, run_configs
from config.keys import Keys, keys_of
from config.mixture import with_sources
from config.overrides import MAX_OVERRIDE_CHARS, read_overrides, refuse_resolvers
from config.shorthands import SHORTHANDS, explained, set_twice, without_shorthands
from config.suggestions import suggestion
from utils.errors import ConfigError

__all__ = (
    "CONFIG_DIR",
    "MAX_OVERRIDE_CHARS",
    "ConfigError",
    "HybridArch",
    "TrainConfig",
    "TrmArch",
    "config_names",
    "dump_config",
    "load_config",
    "run_folder",
    "validate_config",
    "with_dtype",
)
log = logging.getLogger(__name__)
CONFIG_DIR = Path(__file__).parent
RUNS = Path("runs")
GROUPS = ("arch", "data")  # sections with a folder of files to choose from

# Overridden for a series of runs that differ in arch.halting: said, not refused.
SHARED_BY_HALTINGS = ("arch.halt_max_steps", "arch.halt_exploration_prob")


class EvaluatorConfig(Section):
    name: Literal["arc@ARC"]

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        return {"name": values} if isinstance(values, str) else values


class TrainConfig(Section):
    """A whole run."""

    arch: Annotated[AnyArch, Field(discriminator="name")]
    data: Annotated[AnyData, Field(discriminator="name")]
    data_paths: Annotated[tuple[FilePath, ...], ListOrOne, Field(min_length=1)]
    evaluators: Annotated[tuple[EvaluatorConfig, ...], ListOrOne]

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
    eval_controls: bool = False
    eval_control_queries: Positive = 256
    log_interval: Positive
    log_predictions_every: NonNegative
    checkpoint_every_eval: bool

    # Defaults here too, so that configs of runs from before these keys existed can be read.
    checkpoint_interval: NonNegative = 0
    checkpoint_minutes: NonNegativeFloat = 0
    checkpoint_keep: Positive | None = None
    checkpoint_best: Text | None = None
    resume: Annotated[Text, Home] = "auto"
    resume_override: Annotated[tuple[Text, ...], ListOrOne] = ()
    on_nonfinite: Literal["stop", "skip"] = "stop"
    nonfinite_limit: Positive = 10
    distributed_timeout_s: Annotated[PositiveFloat, Field(le=1e6)] = 1800.0

    seed: NonNegative
    device: Literal["auto", "cpu", "cuda"]
    # Keys that came after the first checkpoints have a default, with which those go on as they were.
    load_pretrained_encoder: FilePath | None = None
    optimizer: Literal["adam_atan2", "muon"] = "adam_atan2"
    muon_lr: PositiveFloat = 1e-2
    lr_decay_share: PositiveShare = 1.0
    min_demos: Positive | None = None
    max_context_tokens: Positive | None = None
    compile: Annotated[Literal["auto", "on", "off", "graphs"], OnOrOff] = "auto"
    eval_batch_tokens: Positive | None = None
    data_workers: NonNegative
    project_name: PathPart = "etrm-arc"
    run_name: PathPart | None = None
    wandb_group: Text | None = None
    wandb_tags: Annotated[tuple[Text, ...], ListOrOne] = ()

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
            if key not in known_keys().known:
                raise ValueError(f"'{key}' is not a key of the config{suggestion(key, known_keys().known)}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        if self.data.condition != self.arch.condition:
            fitting = DEFAULT_SOURCES.get(self.arch.name, "fewshot")
            raise ValueError(
                f"data.name={self.data.name} gives {self.data.condition}, but arch.name={self.arch.name} reads "
                f"{self.arch.condition}: data.name=auto takes {fitting}"
            )
        if self.compile == "graphs" and (fault := no_graphs(self.arch)):
            raise ValueError(f"compile=graphs replays the decoder's blocks for few numbers of rows; {fault}")
        if self.min_demos is not None and self.min_demos > self.max_demos:
            raise ValueError(f"min_demos={self.min_demos} must be at most max_demos={self.max_demos}")
        if isinstance(self.data, KnownRulesData | RearcData | MixtureData) and self.data.most_demos > self.max_demos:
            raise ValueError(
                f"max_demos={self.max_demos} would show fewer demonstrations in evaluation than training does: "
                f"data.demos has up to {self.data.most_demos}; raise the one or lower the other"
            )
        if self.max_context_tokens is not None and self.arch.condition != "demonstrations":
            raise ValueError(
                f"max_context_tokens={self.max_context_tokens} is for systems that read demonstrations; "
                f"arch.name={self.arch.name} reads {self.arch.condition}"
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
            keys = ("encoder_lr_scale", "freeze_encoder", "load_pretrained_encoder")
            unused |= dict.fromkeys(keys, "TRM has no encoder")
        else:
            unused |= dict.fromkeys(("puzzle_emb_lr", "puzzle_emb_weight_decay"), "only TRM embeds puzzles")
        if isinstance(self.arch, HybridArch):
            why = "the TRM hybrid's language model is frozen, and nothing else encodes"
            unused |= dict.fromkeys(("encoder_lr_scale", "freeze_encoder", "load_pretrained_encoder"), why)
        if not self.eval_controls:
            unused["eval_control_queries"] = "eval_controls=false asks none"
        if self.optimizer != "muon":
            unused["muon_lr"] = f"optimizer={self.optimizer} has no matrices of its own rate; optimizer=muon has"
        if self.lr_min_ratio == 1:
            unused["lr_decay_share"] = "lr_min_ratio=1 lets the rate fall in no step"
        if self.freeze_encoder:
            unused["encoder_lr_scale"] = "freeze_encoder=true trains nothing in the encoder"
        if self.on_nonfinite == "stop":
            unused["nonfinite_limit"] = "on_nonfinite=stop stops at the first"
        if self.resume == "never":
            unused["resume_override"] = "resume=never resumes nothing"
        return unused


def known_keys() -> Keys:
    """The keys of a run's config."""
    return keys_of(TrainConfig)


def config_names(config_dir: str | Path | None = None) -> list[str]:
    """The run configs that `--config-name` may name, first those of the user's folder."""
    return run_configs(folders(CONFIG_DIR, config_dir))


def load_config(config_name: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> TrainConfig:
    """Compose `config/<config_name>.yaml` with Hydra overrides and validate the result.

    Args:
        config_dir: a folder of the user's, where files are looked for first.

    Raises:
        ConfigError: an unknown config, key or value, or an override that changes nothing.
    """
    searched = folders(CONFIG_DIR, config_dir)
    name = chosen_name(config_name, searched)
    choices = {group: partial(choices_of, group, searched) for group in GROUPS}
    given = read_overrides(overrides, known_keys(), choices)
    composed = _composed(name, given.texts, searched, choices)
    try:
        config = validate_config(composed)
    except ConfigError as error:
        raise ConfigError(explained(f"{name}: {error}", given.keys)) from error
    if fault := set_twice(given.keys):
        raise ConfigError(fault)
    _refuse_without_effect(config, given.keys)
    return config


def _composed(
    name: str, overrides: Sequence[str], searched: Sequence[Path], choices: dict[str, Callable[[], list[str]]]
) -> Any:
    """The plain values of a config file with overrides, without shorthands."""
    where = composing(name, searched, known_keys())
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(version_base=None, config_dir=str(where.folder)):
            unresolved = compose(name, overrides=[*where.overrides, *overrides])
            declared = (
                compose(name, overrides=[*where.overrides]) if SHORTHANDS.keys() & unresolved.keys() else unresolved
            )
        return with_sources(_resolved(unresolved, declared), searched)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain_hydra(error, overrides, known_keys(), choices)) from error
    except YAMLError as error:
        raise ConfigError(f"{name}: a config file is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: its files name each other in a circle, or are nested too deeply") from error


def _resolved(unresolved: DictConfig, declared: DictConfig) -> Any:
    refuse_resolvers(OmegaConf.to_container(unresolved))
    return without_shorthands(OmegaConf.to_container(unresolved, resolve=True), declared)


def _refuse_without_effect(config: TrainConfig, keys: Sequence[str]) -> None:
    unused = config.unused_keys()
    for key in keys:
        if key in unused and key in SHARED_BY_HALTINGS and config.arch.halting == "fixed":
            log.warning("%s has no say: %s", key, unused[key])
        elif key in unused:
            raise ConfigError(f"{key} is overridden, but would change nothing: {unused[key]}")


def validate_config(values: Any) -> TrainConfig:
    """A config from plain values, as `dump_config` gives them.

    Raises:
        ConfigError: names each key that is missing, unknown or wrong.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain_validation(error, known_keys())) from error


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
