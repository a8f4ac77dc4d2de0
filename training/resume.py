"""Where a run goes on: which checkpoint is taken, whether the config still fits it, and how a trainer takes it up."""

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from checkpoints import folder as checkpoint_folder
from checkpoints.carry_state import filled_carry
from checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_matching,
    newest_good,
    open_checkpoint,
    saved_checkpoints,
)
from config.keys import flat_config
from config.schema import ConfigError, TrainConfig, TrmArch, dump_config, run_folder, validate_config
from dataset.store import PuzzleStore
from dataset.trained_on import TrainedOn
from learning.learner import Learner
from training.metric_window import joined_windows
from training.trainer import Progress, Trainer
from utils.run_folder import continue_run_folder, copy_logs, create_run_folder
from utils.run_lock import lock_folder

log = logging.getLogger(__name__)
SEED_STRIDE = 7_368_787

# Keys that say where a run computes, what it shows, and how it is guarded, but not what it computes.
MAY_DIFFER = frozenset(
    (
        *("project_name", "run_name", "device", "compile", "data_workers", "distributed_timeout_s"),
        *("evaluators", "eval_interval", "eval_batch_size", "eval_batch_tokens"),
        *("max_eval_groups", "max_eval_augmentations"),
        *("eval_controls", "eval_control_queries"),
        *("log_interval", "log_predictions_every", "wandb_group", "wandb_tags"),
        *("checkpoint_every_eval", "checkpoint_interval", "checkpoint_minutes", "checkpoint_keep", "checkpoint_best"),
        *("resume", "resume_override", "on_nonfinite", "nonfinite_limit"),
    )
)
# The data position and the carries are counted in these.
NEVER_OVERRIDDEN = ("global_batch_size", "arch.name", "arch.halting", "arch.num_act_steps")


@dataclass(frozen=True)
class ResumePoint:
    """A verified checkpoint to go on from.

    is_own: it lies in the run's own folder, whose logs go on.
    """

    checkpoint: Checkpoint
    is_own: bool


def data_of_run(store: PuzzleStore, trained_on: TrainedOn) -> dict[str, str]:
    """The SHA-256 of each file of the data that a run evaluates and trains on, by its path.

    Args:
        trained_on: what its own source of batches says.
    """
    return {**trained_on.datasets, **store.metadata.sha256}


def find_resume_point(config: TrainConfig, data: dict[str, str]) -> ResumePoint | None:
    """The checkpoint that `config.resume` asks for; None where the run starts anew.

    Args:
        data: as `data_of_run` gives it.

    Raises:
        CheckpointError: there is no such checkpoint, or none undamaged.
        ConfigError: the config differs from the checkpoint's in a way that matters.
    """
    own = run_folder(config) / "checkpoints"
    if config.resume == "never" or (config.resume == "auto" and not saved_checkpoints(own)):
        return None
    if config.resume == "auto":
        checkpoint, faults = newest_good(own)
        for fault in faults:
            log.warning("%s; going on from %s instead", fault, checkpoint.path)
    else:
        checkpoint = open_checkpoint(config.resume)
    refuse_differences(config, checkpoint, data)
    return ResumePoint(checkpoint, checkpoint.path.resolve().parent == own.resolve())


def claim_run_folder(config: TrainConfig, data: dict[str, str]) -> ResumePoint | None:
    """Lock the run folder, whether there is one yet or not, and look for a checkpoint; nothing else is written.

    Raises:
        CheckpointError, ConfigError: as `find_resume_point`; or another process writes the folder.
    """
    folder = run_folder(config)
    lock_folder(folder)
    if folder.exists():
        checkpoint_folder.tidy(folder / "checkpoints")
    return find_resume_point(config, data)


