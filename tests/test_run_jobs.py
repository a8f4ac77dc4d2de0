"""`run_jobs.py` as a user calls it: marks, order, judgements, signals, and runners that are killed."""

import errno
import json
import logging
import os
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from jobs.command import understand
from jobs.executors import LocalExecutor
from jobs.file import JobError, JobLine
from jobs.records import Record
from run_jobs import argument_parser, main, run
from tests.job_races import race, start_runner
from utils.files import read_json
from utils.run_status import EXIT_STATUS

# Stands in for a training run: writes a status and ends with an exit status, both as its environment says.
QUICK = """
import json, os, pathlib, sys, time
names = dict(word.lstrip("+").split("=") for word in sys.argv[1:])
folder = pathlib.Path("runs", names["project_name"], names["run_name"])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts").open("a") as file:
    file.write("start\\n")
starts, state = len((folder / "starts").read_text().split()), os.environ["STATE"]
if state == "resumes":
    state = "done" if starts > 2 else "preempted"
step = 50 if state == "preempted" and starts % 2 else 5
status = {"state": state, "step": step, "total_steps": 10, "updated": time.time(), "last": {}}
(folder / "status.json").write_text(json.dumps(status))
sys.exit(int(os.environ["CODE"]))
main("cfg_demo")
"""
QUICK_RUN = "python pretrain_quick.py +project_name=p +run_name=a"


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`quick("line", ..., options="--retries 1")`: run a job file of these lines in this process."""
    monkeypatch.setattr("jobs.executors.LocalExecutor.poll_seconds", 0.02)

    def run_lines(*lines: str, options: str = "") -> int:
        if lines:
            (tmp_path / "jobs.txt").write_text("\n".join(lines))
        return run(argument_parser().parse_args(["jobs.txt", "--cpu", "--no-report", *shlex.split(options)]))

    return run_lines


def marks(folder: Path) -> str:
    return "".join(line[1] for line in (folder / "jobs.txt").read_text().splitlines() if line.startswith("["))


def ends(name: str, seconds: float = 0) -> str:
    """A command that writes a line when it comes to its end."""
    return f"[ ] bash -c 'sleep {seconds}; echo {name} >> ended'"


def until(path: str, name: str) -> str:
    """A command that writes a line when a file is there, or after half a minute."""
    return f"[ ] bash -c 'for i in {{1..600}}; do test -e {path} && break; sleep 0.05; done; echo {name} >> ended'"


def ended(folder: Path) -> list[str]:
    path = folder / "ended"
    return path.read_text().split() if path.exists() else []


def wait_for(condition: Callable[[], object], what: str) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come")


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_jobs_run_in_order_and_other_lines_stay(quick: Callable[..., int], tmp_path: Path) -> None:
    assert quick("Words.", ends("a"), "", "[x] bash -c 'echo never >> ended'", ends("b"), "More words.") == 0
    assert ended(tmp_path) == ["a", "b"]
    assert (tmp_path / "jobs.txt").read_text().count("[x]") == 3
    assert (tmp_path / "jobs.txt").read_text().startswith("Words.\n[x] bash")
    (log,) = (tmp_path / "runs/jobs").glob("bash_-c_sleep_0_echo_a*/job.log")
    assert "echo a >> ended" in log.read_text()


def test_the_process_above_a_job_that_has_ended_does_not_stay_as_a_zombie(
    quick: Callable[..., int], tmp_path: Path
) -> None:
    """The second job looks at the runner's children; those of other tests are not its own."""
    others = [child.pid for child in psutil.Process().children()]
    (tmp_path / "look.py").write_text(
        f"import psutil\nchildren = psutil.Process({os.getpid()}).children()\n"
        f"zombies = [c.pid for c in children if c.status() == 'zombie' and c.pid not in {others}]\n"
        "open('ended', 'a').writelines(f'{pid}\\n' for pid in zombies)\n"
    )
    assert quick("[ ] python look.py", "[ ] python look.py again") == 0
    assert ended(tmp_path) == []


