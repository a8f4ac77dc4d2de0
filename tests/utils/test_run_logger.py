"""The run folder and its logs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from config.schema import TrainConfig, run_folder
from reports.observers import RUN_OBSERVERS
from tests.run_fixtures import new_run_folder
from training.loop import fit
from utils.distributed import Ranks
from utils.run_logger import RunLogger

Config = Callable[..., TrainConfig]
MetricsOf = Callable[[Path], list[dict[str, float]]]
SHORT = (
    "+run_name=run",
    "epochs=1",
    "log_interval=1",
    "max_eval_groups=1",
    "max_eval_augmentations=1",
    "checkpoint_every_eval=false",
)
FOLDER = Path("runs/etrm-arc/run")


def test_the_run_folder_is_that_of_project_and_run_name(shrunk_config: Config) -> None:
    config = shrunk_config("+project_name=act-mode", '+run_name="A1 lr=1e-4"')
    assert run_folder(config) == Path("runs/act-mode/A1 lr=1e-4")


def test_runs_without_name_differ_by_seed(shrunk_config: Config) -> None:
    assert run_folder(shrunk_config("seed=1")) != run_folder(shrunk_config("seed=2"))


def test_the_config_in_the_run_folder_is_the_runs_config(shrunk_config: Config) -> None:
    config = shrunk_config("lr=3.7e-5", "+run_name=run", "load_pretrained_decoder=runs/some/where")
    folder = new_run_folder(config)
    assert folder == FOLDER
    assert TrainConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text())) == config


def test_an_earlier_run_of_the_same_name_is_moved_aside_whole(
    shrunk_config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    config = shrunk_config("+run_name=run")
    for number in range(3):
        folder = new_run_folder(config)
        assert [path.name for path in folder.iterdir()] == ["config.yaml"]
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "number").write_text(str(number))
    assert sorted(path.name for path in FOLDER.parent.iterdir()) == ["run", "run.old-1", "run.old-2"]
    kept = [FOLDER.with_name(name) / "checkpoints" / "number" for name in ("run.old-1", "run.old-2", "run")]
    assert [path.read_text() for path in kept] == ["0", "1", "2"]
    assert sum("run.old-" in record.getMessage() for record in caplog.records) == 2


@pytest.mark.parametrize("has_run", [False, True])
def test_the_log_of_a_job_runner_stays_when_a_run_starts_anew(shrunk_config: Config, has_run: bool) -> None:
    """The runner opens `job.log` before the run begins, and goes on writing into it."""
    config = shrunk_config("+run_name=run")
    folder = run_folder(config)
    folder.mkdir(parents=True)
    if has_run:
        (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    with (folder / "job.log").open("a") as log:
        log.write("before\n")
        new_run_folder(config)
        log.write("after\n")
    assert (folder / "job.log").read_text() == "before\nafter\n"
    assert [path.name for path in folder.parent.iterdir() if path != folder] == (["run.old-1"] if has_run else [])


def test_a_second_fit_under_one_name_does_not_mix_with_the_first(
    shrunk_config: Config, ranks: Ranks, metrics_of: MetricsOf
) -> None:
    fit(shrunk_config(*SHORT, "seed=1"), ranks)
    first = metrics_of(FOLDER)
    fit(shrunk_config(*SHORT, "seed=2", "resume=never"), ranks)
    assert metrics_of(FOLDER.with_name("run.old-1")) == first
    assert [line["step"] for line in metrics_of(FOLDER)] == [line["step"] for line in first]
    assert metrics_of(FOLDER) != first


def test_lines_can_be_read_at_once_and_hold_finite_numbers_alone(shrunk_config: Config, metrics_of: MetricsOf) -> None:
    config = shrunk_config("+run_name=run")
    logger = RunLogger(new_run_folder(config))
    logger.log(1, {"a": 1.5, "b": float("nan"), "c": float("inf"), "d": -float("inf")})
    assert metrics_of(FOLDER) == [{"step": 1, "a": 1.5}]
    logger.log(2, {"a": 2.5})
    assert metrics_of(FOLDER) == [{"step": 1, "a": 1.5}, {"step": 2, "a": 2.5}]
    logger.close()


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = RunLogger(None, RUN_OBSERVERS)
    logger.log(1, {"a": 1.0})
    logger.evaluated(is_last=True)
    logger.close()
    assert not list(tmp_path.iterdir())
