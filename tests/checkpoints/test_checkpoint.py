"""Checkpoints: what is written is what is read, damage is found, pretrained decoders fit or say why not."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from checkpoints.checkpoint import (
    CheckpointError,
    TrainedOn,
    load_matching,
    open_checkpoint,
)
from checkpoints.published import load_pretrained_decoder
from checkpoints.writer import CheckpointWriter
from config.schema import TrainConfig, dump_config
from dataset.build_arc_dataset import build_dataset
from dataset.store import PuzzleStore
from training.loop import Trainer, create_trainer
from utils.distributed import Ranks

MakeTrainer = Callable[..., Trainer]
Train = Callable[..., Path]
FILES = (
    "config.yaml",
    "ema.safetensors",
    "manifest.json",
    "model.safetensors",
    "optim.pt",
    "progress.json",
    "rank_0.pt",
    "trained_on.json",
)


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*"))


@pytest.fixture
def damaged(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    return Path(shutil.copytree(newest(finished_run), tmp_path / "copy"))


@pytest.fixture(scope="module")
def decoder_run(train: Train) -> Path:
    """A run of 3 steps on 4 puzzles."""
    return train("max_train_groups=4", "epochs=3", "eval_interval=3", "lr=1e-2", "ema_rate=0.5", "max_eval_groups=1")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


def test_a_checkpoint_holds_the_trainers_state_bit_for_bit(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("ema_rate=0.5", "lr=1e-2")
    for number in range(3):
        trainer.train_step(trainer.train_data[number])
    path = trainer.save_checkpoint()
    assert path is not None
    checkpoint = open_checkpoint(path)
    assert checkpoint.step == 3
    assert checkpoint.config == dump_config(trainer.config)
    assert TrainConfig.model_validate(checkpoint.config) == trainer.config

    assert trainer.learner.ema is not None
    weights = trainer.model.state_dict()
    assert_same(checkpoint.model_state(), weights)
    assert_same(checkpoint.model_state(ema=True), {**weights, **trainer.learner.ema.state_dict()})
    assert any(not torch.equal(average, weights[name]) for name, average in trainer.learner.ema.state_dict().items())

    saved, own = checkpoint.optimizer_state(), trainer.learner.optimizer.state_dict()
    assert saved["param_groups"] == own["param_groups"]
    for index, state in own["state"].items():
        assert_same(saved["state"][index], state)

    rank = checkpoint.rank_state(0)
    assert torch.equal(rank["rng"], torch.get_rng_state())
    carry = trainer.carry
    assert_same(rank["carry"]["inner_carry"], {"z_H": carry.inner_carry.z_H, "z_L": carry.inner_carry.z_L})
    assert_same(rank["carry"]["current_data"], carry.current_data)
    assert torch.equal(rank["carry"]["steps"], carry.steps)
    assert torch.equal(rank["carry"]["halted"], carry.halted)


def test_a_checkpoint_fits_a_model_built_from_its_own_config(finished_run: Path, make_trainer: MakeTrainer) -> None:
    checkpoint = open_checkpoint(newest(finished_run))
    trainer = make_trainer()
    load_matching(trainer.model, checkpoint.model_state(ema=True), str(checkpoint.path))
    assert_same(trainer.model.state_dict(), checkpoint.model_state(ema=True))


def test_a_run_leaves_a_good_checkpoint_of_each_evaluation(finished_run: Path) -> None:
    paths = sorted((finished_run / "checkpoints").glob("step_*"))
    assert [open_checkpoint(path).step for path in paths] == [4, 8]
    assert all(tuple(sorted(file.name for file in path.iterdir())) == FILES for path in paths)


def test_without_average_there_is_no_file_of_it(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("ema=false")
    trainer.train_step(trainer.train_data[0])
    path = trainer.save_checkpoint()
    assert path is not None
    assert not (path / "ema.safetensors").exists()
    assert_same(open_checkpoint(path).model_state(ema=True), trainer.model.state_dict())


def test_a_run_folder_stands_for_its_newest_checkpoint(finished_run: Path) -> None:
    assert open_checkpoint(finished_run).path == newest(finished_run)
    assert open_checkpoint(finished_run).step == 8


def test_an_unfinished_checkpoint_is_not_taken_for_one(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    CheckpointWriter(run / "checkpoints", 99).save_rank(0, {"carry": {}})
    assert open_checkpoint(run).step == 8


def test_a_checkpoint_of_the_same_step_is_replaced(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("ema=false")
    trainer.train_step(trainer.train_data[0])
    first = trainer.save_checkpoint()
    with torch.no_grad():
        trainer.model.inner.q_head.bias.fill_(3.0)
    second = trainer.save_checkpoint()
    assert first is not None
    assert second == first
    assert open_checkpoint(first).model_state()["inner.q_head.bias"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_is_found_and_its_file_named(damaged: Path, name: str, place: float) -> None:
    content = bytearray((damaged / name).read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    (damaged / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(damaged)


def test_every_flipped_bit_of_the_manifest_itself_is_found(damaged: Path) -> None:
    good = (damaged / "manifest.json").read_bytes()
    unnoticed = []
    for position in (*range(60), *range(60, len(good), 7)):
        content = bytearray(good)
        content[position] ^= 1
        (damaged / "manifest.json").write_bytes(content)
        with contextlib.suppress(CheckpointError):
            open_checkpoint(damaged)
            unnoticed.append(f"byte {position} in {good[max(position - 20, 0) : position + 20]!r}")
    assert not unnoticed


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(damaged)


@pytest.mark.parametrize("manifest", ["", "[]", "null", "{}", '{"format": 99, "step": 1, "sha256": {}}', "\xff"])
def test_a_manifest_of_another_kind_is_refused(damaged: Path, manifest: str) -> None:
    (damaged / "manifest.json").write_text(manifest, encoding="latin-1")
    with pytest.raises(CheckpointError, match=str(damaged)):
        open_checkpoint(damaged)


def test_a_path_without_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nothing", tmp_path / "run", tmp_path / "file"):
        with pytest.raises(CheckpointError, match=str(path)):
            open_checkpoint(path)


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 1)})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value + 1 for name, value in before.items() if name != "a.bias"}
    state |= {"a.weight": torch.zeros(3, 7), "c.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_matching(model, state, "somewhere")
    for part in ("somewhere", "missing a.bias", "unexpected c.weight", "a.weight is (3, 7) instead of (3, 2)"):
        assert part in str(caught.value)
    assert_same(model.state_dict(), before)


def test_a_pretrained_decoder_is_loaded_averaged_and_the_encoder_starts_afresh(
    make_trainer: MakeTrainer, decoder_run: Path
) -> None:
    pretrained = open_checkpoint(decoder_run).model_state(ema=True)
    fresh = make_trainer().model.state_dict()
    trainer = make_trainer(f"load_pretrained_decoder={decoder_run}")
    for name, value in trainer.model.state_dict().items():
        expected = fresh if name.startswith("encoder.") else pretrained
        assert torch.equal(value, expected[name]), name
    trained = {n for n, p in trainer.model.named_parameters() if not torch.equal(fresh[n], pretrained[n])}
    assert trained == {n for n, _ in trainer.model.named_parameters()}
    assert trainer.learner.ema is not None
    for name, value in trainer.learner.ema.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name])


@pytest.mark.parametrize(
    "override",
    ["arch.hidden_size=64", "arch.L_cycles=3", "arch.num_heads=4", "arch.L_layers=2", "arch.puzzle_emb_len=8"],
)
def test_a_decoder_of_other_sizes_or_cycles_is_refused_by_its_key(
    shrunk_config: Callable[..., TrainConfig], ranks: Ranks, decoder_run: Path, tmp_path: Path, override: str
) -> None:
    config = shrunk_config(f"load_pretrained_decoder={decoder_run}", override)
    with pytest.raises(CheckpointError) as caught:
        create_trainer(config, ranks)
    assert override.split("=")[0] in str(caught.value)
    assert str(decoder_run) in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_damaged_decoder_is_refused_before_anything_is_written(
    shrunk_config: Callable[..., TrainConfig],
    ranks: Ranks,
    finished_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    copy = Path(shutil.copytree(newest(finished_run), tmp_path_factory.mktemp("damaged") / "copy"))
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        create_trainer(shrunk_config(f"load_pretrained_decoder={copy}"), ranks)
    assert not Path("runs").exists()


def test_load_pretrained_decoder_returns_what_the_checkpoint_was_trained_on(
    make_trainer: MakeTrainer, decoder_run: Path
) -> None:
    trainer = make_trainer()
    arch = dump_config(trainer.config)["arch"]
    found = load_pretrained_decoder(trainer.model.inner, str(decoder_run), arch)
    assert found == open_checkpoint(decoder_run).trained_on


def expected_trained_on(store: PuzzleStore, puzzle_ids: set[str]) -> tuple[set[str], set[str]]:
    chosen = [p for p in store.manifest.puzzles if p.id in puzzle_ids]
    return {p.id for p in chosen}, {h for p in chosen for h in p.pair_hashes}


@pytest.mark.parametrize("number", [3, 8])
def test_a_checkpoint_names_exactly_the_puzzles_of_its_batches(
    make_trainer: MakeTrainer, store: PuzzleStore, number: int
) -> None:
    trainer = make_trainer(f"max_train_groups={number}", "epochs=8")
    drawn: set[int] = set()
    for i in range(trainer.total_steps):
        drawn |= set(trainer.train_data[i]["puzzle_groups"].tolist())
    ids, hashes = expected_trained_on(store, {store.metadata.puzzle_ids[p] for p in drawn})
    assert len(ids) == number
    trainer.train_step(trainer.train_data[0])
    path = trainer.save_checkpoint()
    assert path is not None
    trained_on = open_checkpoint(path).trained_on
    assert (set(trained_on.puzzle_ids), set(trained_on.pair_hashes)) == (ids, hashes)
    held_out = {p.id for p in store.manifest.puzzles if p.split == "test"}
    assert held_out.isdisjoint(trained_on.puzzle_ids)


def test_joining_keeps_both_sides_once() -> None:
    lists = ("puzzle_ids", "pair_hashes", "held_out_demonstrations", "unknown_origin", "generators")
    assert {*TrainedOn.model_fields} == {*lists, "datasets"}
    one = TrainedOn(**{name: ("a", f"{name} of one") for name in lists}, datasets={"x": "1", "y": "2"})
    two = TrainedOn(**{name: (f"{name} of two", "a") for name in lists}, datasets={"y": "3", "z": "4"})
    joined = one.joined(two)
    for name in lists:
        assert sorted(getattr(joined, name)) == ["a", f"{name} of one", f"{name} of two"]
    assert joined.datasets == {"x": "1", "y": "2", "z": "4"}


def test_a_record_without_the_later_fields_loads() -> None:
    record = TrainedOn.model_validate_json('{"puzzle_ids": ["a"], "pair_hashes": ["1"]}')
    assert record == TrainedOn(puzzle_ids=("a",), pair_hashes=("1",))
    assert (record.held_out_demonstrations, record.unknown_origin, record.datasets) == ((), (), {})


@pytest.fixture(scope="module")
def swapped_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same puzzles with the splits swapped: ARC-AGI-1 training is held out."""
    folder = tmp_path_factory.mktemp("data") / "swapped"
    build_dataset(folder, ["training", "evaluation"], test_set_name="training", num_aug=2, seed=0)
    return folder


