"""The words behind an entry script: flags of other programs are told by what is written here, all at once."""

import shlex
from pathlib import Path

import pytest

from config.command_line import read_command_line
from config.schema import ConfigError, load_config
from jobs.command import understand
from jobs.file import JobError, JobFile
from tests.processes import ETRM, ROOT, call

NAME = "cfg_demo"


def refusal(line: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_command_line(NAME, shlex.split(line))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("--lr=0.001", "write lr=0.001"),
        ("--lr 0.001", "write lr=0.001"),
        ("-lr 0.001", "write lr=0.001"),
        ("--learning-rate 0.001", "write lr=0.001"),
        ("--batch_size=8 --max-epochs 3", "write global_batch_size=8 epochs=3"),
        ("--arch.hidden_size=64", "write arch.hidden_size=64"),
        ("--hidden-dim 64", "write arch.hidden_size=64"),
        ("--ema", "write ema=true"),
        ("--no-ema", "write ema=false"),
        ("--data-paths data/a data/b", "write 'data_paths=[data/a,data/b]'"),
        ("--resume ~/run", "write 'resume=~/run'"),
        ("--name first", "write +run_name=first"),
        ("--name 'a, b'", """write '+run_name="a, b"'"""),
        ("-m", "run_jobs.py"),
        ("--multirun", "run_jobs.py"),
        ("--config-path conf", "--config-dir DIR --config-name NAME"),
        ("--config conf/a.yaml", "--config-dir DIR --config-name NAME"),
        ("--config_name cfg_demo", "--config-name NAME"),
        ("--info all", "--cfg"),
        ("--cfg job", "--cfg alone"),
        ("--no-wandb", "WANDB_MODE=disabled"),
        ("--gpus 4", "torchrun --nproc-per-node"),
        ("--nproc-per-node 4", "before the script"),
        ("--local-rank=1", "torchrun"),
        ("--output-dir out", "runs/<project_name>/<run_name>"),
        ("--dropout 0.1", "no key has this name"),
        ("-x", "no key has this name"),
    ],
)
@pytest.mark.parametrize("beside", ["epochs=3 {}", "{} epochs=3"])
def test_a_flag_of_another_program_is_told_by_what_is_written_here(line: str, remedy: str, beside: str) -> None:
    message = refusal(beside.format(line))
    assert remedy in message
    assert shlex.split(line)[0] in message
    assert "epochs=3" not in message.replace(remedy, "")


def test_each_flag_is_named_at_once_and_a_wandb_sweep_is_told_how_it_passes_overrides() -> None:
    message = refusal("--lr=0.001 -m seed=3 --wd=0.1")
    assert "write lr=0.001 weight_decay=0.1" in message
    assert "${args_no_hyphens}" in message
    assert "-m: " in message
    assert "seed" not in message


def test_what_is_written_instead_is_read() -> None:
    written = shlex.split(refusal("--batch-size 8 --name 'a, b' --data-paths ~/a ~/b").split("write ")[1])
    config = load_config(NAME, read_command_line(NAME, written).overrides)
    home = str(Path.home())
    assert (config.global_batch_size, config.run_name) == (8, "a, b")
    assert config.data_paths == (f"{home}/a", f"{home}/b")


@pytest.mark.parametrize(
    "line", ["-cn cfg_x -cd there", "--config-name=cfg_x --config-dir=there", "-cd there -cn cfg_x"]
)
def test_options_stand_anywhere_and_have_hydras_short_names(line: str) -> None:
    for placed in (f"lr=1 {line} seed=2", f"{line} lr=1 seed=2", f"lr=1 seed=2 {line}"):
        read = read_command_line(NAME, shlex.split(placed))
        assert (read.config_name, read.config_dir, read.shows_config) == ("cfg_x", "there", False)
        assert read.overrides == ("lr=1", "seed=2")


def test_an_option_without_its_value_is_refused() -> None:
    assert "--config-name" in refusal("lr=1 --config-name")
    assert "--config-dir" in refusal("--config-dir")


def test_the_script_ends_with_one_line_and_status_2(tmp_path: Path) -> None:
    done = call(ETRM, "--lr", "0.001", "epochs=3", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: --lr 0.001: overrides have no dashes: write lr=0.001"


def test_a_config_file_outside_the_repository_is_used_by_script_and_job_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "small.yaml").write_text("defaults: [cfg_demo, _self_]\nlr: 0.25\nrun_name: 1e3\n")
    done = call(ETRM, "--config-dir", "mine", "--config-name", "small", "--cfg", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\nlr: 0.25\n" in done.stdout
    monkeypatch.chdir(tmp_path)
    command = f"[ ] python {ROOT / ETRM} --config-dir {{}} --config-name small seed=3\n"
    (tmp_path / "jobs.txt").write_text(command.format("mine") + command.format("nowhere"))
    line, lost = JobFile(tmp_path / "jobs.txt").read()
    assert understand(line, "jobs").name == "1e3"
    with pytest.raises(JobError, match=f"there is no folder {tmp_path / 'nowhere'}"):
        understand(lost, "jobs")


@pytest.mark.parametrize(
    ("words", "said"), [("--lr 3", "write lr=3"), ("--cfg", "trains nothing"), ("--help", "trains")]
)
def test_a_job_that_would_not_train_is_refused(tmp_path: Path, words: str, said: str) -> None:
    (tmp_path / "jobs.txt").write_text(f"[ ] python {ROOT / ETRM} {words}\n")
    with pytest.raises(JobError, match=said):
        understand(JobFile(tmp_path / "jobs.txt").read()[0], "jobs")