def test_a_failed_job_is_marked_and_the_next_one_runs(quick: Callable[..., int], tmp_path: Path) -> None:
    assert quick("[ ] bash -c 'echo tried >> ended; exit 1'", ends("b")) == 1
    assert (marks(tmp_path), ended(tmp_path)) == ("!x", ["tried", "b"])
    assert quick() == 1
    assert ended(tmp_path) == ["tried", "b"]  # failed jobs of earlier starts are left alone


def test_a_failed_job_is_tried_again_as_often_as_asked(quick: Callable[..., int], tmp_path: Path) -> None:
    assert quick("[ ] bash -c 'echo tried >> ended; exit 1'", options="--retries 2") == 1
    assert (marks(tmp_path), len(ended(tmp_path))) == ("!", 3)


def test_a_fault_of_the_user_is_not_tried_again(quick: Callable[..., int], tmp_path: Path) -> None:
    assert quick("[ ] bash -c 'echo tried >> ended; exit 2'", options="--retries 2") == 1
    assert (marks(tmp_path), len(ended(tmp_path))) == ("!", 1)


@pytest.mark.parametrize(
    ("state", "code", "mark", "starts"),
    [
        ("done", 0, "x", 1),
        ("done", 1, "x", 1),
        ("failed", 0, "!", 2),
        ("failed", 2, "!", 1),
        ("non-finite", EXIT_STATUS["non-finite"], "!", 2),
        ("resumes", 75, "x", 3),
        ("resumes", 1, "x", 3),
        ("preempted", 75, "!", 10),
    ],
)
def test_the_status_of_a_run_is_trusted_over_its_exit_status(
    quick: Callable[..., int], tmp_path: Path, state: str, code: int, mark: str, starts: int
) -> None:
    """Under torchrun a preempted run ends with 1. A preemption is no failed try, but ten without progress are."""
    (tmp_path / "pretrain_quick.py").write_text(QUICK)
    assert quick(f"[ ] STATE={state} CODE={code} {QUICK_RUN}", options="--retries 1") == (mark == "!")
    assert marks(tmp_path) == mark
    assert (tmp_path / "runs/p/a/starts").read_text().count("start") == starts


def test_a_status_of_an_earlier_start_says_nothing_about_this_one(quick: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "runs/p/a").mkdir(parents=True)
    (tmp_path / "runs/p/a/status.json").write_text(json.dumps({"state": "done", "step": 1, "updated": 1.0}))
    (tmp_path / "pretrain_dies.py").write_text('import os\nos._exit(1)\nmain("cfg_demo")\n')
    assert quick(f"[ ] {QUICK_RUN.replace('quick', 'dies')}") == 1
    assert marks(tmp_path) == "!"


def test_a_job_that_is_interrupted_without_end_fails_at_last(quick: Callable[..., int], tmp_path: Path) -> None:
    assert quick("[ ] bash -c 'echo tried >> ended; exit 75'") == 1
    assert (marks(tmp_path), len(ended(tmp_path))) == ("!", 10)


def test_a_job_whose_fault_is_mended_meanwhile_runs(quick: Callable[..., int], tmp_path: Path) -> None:
    """The first job makes the program of the second, which it then sets back from failed to waiting."""
    (tmp_path / "job.sh").write_text(
        "printf '\\n[ ] ./made' >> jobs.txt; until grep -q '^.!' jobs.txt; do sleep 0.05; done\n"
        "printf '#!/bin/sh\\ntouch added\\n' > made; chmod +x made; sed -i 's/^.!./[ ]/' jobs.txt\n"
    )
    assert quick("[ ] timeout 30 bash job.sh") == 0
    assert (marks(tmp_path), (tmp_path / "added").exists()) == ("xx", True)


@pytest.mark.parametrize("group", [None, "mine"])
def test_the_group_of_the_runs_goes_with_each_job(
    quick: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str | None
) -> None:
    """In its record, because a Ray worker has another environment than the runner."""
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    if group is not None:
        monkeypatch.setenv("WANDB_RUN_GROUP", group)
    assert quick("[ ] bash -c 'cp .jobs.txt.runs/*/record.json seen.json'") == 0
    assert read_json(tmp_path / "seen.json")["environment"]["WANDB_RUN_GROUP"] == (group or "jobs")


