"""Builds a trainer from a config: data, model, loss, optimizer, the checkpoint to go on from, the run folder."""

from collections.abc import Sequence
from typing import Any

import torch

from checkpoints.checkpoint import TrainedOn
from checkpoints.published import load_pretrained_decoder
from config.schema import HybridArch, TrainConfig, TrmArch, dump_config, with_dtype
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset, FewshotTrainDataset
from dataset.puzzle_dataset import PuzzleTrainDataset
from dataset.store import PuzzleStore, Split, load_stores
from dataset.text_tasks import TextTrainDataset
from inference.task_latents import attach_latents
from learning.groups import GroupOptions
from learning.learner import LearnerOptions, create_learner
from learning.optim import OptimizerOptions
from models import create_model
from models.losses import create_loss_head
from models.machine import best_dtype, compile_blocks, wants_compiling
from training.resume import claim_run_folder, open_run_folder, restore
from training.trainer import Trainer
from utils import distributed
from utils.distributed import Ranks
from utils.run_logger import ObserverFactory, RunLogger
from utils.signals import StopRequest

RANK_SEED_STRIDE = 1_000_003


def seen_in_training(store: PuzzleStore, data: FewshotTrainDataset, data_paths: Sequence[str] = ()) -> TrainedOn:
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
        pair_hashes=tuple(dict.fromkeys(hashes)),
        held_out_demonstrations=tuple(held_out),
        datasets=store.metadata.sha256
        if len(data_paths) != 1
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
    """This rank's queries of the puzzles that the config evaluates (split test) or trains on.

    Raises:
        DatasetError: the data set has fewer puzzles than asked for.
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
    config = with_dtype(config, best_dtype(ranks.device))
    store = load_stores(config.data_paths)
    train_data = create_train_data(config, store, ranks)
    eval_data = create_eval_data(config, store, ranks, "test", config.max_eval_augmentations)
    train_queries = create_eval_data(config, store, ranks, "train", 1)
    config = attach_latents(config, (train_data, eval_data, train_queries), ranks)
    point = distributed.on_first_rank(lambda: claim_run_folder(config, store.metadata), ranks)
    torch.manual_seed(config.seed)
    model = create_model(config.arch, store.metadata).to(ranks.device)
    torch.manual_seed(config.seed + RANK_SEED_STRIDE * ranks.rank)  # a variational encoder's noise differs by rank
    trained_on = seen_in_training(store, train_data, config.data_paths)
    if config.load_pretrained_decoder is not None and point is None:
        arch = dump_config(config)["arch"]
        trained_on = trained_on.joined(load_pretrained_decoder(model.inner, config.load_pretrained_decoder, arch))
    if wants_compiling(config.compile, ranks.device):
        compile_blocks(model)
    trainer = Trainer(
        config=config,
        ranks=ranks,
        train_data=train_data,
        eval_data=eval_data,
        train_queries=train_queries,
        learner=create_learner(create_loss_head(config.arch, model), learner_options(config), ranks),
        trained_on=trained_on,
        logger=RunLogger(None),
        stop=StopRequest() if stop is None else stop,
    )
    if point is not None:
        restore(trainer, point.checkpoint)
    trainer.folder = distributed.on_first_rank(lambda: open_run_folder(config, point), ranks)
    if ranks.is_first:
        trainer.logger = RunLogger(trainer.folder, observers)
    return trainer
