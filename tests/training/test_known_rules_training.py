"""Training on known rules: a run learns, changes its stage, goes on bit for bit, and is evaluated on held-out tasks."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints.checkpoint import open_checkpoint
from config.data_schema import KnownRulesData
from config.schema import ConfigError, TrainConfig, load_config, run_folder
from dataset.build_known_rules import main
from dataset.known_rules.family import Lesson, TaskSettings
from dataset.known_rules.source import KnownRulesSource
from dataset.store import DatasetError, load_store, load_stores
from tests.processes import hashes, log_lines
from tests.run_fixtures import RULES_OPTIONS
from training.loop import fit
from training.sources import create_train_source
from utils.distributed import Ranks

CURRICULUM = (
    "data.curriculum=[{families:[permutation,dihedral],levels:[{sides:[2,2],demos:[2,2]},{}],threshold:0}]",
    "data.at_once=1",
    "data.patience=2",
    "data.measure_steps=2",
)
SHORT = (
    "data=known_rules",
    "data.families=[permutation,dihedral,tile]",
    "data.sides=[2,3]",
    "data.epoch_batches=2",
    "log_interval=1",
    "checkpoint_keep=null",
    "log_predictions_every=0",
)
Config = Callable[..., TrainConfig]


@pytest.fixture
def rules_config(shrunk_config: Config, rules_dataset: Path) -> Config:
    """`rules_config("key=value", ...)`: a short run on known rules."""
    return lambda *overrides, **names: shrunk_config(*SHORT, f"data_paths=[{rules_dataset}]", *overrides, **names)


@pytest.mark.parametrize(
    ("halting", "saved", "num_batches"), [((), 4, 8), (("arch.halting=fixed", "arch.num_act_steps=2"), 5, 7)]
)
@pytest.mark.parametrize("arch", ["cfg_pretrain_etrm_arc_agi_1", "cfg_pretrain_etrmtrm_arc_agi_1"])
def test_a_run_with_a_curriculum_goes_on_bit_for_bit(
    rules_config: Config,
    ranks: Ranks,
    tmp_path: Path,
    arch: str,
    halting: tuple[str, ...],
    saved: int,
    num_batches: int,
) -> None:
    """With two steps a batch the checkpoint lies in the middle of a batch, the last before a family begins."""
    options = (
        *halting,
        *CURRICULUM,
        f"data.num_batches={num_batches}",
        f"checkpoint_interval={saved}",
        "eval_interval=99",
    )
    config = rules_config("max_train_groups=null", *options, config_name=arch)
    fit(config, ranks)
    run, straight = run_folder(config), tmp_path / "straight"
    shutil.copytree(run, straight, symlinks=True)
    for path in (run / "checkpoints").glob("step_*"):
        if int(path.name.removeprefix("step_")) > saved:
            shutil.rmtree(path)
    fit(config, ranks)
    assert log_lines(run) == log_lines(straight)
    assert hashes(open_checkpoint(run).path) == hashes(open_checkpoint(straight).path)
    places = open_checkpoint(run).rank_state(0)["source"]["known_rules"]["places"]
    assert [opened for _, _, _, opened, _ in places] == [1, 2, 3]
    assert log_lines(run)[-2]["train/lessons_read/tile"] == 0


def test_a_run_is_evaluated_on_held_out_tasks_every_so_many_epochs(rules_config: Config, ranks: Ranks) -> None:
    config = rules_config("data.num_batches=9", "eval_interval=2", "max_eval_groups=null", "data_workers=1")
    fit(config, ranks)
    evaluated = [line for line in log_lines(run_folder(config)) if "ARC/num_puzzles" in line]
    assert [line["step"] for line in evaluated] == [4, 8, 9]
    assert evaluated[-1]["ARC/num_puzzles"] == 6
    assert evaluated[-1]["ARC/num_contaminated_puzzles"] == 0
    records = open_checkpoint(run_folder(config)).trained_on.generators
    named = ("families=('permutation',)", "families=('dihedral',)", "families=('tile',)")
    assert [name in record for name, record in zip(named, records, strict=True)] == [True] * 3


def test_a_level_takes_from_the_section_what_it_leaves_out(rules_config: Config) -> None:
    one = "{families:[tile],levels:[{sides:[4,5],colors:5,demos:[1,2],distinct:true,rules:3},{}],threshold:0.5}"
    data = rules_config(f"data.curriculum=[{one}]").data
    assert isinstance(data, KnownRulesData)
    tile, *others = data.ladders()
    assert tile == [
        Lesson(TaskSettings(("tile",), (4, 5), 5, (1, 2), True, 3), 0.5),
        Lesson(TaskSettings(("tile",), (2, 3), 9, (3, 4), False), 0.5),
    ]
    assert [[lesson.settings.families for lesson in ladder] for ladder in others] == [
        [("permutation",)],
        [("dihedral",)],
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.families=[nosuch]", "data: the family 'nosuch' is not one of permutation"),
        ("data.colors=10", "colors=10"),
        ("data.sides=[3,2]", "sides=3-2"),
        ("data.curriculum=[{families:[mirror],levels:[{},{sides:[9,16]}]}]", "data.curriculum.0.levels.1: the family"),
        ("data.curriculum=[{families:[swap],levels:[{side:3}]}]", "unknown key 'data.curriculum.0.levels.0.side'"),
        ("data.curriculum=[{families:[swap,swap],levels:[{}]}]", "'swap' must be one of data.families, and named once"),
        ("data.curriculum=[{families:[swap],levels:[]}]", "data.curriculum.0.levels"),
        ("data.patience=5", "data.patience is overridden, but would change nothing"),
        ("data.num_batches=0", "data.num_batches=0: "),
        ("epochs=3", "epochs is overridden, but would change nothing: data.num_batches"),
        ("query_sampling=test", "query_sampling is overridden, but would change nothing"),
        ("data.measure_steps=5", "data.measure_steps is overridden, but would change nothing"),
        ("data.settle_after=5", "data.settle_after is overridden, but would change nothing"),
        ("data.num_batch=5", "unknown key 'data.num_batch'; the nearest key is 'data.num_batches'"),
    ],
)
def test_a_wrong_option_is_refused_by_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("cfg_pretrain_etrm_arc_agi_1", ["data=known_rules", override])
    assert message in str(caught.value)


def test_a_curriculum_settles_before_the_run_ends() -> None:
    assert load_config("cfg_known_rules", ["data.settle_after=9999"]).data.settle_after == 9999
    with pytest.raises(ConfigError, match=r"settle_after .*the run ends with data\.num_batches=10000"):
        load_config("cfg_known_rules", ["data.settle_after=10000"])


def test_an_option_of_another_source_is_refused(shrunk_config: Config) -> None:
    with pytest.raises(ConfigError, match=r"'data\.num_batches' does not belong to the chosen data"):
        shrunk_config("data.num_batches=5")


def test_ranks_that_cannot_share_a_batch_are_refused(rules_config: Config, rules_dataset: Path, ranks: Ranks) -> None:
    with pytest.raises(DatasetError, match="global_batch_size=4 is not a multiple of 3 ranks"):
        create_train_source(rules_config(), load_store(rules_dataset), Ranks(1, 3, ranks.device))
    assert isinstance(create_train_source(rules_config(), load_store(rules_dataset), ranks), KnownRulesSource)


def test_a_fixed_set_has_trained_and_held_out_tasks_of_each_family_in_turn(rules_dataset: Path) -> None:
    metadata = load_store(rules_dataset).metadata
    asked = [i for i, split in zip(metadata.puzzle_ids, metadata.puzzle_splits, strict=True) if split == "test"]
    assert asked == [f"{name}-held_out-{i:06d}" for i, name in enumerate(RULES_OPTIONS.families * 3)]
    assert len(metadata.puzzle_ids) - len(asked) + len(load_store(rules_dataset).manifest.dropped) == 12
    assert metadata.build["known_rules"] == {
        "families": ["permutation", "dihedral"],
        "sides": [2, 3],
        "colors": 9,
        "demos": [3, 4],
        "distinct": False,
        "rules": None,
    }


def test_the_command_line_builds_the_same_set(rules_dataset: Path, tmp_path: Path) -> None:
    arguments = [
        "--families",
        *RULES_OPTIONS.families,
        "--sides",
        "2",
        "3",
        "--train",
        "12",
        "--held-out",
        "6",
        "--seed",
        "1",
    ]
    main(["--output-dir", str(tmp_path / "again"), *arguments])
    assert load_store(tmp_path / "again").metadata == load_store(rules_dataset).metadata


def test_families_that_are_held_out_whole_are_asked_for_and_never_trained_on(
    rules_config: Config, ranks: Ranks, tmp_path: Path
) -> None:
    folder = tmp_path / "whole"
    options = ["--families", "dihedral", "mirror", "tile", "--sides", "2", "3", "--train", "12", "--held-out", "6"]
    main(["--output-dir", str(folder), *options, "--held-out-families", "mirror"])
    store = load_store(folder)
    families = {"train": set[str](), "test": set[str]()}
    for puzzle in store.manifest.puzzles:
        assert puzzle.rule is not None
        families[puzzle.split].add(puzzle.rule.family)
    assert families == {"train": {"dihedral", "tile"}, "test": {"mirror"}}

    for data in (store, load_stores([str(folder), str(_without_held_out_families(tmp_path))])):
        assert len(create_train_source(rules_config(), data, ranks))
        with pytest.raises(DatasetError, match="has mirror, which data_paths holds out whole"):
            create_train_source(rules_config("data.families=[mirror,tile]"), data, ranks)


def _without_held_out_families(tmp_path: Path) -> Path:
    main(["--output-dir", str(tmp_path / "other"), "--families", "swap", "--train", "2", "--held-out", "2"])
    return tmp_path / "other"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--held-out-families", "swaps"], "--held-out-families swaps: not one of the families, permutation, recolor"),
        (["--families", "swap", "--held-out-families", "swap"], "leaves no family to train on"),
        (["--families", "nosuch"], "'nosuch' is not one of permutation"),
        (["--families", "swap", "--colors", "2"], "'swap' has no rule for split=held_out"),
        (["--held-out", "0"], "--held-out 0 1 or more"),
    ],
)
def test_a_set_that_cannot_be_built_is_refused(arguments: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--output-dir", str(tmp_path / "none"), *arguments, "--train", "2"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
