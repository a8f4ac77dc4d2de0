"""The commands that an installation brings along; each is what `python -m` runs of the same purpose."""

import runpy


def _run(module: str) -> None:
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def train() -> None:
    """`etrm-train`: `--config-name` chooses any system."""
    _run("pretrain_etrm")


def evaluate() -> None:
    """`etrm-evaluate`: a checkpoint by itself."""
    _run("evaluate")


def solve() -> None:
    """`etrm-solve`: tasks in, answers out."""
    _run("solve")


def jobs() -> None:
    """`etrm-jobs`: a job file."""
    _run("run_jobs")


def report() -> None:
    """`etrm-report`: a page about runs."""
    _run("reports")


def data() -> None:
    """`etrm-data`: builds a data set."""
    _run("dataset.build_arc_dataset")


def weights() -> None:
    """`etrm-weights`: looks into weights, converts them."""
    _run("checkpoints")
