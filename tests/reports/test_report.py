"""The report: the figures on the page are those of the logs, hostile names are text, damaged files are named."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jinja2 import FileSystemLoader

from config.schema import TrainConfig
from inference.puzzle_results import PuzzleResults
from reports.curves import MAX_POINTS, bucket_curve, draw_panels, nice_ticks, seed_groups
from reports.observers import RUN_OBSERVERS
from reports.pages import templates
from reports.report import load_runs, main, write_report
from reports.run_reader import load_run
from reports.tables import differences_table, runs_table
from tests.processes import ROOT
from tests.reports.test_pages import Page
from tests.synthetic_runs import config_values, metric_rows, write_lines, write_synthetic_run
from training.loop import Preempted, fit
from utils.distributed import Ranks
from utils.signals import StopRequest

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }} & <b>'


def page_of(*folders: Path) -> str:
    write_report(folders, Path("report.html"))
    return Path("report.html").read_text(encoding="utf-8")


def text_of(html: str) -> str:
    return " ".join(Page(html).text.split())


def row_of(html: str, section: str, name: str) -> list[str]:
    """The texts of a table row's cells, from the section of that id."""
    part = html.split(f'id="{section}"')[1].split("</section>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr>.*?</tr>", part, re.S)]
    cells = next(row for row in rows if row[0].split("<small>")[0].strip() == name)
    return [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in cells]


def test_the_run_table_says_what_the_logs_say(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "E0a", points=20)
    html = page_of(run, write_synthetic_run(tmp_path / "E0b", seed=1))
    rows = metric_rows(20, 0)
    accuracy = np.mean([row["train/accuracy"] for row in rows[:-1] if row["step"] > 100])
    name, state, step, system, train, _, held_out, first, second = row_of(html, "runs", "E0a")
    assert (name, state, step, system) == ("E0a", "done", "200 of 200", "ETRM standard")
    assert (train, held_out) == (f"{100 * accuracy:.1f} %", "50.0 %")
    assert (first, second) == ("1/32 95 %: 1.0–20.0 %", "2.5/32 95 %: 1.0–20.0 %")


def test_contaminated_figures_are_named_so(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "run")
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace("ARC/pass@", "ARC/contaminated_pass@"))
    PuzzleResults(200, {"seen": {1: 1.0, 2: 1.0}, "new": {1: 0.0, 2: 0.0}}, frozenset({"seen"})).write(run)
    html = page_of(run)
    assert row_of(html, "runs", "run")[-2:] == [
        "1/32 contaminated 95 %: 1.0–20.0 %",
        "2.5/32 contaminated 95 %: 1.0–20.0 %",
    ]
    assert row_of(html, "matrix", "run")[-1] == "1/32 contaminated"
    assert "contaminated: 1 of them seen" in row_of(html, "solved", "run")[2]
    assert row_of(html, "solved", "seen") == ["seen", "✓ pass@1 contaminated"]


def test_a_run_that_is_running_failed_or_not_evaluated_is_shown_as_such(tmp_path: Path) -> None:
    done, running, failed, silent = (write_synthetic_run(tmp_path / name) for name in ("done", "up", "down", "silent"))
    status = {"state": "running", "step": 150, "total_steps": 400, "updated": 1.7e9}
    (running / "status.json").write_text(json.dumps(status))
    write_lines(running / "metrics.jsonl", metric_rows(20, 0)[:-1])
    (running / "act_steps.jsonl").unlink()
    (failed / "status.json").write_text(json.dumps({"state": "failed", "step": 7, "reason": "RuntimeError: <boom>"}))
    (silent / "status.json").unlink()
    (silent / "metrics.jsonl").write_text("")
    html = page_of(done, running, failed, silent)
    assert row_of(html, "runs", "up")[1:3] == ["running last heard of 2023-11-14 22:13 UTC", "150 of 400"]
    assert row_of(html, "runs", "up")[-3:] == ["–", "–", "–"]
    assert row_of(html, "runs", "down")[1] == "failed RuntimeError: &lt;boom&gt;"
    assert row_of(html, "runs", "silent")[1:3] == ["unknown no status.json", "0"]
    assert row_of(html, "runs", "silent")[4:] == ["–"] * 5
    assert row_of(html, "matrix", "up")[-1] == "running at step 150 of 400"


