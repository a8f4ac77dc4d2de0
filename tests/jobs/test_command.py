"""What the commands of a job file become, and which are refused."""

import sys
from pathlib import Path

import pytest

from jobs.command import Job, understand
from jobs.file import JobError, JobLine
from jobs.sheet import Options

ROOT = Path(__file__).parents[2]
ETRM = ROOT / "pretrain_etrm.py"


def job(command: str) -> Job:
    return understand(JobLine(3, " ", command, 0, 0), "jobs-some")


def test_a_training_run_has_the_name_and_folder_of_its_run() -> None:
    run = job(f"OMP_NUM_THREADS=2 python {ETRM} --config-name cfg_demo seed=1 '+project_name=p q' +run_name=E0a")
    assert (run.name, run.folder, run.project, run.processes) == ("E0a", Path("runs/p q/E0a"), "p q", None)
    assert run.arguments[:2] == (sys.executable, str(ETRM))
    assert run.environment == {"OMP_NUM_THREADS": "2"}


def test_a_script_without_config_name_has_its_own_default() -> None:
    assert job(f"python3 {ETRM} seed=7 +project_name=p").folder == Path("runs/p/etrm-standard-seed7")


@pytest.mark.parametrize(
    ("options", "added"),
    [("", ["--standalone"]), ("--rdzv-endpoint=localhost:0 ", []), ("--master_port 29501 ", []), ("--nnodes=2 ", [])],
)
def test_torchrun_is_that_of_this_python_with_a_port_of_its_own(options: str, added: list[str]) -> None:
    run = job(f"torchrun --nproc-per-node 4 {options}{ETRM} --config-name cfg_demo +run_name=a")
    assert list(run.arguments[: 3 + len(added)]) == [sys.executable, "-m", "torch.distributed.run", *added]
    assert run.processes == 4


def test_other_commands_are_named_by_their_words_and_log_by_the_file() -> None:
    first, second = job("bash -c 'exit 3'"), job("bash -c 'exit (3)'")
    assert first.name.startswith("bash_-c_exit_3-")
    assert first.folder == Path("runs/jobs-some") / first.name
    assert first.project is None
    assert first.name != second.name


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-program --fast", "line 3: no-such-program: there is no such program"),
        ("echo 'open", "cannot be split into words"),
        ("A=1", "has no command"),
        ("make data && python x.py", "'&&' needs a shell"),
        ("python pretrain_nowhere.py", "pretrain_nowhere.py: No such file"),
        (f"python {ETRM} --config-name cfg_nowhere", "cfg_nowhere"),
        (f"python {ETRM} arch.encoder_num_layer=4", "arch.encoder_num_layer"),
        (f"python {ETRM} --confg-name cfg_demo", "--confg-name"),
        (f"python {ETRM} --cfg", "trains nothing"),
        (f"torchrun --nproc-per-node gpu {ETRM}", "--nproc-per-node gpu: must be a number"),
        (f"torchrun --nproc-per-node 3 {ETRM} --config-name cfg_demo", "global_batch_size=16 cannot be shared by 3"),
    ],
)
def test_a_command_that_cannot_run_is_refused_by_name(command: str, message: str) -> None:
    with pytest.raises(JobError) as error:
        job(command)
    assert message in str(error.value)
    assert str(error.value).startswith("line 3: ")


def test_devices_are_those_of_torchrun_or_per_job() -> None:
    run = job(f"torchrun --nproc-per-node 4 {ETRM} --config-name cfg_demo +run_name=a")
    four = ("0", "1", "2", "3")
    assert Options(gpus=four, on_cpu=False).gpus_of(run) == 4
    assert Options(gpus=four, on_cpu=False, per_job=2).gpus_of(job("ls")) == 2
    assert Options(on_cpu=True, per_job=2).gpus_of(run) == 0
    with pytest.raises(JobError, match="torchrun starts 4 processes"):
        Options(gpus=four, on_cpu=False, per_job=2).gpus_of(run)
    with pytest.raises(JobError, match="needs 4 devices; --gpus has 2"):
        Options(gpus=("0", "1"), on_cpu=False).gpus_of(run)


@pytest.mark.parametrize("start", ["python pretrain_etrm.py", "python3.11 -m pretrain_etrm", "etrm-train"])
def test_a_script_that_is_not_in_the_folder_is_the_programs_own(start: str) -> None:
    run = job(f"{start} --config-name cfg_demo +project_name=p +run_name=a")
    assert run.arguments[1:3] == (str(ETRM), "--config-name")
    assert run.folder == Path("runs/p/a")


def test_torchrun_starts_the_programs_own_script_too() -> None:
    run = job("torchrun --nproc-per-node 2 pretrain_etrm.py --config-name cfg_demo +run_name=a")
    assert str(ETRM) in run.arguments
    assert job("python evaluate.py --checkpoint x").arguments[1] == str(ROOT / "evaluate.py")


def test_a_script_that_is_in_the_folder_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "pretrain_etrm.py").write_text('main("cfg_demo")\n')
    assert job("python pretrain_etrm.py +run_name=a").arguments[1] == "pretrain_etrm.py"
    assert job("python other.py").arguments[1] == "other.py"
