"""The training loop: the same for every model, which it knows by `initial_carry` and `forward` alone.

for each batch (with arch.halting=fixed: num_act_steps times for each batch):
    carry, loss = one ACT step            samples that had halted take the batch's data
    gradients of loss / global_batch_size, summed over ranks, then clipped
    one optimizer step, one step of the weights' average
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from config.schema import ConfigError, HybridArch, TrainConfig, TrmArch, config_names, dump_config, load_config
from dataset.fewshot_puzzle_dataset import Batch, FewshotEvalDataset, FewshotTrainDataset, iterate
from dataset.puzzle_dataset import PuzzleTrainDataset
from dataset.store import DatasetError, PuzzleStore, Split, load_stores
from dataset.text_tasks import TextTrainDataset
from models import create_model
from models.act import EXPLORATION_KEY, exploration_draws
from models.ema import EMA
from models.losses import ACTLossHead, create_loss_head
from utils import distributed
from utils.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    TrainedOn,
    write_folder_file,
)
from utils.diagnostics import encoder_health
from utils.distributed import Ranks
from utils.evaluation import Evaluation, evaluate
from utils.optim import (
    GroupOptions,
    PuzzleEmbeddingSGD,
    adam_atan2_class,
    clip_gradients,
    gradient_norms,
    learning_rate,
    parameter_groups,
    set_learning_rates,
)
from utils.published import load_pretrained_decoder
from utils.report import predictions_page, shown_queries
from utils.run_logger import RunLogger, create_run_folder, run_folder
from utils.task_latents import attach_latents

log = logging.getLogger(__name__)
SHOWN_QUERIES = 16
RANK_SEED_STRIDE = 1_000_003


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step and what went wrong."""


