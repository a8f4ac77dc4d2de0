"""A real Chromium: `make test-browser`. Without one, or without the extra, these tests are skipped and say why."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reports.report import write_report
from tests.synthetic_runs import write_synthetic_run

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
OpenPage = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, headless."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[browser]'")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: install it (Debian: apt install chromium) or set CHROMIUM to its path")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def big_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 12 runs of 2,000 logged points, with 32 puzzles over 16 ACT steps: three times three seeds and
    three runs by themselves."""
    folder = tmp_path_factory.mktemp("big")
    settings = [{"seed": i % 3, "lr": 1e-4 * (i // 3 + 1)} for i in range(9)]
    settings += [{"seed": 0, "weight_decay": 0.1 * i} for i in range(3)]
    runs = [
        write_synthetic_run(folder / f"E{i // 3}-{i % 3}", points=2000, puzzles=16, num_steps=16, **values)
        for i, values in enumerate(settings)
    ]
    write_report(runs, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="session")
def small_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one run."""
    folder = tmp_path_factory.mktemp("small")
    write_report([write_synthetic_run(folder / "run", num_steps=4)], folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """`open_page(path, width=1280, **context)`: a page in a window of its own; what it says on the console, and any
    request that leaves the file, fails the test."""
    contexts, complaints = [], []

    def open_one(path: Path, width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: request.url == path.as_uri() or complaints.append(f"to {request.url}"))
        page.goto(path.as_uri())
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []
