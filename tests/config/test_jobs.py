"""Every line of every job file composes and validates; a shrunk one runs under torchrun."""

import os
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from config.schema import TrainConfig, load_config
from jobs.file import JobFile
from jobs.sheet import Options, Sheet

ROOT = Path(__file__).parents[2]
JOB_FILES = sorted(ROOT.glob("jobs-*.txt"))


def jobs_of(path: Path) -> list[list[str]]:
    """The training commands of a job file, as words."""
    commands = [shlex.split(line.command) for line in JobFile(path).read()]
    return [words for words in commands if any(word.startswith("pretrain_") for word in words)]


ALL_JOBS = [pytest.param(words, id=f"{path.stem}:{words[-1]}") for path in JOB_FILES for words in jobs_of(path)]


def script_and_config(words: list[str]) -> tuple[str, TrainConfig]:
    return _script_and_config(tuple(words))


@lru_cache
def _script_and_config(words: tuple[str, ...]) -> tuple[str, TrainConfig]:
    first = words.index(next(word for word in words if word.startswith("pretrain_")))
    assert words[:first] in (("torchrun", "--nproc-per-node", "4"), ("python",))
    script, flag, name, *overrides = words[first:]
    assert flag == "--config-name"
    return script, load_config(name, overrides)


@pytest.fixture
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("_in_the_project")
@pytest.mark.parametrize("path", JOB_FILES, ids=lambda p: p.stem)
def test_the_runner_finds_no_fault_in_a_job_file(path: Path) -> None:
    sheet = Sheet(JobFile(path), Options(gpus=("0", "1", "2", "3"), on_cpu=False))
    assert sheet.faults() == []
    assert JobFile(path).nearly_jobs() == []
    assert {line.mark for line in JobFile(path).read()} <= {" ", "x"}  # what is finished may be said in the repository


@pytest.mark.parametrize("words", ALL_JOBS)
def test_every_job_composes_and_validates(words: list[str]) -> None:
    script, config = script_and_config(words)
    assert (ROOT / script).exists()
    system = config.arch.name.split(".")[1].split("@")[0]
    assert script == f"pretrain_{system}.py"
    assert config.run_name is not None


def test_the_smoke_series_builds_its_data_first_and_has_two_seeds_of_each_experiment() -> None:
    first, *runs = JobFile(ROOT / "jobs-cpu-smoke.txt").read()
    assert (first.command, first.section) == ("make data/arc1-demo/metadata.json", 0)
    assert {line.section for line in runs} == {1}
    configs = [script_and_config(shlex.split(line.command))[1] for line in runs]
    names = [f"E0{kind}_seed{seed}" for seed in (0, 1) for kind in "abc"]
    assert [(config.run_name, config.seed) for config in configs] == [(name, int(name[-1])) for name in names]
    assert {config.project_name for config in configs} == {"cpu-smoke"}
    assert {config.data_paths for config in configs} == {("data/arc1-demo",)}


def test_the_overfit_series_is_complete_and_alike_but_for_what_it_varies() -> None:
    configs = {c.run_name: c for c in (script_and_config(w)[1] for w in jobs_of(ROOT / "jobs-etrmtrm-overfit.txt"))}
    expected = "E0a E0b E0c E1a E1b E2a E2b E2c E2d E2e E3a E3b E3c E3d E4a E4b E4c"
    assert sorted(configs) == expected.split()
    for config in configs.values():
        assert (config.max_train_groups, config.max_eval_groups, config.epochs) == (32, 32, 20000)
        assert (config.eval_interval, config.grad_clip_norm, config.project_name) == (1000, 1.0, "etrmtrm-overfit")
    steps = {name: (configs[name].arch.halt_max_steps, configs[name].arch.halt_exploration_prob) for name in configs}
    assert [steps[f"E2{i}"] for i in "abcde"] == [(8, 0.5), (16, 0.5), (32, 0.5), (16, 0.7), (16, 0.0)]
    assert [configs[f"E3{i}"].lr for i in "abc"] == [1e-4, 5e-5, 2e-4]
    assert configs["E3d"].encoder_lr_scale == 0.5
    assert [configs[f"E4{i}"].global_batch_size for i in "abc"] == [128, 256, 512]
    assert (configs["E1a"].arch.encoder_num_layers, configs["E1b"].arch.encoder_norm_style) == (4, "pre")


def test_the_commented_pretrained_job_validates_without_its_file() -> None:
    line = next(x for x in (ROOT / "jobs-etrmtrm-overfit.txt").read_text().splitlines() if x.startswith("# torchrun"))
    _, config = script_and_config(shlex.split(line[2:]))
    assert config.load_pretrained_decoder is not None
    assert not Path(config.load_pretrained_decoder).exists()


def test_the_first_e0b_line_runs_shrunk_under_torchrun(dataset_folder: Path, tmp_path: Path) -> None:
    words = next(w for w in jobs_of(ROOT / "jobs-etrmtrm-overfit.txt") if "+run_name=E0b" in w)
    shrink = (
        f"data_paths=[{dataset_folder}] arch.hidden_size=32 arch.num_heads=2 arch.H_cycles=1 arch.L_cycles=1 "
        "arch.halt_max_steps=2 arch.forward_dtype=float32 global_batch_size=8 epochs=1 eval_interval=1 max_demos=2 "
        "max_eval_groups=2 max_eval_augmentations=1 eval_batch_size=4 data_workers=0 device=cpu"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", str(ROOT / words[3]), *words[4:]]
    done = subprocess.run(
        [*command, *shrink.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "runs/etrmtrm-overfit/E0b"
    assert (run / "submission.json").exists()
    assert (run / "metrics.jsonl").read_text().count("encoder_carry_change_rel") >= 2