def test_what_a_pretrained_decoder_saw_is_passed_on_and_named_in_the_metric(
    train: Train,
    decoder_run: Path,
    swapped_dataset: Path,
    metrics_of: Callable[[Path], list[dict[str, float]]],
) -> None:
    """The decoder saw the first 4 training puzzles; runs on swapped data hold out the first 6 of them."""
    swapped = (f"data_paths=[{swapped_dataset}]", "max_eval_groups=6", "max_eval_augmentations=1")
    short = (*swapped, "max_train_groups=4", "epochs=1", "eval_interval=1")
    own = train(*short)
    second = train(*short, f"load_pretrained_decoder={decoder_run}")
    third = train(*short, f"load_pretrained_decoder={second}")

    before, after = (set(open_checkpoint(run).trained_on.puzzle_ids) for run in (decoder_run, second))
    assert len(before) == 4
    assert after == before | set(open_checkpoint(own).trained_on.puzzle_ids)
    assert set(open_checkpoint(third).trained_on.puzzle_ids) == after

    clean = metrics_of(own)[-1]
    assert clean["ARC/num_contaminated_puzzles"] == 0
    assert "ARC/pass@1" in clean
    assert not any("contaminated_pass" in key for key in clean)
    for run in (second, third):
        contaminated = metrics_of(run)[-1]
        assert contaminated["ARC/num_contaminated_puzzles"] == 4
        assert "ARC/contaminated_pass@1" in contaminated
        assert not any(key.startswith("ARC/pass@") for key in contaminated)


def test_the_manifest_lists_the_sha256_of_every_other_file(finished_run: Path) -> None:
    folder = newest(finished_run)
    listed = json.loads((folder / "manifest.json").read_text())["sha256"]
    others = [folder / name for name in FILES if name != "manifest.json"]
    assert listed == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in others}