@pytest.mark.parametrize(("refusals", "options", "outcome"), [(1, "", (1, "!x")), (2, "--retries 2", (0, "xx"))])
def test_a_job_that_cannot_be_started_counts_as_failed_and_the_others_run(
    quick: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusals: int,
    options: str,
    outcome: tuple[int, str],
) -> None:
    class Refusing(LocalExecutor):
        left = refusals

        def start(self, folder: Path, record: Record) -> str:
            if record.name.endswith(name) and self.left:
                self.left -= 1
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
            return super().start(folder, record)

    name = understand(JobLine(1, " ", ends("a")[4:], 0, 0), "jobs").name
    monkeypatch.setattr("run_jobs.LocalExecutor", Refusing)
    assert (quick(ends("a"), ends("b"), options=options), marks(tmp_path)) == outcome
    assert not list(tmp_path.glob(".jobs.txt.runs/*/record.json"))


def test_a_file_that_is_lost_on_the_way_is_no_fault_of_before_the_start(quick: Callable[..., int]) -> None:
    assert quick("[ ] rm jobs.txt") == 1


def test_what_is_below_a_barrier_waits_for_all_above(quick: Callable[..., int], tmp_path: Path) -> None:
    assert quick(until("ended", "a"), ends("b"), "---", ends("c"), ends("d"), options="--parallel 4") == 0
    assert ended(tmp_path)[:2] == ["b", "a"]
    assert set(ended(tmp_path)[2:]) == {"c", "d"}


