"""Latents for the data sets of a run: render every task, let the language model read what is not in the cache."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from config.schema import ConfigError, HybridArch, TrainConfig
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.sources import TrainSource
from dataset.store import PuzzleStore
from dataset.text_tasks import TaskLatents, TaskTable, TextTrainDataset, eval_tasks
from inference.latent_cache import LatentCache, TextSystem
from models.text_reasoning import TaskText, TaskTokenizer
from utils.distributed import Ranks, gather_lists

log = logging.getLogger(__name__)


def attach_latents(
    config: TrainConfig, datasets: Sequence[TrainSource | FewshotEvalDataset], ranks: Ranks
) -> TrainConfig:
    """Give the data sets of a TRM hybrid the latents of their tasks; other systems' are left as they are.

    All ranks share the reading. Afterwards no language model is in memory.

    Returns:
        The config with the width of the hidden states in `arch.text_hidden_size`.

    Raises:
        TextModelError: the language model or a text cannot be used.
        ConfigError: `arch.text_hidden_size` is given and is not the model's.
        DatasetError: arch.latents=shuffled with one puzzle.
    """
    arch = config.arch
    if not isinstance(arch, HybridArch):
        return config
    system = TextSystem(arch)
    with_states = arch.conditioning == "cross_attention"
    cache = LatentCache(system, Path(arch.text_cache), with_states=with_states)
    asked = [data for data in datasets if isinstance(data, TextTrainDataset | FewshotEvalDataset)]
    assert len(asked) == len(datasets), "a TRM hybrid trains on texts"
    tables = [data.tasks if isinstance(data, TextTrainDataset) else eval_tasks(data) for data in asked]
    texts = [task_texts(table, data.store, system.tokenizer) for table, data in zip(tables, asked, strict=True)]
    _tell_dropped(texts, system.tokenizer)
    everything = list({text.text: text for part in texts for text in part}.values())
    made = cache.fill(everything[ranks.rank :: ranks.world_size], progress=ranks.is_first)
    made = sum(gather_lists([made], ranks))
    log.info("%d task texts, %d of them read now; latents in %s", len(everything), made, cache.folder)
    for table, part, data in zip(tables, texts, asked, strict=True):
        data.conditions = _latents(table, part, cache, config)
    width = cache.read(everything[:1]).shape[1]
    if arch.text_hidden_size not in (None, width):
        raise ConfigError(
            f"arch.text_hidden_size={arch.text_hidden_size}, but the hidden states of {arch.text_model} are {width} "
            "wide; null reads it from the model"
        )
    return config.model_copy(update={"arch": arch.model_copy(update={"text_hidden_size": width})})


def task_texts(table: TaskTable, store: PuzzleStore, tokenizer: TaskTokenizer) -> list[TaskText]:
    """The text of each task.

    Raises:
        TextModelError: one does not fit the token budget.
    """
    return [tokenizer(table.name(store, task), *table.grids(store, task)) for task in range(len(table))]


def _tell_dropped(texts: Sequence[Sequence[TaskText]], tokenizer: TaskTokenizer) -> None:
    dropped = [text.dropped for part in texts for text in part if text.dropped]
    if dropped:
        log.warning(
            "%d of %d task texts do not fit into %d tokens: %d demonstrations are left out of them",
            len(dropped),
            sum(map(len, texts)),
            tokenizer.max_tokens,
            sum(dropped),
        )


def _latents(table: TaskTable, texts: Sequence[TaskText], cache: LatentCache, config: TrainConfig) -> TaskLatents:
    """The latents of a table, each text's once, under the control that `arch.latents` names."""
    arch = config.arch
    assert isinstance(arch, HybridArch)
    distinct = {text.text: text for text in texts}
    number = {text: i for i, text in enumerate(distinct)}
    source = np.array([number[text.text] for text in texts], dtype=np.int64)
    if arch.latents == "shuffled":
        source = source[table.donors(config.seed)]
    return TaskLatents(
        z_init=cache.read(list(distinct.values())),
        source=source,
        states=tuple(map(cache.states_path, distinct.values())) if cache.with_states else (),
        longest=max((len(text.tokens) for text in texts), default=0),
        is_zero=arch.latents == "zero",
    )