def test_only_the_config_keys_in_which_runs_differ_are_shown(tmp_path: Path) -> None:
    one = write_synthetic_run(tmp_path / "one", freeze_encoder=False, run_name="one", arch=config_values()["arch"])
    two = write_synthetic_run(tmp_path / "two", freeze_encoder=True, run_name="two", weight_decay=0.1)
    table = differences_table(load_runs([one, two]))
    assert table is not None
    assert table.header == ("run", "freeze_encoder", "weight_decay")
    assert [[cell.text for cell in row] for row in table.rows] == [["one", "false", "–"], ["two", "true", "0.1"]]
    same = write_synthetic_run(tmp_path / "same", freeze_encoder=False, run_name="same")
    assert differences_table(load_runs([one, same])) is None


def test_a_curriculum_is_drawn_family_by_family(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "rules", run_name="rules")
    rows = [{"step": step, "train/lessons_read": 2 * step, "train/lessons_read/scale": step} for step in (1, 2)]
    write_lines(run / "metrics.jsonl", rows)
    panels = {panel.title: panel for panel in draw_panels(seed_groups(load_runs([run])))}
    assert panels.keys() == {"Lessons of the curriculum that are read", "Lessons read: scale"}
    assert panels["Lessons read: scale"].lines[0].end == "2"


def naive_bucket(values: dict[int, float], steps: list[int]) -> float | None:
    """The mean of a run's values at the given steps."""
    found = [values[step] for step in steps if step in values]
    return sum(found) / len(found) if found else None


@pytest.mark.parametrize(
    ("lengths", "most"), [((50, 50, 50), 300), ((1000, 1000), 7), ((1000, 640, 13), 300), ((1,), 3)]
)
def test_a_band_is_the_mean_least_and_most_over_runs_of_bucket_means(lengths: tuple[int, ...], most: int) -> None:
    rng = np.random.default_rng(0)
    runs = [{20 * (i + 1): float(v) for i, v in enumerate(rng.normal(size=length))} for length in lengths]
    curve = bucket_curve([list(run.items()) for run in runs], most)
    steps = sorted({step for run in runs for step in run})
    buckets = [[s for i, s in enumerate(steps) if i * min(most, len(steps)) // len(steps) == b] for b in range(most)]
    buckets = [bucket for bucket in buckets if bucket]
    assert len(curve.steps) == len(buckets) == min(most, len(steps))
    for i, bucket in enumerate(buckets):
        means = [mean for run in runs if (mean := naive_bucket(run, bucket)) is not None]
        expected = (sum(bucket) / len(bucket), sum(means) / len(means), min(means), max(means))
        assert (curve.steps[i], curve.mean[i], curve.low[i], curve.high[i]) == pytest.approx(expected)


def test_runs_that_differ_in_their_seed_alone_are_one_line_with_a_band(tmp_path: Path) -> None:
    seeds = [write_synthetic_run(tmp_path / f"E0a-seed{i}", seed=i, run_name=f"E0a-seed{i}") for i in (0, 1, 12)]
    other = write_synthetic_run(tmp_path / "E1", seed=1, lr=2e-4)
    lines = seed_groups(load_runs([seeds[0], other, *seeds[1:]]))
    assert [line.label for line in lines] == ["E0a (3 seeds: 0, 1, 12)", "E1"]
    html = page_of(*seeds, other)
    panels = re.findall(r'<div class="panel">.*?</div>', html, re.DOTALL)
    assert len(panels) == 8
    assert all(panel.count("<polygon") == 1 and panel.count("<polyline") == 2 for panel in panels)


def test_a_group_whose_runs_end_apart_says_where_the_mean_is_over_fewer(tmp_path: Path) -> None:
    runs = [write_synthetic_run(tmp_path / f"s{i}", points=20 - i, seed=i) for i in range(2)]
    (line,) = seed_groups(load_runs(runs))
    assert line.label.endswith("(2 seeds: 0, 1; not all of them after step 190)")


def test_a_curve_is_drawn_where_the_values_are(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "run")
    rows: list[dict[str, float]] = [{"step": 100, "train/loss": 4.0}, {"step": 200, "train/loss": 1.0}]
    write_lines(run / "metrics.jsonl", [*rows, {"step": 200, "train/steps": float("nan")}])
    html = page_of(run)
    assert re.findall(r'<polyline[^>]* points="([^"]*)"', html) == ["190.0,0.0 380.0,142.5"]
    assert "Training loss by step. At the end: run 1" in text_of(html)


def test_long_runs_are_thinned_and_the_page_stays_small(tmp_path: Path) -> None:
    runs = [write_synthetic_run(tmp_path / f"run{i}", points=2000, seed=i, lr=1e-4 * (i + 1)) for i in range(3)]
    html = page_of(*runs)
    lengths = {len(points.split()) for points in re.findall(r'<polyline[^>]* points="([^"]*)"', html)}
    assert lengths == {MAX_POINTS, 2}, "and a dash for the one evaluation"
    assert len(html) < 1_000_000
    assert f"at most {MAX_POINTS} points" in text_of(html)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 1234), (0, 3e-7), (-2.5, 7), (0, 16), (0, 1e9)])
