"""What follows a run while it trains: its own pages, and wandb. The entry scripts hand these to the training loop."""

import logging
from pathlib import Path

from inference.traces import TRACES_FILE, read_traces
from reports.pages import predictions_page
from reports.report import write_own_report
from reports.wandb_process import Mirror
from utils.files import write_file
from utils.run_folder import METRICS_FILE
from utils.run_logger import ObserverFactory

log = logging.getLogger(__name__)
PREDICTIONS_PAGE = "predictions.html"


class OwnPages:
    """Keeps `report.html` and `predictions.html` of a run folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.drawn = self._version()

    def _version(self) -> int:
        path = self.folder / TRACES_FILE
        return path.stat().st_mtime_ns if path.exists() else 0

    def logged(self) -> None:
        pass

    def evaluated(self, *, is_last: bool) -> None:
        if (version := self._version()) != self.drawn:
            step, sections = read_traces(self.folder)
            page = predictions_page(f"Predictions after step {step}", sections)
            write_file(self.folder / PREDICTIONS_PAGE, page)
            self.drawn = version
        if not is_last:  # `ended` follows
            write_own_report(self.folder)

    def ended(self) -> None:
        metrics = self.folder / METRICS_FILE
        if metrics.exists() and metrics.stat().st_size:
            write_own_report(self.folder)


RUN_OBSERVERS: tuple[ObserverFactory, ...] = (OwnPages, Mirror)  # the mirror last: it sends the report too
