"""A run that goes on ends as one that was never interrupted: bit for bit, line for line."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.checkpoint import CheckpointError, open_checkpoint
from config.schema import ConfigError, TrainConfig, run_folder
from dataset.store import PuzzleStore
from training.loop import Preempted, create_trainer, fit
from training.resume import claim_run_folder, config_differences
from utils.distributed import Ranks
from utils.run_lock import unlock_folder
from utils.run_status import read_status
from utils.signals import StopRequest

Config = Callable[..., TrainConfig]
HASHED = ("model.safetensors", "ema.safetensors", "optim.pt", "trained_on.json", "config.yaml")
# 10 steps of 4 samples on 8 puzzles; log lines at 4 and 10, evaluations at 6 and 10, checkpoints at 5, 6 and 10.
SHORT = (
    "epochs=5",
    "eval_interval=3",
    "log_interval=4",
    "checkpoint_interval=5",
    "checkpoint_keep=null",
    "max_eval_groups=2",
    "max_eval_augmentations=1",
    "log_predictions_every=0",
    "lr=1e-2",
    "arch.H_cycles=1",
    "arch.L_cycles=1",
    "+run_name=run",
)
SYSTEMS = {
    "etrm": ("cfg_pretrain_etrm_arc_agi_1", ()),
    "variational": ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_type=hybrid_variational",)),
    "in context": ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_type=in_context", "arch.grid_coordinates=both")),
    "read": ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_type=in_context", "arch.context_mode=read")),
    "all pairs": (
        "cfg_pretrain_etrm_arc_agi_1",
        (
            "arch.encoder_type=in_context",
            "arch.context_mode=read",
            "arch.context_attention=pair",
            "arch.targets=all_pairs",
        ),
    ),
    "etrmtrm A": ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=recurrent_standard",)),
    "etrmtrm B": ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=trm_style",)),
    "etrmtrm C": ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=in_context",)),
    "trm": ("cfg_pretrain_trm_arc_agi_1", ("max_eval_groups=2", "epochs=4")),
    # 4 batches, 3 steps each: the checkpoint of step 5 lies inside the second.
    "fixed": ("cfg_pretrain_etrm_arc_agi_1", ("arch.halting=fixed", "arch.num_act_steps=3", "epochs=2")),
    "options": (
        "cfg_pretrain_etrm_arc_agi_1",
        (
            *("arch.encoder_type=in_context", "arch.grid_conv=true", "arch.loss.pair_weight=0.1"),
            *("arch.random_depth=true", "arch.H_cycles=2"),
        ),
    ),
    "muon": ("cfg_pretrain_etrm_arc_agi_1", ("optimizer=muon", "encoder_lr_scale=0.5")),
    "without average": ("cfg_pretrain_etrm_arc_agi_1", ("ema=false", "freeze_decoder_steps=7")),
}


def hashes(run: Path) -> dict[str, str]:
    manifest = json.loads((open_checkpoint(run).path / "manifest.json").read_text())
    return {name: value for name, value in manifest["sha256"].items() if name in HASHED}


def log_lines(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a log without times."""
    lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if "per_second" not in key} for line in lines]


def assert_same_run(found: Path, expected: Path) -> None:
    assert log_lines(found) == log_lines(expected)
    assert log_lines(found, "act_steps.jsonl") == log_lines(expected, "act_steps.jsonl")
    assert hashes(found) == hashes(expected)


