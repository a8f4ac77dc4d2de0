"""Every line of every job file composes and validates; a shrunk one runs under torchrun."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from config.schema import TrainConfig, load_config

ROOT = Path(__file__).parents[2]
JOB = re.compile(r"^\[([ x!-])\] (.+)$")
JOB_FILES = sorted(ROOT.glob("jobs-*.txt"))


def jobs_of(path: Path) -> list[list[str]]:
    """The commands of a job file, as words."""
    matches = [JOB.match(line) for line in path.read_text().splitlines()]
    return [shlex.split(match.group(2)) for match in matches if match]


ALL_JOBS = [pytest.param(words, id=f"{path.stem}:{words[-1]}") for path in JOB_FILES for words in jobs_of(path)]


def script_and_config(words: list[str]) -> tuple[str, TrainConfig]:
    assert words[:2] == ["torchrun", "--nproc-per-node"]
    script, flag, name, *overrides = words[3:]
    assert flag == "--config-name"
    return script, load_config(name, overrides)


@pytest.mark.parametrize("words", ALL_JOBS)
def test_every_job_composes_and_validates(words: list[str]) -> None:
    script, config = script_and_config(words)
    assert (ROOT / script).exists()
    system = config.arch.name.split(".")[1].split("@")[0]
    assert script == f"pretrain_{system}.py"
    assert config.global_batch_size % int(words[2]) == 0
    assert config.run_name is not None


@pytest.mark.parametrize("path", JOB_FILES, ids=lambda p: p.stem)
def test_run_names_of_a_job_file_are_distinct(path: Path) -> None:
    folders = [(c.project_name, c.run_name) for c in (script_and_config(words)[1] for words in jobs_of(path))]
    assert len(set(folders)) == len(folders)


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
