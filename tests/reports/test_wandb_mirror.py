"""wandb follows a run in a process of its own: whatever it does, the run goes on, and nothing is sent twice."""

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.schema import TrainConfig, dump_config
from reports import wandb_process
from reports.observers import RUN_OBSERVERS
from reports.wandb_mirror import tags_of
from reports.wandb_process import Mirror
from tests.run_fixtures import new_run_folder
from training.loop import fit
from utils.distributed import Ranks
from utils.files import write_file
from utils.processes import JOB_TOKEN_VARIABLE
from utils.run_logger import RunLogger

Config = Callable[..., TrainConfig]
MetricsOf = Callable[[Path], list[dict[str, float]]]
FOLDER = Path("runs/etrm-arc/run")
SHORT = (
    "+run_name=run",
    "epochs=1",
    "log_interval=1",
    "max_eval_groups=1",
    "max_eval_augmentations=1",
    "checkpoint_every_eval=false",
)
# Stands where the wandb package would, writes down what it is asked, and fails as $FAKE_WANDB says.
FAKE_WANDB = """
import json, os, time

fault = os.environ["FAKE_WANDB"]

def note(what, **values):
    with open(os.environ["FAKE_WANDB_LOG"], "a") as file:
        file.write(json.dumps({"what": what, **values}, default=str) + "\\n")

def suffer(place):
    if fault == f"{place} raises":
        raise ConnectionError("no network")
    if fault == f"{place} hangs":
        time.sleep(1000)
    if fault == f"{place} dies":
        os._exit(9)

class Run:
    id = "id"
    def log(self, values, step):
        suffer("log")
        note("log", step=step, values=values)
    def log_artifact(self, artifact):
        note("artifact", **vars(artifact))
    def finish(self):
        suffer("finish")
        note("finish")

class Table:
    def __init__(self, columns, data=()):
        self.columns, self.data = columns, list(data)
    def add_data(self, *row):
        self.data.append(row)
    def __str__(self):
        return json.dumps([self.columns, self.data], default=str)

class Artifact:
    def __init__(self, name, type):
        self.name, self.type = name, type
    def add_file(self, path):
        self.content = open(path).read()

def Html(text, inject):
    return text

def Settings(**values):
    return values

def init(**options):
    suffer("init")
    if fault == "server is gone" and options["mode"] == "online":
        raise ConnectionError("no server")
    note("init", **options)
    return Run()
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`fake(fault, mode=)` switches wandb on, as a package of that name that fails as told; what it returns reads what
    the package was asked."""

    def use(fault: str = "none", mode: str = "offline") -> Callable[[], list[dict[str, Any]]]:
        package = tmp_path_factory.mktemp("packages") / "wandb"
        package.mkdir()
        (package / "__init__.py").write_text(FAKE_WANDB)
        asked = package.parent / "asked.jsonl"
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        monkeypatch.setenv("FAKE_WANDB", fault)
        monkeypatch.setenv("FAKE_WANDB_LOG", str(asked))
        monkeypatch.setenv("WANDB_MODE", mode)
        return lambda: [json.loads(line) for line in asked.read_text().splitlines()] if asked.exists() else []

    return use