@dataclass
class Trainer:
    """Everything that one run holds. Built by `create_trainer`; `fit` runs it."""

    config: TrainConfig
    ranks: Ranks
    train_data: FewshotTrainDataset
    eval_data: FewshotEvalDataset
    train_queries: FewshotEvalDataset
    head: ACTLossHead
    optimizer: torch.optim.Optimizer
    puzzle_optimizer: PuzzleEmbeddingSGD
    ema: EMA | None
    trained_on: TrainedOn
    logger: RunLogger
    carry: Any = None
    step: int = 0

    @property
    def model(self) -> Any:
        return self.head.model

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return len(self.train_data) * self.config.arch.steps_per_batch

    @property
    def epoch(self) -> int:
        """Complete epochs so far."""
        return self.train_data.epoch_of(self.step // self.config.arch.steps_per_batch)

    def train_step(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One ACT step, one backward, one optimizer step.

        Returns:
            The sums for the metrics and the model's outputs, both still on the device.
        """
        config = self.config
        if self.carry is None:
            self.carry = self.model.initial_carry(batch)
        slots = self.ranks.local_slots(config.global_batch_size)
        draws = exploration_draws(config.seed, self.step, config.global_batch_size, slots)
        batch = {**batch, EXPLORATION_KEY: draws.to(self.ranks.device, non_blocking=True)}
        self.carry, loss, sums, outputs = self.head(self.carry, batch)
        (loss / config.global_batch_size).backward()
        sums |= self._optimizer_step()
        self.step += 1
        return sums, outputs

    def _optimizer_step(self) -> dict[str, Tensor]:
        config = self.config
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        distributed.sum_over_ranks(grads, self.ranks)
        norms = gradient_norms(self.optimizer)
        base_lr = self.base_lr
        if config.grad_clip_norm:
            clip_gradients(self.optimizer, norms["total"], config.grad_clip_norm)
        set_learning_rates(self.optimizer, base_lr, self.step)
        self.optimizer.step()
        norms |= self.puzzle_optimizer.step(base_lr / config.lr * config.puzzle_emb_lr)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        return {f"grad/{name}_norm": norm for name, norm in norms.items()}

    @property
    def base_lr(self) -> float:
        """The schedule's rate at the current step."""
        return learning_rate(
            self.step,
            lr=self.config.lr,
            warmup_steps=self.config.lr_warmup_steps,
            total_steps=self.total_steps,
            min_ratio=self.config.lr_min_ratio,
        )

    def evaluate(self, description: str = "evaluate") -> Evaluation:
        """Evaluate the averaged weights, where there are any."""
        with self.averaged_weights():
            return evaluate(
                self.head,
                self.eval_data,
                self.ranks,
                evaluators=[evaluator.name for evaluator in self.config.evaluators],
                seen_pairs=self.trained_on.pair_hashes,
                unknown_origin=bool(self.trained_on.unknown_origin),
                workers=self.config.data_workers,
                description=description,
            )

    def averaged_weights(self) -> Any:
        return nullcontext() if self.ema is None else self.ema.swapped_in()

    def save_checkpoint(self) -> Path | None:
        """Write a checkpoint of the current step; the path on rank 0."""
        assert self.carry is not None
        folder = distributed.from_first_rank(self.logger.folder, self.ranks)
        writer = CheckpointWriter(folder / "checkpoints", self.step)
        writer.save_rank(self.ranks.rank, {"carry": carry_tensors(self.carry), "rng": torch.get_rng_state()})
        distributed.gather_lists([], self.ranks)  # a barrier
        path = None
        if self.ranks.is_first:
            path = writer.save_shared(
                self.model,
                None if self.ema is None else self.ema.state_dict(),
                self.optimizer.state_dict(),
                dump_config(self.config),
                self.trained_on,
            )
        distributed.gather_lists([], self.ranks)
        return path


def carry_tensors(carry: Any) -> dict[str, Any]:
    """A carry as nested dictionaries of tensors."""
    if isinstance(carry, dict):
        return carry
    return {k: v if isinstance(v, Tensor) else carry_tensors(v) for k, v in vars(carry).items()}


def seen_in_training(store: PuzzleStore, data: FewshotTrainDataset, data_paths: Sequence[str]) -> TrainedOn:
    """The puzzles that training draws, and their pairs; of held-out ones, the demonstrations."""
    hashes: list[str] = []
    held_out: list[str] = []
    for p in data.puzzles:
        puzzle = store.manifest.puzzles[p]
        if puzzle.split == "test":
            held_out.append(puzzle.id)
            hashes += puzzle.pair_hashes[: store.puzzle_demos[p]]  # demonstrations come first and all have outputs
        else:
            hashes += puzzle.pair_hashes
    return TrainedOn(
        puzzle_ids=tuple(store.metadata.puzzle_ids[p] for p in data.puzzles),
        pair_hashes=tuple(hashes),
        held_out_demonstrations=tuple(held_out),
        datasets=store.metadata.sha256
        if len(data_paths) > 1
        else {f"{data_paths[0]}/{name}": value for name, value in store.metadata.sha256.items()},
    )


def create_train_data(config: TrainConfig, store: PuzzleStore, ranks: Ranks) -> FewshotTrainDataset:
    """The training batches of the system that the config names.

    Raises:
        DatasetError: the data set cannot give them.
    """
    options: dict[str, Any] = {
        "global_batch_size": config.global_batch_size,
        "epochs": config.epochs,
        "seed": config.seed,
        "max_demos": config.max_demos,
        "max_groups": config.max_train_groups,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
    }
    if isinstance(config.arch, TrmArch):
        held_out = config.train_on_held_out_demonstrations
        return PuzzleTrainDataset(
            store, held_out_demonstrations=held_out, max_held_out_groups=config.max_eval_groups, **options
        )
    options["query_sampling"] = config.query_sampling
    if isinstance(config.arch, HybridArch):
        tasks = {"text_augmentations": config.arch.text_augmentations, "curriculum": config.arch.curriculum}
        return TextTrainDataset(store, **tasks, **options)
    return FewshotTrainDataset(store, **options)


def create_eval_data(
    config: TrainConfig, store: PuzzleStore, ranks: Ranks, split: Split, max_augmentations: int | None
) -> FewshotEvalDataset:
    """The queries of the puzzles that the config evaluates (split test) or trains on.

    Raises:
        DatasetError: the data set has fewer puzzles.
    """
    return FewshotEvalDataset(
        store,
        batch_size=config.eval_batch_size,
        split=split,
        max_groups=config.max_eval_groups if split == "test" else config.max_train_groups,
        max_augmentations=max_augmentations,
        max_demos=config.max_demos,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )


def create_trainer(config: TrainConfig, ranks: Ranks) -> Trainer:
    """Load the data, build model, loss and optimizer, then open the run folder.

    Raises:
        DatasetError, CheckpointError: a file that the run needs is missing or does not fit. Nothing is written then.
        ConfigError: the language model of a TRM hybrid cannot be used.
    """
    store = load_stores(config.data_paths)
    train_data = create_train_data(config, store, ranks)
    eval_data = create_eval_data(config, store, ranks, "test", config.max_eval_augmentations)
    train_queries = create_eval_data(config, store, ranks, "train", 1)
    config = attach_latents(config, (train_data, eval_data, train_queries), ranks)
    torch.manual_seed(config.seed)
    model = create_model(config.arch, store.metadata).to(ranks.device)
    torch.manual_seed(config.seed + RANK_SEED_STRIDE * ranks.rank)  # a variational encoder's noise differs by rank
    trained_on = seen_in_training(store, train_data, config.data_paths)
    if config.load_pretrained_decoder is not None:
        arch = dump_config(config)["arch"]
        trained_on = trained_on.joined(load_pretrained_decoder(model.inner, config.load_pretrained_decoder, arch))
    groups = parameter_groups(
        model,
        {
            "encoder": GroupOptions(lr_scale=config.encoder_lr_scale or 1.0, frozen=config.freeze_encoder),
            "inner": GroupOptions(frozen_steps=config.freeze_decoder_steps),
        },
    )
    optimizer = adam_atan2_class(ranks.device)(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay
    )
    folder = create_run_folder(config) if ranks.is_first else None
    return Trainer(
        config=config,
        ranks=ranks,
        train_data=train_data,
        eval_data=eval_data,
        train_queries=train_queries,
        head=create_loss_head(config.arch, model),
        optimizer=optimizer,
        puzzle_optimizer=PuzzleEmbeddingSGD(model, config.puzzle_emb_weight_decay, ranks),
        ema=EMA(model, config.ema_rate) if config.ema else None,
        trained_on=trained_on,
        logger=RunLogger(folder, config),
    )


class MetricWindow:
    """Sums since the last log, kept on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.began = time.perf_counter()

    def add(self, sums: dict[str, Tensor]) -> None:
        for key, value in sums.items():
            if not key.startswith("grad/"):
                value = value.double()
                self.sums[key] = self.sums[key] + value if key in self.sums else value
        self.steps += 1

    def read(self, ranks: Ranks, global_batch_size: int) -> dict[str, float]:
        """Means over ranks and steps as `train/` metrics; those over halted samples only where any has halted."""
        names = list(self.sums)
        values = [self.sums[name].clone() for name in names]
        distributed.sum_over_ranks(values, ranks)
        sums = dict(zip(names, torch.stack(values).tolist(), strict=True))
        samples = self.steps * global_batch_size
        metrics = {f"train/{key}": sums[key] / samples for key in ("loss", "lm_loss", "q_halt_loss", "kl_loss")}
        for prefix in ("", "inflight_"):
            count = sums[f"{prefix}count"]
            if count:
                for key in ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps"):
                    metrics[f"train/{prefix}{key}"] = sums[prefix + key] / count
        metrics["train/halted_per_step"] = sums["count"] / self.steps
        metrics["train/samples_per_second"] = samples / (time.perf_counter() - self.began)
        return metrics


def fit(config: TrainConfig, ranks: Ranks) -> dict[str, float]:
    """Train, evaluate and save as the config says; returns the last value of every metric.

    Raises:
        DatasetError, CheckpointError: before anything is written.
        TrainingError: the loss or the gradient is not finite.
    """
    trainer = create_trainer(config, ranks)
    log.info(
        "%d training puzzles, %d steps, %d held-out puzzles with %d queries, on %s",
        len(trainer.train_data.puzzles),
        trainer.total_steps,
        len(trainer.eval_data.puzzles),
        len(trainer.eval_data.query_row),
        ranks.device,
    )
    last: dict[str, float] = {}
    window = MetricWindow()
    evaluations = 0
    trainer.model.train()
    batches = iterate(trainer.train_data, workers=config.data_workers, pin_memory=ranks.device.type == "cuda")
    with (
        tqdm(total=trainer.total_steps, desc="train", disable=not ranks.is_first) as bar,
        logging_redirect_tqdm(),
    ):
        for batch in repeated(batches, config.arch.steps_per_batch, ranks.device):
            epoch_before = trainer.epoch
            base_lr = trainer.base_lr
            sums, outputs = trainer.train_step(batch)
            window.add(sums)
            bar.update()
            epoch = trainer.epoch
            is_last = trainer.step == trainer.total_steps
            evaluates = is_last or epoch // config.eval_interval > epoch_before // config.eval_interval
            if trainer.step % config.log_interval == 0 or evaluates:
                metrics = window.read(ranks, config.global_batch_size)
                metrics |= step_metrics(trainer, sums, outputs, base_lr)
                metrics["epoch"] = epoch
                trainer.logger.log(trainer.step, metrics)
                refuse_non_finite(trainer.step, metrics)
                last |= metrics
                shown = {k: f"{last.get(f'train/{k}', float('nan')):.3f}" for k in ("loss", "accuracy", "steps")}
                bar.set_postfix(shown)
                window = MetricWindow()
            if evaluates:
                evaluations += 1
                last |= evaluate_and_save(trainer, evaluations, epoch, is_last)
                window.began = time.perf_counter()
    trainer.logger.close()
    return last


def repeated(batches: Iterator[Batch], times: int, device: torch.device) -> Iterator[Batch]:
    """Each batch on the device, `times` in a row."""
    for batch in batches:
        moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        for _ in range(times):
            yield moved


def step_metrics(
    trainer: Trainer, sums: dict[str, Tensor], outputs: dict[str, Tensor], base_lr: float
) -> dict[str, float]:
    """Learning rates, gradient norms and encoder health of the last step."""
    tensors = {key: value for key, value in sums.items() if key.startswith("grad/")}
    groups = trainer.carry.current_data.get("puzzle_groups")
    if trainer.model.reads_demonstrations:
        tensors |= {f"train/{key}": value for key, value in encoder_health(outputs["context"], groups).items()}
    tensors |= {f"train/{key}": value.mean() for key, value in outputs.items() if key.startswith("encoder_carry_")}
    metrics = dict(zip(tensors, torch.stack([t.double() for t in tensors.values()]).tolist(), strict=True))
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    metrics["train/lr"] = base_lr
    if trainer.model.reads_demonstrations:
        metrics["train/encoder_lr"] = rates.get("encoder", 0.0)
        encoder, inner = metrics.get("grad/encoder_norm", 0.0), metrics.get("grad/inner_norm", 0.0)
        metrics["grad/encoder_share"] = encoder / (encoder + inner) if encoder + inner > 0 else 0.0
    return metrics


def refuse_non_finite(step: int, metrics: dict[str, float]) -> None:
    """Stop when the loss or a gradient norm of the last steps is not a finite number."""
    for key in ("train/loss", "grad/total_norm"):
        if not abs(metrics[key]) < float("inf"):
            raise TrainingError(f"step {step}: {key} is {metrics[key]}; the run is stopped")


def evaluate_and_save(trainer: Trainer, number: int, epoch: int, is_last: bool) -> dict[str, float]:
    """One evaluation with everything that is written at it."""
    config, logger = trainer.config, trainer.logger
    metrics: dict[str, float] = {}
    if len(trainer.eval_data.query_row):
        evaluation = trainer.evaluate(f"evaluate (step {trainer.step})")
        metrics = evaluation.metrics
        logger.log(trainer.step, {**metrics, "epoch": epoch})
        if logger.folder is not None:
            if config.evaluators:
                write_folder_file(logger.folder / "submission.json", json.dumps(evaluation.submission))
            rows = {"step": trainer.step, "act_steps": evaluation.step_table}
            with (logger.folder / "act_steps.jsonl").open("a") as file:
                file.write(json.dumps(rows) + "\n")
    every = config.log_predictions_every
    if every and (number % every == 0 or is_last) and trainer.ranks.is_first:
        with trainer.averaged_weights():
            logger.log_page(trainer.step, "predictions.html", prediction_html(trainer))
    if config.checkpoint_every_eval or is_last:
        trainer.save_checkpoint()
    return metrics


def prediction_html(trainer: Trainer) -> str:
    """The page of the first training and held-out queries."""
    device = trainer.ranks.device
    sections = {
        "Training puzzles": shown_queries(trainer.model, trainer.train_queries, SHOWN_QUERIES, device),
        "Held-out puzzles": shown_queries(trainer.model, trainer.eval_data, SHOWN_QUERIES, device),
    }
    return predictions_page(f"Predictions after step {trainer.step}", sections)


def summary(metrics: dict[str, float], folder: Path) -> str:
    """The table that ends a run."""
    num_puzzles = int(metrics.get("ARC/num_puzzles", 0))

    def shown(key: str, form: str, scale: float = 1.0) -> str:
        return form.format(scale * metrics[key]) if key in metrics else "-"

    rows = [
        ("train token accuracy", shown("train/accuracy", "{:.1f} %", 100)),
        ("train exact match", shown("train/exact_accuracy", "{:.1f} %", 100)),
        ("mean ACT steps", shown("train/steps", "{:.2f}")),
        ("held-out token accuracy", shown("eval/accuracy", "{:.1f} %", 100)),
        ("held-out (validation) exact match", shown("eval/exact_accuracy", "{:.1f} %", 100)),
    ]
    for k in (1, 2):
        for name in (f"pass@{k}", f"contaminated_pass@{k}"):
            if f"ARC/{name}" in metrics:
                solved, low, high = (metrics[f"ARC/{name}_{part}"] for part in ("solved", "low", "high"))
                interval = f"{solved:g}/{num_puzzles}, 95 %: {100 * low:.1f}-{100 * high:.1f} %"
                rows.append((f"held-out {name}", f"{100 * metrics[f'ARC/{name}']:.1f} % ({interval})"))
    rows.append(("run folder", str(folder)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def main(default_config: str, argv: Sequence[str] | None = None) -> None:
    """The command line of every entry script: `[--config-name NAME] [--cfg] [key=value ...]`."""
    parser = argparse.ArgumentParser(description="Train and evaluate; overrides are Hydra's: key=value, +key=value.")
    parser.add_argument("--config-name", default=default_config, help=f"one of: {', '.join(config_names())}")
    parser.add_argument("--cfg", action="store_true", help="print the composed config and exit")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config = load_config(arguments.config_name, arguments.overrides)
        if arguments.cfg:
            sys.stdout.write(yaml.safe_dump(dump_config(config), sort_keys=False))
            return
        ranks = distributed.start(config.device)
        try:
            metrics = fit(config, ranks)
        finally:
            distributed.stop(ranks)
    except (ConfigError, DatasetError, CheckpointError, TrainingError) as error:
        parser.exit(2, f"error: {error}\n")
    if ranks.is_first:
        sys.stdout.write(summary(metrics, run_folder(config)) + "\n")