def cut_back(run: Path, step: int) -> None:
    """Leave what a process that was killed leaves behind some time after its checkpoint of a step."""
    for path in (run / "checkpoints").glob("step_*"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    (run / "checkpoints" / f".step_{step + 1:08d}.tmp").mkdir()
    (run / "checkpoints" / f".step_{step + 1:08d}.tmp" / "rank_1.pt").write_bytes(b"half")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "train/lo')


@pytest.fixture(scope="module")
def finished(shrunk_config: Config, train: Callable[..., Path]) -> Callable[..., Path]:
    """The folder of an undisturbed run; one that was made already is not made again."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*overrides: str, config_name: str) -> Path:
        key = (config_name, *overrides)
        if key not in made:
            made[key] = train(*SHORT, *overrides, config_name=config_name)
        return made[key]

    return run


@pytest.fixture
def straight(
    shrunk_config: Config, finished: Callable[..., Path], tmp_path: Path
) -> Callable[..., tuple[TrainConfig, Path]]:
    """`straight("key=value", ...)`: config and folder of a finished run, and beside it a copy named `copy`."""

    def run(*overrides: str, config_name: str = "cfg_pretrain_etrm_arc_agi_1") -> tuple[TrainConfig, Path]:
        source = finished(*overrides, config_name=config_name)
        config = shrunk_config(*SHORT, *overrides, config_name=config_name)
        for target in (run_folder(config), tmp_path / "copy"):
            shutil.copytree(source, target, symlinks=True)
        return config, run_folder(config)

    return run


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_goes_on_bit_for_bit(system: str, straight: Callable[..., Any], ranks: Ranks) -> None:
    """Between two log lines, with averages, carries and exploration in flight."""
    config_name, overrides = SYSTEMS[system]
    config, run = straight(*overrides, config_name=config_name)
    cut_back(run, 5)
    assert open_checkpoint(run).step == 5
    fit(config, ranks)
    assert_same_run(run, Path("copy"))
    assert not list((run / "checkpoints").glob(".step_*"))


class AskedAt(StopRequest):
    """A signal that arrives when it is looked at for the n-th time: in the n-th step, or during an evaluation."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def __bool__(self) -> bool:
        self.looks -= 1
        if self.looks <= 0:
            self.signal_name = "SIGTERM"
        return self.looks <= 0


# A look for each step; after the sixth, one for the evaluation's batch and one at its end.
@pytest.mark.parametrize("looks", [1, 6, 7], ids=["in the first step", "before an evaluation", "within it"])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_bit_for_bit(
    looks: int, straight: Callable[..., Any], ranks: Ranks
) -> None:
    config, run = straight()
    shutil.rmtree(run)
    with pytest.raises(Preempted, match=r"SIGTERM: saved at step \d+ of 10"):
        fit(config, ranks, AskedAt(looks))
    status = read_status(run)
    assert (status["state"], status["step"], status["total_steps"]) == ("preempted", {1: 1}.get(looks, 6), 10)
    assert open_checkpoint(run).step == status["step"]
    fit(config, ranks)
    assert_same_run(run, Path("copy"))
    assert read_status(run)["state"] == "done"


def test_a_finished_run_ends_at_once(straight: Callable[..., Any], ranks: Ranks) -> None:
    config, run = straight()
    last = fit(config, ranks)
    assert_same_run(run, Path("copy"))
    assert last["train/loss"] == log_lines(run)[-2]["train/loss"]  # what the run's own lines say
    assert read_status(run)["state"] == "done"


def test_resume_never_moves_the_old_run_aside(straight: Callable[..., Any], ranks: Ranks) -> None:
    config, run = straight()
    fit(config.model_copy(update={"resume": "never"}), ranks)
    assert_same_run(run.with_name("run.old-1"), Path("copy"))
    assert log_lines(run) == log_lines(Path("copy"))


def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(
    straight: Callable[..., Any], ranks: Ranks, caplog: pytest.LogCaptureFixture
) -> None:
    config, run = straight()
    for step in (6, 10):
        file = run / f"checkpoints/step_{step:08d}/optim.pt"
        file.write_bytes(file.read_bytes()[:-1])
    assert open_checkpoint(run).step == 5
    fit(config, ranks)
    assert_same_run(run, Path("copy"))
    named = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert any("step_00000010/optim.pt" in line and "step_00000005" in line for line in named)
    assert {path.name for path in (run / "checkpoints/set-aside-1").iterdir()} == {"step_00000006", "step_00000010"}


def test_a_run_with_damaged_checkpoints_alone_is_refused(straight: Callable[..., Any], ranks: Ranks) -> None:
    config, run = straight()
    for path in (run / "checkpoints").glob("step_*"):
        (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"step_00000010.*step_00000005.*resume=never"):
        fit(config, ranks)
    assert len(list((run / "checkpoints").glob("step_*"))) == 3


def test_a_path_goes_back_to_an_earlier_checkpoint(straight: Callable[..., Any], ranks: Ranks) -> None:
    """Those after it are set aside, so that no later restart takes them up."""
    config, run = straight()
    fit(config.model_copy(update={"resume": str(run / "checkpoints/step_00000005")}), ranks)
    assert log_lines(run) == log_lines(Path("copy"))
    assert (run / "checkpoints/set-aside-1/step_00000010").is_dir()


def test_a_path_elsewhere_begins_a_run_with_the_others_past(straight: Callable[..., Any], ranks: Ranks) -> None:
    config, run = straight()
    other = config.model_copy(update={"run_name": "other", "resume": str(run / "checkpoints/step_00000005")})
    fit(other, ranks)
    assert log_lines(run_folder(other)) == log_lines(run)
    assert hashes(run_folder(other))["model.safetensors"] == hashes(run)["model.safetensors"]
    assert_same_run(run, Path("copy"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lr=2e-2", r"lr was 0.01 and is 0.02.*resume_override=\[lr\]"),
        ("seed=1", r"seed was 0 and is 1"),
        ("arch.H_cycles=2", r"arch.H_cycles was 1 and is 2"),
        ("global_batch_size=2", r"global_batch_size was 4 and is 2.*cannot be overridden"),
    ],
)
def test_a_config_that_differs_where_it_matters_is_refused_with_both_values(
    override: str, words: str, straight: Callable[..., Any], shrunk_config: Config, ranks: Ranks
) -> None:
    _, run = straight()
    with pytest.raises(ConfigError, match=words):
        fit(shrunk_config(*SHORT, override), ranks)
    assert_same_run(run, Path("copy"))
    assert read_status(run)["state"] == "done"


def test_logs_evaluation_and_guards_may_differ(straight: Callable[..., Any], ranks: Ranks) -> None:
    config, run = straight()
    cut_back(run, 5)
    changed = {"log_interval": 1, "eval_interval": 1, "max_eval_groups": 1, "on_nonfinite": "skip", "data_workers": 1}
    fit(config.model_copy(update=changed), ranks)
    expected, found = hashes(Path("copy")), hashes(run)
    assert found.pop("config.yaml") != expected.pop("config.yaml")
    assert found == expected


def test_named_keys_may_differ_and_act(straight: Callable[..., Any], shrunk_config: Config, ranks: Ranks) -> None:
    _, run = straight()
    changed = shrunk_config(*SHORT, "epochs=6", "weight_decay=1.0", "beta1=0.5", "resume_override=[epochs,beta1]")
    with pytest.raises(ConfigError, match=r"weight_decay was 0.1 and is 1.0"):
        fit(changed, ranks)
    changed = changed.model_copy(update={"resume_override": ("epochs", "weight_decay", "beta1")})
    fit(changed, ranks)
    assert open_checkpoint(run).step == 12
    groups = open_checkpoint(run).optimizer_state()["param_groups"]
    assert {(group["weight_decay"], group["betas"][0]) for group in groups} == {(1.0, 0.5)}
    assert [line["step"] for line in log_lines(run) if "train/loss" in line] == [4, 10, 12]


def test_a_checkpoint_from_before_a_key_existed_goes_on_with_the_keys_default(
    straight: Callable[..., Any], shrunk_config: Config, store: PuzzleStore
) -> None:
    config, run = straight()
    checkpoint = open_checkpoint(run)
    old = {key: value for key, value in checkpoint.config.items() if key not in ("optimizer", "muon_lr")}
    checkpoint = replace(checkpoint, config=old)
    assert config_differences(config, checkpoint, store.metadata.sha256) == {}
    changed = shrunk_config(*SHORT, "optimizer=muon")
    found = config_differences(changed, checkpoint, store.metadata.sha256)
    assert found == {"optimizer": "optimizer was adam_atan2 and is muon"}
    progress = {key: value for key, value in checkpoint.progress.items() if key != "data"}
    assert progress.keys() != checkpoint.progress.keys()
    checkpoint = replace(checkpoint, progress=progress)
    known = checkpoint.trained_on.datasets
    assert config_differences(config, checkpoint, known) == {}
    rebuilt = dict.fromkeys(known, "another")
    assert config_differences(config, checkpoint, rebuilt).keys() == {"data_paths"}


def test_another_optimizers_state_is_refused(straight: Callable[..., Any], shrunk_config: Config, ranks: Ranks) -> None:
    straight()
    with pytest.raises(CheckpointError, match=r"optim.pt: does not fit the parameters"):
        fit(shrunk_config(*SHORT, "optimizer=muon", "epochs=6", "resume_override=[optimizer,epochs]"), ranks)


def test_another_data_set_under_the_same_path_is_refused(
    toy_dataset: Callable[..., Path], shrunk_config: Config, ranks: Ranks, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    config = shrunk_config(*SHORT, f"data_paths=[{data}]")
    shutil.copytree(toy_dataset(num_aug=4), data)
    fit(config, ranks)
    shutil.rmtree(data)
    shutil.copytree(toy_dataset(num_aug=4, seed=1), data)
    with pytest.raises(ConfigError, match="data_paths"):
        fit(config, ranks)


def test_training_data_beside_those_of_the_evaluation_are_known_again(
    toy_dataset: Callable[..., Path], shrunk_config: Config, ranks: Ranks, tmp_path: Path
) -> None:
    trained, evaluated = tmp_path / "trained", tmp_path / "evaluated"
    shutil.copytree(toy_dataset(num_aug=4), trained)
    shutil.copytree(toy_dataset(num_aug=2, seed=2), evaluated)
    options = (
        "data=rearc",
        f"data.data_paths=[{trained}]",
        "data.demos=[1,2]",
        "data.epoch_batches=2",
        "log_interval=4",
    )
    config = shrunk_config(*options, "data.num_batches=4", f"data_paths=[{evaluated}]", "+run_name=run")
    fit(config, ranks)
    cut_back(run_folder(config), 2)
    fit(config, ranks)
    assert open_checkpoint(run_folder(config)).step == 4
    shutil.rmtree(trained)
    shutil.copytree(toy_dataset(num_aug=4, seed=1), trained)
    with pytest.raises(ConfigError, match=f"data_paths: {trained}/.* is not what it was"):
        fit(config, ranks)


def test_carries_that_no_longer_fit_start_afresh_and_the_log_says_so(
    straight: Callable[..., Any], ranks: Ranks, caplog: pytest.LogCaptureFixture
) -> None:
    config, run = straight()
    cut_back(run, 5)
    fit(config.model_copy(update={"max_demos": 2, "resume_override": ("max_demos",)}), ranks)
    assert open_checkpoint(run).step == 10
    assert any("every sample starts afresh" in record.getMessage() for record in caplog.records)


def test_a_second_process_is_kept_out(straight: Callable[..., Any], ranks: Ranks, tmp_path: Path) -> None:
    config, run = straight()
    code = (
        "import sys, time; from pathlib import Path; from utils.run_lock import lock_folder;"
        f"lock_folder(Path({str(run)!r})); print('locked', flush=True); time.sleep(60)"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match=rf"process {other.pid} on .* is still writing this folder"):
            fit(config, ranks)
        other.kill()
    fit(config, ranks)


def test_a_first_start_has_its_folder_from_the_moment_it_looks(
    shrunk_config: Config, store: PuzzleStore, tmp_path: Path
) -> None:
    """Not only from the moment at which it makes one: another may have done so meanwhile."""
    config = shrunk_config("+run_name=run")
    assert claim_run_folder(config, store.metadata.sha256) is None
    run = run_folder(config)
    code = f"from pathlib import Path; from utils.run_lock import lock_folder; lock_folder(Path('{run}'))"
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    other = [sys.executable, "-c", code]
    done = subprocess.run(other, env=environment, capture_output=True, text=True, check=False)
    assert f"process {os.getpid()} on " in done.stderr
    unlock_folder(run)
    assert not list(tmp_path.iterdir())
    subprocess.run(other, env=environment, check=True)


def test_the_oldest_checkpoints_make_room_but_the_best_stays(shrunk_config: Config, ranks: Ranks) -> None:
    """The loss of the evaluation falls from one to the next, so the first has the highest."""
    config = shrunk_config(*SHORT, "checkpoint_interval=1", "checkpoint_keep=2", "checkpoint_best=eval/lm_loss")
    fit(config, ranks)
    checkpoints = run_folder(config) / "checkpoints"
    evaluations = {
        line["step"]: line["eval/lm_loss"] for line in log_lines(run_folder(config)) if "eval/lm_loss" in line
    }
    best = max(evaluations, key=lambda step: (evaluations[step], step))
    assert {int(path.name[5:]) for path in checkpoints.glob("step_*")} == {9, 10, best}
    assert open_checkpoint(checkpoints / "best").step == best == 6


def test_a_metric_that_is_not_measured_is_named_once(
    shrunk_config: Config, ranks: Ranks, caplog: pytest.LogCaptureFixture
) -> None:
    config = shrunk_config(*SHORT, "checkpoint_best=ARC/pass@3", "checkpoint_every_eval=false", "checkpoint_interval=0")
    with caplog.at_level(logging.WARNING):
        fit(config, ranks)
    assert sum("checkpoint_best=ARC/pass@3" in record.getMessage() for record in caplog.records) == 1
    assert [path.name for path in (run_folder(config) / "checkpoints").iterdir()] == ["step_00000010"]


def test_minutes_make_a_checkpoint_too(shrunk_config: Config, ranks: Ranks) -> None:
    every_step = shrunk_config(*SHORT, "checkpoint_interval=0", "checkpoint_minutes=1e-9")
    fit(every_step, ranks)
    assert len(list((run_folder(every_step) / "checkpoints").glob("step_*"))) == 10


def test_a_replacement_that_was_cut_short_is_undone(straight: Callable[..., Any], ranks: Ranks) -> None:
    """Between the two renames that replace a checkpoint, the only one bears another name."""
    config, run = straight()
    cut_back(run, 5)
    (run / "checkpoints/step_00000005").rename(run / "checkpoints/.step_00000005.replaced")
    fit(config, ranks)
    assert_same_run(run, Path("copy"))


def test_fresh_carries_in_the_middle_of_a_batch_have_the_steps_that_the_batch_has_left(
    straight: Callable[..., Any], ranks: Ranks
) -> None:
    """A batch is given three times: all samples of the batch must end with it, or they would straddle the next."""
    config, run = straight(*SYSTEMS["fixed"][1])
    resume = str(run / "checkpoints/step_00000005")
    trainer = create_trainer(config.model_copy(update={"resume": resume, "run_name": "other"}), ranks)
    batch = trainer.train_data[1]
    fresh = trainer.fresh_carry(batch)
    assert fresh.steps.tolist() == trainer.carry.steps.tolist() == [2] * 4
    assert not fresh.halted.any()
    trainer.carry = fresh
    trainer.train_step(batch)
    assert trainer.carry.halted.all()
    assert torch.equal(trainer.carry.current_data["inputs"], batch["inputs"])