def test_nothing_below_a_barrier_runs_when_something_above_failed(
    quick: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert quick("[ ] false", "---", ends("c")) == 1
    assert (marks(tmp_path), ended(tmp_path)) == ("! ", [])
    assert "waits for line 1 [!] above '---'" in caplog.text


def test_only_chooses_jobs_by_name(quick: Callable[..., int], tmp_path: Path) -> None:
    assert quick(ends("a"), ends("b"), options="--only '*echo_b*'") == 0
    assert (marks(tmp_path), ended(tmp_path)) == (" x", ["b"])


def test_a_job_that_is_added_meanwhile_runs_and_one_that_is_not_valid_is_marked(
    quick: Callable[..., int], tmp_path: Path
) -> None:
    """The job itself is the editor here."""
    (tmp_path / "job.sh").write_text("printf '\\n[ ] no-such-program\\n[ ] touch added' >> jobs.txt")
    assert quick("[ ] bash job.sh") == 1
    assert marks(tmp_path) == "x!x"
    assert (tmp_path / "added").exists()


def test_a_running_job_whose_line_is_deleted_runs_to_its_end(
    quick: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (f"[ ] bash -c 'sed -i 1d {tmp_path}/jobs.txt; echo a >> ended'", ends("b"))
    assert quick(*lines) == 0
    assert (marks(tmp_path), ended(tmp_path)) == ("x", ["a", "b"])
    assert "its line is gone or was changed" in caplog.text


def test_a_running_job_that_is_set_back_runs_again_but_not_at_once(quick: Callable[..., int], tmp_path: Path) -> None:
    """`[ ]` while it runs: a second start comes after the first one's end."""
    (tmp_path / "job.sh").write_text(
        "if test -e once; then echo again >> ended; exit; fi\n"
        "touch once; echo start >> ended; sed -i 's/^.-./[ ]/' jobs.txt; sleep 0.3; echo end >> ended\n"
    )
    assert quick("[ ] bash job.sh", options="--parallel 2") == 0
    assert (marks(tmp_path), ended(tmp_path)) == ("x", ["start", "end", "again"])


def test_devices_are_given_out_and_taken_back(quick: Callable[..., int], tmp_path: Path) -> None:
    def shows(i: int) -> str:
        return f"[ ] bash -c 'echo {i}:$CUDA_VISIBLE_DEVICES >> ended; sleep 0.2'"

    (tmp_path / "jobs.txt").write_text("\n".join(map(shows, range(3))))
    arguments = argument_parser().parse_args(["jobs.txt", "--gpus", "3,5,6,7", "--per-job", "2"])
    assert run(arguments) == 0
    assert sorted(ended(tmp_path)[:2]) == ["0:3,5", "1:6,7"]
    assert ended(tmp_path)[2] in ("2:3,5", "2:6,7")


def test_two_runners_of_one_file_do_not_give_out_the_same_device(quick: Callable[..., int], tmp_path: Path) -> None:
    shows = "[ ] bash -c 'echo {}:$CUDA_VISIBLE_DEVICES >> ended; {}'"
    both_run = "for i in {1..600}; do test `wc -l < ended` = 2 && break; sleep 0.05; done"
    (tmp_path / "jobs.txt").write_text("\n".join(shows.format(name, both_run) for name in "ab"))
    options = ("jobs.txt", "--gpus", "0,1", "--parallel", "1", "--no-report")
    other = start_runner(tmp_path, "--gpus", "0,1", "--parallel", "1", device="")
    assert run(argument_parser().parse_args(options)) == 0
    assert other.wait(60) == 0
    assert sorted(line[-1] for line in ended(tmp_path)) == ["0", "1"]


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        (["[ ] no-such-program"], "", ["line 1", "no-such-program", "no such program"]),
        (["no jobs here"], "", ["no job"]),
        (["[ ] ls"], "--only E9*", ["--only 'E9*'", "ls"]),
        (
            ["[ ] torchrun --nproc-per-node 2 x.py"],
            "--gpus 0,1 --per-job 1",
            ["line 1", "2 processes", "--per-job is 1"],
        ),
        (["[ ] ls"], "--gpus 0,0", ["--gpus '0,0'"]),
        (["[ ] ls"], "--cpu --grace -1", ["--grace -1"]),
        (["[ ] ls"], "--cpu --ray-cpus 2", ["--ray-cpus", "--executor ray"]),
        (["[ ] ls"], "--executor slurm --gpus 0", ["--gpus", "slurm"]),
        (["[ ] ls"], "--executor slurm --slurm-cluster local --slurm partition", ["--slurm 'partition'", "key=value"]),
        (["[ ] ls"], "--executor slurm --slurm-cluster local --slurm parttion=x", ["--slurm", "parttion"]),
        (["[ ] ls"], "--executor ray --ray-address 127.0.0.1:1", ["--ray-address 127.0.0.1:1", "no Ray cluster"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_fault_of_the_user_ends_in_one_line_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], options: str, words: list[str]
) -> None:
    (tmp_path / "jobs.txt").write_text("\n".join(lines))
    with pytest.raises(SystemExit) as exit_info:
        main(["jobs.txt", *options.split()])
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert (tmp_path / "jobs.txt").read_text() == "\n".join(lines)


def test_all_faults_are_listed_at_once_and_nothing_starts(quick: Callable[..., int], tmp_path: Path) -> None:
    etrm = Path(__file__).parents[1] / "pretrain_etrm.py"
    lines = (ends("a"), f"[ ] python {etrm} +run_name=a lr=fast", f"[ ] python {etrm} +run_name=b")
    for options in ("", "--dry-run"):
        with pytest.raises(JobError) as error:
            quick(*lines, f"[ ] python {etrm} seed=3 +run_name=b", options=options)
        assert "line 2: " in str(error.value)
        assert "line 4: writes runs/etrm-arc/b, as line 3 does" in str(error.value)
    assert ended(tmp_path) == []


def test_a_dry_run_shows_the_commands_and_starts_nothing(
    quick: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quick(ends("a"), "[x] ls", options="--dry-run") == 0
    out = capsys.readouterr().out
    assert "bash -c 'sleep 0; echo a >> ended'" in out
    assert "no devices" in out
    assert not (tmp_path / ".jobs.txt.runs").exists()


def test_a_line_that_interruptions_would_set_back_is_warned_of(
    quick: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    etrm = f"python {Path(__file__).parents[1] / 'pretrain_etrm.py'} +project_name=p"
    lines = (f"[ ] {etrm} +run_name=a", f"[ ] {etrm} +run_name=b resume=never", f"[x] {etrm} +run_name=c resume=never")
    assert quick(*lines, options="--dry-run") == 0
    (warning,) = [record.getMessage() for record in caplog.records if "resume" in record.getMessage()]
    assert "line 2: b has resume=never" in warning


def test_list_shows_where_every_job_stands(
    quick: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    etrm = Path(__file__).parents[1] / "pretrain_etrm.py"
    run_folder = tmp_path / "runs/p/E0a"
    run_folder.mkdir(parents=True)
    last = {"train/accuracy": 0.8125, "ARC/pass@2": 0.03125}
    status = {"state": "preempted", "step": 20, "total_steps": 400, "updated": 1.0, "last": last}
    (run_folder / "status.json").write_text(json.dumps(status))
    quick(f"[-] python {etrm} +project_name=p +run_name=E0a", "[!] ls", "[ ] no-such-program", options="--list")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == ["1", "[-]", "without", "runner", "(preempted)", "E0a", "20/400", "81.2", "%", "3.1", "%", "–"]
    assert rows[2][:3] == ["2", "[!]", "failed"]
    assert "not valid" in " ".join(rows[3])
    assert not (tmp_path / ".jobs.txt.runs").exists()


def supervisor(folder: Path) -> int:
    """The process above the only job, when its runner has written it down."""

    def launch() -> str:
        return "".join(read_json(path)["launch"] for path in (folder / ".jobs.txt.runs").glob("*/record.json"))

    wait_for(launch, "the job's launch")
    return int(launch())


@pytest.mark.torture
def test_two_runners_one_of_them_killed_bring_each_job_to_its_end_once(tmp_path: Path) -> None:
    statuses, count, text = race(tmp_path, jobs=12, seconds=0.3, kills=2, parallel=2)
    assert count == {str(i): 1 for i in range(12)}
    assert (statuses, text.count("[x]")) == ([0, 0], 12)


@pytest.mark.torture
def test_a_job_that_died_with_its_runner_runs_again(tmp_path: Path) -> None:
    """Both are killed, as by a power cut; the next runner starts the job anew."""
    (tmp_path / "jobs.txt").write_text("[ ] bash -c 'echo $$ >> pids; test -e again || sleep 60; echo a >> ended'")
    runner = start_runner(tmp_path)
    wait_for(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text(), "the job's start")
    for pid in (supervisor(tmp_path), runner.pid):
        os.kill(pid, signal.SIGKILL)
    os.killpg(int((tmp_path / "pids").read_text()), signal.SIGKILL)
    runner.wait(60)
    (tmp_path / "again").touch()
    assert start_runner(tmp_path).wait(60) == 0
    assert (marks(tmp_path), ended(tmp_path)) == ("x", ["a"])


@pytest.mark.torture
def test_sigint_sends_jobs_back_to_waiting_and_a_second_start_goes_on(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(
        "test -e again && exit\n"
        "trap 'echo saved >> ended; exit 75' TERM\ntouch begun\nwhile true; do sleep 0.05; done\n"
    )
    (tmp_path / "jobs.txt").write_text("[ ] bash job.sh\n" + ends("b"))
    runner = start_runner(tmp_path)
    wait_for((tmp_path / "begun").exists, "the job's start")
    runner.send_signal(signal.SIGINT)
    assert runner.wait(60) == 75
    assert (marks(tmp_path), ended(tmp_path)) == ("  ", ["saved"])
    (tmp_path / "again").touch()
    assert start_runner(tmp_path).wait(60) == 0
    assert (marks(tmp_path), ended(tmp_path)) == ("xx", ["saved", "b"])


@pytest.mark.torture
def test_a_job_that_does_not_stop_in_time_is_killed_with_all_it_started(tmp_path: Path) -> None:
    stubborn = "trap : TERM; setsid sleep 61 & echo $! > pid; while true; do touch begun; sleep 0.1; done"
    (tmp_path / "jobs.txt").write_text(f"[ ] bash -c '{stubborn}'")
    runner = start_runner(tmp_path, "--grace", "0.3")
    wait_for((tmp_path / "begun").exists, "the job's start")
    runner.terminate()
    assert runner.wait(60) == 75
    assert marks(tmp_path) == " "
    wait_for(lambda: not lives(int((tmp_path / "pid").read_text())), "the end of what the job started")


@pytest.mark.torture
@pytest.mark.parametrize(("trap", "words"), [("echo saved >> ended; exit 75", ["saved"]), (":", [])])
def test_a_job_without_the_process_above_it_is_stopped_too(tmp_path: Path, trap: str, words: list[str]) -> None:
    (tmp_path / "job.sh").write_text(f"trap '{trap}' TERM\ntouch begun\nwhile true; do sleep 0.05; done\n")
    (tmp_path / "jobs.txt").write_text("[ ] bash job.sh")
    runner = start_runner(tmp_path, "--grace", "30" if words else "0.3")
    wait_for((tmp_path / "begun").exists, "the job's start")
    os.kill(supervisor(tmp_path), signal.SIGKILL)
    runner.terminate()
    assert runner.wait(60) == 75
    assert (marks(tmp_path), ended(tmp_path)) == (" ", words)


def test_running_jobs_that_no_runner_knows_are_left_alone_unless_asked(
    quick: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert quick(ends("a").replace("[ ]", "[-]")) == 1
    assert (marks(tmp_path), ended(tmp_path)) == ("-", [])
    assert "no runner knows it" in caplog.text
    assert quick(options="--take-running") == 0
    assert (marks(tmp_path), ended(tmp_path)) == ("x", ["a"])


def test_only_also_chooses_the_running_jobs_that_are_taken(quick: Callable[..., int], tmp_path: Path) -> None:
    lines = [ends(name).replace("[ ]", "[-]") for name in "ab"]
    assert quick(*lines, options="--take-running --only '*echo_b*'") == 0
    assert (marks(tmp_path), ended(tmp_path)) == ("-x", ["b"])


def test_a_runner_does_not_wait_for_jobs_that_only_leaves_out(quick: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "jobs.txt").write_text(f"{until('release', 'a')}\n{ends('b')}")
    runner = start_runner(tmp_path, "--only", "*for_i*")
    wait_for(lambda: marks(tmp_path)[0] == "-", "the job's start")
    assert quick(options="--only '*echo_b*'") == 0
    assert ended(tmp_path) == ["b"]
    (tmp_path / "release").touch()
    assert (runner.wait(60), marks(tmp_path)) == (0, "xx")


def test_a_job_of_a_living_runner_is_left_to_it(tmp_path: Path) -> None:
    """A second runner, which has a job of its own first, waits because the other one may yet come back."""
    (tmp_path / "jobs.txt").write_text(f"{until('release', 'a')}\n{ends('b')}")
    first = start_runner(tmp_path, "--only", "*for_i*")
    wait_for(lambda: marks(tmp_path) == "- ", "the job's start")
    second = start_runner(tmp_path)
    wait_for(lambda: marks(tmp_path) == "-x", "the second runner's own job")
    time.sleep(0.3)
    assert second.poll() is None
    (tmp_path / "release").touch()
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert (marks(tmp_path), ended(tmp_path)) == ("xx", ["b", "a"])


def test_options_that_list_does_not_look_at_are_said_to_have_no_effect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "jobs.txt").write_text("[ ] true\n")
    with caplog.at_level(logging.WARNING):
        run(argument_parser().parse_args(["jobs.txt", "--list", "--retries", "2", "--only", "true*"]))
        run(argument_parser().parse_args(["jobs.txt", "--dry-run", "--cpu", "--take-running"]))
    said = [record.getMessage() for record in caplog.records]
    assert [text.split(":")[0] for text in said] == ["--retries", "--take-running"]
