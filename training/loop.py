"""The training loop: the same for every model, which it knows by `initial_carry` and `forward` alone.

for each batch (with arch.halting=fixed: num_act_steps times for each batch):
    carry, loss = one ACT step            samples that had halted take the batch's data
    gradients of loss / global_batch_size, summed over ranks; is everything finite? then clipped
    one optimizer step, one step of the weights' average
    log, evaluate, save, or stop, as the config and the signals say
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.distributed as dist
import yaml
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from config.command_line import read_command_line
from config.schema import ConfigError, TrainConfig, dump_config, load_config, run_folder
from dataset.batches import Batch, iterate
from learning.guards import NonFiniteError, TrainingError
from training.events import Preempted, evaluate_and_save, log_window, save_and_stop, saves_by_the_clock
from training.exits import leave_as_one, leave_for
from training.memory import memory_of_start, memory_of_step
from training.metric_window import ends_window
from training.metrics import SHOWN_QUERIES, step_metrics, summary
from training.setup import create_trainer
from training.trainer import Trainer
from utils import distributed
from utils.distributed import SAID_BY_FIRST_RANK, Ranks
from utils.run_folder import last_values
from utils.run_lock import unlock_folder
from utils.run_logger import ObserverFactory
from utils.run_status import USER_ERROR, RunStatus
from utils.signals import StopRequest

__all__ = (
    "SHOWN_QUERIES",
    "Preempted",
    "Trainer",
    "TrainingError",
    "create_trainer",
    "fit",
    "main",
    "summary",
)
log = logging.getLogger(__name__)


def fit(
    config: TrainConfig,
    ranks: Ranks,
    stop: StopRequest | None = None,
    observers: Sequence[ObserverFactory] = (),
) -> dict[str, float]:
    """Train, evaluate and save as the config says, from where the run folder's checkpoint is.

    Args:
        stop: asked by signals.
        observers: follow what rank 0 writes into the run folder.

    Returns:
        The last value of every metric (rank 0: of the whole run, resumed parts included).

    Raises:
        DatasetError, CheckpointError, ConfigError: before anything is written.
        NonFiniteError: the loss or the gradient is not finite.
        SaveError: a checkpoint could not be written.
        Preempted: asked to stop, and saved.
    """
    with memory_of_start(config):
        trainer = create_trainer(config, ranks, stop, observers)
    with status_of(trainer) as status, progress_bar(trainer) as bar:
        trainer.model.train()
        last = metrics_so_far(trainer)
        for batch in batches_of(trainer):
            trainer.stop.hear()
            epoch_before, base_lr = trainer.epoch, trainer.base_lr
            with memory_of_step(config):
                sums, outputs = trainer.train_step(batch)
            if sums:
                trainer.window.add(sums)
                trainer.train_data.observe(trainer.step, sums, trainer.sample_results(outputs))
            bar.update()
            is_last = trainer.step == trainer.total_steps
            evaluates = is_last or trainer.epoch // config.eval_interval > epoch_before // config.eval_interval
            if ends_window(trainer.step, trainer.total_steps, config.log_interval):
                last |= log_window(trainer, step_metrics(trainer, sums, outputs, base_lr))
                status.write("running", trainer.step, last)
                show(bar, last)
            if trainer.stop_agreed:
                trainer.progress.evaluation_due = evaluates
                save_and_stop(trainer)
            if evaluates:
                last |= evaluate_and_save(trainer)
                status.write("running", trainer.step, last)
            elif saves_by_the_clock(trainer):
                trainer.save_checkpoint()
        status.write("done", trainer.step, last)
    return last


def metrics_so_far(trainer: Trainer) -> dict[str, float]:
    """The last value of every metric of a run that goes on, after the evaluation that was put off when it stopped."""
    last = last_values(trainer.folder) if trainer.ranks.is_first and trainer.step else {}
    if not trainer.progress.evaluation_due:
        return last
    trainer.stop.hear()
    return last | evaluate_and_save(trainer)


@contextmanager
def progress_bar(trainer: Trainer) -> Iterator[tqdm]:
    """Steps done, of all, after a line that says what there is to do; on rank 0."""
    if trainer.ranks.is_first:
        log.info(
            "%s, %d steps, %d held-out puzzles with %d queries, on %s",
            trainer.train_data.description,
            trainer.total_steps,
            len(trainer.eval_data.puzzles),
            len(trainer.eval_data.query_row),
            trainer.ranks.device,
        )
    with (
        tqdm(total=trainer.total_steps, initial=trainer.step, desc="train", disable=not trainer.ranks.is_first) as bar,
        logging_redirect_tqdm(),
    ):
        yield bar


def show(bar: tqdm, metrics: dict[str, float]) -> None:
    """Put the metrics that tell most behind the bar."""
    bar.set_postfix({k: f"{metrics.get(f'train/{k}', float('nan')):.3f}" for k in ("loss", "accuracy", "steps")})


@contextmanager
def status_of(trainer: Trainer) -> Iterator[RunStatus]:
    """Keep `status.json`: running inside the block, then how it ended."""
    status = RunStatus(trainer.folder, trainer.ranks.rank, trainer.total_steps)
    status.write("running", trainer.step)
    early = "ended by {} before its first step"
    trainer.stop.leaving.append(lambda name: status.write("preempted", trainer.step, reason=early.format(name)))
    try:
        yield status
    except Preempted as error:
        status.write("preempted", trainer.step, reason=str(error))
        raise
    except NonFiniteError as error:
        status.write("non-finite", trainer.step, reason=str(error))
        raise
    except BaseException as error:
        is_consequence = isinstance(error, dist.DistError) or "gloo" in str(error)
        status.write_failure(trainer.step, f"{type(error).__name__}: {error}", is_consequence=is_consequence)
        raise
    finally:
        trainer.logger.close()
        unlock_folder(trainer.folder)


def batches_of(trainer: Trainer) -> Iterator[Batch]:
    """The batches from the trainer's step on, on its device; each `steps_per_batch` times in a row."""
    config, device = trainer.config, trainer.ranks.device
    workers = 0 if trainer.train_data.state_dict() else config.data_workers  # of a state, workers would have copies
    times = config.arch.steps_per_batch
    first, done = divmod(trainer.step, times)
    pin_memory = device.type == "cuda"
    for batch in iterate(trainer.train_data, start=first, workers=workers, pin_memory=pin_memory):
        moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        for _ in range(times - done):
            yield moved
        done = 0


@contextmanager
def joined_ranks(config: TrainConfig, stop: StopRequest) -> Iterator[Ranks]:
    """This process among the run's ranks; if it fails inside the block the others hear of it."""
    ranks = distributed.start(config.device, config.distributed_timeout_s)
    stop.leaving.append(lambda name: distributed.announce_failure(f"ended by {name}", ranks))
    try:
        yield ranks
    except Preempted:
        distributed.stop(ranks)
        raise
    except BaseException as error:
        if SAID_BY_FIRST_RANK not in getattr(error, "__notes__", ()):
            distributed.announce_failure(f"{type(error).__name__}: {error}", ranks)
        raise
    distributed.stop(ranks)


def main(default_config: str, argv: Sequence[str] | None = None, *, observers: Sequence[ObserverFactory] = ()) -> None:
    """The command line of every entry script: see `config.command_line`.

    Exit status: 0 done, 2 a fault of config, data or checkpoint, 75 preempted after saving, 3 non-finite, 143 and 130
    ended by SIGTERM and SIGINT before there was anything to save, 1 the rest.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        asked = read_command_line(default_config, sys.argv[1:] if argv is None else argv)
        config = load_config(asked.config_name, asked.overrides, asked.config_dir)
    except ConfigError as error:
        leave_as_one(USER_ERROR, error)
    if asked.shows_config:
        sys.stdout.write(yaml.safe_dump(dump_config(config), sort_keys=False))
        return
    stop = StopRequest()
    try:
        with stop.listening():
            with joined_ranks(config, stop) as ranks:
                metrics = fit(config, ranks, stop, observers)
            if ranks.is_first:
                sys.stdout.write(summary(metrics, run_folder(config)) + "\n")
    except Exception as error:
        leave_for(error)
        raise
