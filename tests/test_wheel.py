"""The built wheel, installed without network beside the other packages, used from a folder outside the checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = (
    *("--config-name", "cfg_demo", "arch.hidden_size=32", "arch.num_heads=2", "arch.H_cycles=1", "arch.L_cycles=1"),
    *("arch.L_layers=1", "arch.halt_max_steps=2", "arch.forward_dtype=float32", "max_train_groups=4"),
    *("max_eval_groups=1", "max_eval_augmentations=1", "global_batch_size=4", "epochs=1", "eval_interval=1"),
    *("lr_warmup_steps=1", "data_workers=0", "device=cpu", "data_paths=[mine]", "+project_name=p"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pip install` of the wheel puts there."""
    folder = tmp_path_factory.mktemp("wheel")
    source, wheels, target = folder / "source", folder / "wheels", folder / "installed"
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package in setup["packages"]:
        if "." not in package:
            shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", *(f"{module}.py" for module in setup["py-modules"])):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(wheels), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    return target


@pytest.fixture(scope="module")
def outside(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder but for a small data set, built by the installed program."""
    folder = tmp_path_factory.mktemp("outside")
    options = ["--subsets", "training", "evaluation", "--test-set-name", "evaluation", "--num-aug", "0"]
    run(installed, folder, "etrm-data", "--output-dir", "mine", *options, "--max-side", "6")
    return folder


def run(installed: Path, folder: Path, command: str, *arguments: str, status: int = 0) -> str:
    """What an installed command, or `python -m MODULE`, prints in a folder."""
    start = [str(installed / "bin" / command)] if command.startswith("etrm-") else ["-m", command]
    environment = {**os.environ, "PYTHONPATH": str(installed), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *start, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def test_the_installed_modules_are_used_and_bring_their_files(installed: Path, tmp_path: Path) -> None:
    modules = "config.schema, etrm_commands, reports.pages, run_jobs"
    code = f"import {modules}; open('found', 'w').write(chr(10).join(module.__file__ for module in ({modules})))"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert all(Path(line).is_relative_to(installed) for line in (tmp_path / "found").read_text().splitlines())
    for folder, pattern in (("config", "*.yaml"), ("config/arch", "*.yaml"), ("reports/templates", "*")):
        expected = {path.name for path in (ROOT / folder).glob(pattern)}
        assert {path.name for path in (installed / folder).glob(pattern)} == expected


def test_an_installation_trains_evaluates_solves_and_reports_from_any_folder(installed: Path, outside: Path) -> None:
    """Training and evaluation by a job file as it is written for the checkout, whose scripts are not in the folder."""
    lines = [
        f"[ ] python pretrain_etrm.py {' '.join(RUN)} +run_name=a",
        "---",
        "[ ] python evaluate.py --checkpoint runs/p/a --device cpu",
    ]
    (outside / "jobs.txt").write_text("\n".join(lines))
    run(installed, outside, "etrm-jobs", "jobs.txt", "--cpu")
    assert (outside / "jobs.txt").read_text() == "\n".join(lines).replace("[ ]", "[x]")
    (evaluated,) = (outside / "runs/jobs").glob("*/job.log")
    assert '"eval/accuracy"' in evaluated.read_text()
    for page in ("runs/p/a/report.html", "runs/p/report.html"):
        assert (outside / page).exists()
    words = ["--checkpoint", "runs/p/a", "--puzzle", "training/25ff71a9", "--votes", "1", "--device", "cpu"]
    run(installed, outside, "etrm-solve", *words)
    assert (outside / "solutions/submission.json").exists()
    run(installed, outside, "etrm-solve", *words[2:], "--adapt", "0", "--output-dir", "by_the_base")
    assert (outside / "by_the_base/submission.json").exists()
    run(installed, outside, "etrm-report", "runs/p/a", "-o", "pages/a.html")
    assert (outside / "pages/a.html").exists()


def test_the_command_that_trains_knows_the_configs(installed: Path, tmp_path: Path) -> None:
    assert "run_name: b" in run(installed, tmp_path, "etrm-train", *RUN, "+run_name=b", "--cfg")
