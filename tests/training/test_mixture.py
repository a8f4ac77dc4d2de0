"""Several sources in one batch: shares, groups, what each hears, ranks, resuming, and options that are refused."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoints.checkpoint import open_checkpoint
from config.data_schema import MixtureData
from config.schema import ConfigError, TrainConfig, load_config, run_folder
from dataset.batches import Batch
from dataset.known_rules.source import KnownRulesSource
from dataset.mixture import MixtureSource, Shares
from dataset.sources import SampleResults
from dataset.store import DatasetError, PuzzleStore
from tests.processes import hashes, log_lines
from training.loop import fit
from training.sources import create_train_source
from utils.distributed import Ranks

Config = Callable[..., TrainConfig]
CLIMBS = "curriculum:[{families:[permutation],levels:[{},{sides:[3,3]}],threshold:0}],measure_steps:2"
RULES = f"{{name:known_rules,families:[permutation,tile],sides:[2,3],demos:[2,3],earlier_share:0.5,{CLIMBS}}}"


@pytest.fixture
def mixed_config(shrunk_config: Config, dataset_folder: Path) -> Config:
    """`mixed_config(shares, "key=value", ...)`: known rules with a curriculum, puzzles, and the same as RE-ARC."""

    def config(shares: tuple[str, str, str], *overrides: str, **names: str) -> TrainConfig:
        rearc = f"{{name:rearc,data_paths:[{dataset_folder}],demos:[1,2],translate:false}}"
        parts = zip(shares, (RULES, "fewshot", rearc), strict=True)
        sources = ",".join(f"{{share:{share},source:{source}}}" for share, source in parts)
        return shrunk_config("data=mixture", "data.num_batches=8", f"data.sources=[{sources}]", *overrides, **names)

    return config


def source_of(config: TrainConfig, store: PuzzleStore, rank: int = 0, world_size: int = 1) -> MixtureSource:
    source = create_train_source(config, store, Ranks(rank, world_size, torch.device("cpu")))
    assert isinstance(source, MixtureSource)
    return source


def sources_of(source: MixtureSource, batch: Batch) -> list[int]:
    """Which source each sample is of."""
    bounds = torch.tensor(source.first_group[1:])
    return torch.bucketize(batch["puzzle_groups"].long(), bounds, right=True).tolist()


def samples_of(batch: Batch, source: MixtureSource) -> Counter[tuple[object, ...]]:
    """Each sample by what it holds, without empty slots."""
    return Counter(
        (
            int(batch["puzzle_groups"][i]),
            *(batch[key][i].numpy().tobytes() for key in ("inputs", "labels")),
            *(batch[key][i][batch["demo_mask"][i]].numpy().tobytes() for key in ("demo_inputs", "demo_labels")),
        )
        for i in range(len(batch["inputs"]))
    )


def test_each_source_has_its_share_of_every_batch(mixed_config: Config, store: PuzzleStore) -> None:
    source = source_of(mixed_config(("4", "2", "2"), "global_batch_size=8"), store)
    assert len(source) == 8
    for number in range(len(source)):
        batch = source[number]
        assert sources_of(source, batch) == [0, 0, 0, 0, 1, 1, 2, 2]
        assert {len(value) for value in batch.values()} == {8}
        assert batch["demo_mask"].any(dim=1).all()
        assert not batch["demo_inputs"][~batch["demo_mask"]].any()


def test_shares_change_evenly(mixed_config: Config, store: PuzzleStore) -> None:
    config = mixed_config(("[6,0]", "[1,3]", "[1,5]"), "global_batch_size=8", "data.share_batches=4")
    source = source_of(config, store)
    counts = [Counter(sources_of(source, source[number])) for number in range(8)]
    assert [(c[0], c[1], c[2]) for c in counts] == [(6, 1, 1), (5, 1, 2), (3, 2, 3), (2, 2, 4), *[(0, 3, 5)] * 4]


def test_a_batch_is_what_its_sources_give_alone(mixed_config: Config, store: PuzzleStore) -> None:
    source = source_of(mixed_config(("2", "1", "1")), store)
    batch = source[3]
    puzzles = source.sources[1][3]
    assert torch.equal(batch["inputs"][2], puzzles["inputs"][0])
    assert int(batch["puzzle_groups"][2]) == source.sources[0].num_groups + int(puzzles["puzzle_groups"][0])


def test_two_ranks_have_together_what_one_has(mixed_config: Config, store: PuzzleStore) -> None:
    config = mixed_config(("[6,2]", "[2,2]", "[0,4]"), "global_batch_size=8", "data.share_batches=4")
    whole, *parts = (source_of(config, store, rank, ranks) for rank, ranks in ((0, 1), (0, 2), (1, 2)))
    for number in (0, 4, 7):
        joined = sum((samples_of(part[number], part) for part in parts), Counter[tuple[object, ...]]())
        assert joined == samples_of(whole[number], whole)


def test_shares_that_ranks_cannot_share_are_refused_with_one_that_fits() -> None:
    with pytest.raises(DatasetError, match=r"data\.sources\.1\.share=3: 2 ranks .* multiple of 2, such as 2"):
        Shares((4, 3, 1), (4, 3, 1), 1, 8, 2)


def test_shares_that_make_no_batch_are_refused(mixed_config: Config, store: PuzzleStore) -> None:
    with pytest.raises(DatasetError, match=r"the shares 4, 2, 1 are 7 samples, but a batch has .*=8"):
        source_of(mixed_config(("4", "2", "1"), "global_batch_size=8"), store)


def test_a_source_hears_of_its_own_samples_alone(mixed_config: Config, store: PuzzleStore) -> None:
    source = source_of(mixed_config(("2", "1", "1"), "arch.halt_max_steps=1"), store)
    batch = source[0]
    ones = torch.ones(4)
    source.observe(1, {}, SampleResults(batch, halted=ones, exact=ones))
    rules = source.sources[0]
    assert isinstance(rules, KnownRulesSource)
    assert rules.curriculum.totals.sum(0).tolist() == [2, 2]


def test_other_ranks_take_over_what_a_curriculum_in_a_mixture_counted(mixed_config: Config, store: PuzzleStore) -> None:
    config = mixed_config(("2", "1", "1"), "arch.halt_max_steps=1")
    states = []
    for exact in (0.0, 1.0):
        source = source_of(config, store)
        source.observe(1, {}, SampleResults(source[0], halted=torch.ones(4), exact=torch.full((4,), exact)))
        states.append(source.state_dict())
    taken = [source_of(config, store) for _ in range(3)]
    for rank, source in enumerate(taken):
        source.load_state_dict(source.joined_states(states, rank))
    totals = [source.state_dict()["0"]["totals"] for source in taken]
    assert totals[0].sum(0).tolist() == [2, 4]
    assert not totals[1].any()
    assert not totals[2].any()


@pytest.mark.parametrize("arch", ["cfg_pretrain_etrm_arc_agi_1", "cfg_pretrain_etrmtrm_arc_agi_1"])
def test_a_run_of_a_mixture_goes_on_bit_for_bit(mixed_config: Config, ranks: Ranks, tmp_path: Path, arch: str) -> None:
    """With the curriculum of one of its sources."""
    options = ("log_interval=1", "checkpoint_keep=null", "log_predictions_every=0", "eval_interval=99", "min_demos=1")
    shares = ("[3,1]", "1", "[0,2]")
    config = mixed_config(shares, *options, "data.share_batches=6", "checkpoint_interval=5", config_name=arch)
    fit(config, ranks)
    run, straight = run_folder(config), tmp_path / "straight"
    shutil.copytree(run, straight, symlinks=True)
    for path in (run / "checkpoints").glob("step_*"):
        if int(path.name.removeprefix("step_")) > 5:
            shutil.rmtree(path)
    assert open_checkpoint(run).rank_state(0)["source"]["mixture"]["0"]["places"]
    fit(config, ranks)
    assert log_lines(run) == log_lines(straight)
    assert hashes(open_checkpoint(run).path) == hashes(open_checkpoint(straight).path)


def test_what_was_trained_on_is_what_all_sources_are(mixed_config: Config, store: PuzzleStore) -> None:
    seen = source_of(mixed_config(("2", "1", "1")), store).trained_on()
    assert len(seen.puzzle_ids) == len(store.puzzles_of("train"))
    assert seen.generators[0].startswith("known_rules(")


def test_a_source_takes_from_its_file_what_is_not_said() -> None:
    config = load_config("cfg_mixture", ["data.sources=[{share:32,source:{name:rearc,demos:[1,3]}}]"])
    assert isinstance(config.data, MixtureData)
    (part,) = config.data.sources
    shown = part.source.model_dump()
    assert shown == {
        "name": "rearc",
        "data_paths": ("data/rearc",),
        "num_batches": config.data.num_batches,
        "epoch_batches": config.data.epoch_batches,
        "demos": (1, 3),
        "translate": True,
    }


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ("{share:32,source:{name:rearc,num_batches:5}}", r"data\.sources\.0\.source\.num_batches would change nothing"),
        ("{share:32,source:puzzle_id}", r"data\.sources\.0\.source\.name=puzzle_id is not one of"),
        (
            "{share:32,source:{name:known_rules,curriculum:[{families:[swap],levels:[{}]}],settle_after:9999999}}",
            r"data\.sources\.0\.source\.settle_after=9999999: the run ends",
        ),
        ("{share:32,source:{name:rearc,demo:3}}", r"data\.sources\.0\.source\.rearc\.demo"),
        ("{share:0,source:rearc}", r"data\.sources\.0\.share: a source without any sample"),
        ("{share:32,source:{name:rearc,demos:[3,2]}}", r"the smaller number first"),
        (
            "{share:[32,16],source:{name:fewshot,versions:2}},{share:[0,16],source:rearc}",
            r"data\.sources\.0\.source\.versions=2: .* a share that changes",
        ),
    ],
)
def test_sources_that_cannot_be_are_refused(sources: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("cfg_mixture", [f"data.sources=[{sources}]"])


@pytest.mark.parametrize("key", ["epochs=3", "data.share_batches=5", "min_demos=2", "query_sampling=test"])
def test_what_no_source_reads_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="would change nothing"):
        load_config("cfg_mixture", ["data.sources=[{share:32,source:rearc}]", key])