def test_ticks_enclose_the_values_and_are_few_and_round(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high * (1 - 1e-9)
    gaps = np.diff(ticks)
    assert gaps == pytest.approx(gaps[0])
    assert f"{gaps[0]:e}"[0] in "125"


def test_every_act_step_of_the_last_evaluation_is_in_the_table(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "run", num_steps=3)
    last: dict[str, Any] = {
        "step": 200,
        "act_steps": [{"step": i + 1.0, "accuracy": i / 4, "q_halt": 0.5} for i in range(2)],
    }
    with (run / "act_steps.jsonl").open("a") as file:
        file.write(json.dumps(last) + "\n")
    html = page_of(run)
    assert row_of(html, "steps", "token accuracy") == ["token accuracy", "0.0 %", "25.0 %"]
    assert row_of(html, "steps", "q_halt (mean probability)")[1:] == ["50.0 %", "50.0 %"]
    both = page_of(run, write_synthetic_run(tmp_path / "other", num_steps=3, seed=1))
    assert row_of(both, "steps", "run") == ["run", "0.0 %", "25.0 %", "–"]


def solving(folder: Path, **solved: tuple[float, float]) -> Path:
    credits = {puzzle: {1: first, 2: second} for puzzle, (first, second) in solved.items()}
    PuzzleResults(200, credits, frozenset()).write(folder)
    return folder


def test_who_solves_what_and_what_only_one_run_solves(tmp_path: Path) -> None:
    a = solving(write_synthetic_run(tmp_path / "a"), p=(1, 1), q=(0, 1), r=(0, 0.5), s=(0, 0))
    b = solving(write_synthetic_run(tmp_path / "b", seed=1), p=(1, 1), q=(0, 0), r=(0, 0), s=(0, 0), t=(0, 1))
    html = page_of(a, b)
    assert row_of(html, "solved", "a") == ["a", "200", "1 of 4", "2 of 4", "q"]
    assert row_of(html, "solved", "b") == ["b", "200", "1 of 5", "2 of 5", "t"]
    assert row_of(html, "solved", "p") == ["p", "✓ pass@1", "✓ pass@1"]
    assert row_of(html, "solved", "q") == ["q only a", "✓ pass@2", "✗"]
    assert row_of(html, "solved", "r") == ["r", "50 % of its inputs", "✗"]
    assert row_of(html, "solved", "t") == ["t only b", "not asked", "✓ pass@2"]
    with pytest.raises(StopIteration):
        row_of(html, "solved", "s")


def test_nothing_solved_is_said_plainly(tmp_path: Path) -> None:
    runs = [solving(write_synthetic_run(tmp_path / n, seed=i), p=(0, 0), q=(0, 0)) for i, n in enumerate("ab")]
    assert "No run solves any of the 2 held-out puzzles, not even one of their test inputs." in text_of(page_of(*runs))
    assert "The run does not solve any of the 2 held-out puzzles" in text_of(page_of(runs[0]))
    (runs[0] / "puzzles.json").unlink()
    assert "No run has recorded which held-out puzzles it solves." in text_of(page_of(runs[0]))


def test_runs_stand_beside_each_other_at_the_same_puzzle(tmp_path: Path) -> None:
    runs = [write_synthetic_run(tmp_path / name, seed=i) for i, name in enumerate("abc")]
    html = page_of(*runs)
    puzzles = re.findall(r'<details class="puzzle".*?</summary>(.*?)\n</details>\n(?=<|$)', html, re.DOTALL)
    assert len(puzzles) == 4
    for puzzle in puzzles:
        assert re.findall(r"<h4>(\w)</h4>", puzzle) == ["a", "b", "c"]
        assert puzzle.count('aria-label="truth,') == puzzle.count('type="range"') == 1


def test_a_page_without_room_says_how_many_puzzles_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_synthetic_run(tmp_path / "run", puzzles=3)
    monkeypatch.setattr("reports.report.MAX_PUZZLE_BYTES", 50_000)
    html = page_of(run)
    shown = html.count('<details class="puzzle"')
    left_out = [int(n) for n in re.findall(r"(\d+) more are left out", html)]
    assert 0 < shown < 6
    assert shown + sum(left_out) == 6


def test_hostile_names_and_values_are_text_everywhere(tmp_path: Path) -> None:
    safe = Page(page_of(write_synthetic_run(tmp_path / "a"), write_synthetic_run(tmp_path / "b", seed=1)))
    name = HOSTILE.replace("/", "∕")  # no path separator
    bad = write_synthetic_run(tmp_path / name, seed=1, note=HOSTILE, **{HOSTILE: 1, "note|x": "</textarea>"})
    (bad / "status.json").write_text(json.dumps({"state": HOSTILE, "reason": HOSTILE, "step": 1, "total_steps": 2}))
    solving(bad, **{HOSTILE: (1, 1)})
    content = json.loads((bad / "predictions.json").read_text())
    content["sections"][HOSTILE] = content["sections"].pop("Held-out puzzles")
    content["sections"][HOSTILE][0]["puzzle"] = HOSTILE
    (bad / "predictions.json").write_text(json.dumps(content))
    html = page_of(tmp_path / "a", bad)
    page = Page(html)
    for tag in ("script", "img", "b", "textarea", "style"):
        assert page.count(tag) == safe.count(tag), tag
    assert {key for _, attributes in page.elements for key in attributes if key.startswith("on")} == set()
    assert page.text.count(name) > 5
    assert "{{ 7 * 7 }}" in page.text


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    html = page_of(write_synthetic_run(tmp_path / "run"))
    page = Page(html)
    assert page.count("link") == page.count("img") == page.count("iframe") == 0
    references = [
        str(a[key]) for _, a in page.elements for key in ("src", "href", "data", "srcset", "action") if key in a
    ]
    assert references
    assert all(reference.startswith("#") for reference in references)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest", html)


def test_the_matrix_is_there_as_table_and_as_markdown(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "a|b")
    html = page_of(run)
    markdown = html.split("<textarea")[1].split(">", 1)[1].split("</textarea>")[0].splitlines()
    header, _, row = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in markdown)
    assert len(header) == len(row)
    assert row[0] == r"a\|b"
    assert row_of(html, "matrix", "a|b")[1:] == row[1:]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [
        tmp_path / "x" / "one" / "E0",
        tmp_path / "y" / "one" / "E0",
        tmp_path / "y" / "two" / "E0",
        tmp_path / "E1",
    ]
    runs = load_runs([write_synthetic_run(folder) for folder in folders])
    assert [run.name for run in runs] == ["x/one/E0", "y/one/E0", "two/E0", "E1"]


