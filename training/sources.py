"""The sources of training batches by the names that `data.name` gives them."""

from collections.abc import Callable, Iterable
from typing import Any

from config.data_schema import FewshotData, KnownRulesData, MixtureData, RearcData
from config.schema import HybridArch, TrainConfig
from dataset.fewshot_puzzle_dataset import FewshotTrainDataset
from dataset.known_rules.curriculum import Curriculum
from dataset.known_rules.source import KnownRulesSource
from dataset.mixture import MixtureSource, Shares
from dataset.puzzle_dataset import PuzzleTrainDataset
from dataset.rearc.source import RearcSource
from dataset.sources import TrainSource
from dataset.store import DatasetError, PuzzleStore, load_stores
from dataset.text_tasks import TextTrainDataset
from utils.distributed import Ranks

# From the config, the store that `data_paths` names, and this rank's place among the ranks.
SourceFactory = Callable[[TrainConfig, PuzzleStore, Ranks], TrainSource]


def _store_options(config: TrainConfig, ranks: Ranks) -> dict[str, Any]:
    """What every source that draws from the store is told."""
    return {
        "global_batch_size": config.global_batch_size,
        "epochs": config.epochs,
        "seed": config.seed,
        "max_demos": config.max_demos,
        "max_groups": config.max_train_groups,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
    }


def fewshot(config: TrainConfig, store: PuzzleStore, ranks: Ranks) -> FewshotTrainDataset:
    """Queries with demonstrations."""
    assert isinstance(config.data, FewshotData)
    return FewshotTrainDataset(
        store,
        query_sampling=config.query_sampling,
        min_demos=config.min_demos,
        translate=config.data.translate,
        versions=config.data.versions,
        max_context_tokens=config.max_context_tokens,
        **_store_options(config, ranks),
    )


def puzzle_id(config: TrainConfig, store: PuzzleStore, ranks: Ranks) -> PuzzleTrainDataset:
    """Queries with the number of their puzzle."""
    return PuzzleTrainDataset(
        store,
        held_out_demonstrations=config.train_on_held_out_demonstrations,
        max_held_out_groups=config.max_eval_groups,
        **_store_options(config, ranks),
    )


def text(config: TrainConfig, store: PuzzleStore, ranks: Ranks) -> TextTrainDataset:
    """Tasks that a language model reads."""
    assert isinstance(config.arch, HybridArch)
    return TextTrainDataset(
        store,
        text_augmentations=config.arch.text_augmentations,
        curriculum=config.arch.curriculum,
        query_sampling=config.query_sampling,
        **_store_options(config, ranks),
    )


def known_rules(config: TrainConfig, store: PuzzleStore, ranks: Ranks) -> KnownRulesSource:
    """Tasks that are made as they are read."""
    data = config.data
    assert isinstance(data, KnownRulesData)
    _refuse_held_out(data.families, store)
    return KnownRulesSource(
        Curriculum(
            data.ladders(),
            ranks,
            at_once=data.at_once if data.curriculum else len(data.families),
            earlier_share=data.earlier_share,
            review=data.review,
            patience=data.patience,
            settle_after=data.settle_after,
            measure_steps=data.measure_steps,
            measure_samples=data.measure_samples,
        ),
        has_curriculum=bool(data.curriculum),
        num_batches=data.num_batches,
        epoch_batches=data.epoch_batches,
        translate=data.translate,
        global_batch_size=config.global_batch_size,
        seed=config.seed,
        steps_per_batch=config.arch.steps_per_batch,
        max_context_tokens=config.max_context_tokens,
    )


def _refuse_held_out(families: Iterable[str], store: PuzzleStore) -> None:
    """Refuse to make training tasks of families that a data set holds out whole (`--held-out-families`)."""
    build = store.metadata.build
    builds = [build, *(part for part in build.values() if isinstance(part, dict))]  # of several data sets each by path
    held_out = {name for part in builds for name in part.get("held_out_families", ())}
    if both := sorted(held_out.intersection(families)):
        raise DatasetError(
            f"data.families has {', '.join(both)}, which data_paths holds out whole: name the other families in "
            "data.families and data.curriculum"
        )


def rearc(config: TrainConfig, store: PuzzleStore, ranks: Ranks) -> RearcSource:
    """New tasks of RE-ARC's pairs, which have a store of their own."""
    data = config.data
    assert isinstance(data, RearcData)
    return RearcSource(
        load_stores(data.data_paths),
        num_batches=data.num_batches,
        epoch_batches=data.epoch_batches,
        min_demos=data.demos[0],
        max_demos=data.demos[1],
        translate=data.translate,
        max_context_tokens=config.max_context_tokens,
        global_batch_size=config.global_batch_size,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )


def mixture(config: TrainConfig, store: PuzzleStore, ranks: Ranks) -> MixtureSource:
    """Several sources, each made as if it were alone with batches of its share."""
    data = config.data
    assert isinstance(data, MixtureData)
    shares = Shares(
        tuple(part.share[0] for part in data.sources),
        tuple(part.share[-1] for part in data.sources),
        data.share_batches,
        config.global_batch_size,
        ranks.world_size,
    )
    sources = []
    for part, most in zip(data.sources, shares.most(), strict=True):
        # Of finite data as many epochs as there can be samples: the mixture says when training ends.
        changes = {"data": part.source, "global_batch_size": most, "epochs": data.num_batches * most}
        sources.append(create_train_source(config.model_copy(update=changes), store, ranks))
    return MixtureSource(sources, shares, data.num_batches, data.epoch_batches)


SOURCES: dict[str, SourceFactory] = {
    "fewshot": fewshot,
    "puzzle_id": puzzle_id,
    "text": text,
    "known_rules": known_rules,
    "rearc": rearc,
    "mixture": mixture,
}


def create_train_source(config: TrainConfig, store: PuzzleStore, ranks: Ranks) -> TrainSource:
    """The training batches that `data.name` asks for.

    Raises:
        DatasetError: the store cannot give them.
    """
    return SOURCES[config.data.name](config, store, ranks)
