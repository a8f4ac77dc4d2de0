"""`python -m benchmarks.cost [FILE]`: what the jobs of a file would cost on H100s, or without a file the full runs of
the configs. A projection from the few steps that were measured there (`benchmarks/rates.json`), not a measurement.

A job has the useful operations of its own batches (`benchmarks/flops.py`), at the rate that its system was measured at.
What cannot be told from that is said to be unknown, with the reason. Nothing is started.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import flops
from benchmarks.pages import Row, table
from config.schema import ConfigError, TrainConfig, load_config
from dataset.batches import Batch
from dataset.store import DatasetError, load_stores
from jobs.command import Understood
from jobs.file import JobError, JobFile
from models.canvas import full_canvas, task_canvas
from training.setup import create_eval_data
from training.sources import create_train_source
from utils.distributed import Ranks

RATES: dict[str, Any] = json.loads(Path(__file__).with_name("rates.json").read_text())
WIDTHS = ("hidden_size", "num_heads", "forward_dtype")  # another width has another rate
SMALLEST_BATCH = 64  # samples of a device: below, launching kernels takes longer than what they do
SEVERAL = 0.9  # of the rate of as many devices alone: assumed
BATCHES = 4  # that stand for all
ALONE = Ranks(0, 1, torch.device("cpu"))
FULL_RUNS = {
    "TRM": ("cfg_pretrain_trm_arc_agi_1", ()),
    "ETRM": ("cfg_pretrain_etrm_arc_agi_1", ()),
    "ETRMTRM A": ("cfg_pretrain_etrmtrm_arc_agi_1", ()),
    "ETRMTRM B": ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=trm_style",)),
    "ETRMTRM C": ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=in_context",)),
    "in_context read": ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_type=in_context", "arch.context_mode=read")),
    "in_context": ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_type=in_context",)),
    "TRM hybrid": ("cfg_pretrain_trm_hybrid", ()),
}
VARIANTS = {"recurrent_standard": "A", "trm_style": "B", "in_context": "C"}
HEAD = (
    "job",
    "million samples",
    "samples/s, one H100",
    "training, h: one, eight H100s",
    "evaluations, h: one, eight H100s",
    "GPU hours",
    "GiB a GPU",
    "rate",
)


class Unknown(ValueError):
    """What a job costs cannot be told; the message says why."""


@dataclass(frozen=True)
class Cost:
    """A projection.

    Attributes:
        samples: of all training steps.
        training, evaluations: seconds on one device.
        devices: that the job asks for.
        gib: of a device; None where the sizes are not those that were measured.
        basis: where the rate comes from.
    """

    samples: int
    training: float
    evaluations: float
    devices: int
    gib: float | None
    basis: str

    @property
    def gpu_hours(self) -> float:
        """Of all devices that the job asks for."""
        hours = (self.training + self.evaluations) / 3600
        return hours if self.devices == 1 else hours / SEVERAL

    @property
    def row(self) -> Row:
        def one_and_eight(spent: float) -> str:
            return ", ".join(f"{hours:.3g}" for hours in (spent / 3600, spent / 3600 / 8 / SEVERAL))

        return (
            f"{self.samples / 1e6:.3g}",
            f"{self.samples / self.training:,.0f}",
            one_and_eight(self.training),
            one_and_eight(self.evaluations),
            f"{self.gpu_hours:.3g}",
            "–" if self.gib is None else f"{self.gib:.0f}",
            self.basis,
        )


def system_of(arch: Any) -> str:
    """The system as the table of rates calls it."""
    name = arch.name.split("@")[1]
    if name == "TRM":
        return name
    if name == "TRMWithRecurrentEncoder":
        return f"ETRMTRM {VARIANTS[arch.recurrent_encoder_type]}"
    if name != "TRMWithEncoder":
        return "the TRM hybrid"
    if arch.encoder_type == "in_context":
        return "in_context read" if arch.context_mode == "read" else "in_context"
    return "ETRM" if arch.encoder_type == "standard" else f"ETRM with {arch.encoder_type}"


def rate_of(config: TrainConfig) -> tuple[dict[str, float], str]:
    """What was measured of a config's system, and in which form.

    Raises:
        Unknown: nothing that the config could go by.
    """
    system = system_of(config.arch)
    if system not in RATES["training"]:
        raise Unknown(f"no step of {system} was measured")
    for key in WIDTHS:
        chosen, measured = getattr(config.arch, key), RATES["arch"][key]
        if chosen != measured:
            raise Unknown(f"rates were measured at arch.{key}={measured}, not {chosen}")
    forms = RATES["training"][system]
    form = "eager" if config.compile == "off" or "compiled" not in forms else "compiled"
    missing = "" if config.compile == "off" or form == "compiled" else "; compiled not measured"
    return forms[form], f"{form}{missing}"


def tflop_a_second(measured: dict[str, float]) -> float:
    return measured["tflop"] / (measured["ms"] / 1e3)


def tflop_a_sample(config: TrainConfig, batches: list[Batch], *, training: bool) -> float:
    """Useful operations of a training step, or of a vote, for one sample: the mean over these batches.

    Raises:
        Unknown: no formula counts the system's operations.
    """
    count = flops.training_step if training else flops.evaluation
    total = samples = 0
    for batch in batches:
        is_full = config.arch.canvas == "full"
        active = full_canvas(batch["inputs"]) if is_full else task_canvas(batch, include_labels=training)
        try:
            total += count(batch, active, config.arch)
        except ValueError as error:
            raise Unknown(str(error)) from error
        samples += len(batch["inputs"])
    return total / samples / 1e12


def spread(source: Any) -> list[Batch]:
    """A few batches from all over a source."""
    return [source[number] for number in sorted({len(source) * i // BATCHES for i in range(BATCHES)})]


def projected(config: TrainConfig, devices: int) -> Cost:
    """What a run of a config costs.

    Raises:
        Unknown: that cannot be told.
    """
    measured, form = rate_of(config)
    on_each = config.global_batch_size // devices
    if on_each < SMALLEST_BATCH:
        raise Unknown(
            f"{on_each} samples a device: rates are of {RATES['batch']}, and hold for {SMALLEST_BATCH} or more"
        )
    try:
        store = load_stores(config.data_paths)
        source = create_train_source(config, store, ALONE)
        queries = create_eval_data(config, store, ALONE, "test", config.max_eval_augmentations)
    except DatasetError as error:
        raise Unknown(f"{str(error).partition(';')[0]}; build it, or name another with --data") from error
    samples = len(source) * config.arch.steps_per_batch * config.global_batch_size
    evaluations = -(-source.epoch_of(len(source)) // config.eval_interval)
    asked = evaluations * len(queries.query_row)
    is_same = all(getattr(config.arch, key) == value for key, value in RATES["arch"].items())
    has_memory = is_same and measured["gib"] is not None
    return Cost(
        samples=samples,
        training=samples * tflop_a_sample(config, spread(source), training=True) / tflop_a_second(measured),
        evaluations=asked * tflop_a_sample(config, spread(queries), training=False) / tflop_a_second(RATES["vote"]),
        devices=devices,
        gib=measured["gib"] * on_each / RATES["batch"] if has_memory else None,
        basis=form if is_same else f"{form}; other sizes, by operations",
    )


def full_runs() -> Iterator[tuple[str, TrainConfig, int]]:
    """The configs' own runs."""
    for name, (config, overrides) in FULL_RUNS.items():
        yield name, load_config(config, [*overrides]), 1


def runs_of(path: Path, only: str | None) -> Iterator[tuple[str, TrainConfig, int]]:
    """Training runs of a job file, with the devices that they ask for.

    Raises:
        JobError: the file cannot be read, or a line of it is not valid.
    """
    file = JobFile(path)
    jobs = Understood(file.stem)
    for line in file.read():
        job = jobs.job(line)
        if job.config is not None and job.matches(only):
            yield job.name, job.config, job.processes or 1


def report(runs: Iterator[tuple[str, TrainConfig, int]], data: str | None) -> str:
    """The table of all runs.

    Args:
        data: a data set that stands for those of the configs.
    """
    rows: list[Row] = []
    hours, unknown = 0.0, 0
    for name, config, devices in runs:
        chosen = config if data is None else config.model_copy(update={"data_paths": (data,)})
        try:
            cost = projected(chosen, devices)
        except Unknown as error:
            unknown += 1
            rows.append((name, *["–"] * (len(HEAD) - 2), f"unknown: {error}"))
        else:
            hours += cost.gpu_hours
            rows.append((name, *cost.row))
    vote = RATES["vote"]
    stands_for = "" if data is None else f" On {data} in place of the configs' own data."
    head = (
        f"Projection, not measured, from steps on: {RATES['measured']}, batch {RATES['batch']}. "
        f"Votes at the rate of {vote['system']}'s, {vote['form']}. "
        f"Several GPUs: at {SEVERAL:.0%} of as many alone, assumed.{stands_for}"
    )
    left_out = f", without {unknown} unknown ones" if unknown else ""
    return f"{head}\n\n{table(HEAD, rows)}\n\n{hours:.3g} GPU hours in all{left_out}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="a job file; default: the full runs of the configs")
    parser.add_argument("--only", metavar="GLOB", help="jobs by name, such as 'E0*'")
    parser.add_argument("--data", metavar="FOLDER", help="a data set in place of the jobs' own")
    arguments = parser.parse_args()
    if arguments.only and arguments.file is None:
        parser.error("--only chooses among the jobs of a file")
    try:
        runs = full_runs() if arguments.file is None else runs_of(arguments.file, arguments.only)
        sys.stdout.write(report(runs, arguments.data) + "\n")
    except (ConfigError, JobError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