def open_run_folder(config: TrainConfig, point: ResumePoint | None) -> Path:
    """The run folder of the checkpoint to go on from, or a new one with the logs of the run that is taken up."""
    folder = run_folder(config)
    if point is not None and point.is_own:
        checkpoint_folder.set_aside(folder / "checkpoints", point.checkpoint.step)
        continue_run_folder(folder, dump_config(config), point.checkpoint.step)
        return folder
    create_run_folder(folder, dump_config(config))
    if point is not None:
        copy_logs(point.checkpoint.path.parent.parent, folder, point.checkpoint.step)
    return folder


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Its config; keys that are younger than it have their default."""
    try:
        return dump_config(validate_config(checkpoint.config))
    except ConfigError:  # it has keys or values that are gone, which are differences
        return checkpoint.config


def config_differences(config: TrainConfig, checkpoint: Checkpoint, data: dict[str, str]) -> dict[str, str]:
    """What matters and differs: each key with both values."""
    may_differ = set(MAY_DIFFER)
    if isinstance(config.arch, TrmArch) and config.train_on_held_out_demonstrations:
        may_differ.remove("max_eval_groups")  # their demonstrations are trained on
    old, new = flat_config(_settings(checkpoint)), flat_config(dump_config(config))
    found = {
        key: f"{key} was {old.get(key, 'unknown')} and is {new.get(key, 'gone')}"
        for key in {**old, **new}
        if key not in may_differ and old.get(key) != new.get(key)
    }
    known = checkpoint.progress.get("data", checkpoint.trained_on.datasets)  # older ones name what they train on
    if other := sorted(path for path in data if known.get(path, data[path]) != data[path]):
        found.setdefault("data_paths", f"data_paths: {', '.join(other)} is not what it was at the checkpoint")
    return found


def refuse_differences(config: TrainConfig, checkpoint: Checkpoint, data: dict[str, str]) -> None:
    """Raise for differences that `resume_override` does not name.

    Raises:
        ConfigError: names the keys and both values.
    """
    found = config_differences(config, checkpoint, data)
    named = [key for key in config.resume_override if key not in NEVER_OVERRIDDEN]
    refused = [key for key in found if key not in named]
    if refused:
        fixed = [key for key in refused if key in NEVER_OVERRIDDEN]
        keys = ",".join((*named, *refused))
        allowed = (
            f"{fixed[0]} cannot be overridden: the data position and the carries are counted in it"
            if fixed
            else f"resume_override=[{keys}] goes on with the new values"
        )
        raise ConfigError(
            f"{checkpoint.path}: the config is not the run's own: {'; '.join(found[key] for key in refused)}. "
            f"{allowed}; resume=never starts anew; another +run_name leaves this run alone"
        )
    for text in found.values():
        log.warning("resumed with another value: %s", text)


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Put a new trainer where the checkpoint's was: bit for bit with the same number of ranks.

    Raises:
        CheckpointError: its tensors do not fit.
    """
    source = str(checkpoint.path)
    load_matching(trainer.model, checkpoint.model_state(), source)
    _restore_optimizer(trainer.learner.optimizer, checkpoint)
    _restore_averages(trainer.learner, checkpoint)
    trainer.trained_on = checkpoint.trained_on.joined(trainer.trained_on)
    known = {f.name for f in fields(Progress)}
    trainer.progress = Progress(**{key: value for key, value in checkpoint.progress.items() if key in known})
    trainer.step = trainer.saved_step = checkpoint.step
    if checkpoint.world_size == trainer.ranks.world_size:
        _restore_rank(trainer, checkpoint)
    else:
        _restore_for_other_ranks(trainer, checkpoint)
    if trainer.ranks.is_first:
        log.info("resumed from %s: step %d of %d", source, trainer.step, trainer.total_steps)


def _restore_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Its moments; rates and decay are those of the config."""
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(checkpoint.optimizer_state())
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path / 'optim.pt'}: does not fit the parameters: {error}") from error
    for group, option in zip(optimizer.param_groups, options, strict=True):
        group.update(option)


def _restore_averages(learner: Learner, checkpoint: Checkpoint) -> None:
    if learner.ema is None:
        return
    if (checkpoint.path / "ema.safetensors").exists():
        learner.ema.load_state_dict(checkpoint.model_state(ema=True))
    else:
        log.warning("%s has no averages: they start from its weights", checkpoint.path)
        learner.ema.load_state_dict(learner.model.state_dict())


def _restore_rank(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Carry, window of the log, generators."""
    state = checkpoint.rank_state(trainer.ranks.rank)
    device = trainer.ranks.device
    if saved := _source_state(trainer, state):
        trainer.train_data.load_state_dict(saved)
    if state["carry"] and trainer.step < trainer.total_steps:
        try:
            trainer.carry = filled_carry(_next_carry(trainer), state["carry"])
        except CheckpointError as fault:
            log.warning("%s: its carries do not fit (%s): every sample starts afresh", checkpoint.path, fault)
    if "window" in state:
        trainer.window.load_state_dict(state["window"], device)
    torch.set_rng_state(state["rng"])
    if device.type == "cuda" and "cuda_rng" in state:
        torch.cuda.set_rng_state(state["cuda_rng"], device)


def _source_state(trainer: Trainer, state: dict[str, Any]) -> dict[str, Any] | None:
    """A rank's state of the source of batches; None where it has none, or the run goes on with another source."""
    return state.get("source", {}).get(trainer.config.data.name) or None


def _restore_for_other_ranks(trainer: Trainer, checkpoint: Checkpoint) -> None:
    ranks = trainer.ranks
    if ranks.is_first:
        log.warning(
            "%s was written by %d ranks and goes on with %d: carries start afresh, the data go on at sample %d",
            checkpoint.path,
            checkpoint.world_size,
            ranks.world_size,
            trainer.step // trainer.config.arch.steps_per_batch * trainer.config.global_batch_size,
        )
    states = map(checkpoint.rank_state, range(checkpoint.world_size))  # one at a time, for they hold the carries too
    parts = [(_source_state(trainer, state), state.get("window")) for state in states]
    if sources := [saved for saved, _ in parts if saved]:
        trainer.train_data.load_state_dict(trainer.train_data.joined_states(sources, ranks.rank))
    windows = [window for _, window in parts if window is not None]
    if windows:
        trainer.window.load_state_dict(joined_windows(windows, ranks.rank), ranks.device)
    torch.manual_seed(trainer.config.seed + SEED_STRIDE * (trainer.step + 1) + ranks.rank)


def _next_carry(trainer: Trainer) -> Any:
    """A carry of the right kinds and shapes."""
    number = trainer.step // trainer.config.arch.steps_per_batch
    batch = {key: value.to(trainer.ranks.device) for key, value in trainer.train_data[number].items()}
    return trainer.model.initial_carry(batch)