def logged(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of metrics among what wandb was asked."""
    return [
        {"step": call["step"], **call["values"]}
        for call in asked
        if call["what"] == "log" and not {"predictions", "act_steps"} & call["values"].keys()
    ]


def test_every_line_is_sent_at_its_step_and_the_run_is_described(
    shrunk_config: Config, ranks: Ranks, metrics_of: MetricsOf, fake: Callable[..., Any]
) -> None:
    asked = fake()
    fit(
        shrunk_config(*SHORT, "+project_name=mirror", "wandb_group=sweep", "wandb_tags=[pilot]"),
        ranks,
        observers=RUN_OBSERVERS,
    )
    calls = asked()
    assert logged(calls) == metrics_of(Path("runs/mirror/run"))
    steps = [call["step"] for call in calls if call["what"] == "log"]
    assert steps == sorted(steps)  # wandb drops steps that go backwards
    assert [call["what"] for call in calls].count("finish") == 1
    options = calls[0]
    assert (options["project"], options["name"], options["mode"]) == ("mirror", "run", "offline")
    assert (options["group"], options["tags"]) == ("sweep", ["etrm", "standard", "seed0", "pilot"])
    assert options["config"]["lr"] == pytest.approx(1e-4)
    (predictions,) = [json.loads(c["values"]["predictions"]) for c in calls if "predictions" in c.get("values", {})]
    assert len(predictions[1]) == 8 + 1  # each training puzzle and the held-out one
    assert all("<svg" in row[-1] for row in predictions[1])
    assert any("act_steps" in call.get("values", {}) for call in calls)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("init raises", "wandb failed (status 1"),
        ("log raises", "wandb failed (status 1"),
        ("finish raises", "wandb failed (status 1"),
        ("log dies", "wandb failed (status 9"),
        ("init hangs", "wandb is still sending"),
        ("log hangs", "wandb is still sending"),
        ("finish hangs", "wandb is still sending"),
    ],
)
def test_whatever_wandb_does_the_run_goes_on_and_warns_once(
    shrunk_config: Config,
    ranks: Ranks,
    metrics_of: MetricsOf,
    fake: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    says: str,
) -> None:
    fake(fault)
    if "hangs" in fault:
        monkeypatch.setattr(wandb_process, "WAIT_SECONDS", 0.5)
    mirrors = []
    monkeypatch.setattr(wandb_process.Mirror, "ended", remembering(wandb_process.Mirror.ended, mirrors))
    with caplog.at_level(logging.WARNING):
        last = fit(shrunk_config(*SHORT), ranks, observers=RUN_OBSERVERS)
    assert "eval/accuracy" in last
    assert [line["step"] for line in metrics_of(FOLDER)] == [1, 2, 2]
    warnings = [record.getMessage() for record in caplog.records if "wandb" in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith(says)
    assert "metrics.jsonl" in warnings[0]
    for process in (mirror.process for mirror in mirrors if mirror.process is not None):
        process.kill()


def remembering(method: Callable[[Any], None], seen: list[Any]) -> Callable[[Any], None]:
    def call(self: Any) -> None:
        seen.append(self)
        method(self)

    return call


@pytest.mark.parametrize(
    ("key", "login", "mode"),
    [(None, False, "offline"), ("0" * 40, False, "online"), (None, True, "online")],
)
def test_without_a_key_wandb_is_offline(
    shrunk_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake: Callable[..., Any],
    key: str | None,
    login: bool,
    mode: str,
) -> None:
    asked = fake()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    if login:
        (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {'1' * 40}\n")
        (tmp_path / ".netrc").chmod(0o600)
    RunLogger(new_run_folder(shrunk_config("+run_name=run")), [Mirror]).close()
    assert asked()[0]["mode"] == mode


def test_a_server_that_cannot_be_reached_leaves_an_offline_run(shrunk_config: Config, fake: Callable[..., Any]) -> None:
    asked = fake("server is gone", mode="online")
    logger = RunLogger(new_run_folder(shrunk_config("+run_name=run")), [Mirror])
    logger.log(1, {"a": 1.0})
    logger.close()
    assert [call["mode"] for call in asked() if call["what"] == "init"] == ["offline"]
    assert logged(asked()) == [{"step": 1, "a": 1.0}]
    assert "offline from here on" in (FOLDER / "wandb.log").read_text()


def test_a_resumed_run_goes_on_under_its_id_and_sends_nothing_twice(
    shrunk_config: Config, fake: Callable[..., Any]
) -> None:
    asked = fake()
    folder = new_run_folder(shrunk_config("+run_name=run"))
    for lines in ([(1, 0.1), (2, 0.2), (2, 0.3)], [(2, 0.4), (3, 0.5)]):
        logger = RunLogger(folder, [Mirror])
        for step, value in lines:
            logger.log(step, {"a": value})
        logger.close()
    assert logged(asked()) == [{"step": s, "a": v} for s, v in [(1, 0.1), (2, 0.2), (2, 0.3), (2, 0.4), (3, 0.5)]]
    assert len({call["id"] for call in asked() if call["what"] == "init"}) == 1


def test_what_a_killed_run_had_written_is_sent_all_the_same(shrunk_config: Config, fake: Callable[..., Any]) -> None:
    asked = fake()
    folder = new_run_folder(shrunk_config("+run_name=run"))
    program = (
        "import os, sys; from pathlib import Path; from utils.run_logger import RunLogger; "
        "from reports.wandb_process import Mirror; "
        "logger = RunLogger(Path(sys.argv[1]), [Mirror]); logger.log(1, {'a': 1.0}); os.kill(os.getpid(), 9)"
    )
    root = str(Path(__file__).parents[2])
    killed = subprocess.run([sys.executable, "-c", program, str(folder.resolve())], cwd=root, check=False)
    assert killed.returncode == -9
    end = time.monotonic() + 60
    while not any(call["what"] == "finish" for call in asked()):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert logged(asked()) == [{"step": 1, "a": 1.0}]


def test_pages_and_tables_are_sent_when_they_have_changed(shrunk_config: Config, fake: Callable[..., Any]) -> None:
    asked = fake()
    folder = new_run_folder(shrunk_config("+run_name=run"))
    for text in ("<p>one", None, "<p>two"):
        logger = RunLogger(folder, [Mirror])
        if text:
            write_file(folder / "report.html", text)
        logger.close()
    assert [call["content"] for call in asked() if call["what"] == "artifact"] == ["<p>one", "<p>two"]


def test_a_finished_run_is_sent_by_hand(shrunk_config: Config, fake: Callable[..., Any]) -> None:
    folder = new_run_folder(shrunk_config("+run_name=run"))
    (folder / "metrics.jsonl").write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a"\n{"step": 3, "a": 3.0}\n{"ste')
    asked = fake()
    for _ in range(2):
        wandb_mirror(str(folder.resolve()))
    assert logged(asked()) == [{"step": 1, "a": 1.0}, {"step": 3, "a": 3.0}]


def wandb_mirror(*arguments: str) -> None:
    command = [sys.executable, "-m", "reports.wandb_mirror", *arguments]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True)


@pytest.mark.parametrize("fault", ["log raises", "finish raises", "log dies"])
def test_after_a_failure_everything_is_sent_by_hand(
    shrunk_config: Config, fake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    asked = fake(fault)
    folder = new_run_folder(shrunk_config("+run_name=run"))
    logger = RunLogger(folder, [Mirror])
    logger.log(1, {"a": 1.0})
    logger.close()
    assert [call["what"] for call in asked()].count("finish") == 0
    monkeypatch.setenv("FAKE_WANDB", "none")
    wandb_mirror(str(folder.resolve()))
    assert logged(asked())[-1] == {"step": 1, "a": 1.0}
    assert asked()[-1]["what"] == "finish"


def test_a_mirror_that_hangs_gives_up_after_the_run(
    shrunk_config: Config, fake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started in a process where the patience is a second."""
    fake("init hangs")
    folder = new_run_folder(shrunk_config("+run_name=run")).resolve()
    program = (
        "import sys; from pathlib import Path; from reports import wandb_mirror; wandb_mirror.PATIENCE_SECONDS = 1; "
        "wandb_mirror.mirror(Path(sys.argv[1]), follow=True)"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], cwd=root, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == -signal.SIGALRM


def test_an_empty_table_keeps_nothing_from_being_sent(shrunk_config: Config, fake: Callable[..., Any]) -> None:
    """As a run leaves it that is resumed from before its first evaluation."""
    asked = fake()
    folder = new_run_folder(shrunk_config("+run_name=run"))
    (folder / "act_steps.jsonl").touch()
    logger = RunLogger(folder, [Mirror])
    logger.log(1, {"a": 1.0})
    logger.close()
    assert logged(asked()) == [{"step": 1, "a": 1.0}]
    assert asked()[-1]["what"] == "finish"


def test_the_mirror_outlives_the_job_that_it_is_started_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's processes are known, and killed, by a variable of theirs."""
    monkeypatch.setenv(JOB_TOKEN_VARIABLE, "token")
    assert JOB_TOKEN_VARIABLE not in wandb_process.environment()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        wandb_mirror(str(tmp_path))
    assert caught.value.returncode == 2
    assert b"not a run folder" in caught.value.stderr


def test_tags_of_the_environment_are_added_once(shrunk_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_TAGS", "night,etrm,,pilot")
    config = yaml.safe_load(yaml.safe_dump(dump_config(shrunk_config("seed=3"))))
    assert tags_of(config) == ["etrm", "standard", "seed3", "night", "pilot"]


def test_real_wandb_works_offline(shrunk_config: Config, ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an account, with the installed version: the run's files lie inside the run folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb_process, "WAIT_SECONDS", 60)
    fit(shrunk_config(*SHORT), ranks, observers=RUN_OBSERVERS)
    assert list(FOLDER.glob("wandb/offline-run-*/*.wandb")), (FOLDER / "wandb.log").read_text()
    sent = json.loads((FOLDER / "wandb_sent.json").read_text())
    assert (sent["step"], sent["lines"]) == (2, 2)
    assert set(sent["files"]) >= {"act_steps.jsonl", "predictions.json"}