def test_a_torn_line_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_synthetic_run(tmp_path / "run", points=5)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "train/loss": 0.')
    with (run / "act_steps.jsonl").open("a") as file:
        file.write('[1]\n{"step": 60, "act_steps": 5}\n')
    caplog.set_level(logging.WARNING)
    page_of(run)
    assert f"{run / 'metrics.jsonl'}: line 7 is torn and is left out" in caplog.messages
    assert f"{run / 'act_steps.jsonl'}: line 2 is torn and is left out" in caplog.messages
    assert f"{run / 'act_steps.jsonl'}: the line of step 60 has no table and is left out" in caplog.messages
    assert runs_table([load_run(run)]).rows[0][2].text == "50"


DAMAGES = {
    "predictions.json": ("{", "[]", '{"step": 1, "sections": {"a": [{"puzzle": "p"}]}}', "\x00"),
    "puzzles.json": ("", "[]", '{"step": 1, "contaminated": [], "puzzles": {"p": {"pass@1": 1}}}'),
}


@pytest.mark.parametrize(("name", "content"), [(name, text) for name, texts in DAMAGES.items() for text in texts])
def test_a_damaged_file_costs_its_section_only_and_is_named(
    tmp_path: Path, name: str, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_synthetic_run(tmp_path / "run")
    (run / name).write_text(content)
    html = page_of(run)
    assert f"Left out: {run / name}" in text_of(html)
    assert any(str(run / name) in message for message in caplog.messages)
    assert row_of(html, "runs", "run")[1] == "done"


def test_predictions_without_steps_are_damaged(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "run")
    content = json.loads((run / "predictions.json").read_text())
    content["sections"]["Training puzzles"][0]["steps"] = []
    (run / "predictions.json").write_text(json.dumps(content))
    assert "Left out:" in text_of(page_of(run))


def bad_input(folder: Path, kind: str) -> list[str]:
    """Arguments that cannot be reported, of each kind."""
    run = write_synthetic_run(folder / "run")
    (folder / "empty").mkdir()
    if kind == "no metrics":
        (run / "metrics.jsonl").write_text("")
    if kind == "bad config":
        (run / "config.yaml").write_text("a: [")
    if kind == "no config":
        (run / "config.yaml").write_text(yaml.safe_dump({"lr": 1}))
    (folder / "file").write_text("")
    return {
        "no run": ["empty", "-o", "report.html"],
        "nowhere": ["nowhere", "-o", "report.html"],
        "twice": ["run", "./run", "-o", "report.html"],
        "a log": ["run", "-o", "run/metrics.jsonl"],
        "below a file": ["run", "-o", "file/report.html"],
    }.get(kind, ["run", "-o", "report.html"])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no run", "empty: not a run folder (config.yaml is missing)"),
        ("nowhere", "nowhere: not a run folder"),
        ("twice", "run: this run is given twice"),
        ("no metrics", "no metrics yet"),
        ("bad config", "config.yaml: cannot be read as YAML"),
        ("no config", "config.yaml: not the config of a run"),
        ("a log", "run/metrics.jsonl: the report is a file whose name ends in .html"),
        ("below a file", "file"),
    ],
)
def test_what_cannot_be_reported_is_said_in_one_line(
    tmp_path: Path, kind: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = bad_input(tmp_path, kind)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_command_makes_the_output_folder_and_prints_the_page(tmp_path: Path) -> None:
    write_synthetic_run(tmp_path / "run")
    command = [
        sys.executable,
        "-m",
        "reports",
        str(tmp_path / "run"),
        "-o",
        str(tmp_path / "new/deep/page.html"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith(str(tmp_path / "new/deep/page.html"))
    assert "</html>" in (tmp_path / "new/deep/page.html").read_text()


def test_odd_values_in_the_files_are_no_traceback(tmp_path: Path) -> None:
    huge = int("9" * 400)
    run = write_synthetic_run(tmp_path / "odd", lr=huge, weight_decay=float("nan"), note=[1, {2: 3}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"step": 200, "train/loss": huge, "train/accuracy": "high", "eval/accuracy": None}) + "\n"
        )
    with (run / "act_steps.jsonl").open("a") as file:
        file.write('{"step": 200, "act_steps": [{"step": null, "accuracy": NaN, "q_halt": 0.25}]}\n')
    (run / "status.json").write_text(json.dumps({"state": "running", "updated": 1e300, "step": "x", "total_steps": []}))
    (run / "puzzles.json").write_text('{"step": Infinity, "contaminated": [], "puzzles": {}}')
    html = page_of(run, write_synthetic_run(tmp_path / "other"))
    assert row_of(html, "runs", "odd")[1:3] == ["running", "200"]
    assert row_of(html, "steps", "odd") == ["odd", "25.0 %", "–", "–", "–"]


def test_a_folder_whose_name_is_no_text_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run-\xff")
    assert "run-?" in page_of(write_synthetic_run(folder))


def test_templates_that_change_under_a_running_process_have_no_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_synthetic_run(tmp_path / "run")
    assert isinstance(templates.loader, FileSystemLoader)
    monkeypatch.setattr(templates.loader, "searchpath", [str(tmp_path)])
    assert "</html>" in page_of(run)


def test_a_runs_own_report_says_how_the_run_ended(shrunk_config: Callable[..., TrainConfig], ranks: Ranks) -> None:
    """Asked to stop after its first step, which has no evaluation; then taken up and brought to its end."""
    config = shrunk_config("+run_name=run", "epochs=4", "log_interval=1", "log_predictions_every=0")
    stop, page = StopRequest(), Path("runs/etrm-arc/run/report.html")
    stop.ask(signal.SIGTERM)
    with pytest.raises(Preempted):
        fit(config, ranks, stop, observers=RUN_OBSERVERS)
    assert row_of(page.read_text(encoding="utf-8"), "runs", "run")[1].startswith("preempted SIGTERM")
    fit(config, ranks, observers=RUN_OBSERVERS)
    assert row_of(page.read_text(encoding="utf-8"), "runs", "run")[1] == "done"
