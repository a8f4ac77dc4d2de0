"""Builds a trainer from a config: data, model, loss, optimizer, the checkpoint to go on from, the run folder."""

from collections.abc import Sequence
from typing import Any

import torch

from checkpoints.published import load_pretrained_decoder, load_pretrained_encoder
from config.schema import TrainConfig, dump_config, run_folder, with_dtype
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.store import DatasetError, PuzzleStore, Split, load_stores
from dataset.trained_on import TrainedOn
from inference.task_latents import attach_latents
from learning.groups import GroupOptions
from learning.learner import LearnerOptions, create_learner
from learning.optim import OptimizerOptions
from models import create_model
from models.losses import create_loss_head
from models.machine import best_dtype, compile_blocks, wants_compiling
from training.resume import claim_run_folder, data_of_run, open_run_folder, restore
from training.sources import create_train_source
from training.trainer import Trainer
from utils import distributed
from utils.distributed import Ranks
from utils.run_lock import unlock_folder
from utils.run_logger import ObserverFactory, RunLogger
from utils.signals import StopRequest

RANK_SEED_STRIDE = 1_000_003


def create_eval_data(
    config: TrainConfig, store: PuzzleStore, ranks: Ranks, split: Split, max_augmentations: int | None
) -> FewshotEvalDataset:
    """This rank's queries of the puzzles that the config evaluates (split test) or trains on.

    Raises:
        DatasetError: the data set has fewer puzzles than asked for, or some of a known rule's demonstrations would be
            left out in the evaluation.
    """
    dataset = FewshotEvalDataset(
        store,
        batch_size=config.eval_batch_size,
        batch_tokens=config.eval_batch_tokens,
        split=split,
        max_groups=config.max_eval_groups if split == "test" else config.max_train_groups,
        max_augmentations=max_augmentations,
        max_demos=config.max_demos,
        max_context_tokens=config.max_context_tokens,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    reads = config.arch.condition == "demonstrations"
    if reads and split == "test" and (found := dataset.shortened_rule()):
        raise DatasetError(f"{found}; none of them may be left out")
    return dataset


def learner_options(config: TrainConfig) -> LearnerOptions:
    """What the config says about learning."""
    return LearnerOptions(
        optimizer=OptimizerOptions(
            name=config.optimizer,
            lr=config.lr,
            muon_lr=config.muon_lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            encoder=GroupOptions(lr_scale=config.encoder_lr_scale or 1.0, frozen=config.freeze_encoder),
            inner=GroupOptions(frozen_steps=config.freeze_decoder_steps),
        ),
        global_batch_size=config.global_batch_size,
        grad_clip_norm=config.grad_clip_norm,
        ema_rate=config.ema_rate if config.ema else None,
        puzzle_emb_lr=config.puzzle_emb_lr,
        puzzle_emb_weight_decay=config.puzzle_emb_weight_decay,
    )


def create_trainer(
    config: TrainConfig,
    ranks: Ranks,
    stop: StopRequest | None = None,
    observers: Sequence[ObserverFactory] = (),
) -> Trainer:
    """Load the data, build model, loss and optimizer, take up the checkpoint that `config.resume` asks for, then open
    the run folder.

    Raises:
        DatasetError, CheckpointError, ConfigError: a file that the run needs is missing or does not fit, or the config
            does not fit the checkpoint. Nothing is written then.
    """
    try:
        return _built_trainer(config, ranks, stop, observers)
    except BaseException:
        unlock_folder(run_folder(config))  # a run that does not begin leaves no trace
        raise


def _load_pretrained(model: Any, config: TrainConfig) -> list[TrainedOn]:
    """Load the weights that the config names; what they were trained on."""
    records = []
    if config.load_pretrained_decoder is not None:
        arch = dump_config(config)["arch"]
        records.append(load_pretrained_decoder(model.inner, config.load_pretrained_decoder, arch))
    if config.load_pretrained_encoder is not None:
        records.append(load_pretrained_encoder(model.encoder, config.load_pretrained_encoder))
    return records


def _built_trainer(
    config: TrainConfig, ranks: Ranks, stop: StopRequest | None, observers: Sequence[ObserverFactory]
) -> Trainer:
    config = with_dtype(config, best_dtype(ranks.device))
    compiles = wants_compiling(config.compile, ranks.device)
    store = load_stores(config.data_paths)
    train_data = create_train_source(config, store, ranks)
    eval_data = create_eval_data(config, store, ranks, "test", config.max_eval_augmentations)
    train_queries = create_eval_data(config, store, ranks, "train", 1)
    config = attach_latents(config, (train_data, eval_data, train_queries), ranks)
    trained_on = train_data.trained_on()
    data = data_of_run(store, trained_on)
    point = distributed.on_first_rank(lambda: claim_run_folder(config, data), ranks)
    torch.manual_seed(config.seed)
    model = create_model(config.arch, store.metadata).to(ranks.device)
    torch.manual_seed(config.seed + RANK_SEED_STRIDE * ranks.rank)  # a variational encoder's noise differs by rank
    if point is None:
        for record in _load_pretrained(model, config):
            trained_on = trained_on.joined(record)
    if compiles:
        compile_blocks(model, graphs=config.compile == "graphs")
    trainer = Trainer(
        config=config,
        ranks=ranks,
        train_data=train_data,
        eval_data=eval_data,
        train_queries=train_queries,
        learner=create_learner(create_loss_head(config.arch, model), learner_options(config), ranks),
        trained_on=trained_on,
        data=data,
        logger=RunLogger(None),
        stop=StopRequest() if stop is None else stop,
    )
    if point is not None:
        restore(trainer, point.checkpoint)
    trainer.folder = distributed.on_first_rank(lambda: open_run_folder(config, point), ranks)
    if ranks.is_first:
        trainer.logger = RunLogger(trainer.folder, observers)
    return trainer
