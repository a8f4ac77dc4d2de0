"""The dashboard of a project in wandb: `python -m reports.wandb_workspace --project P --entity E`.

Saves a workspace view with the panels below, through `wandb-workspaces` (extra `[workspace]`), which needs the server.
`--json FILE` writes the same panels as plain JSON instead, for which neither is needed.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
# Section -> panel title -> metrics drawn over each other.
SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "Learning": {
        "token accuracy of samples that halt": ("train/accuracy",),
        "exact match of samples that halt": ("train/exact_accuracy",),
        "token loss": ("train/lm_loss",),
        "loss": ("train/loss",),
    },
    "Held-out puzzles": {
        "pass@1 and pass@2": ("ARC/pass@1", "ARC/pass@2"),
        "contaminated pass@2": ("ARC/contaminated_pass@2",),
        "token accuracy": ("eval/accuracy",),
        "exact match": ("eval/exact_accuracy",),
    },
    "Controls: is the rule read from the demonstrations?": {
        "reading gain": ("eval/reading_gain",),
        "exact match, right and donor's": (
            "eval/controls/right_exact_accuracy",
            "eval/controls/donor_exact_accuracy",
            "eval/controls/donor_answer_share",
        ),
        "exact match, other controls": (
            "eval/controls/deranged_exact_accuracy",
            "eval/controls/none_exact_accuracy",
            "eval/controls/order_exact_accuracy",
            "eval/controls/colors_exact_accuracy",
        ),
    },
    "Halting": {
        "ACT steps": ("train/steps",),
        "accuracy of the halting decision": ("train/q_halt_accuracy", "eval/q_halt_accuracy"),
        "samples that halt in a step": ("train/halted_per_step",),
    },
    "Encoder: does it read, and does it learn?": {
        "variance across samples": ("train/encoder_cross_sample_var", "eval/encoder_cross_sample_var"),
        "share of the gradient": ("grad/encoder_share",),
        "gradient norms": ("grad/encoder_norm", "grad/inner_norm"),
        "relative change of the carry": ("train/encoder_carry_change_rel", "eval/encoder_carry_change_rel"),
    },
    "Speed": {
        "samples a second": ("train/samples_per_second", "eval/samples_per_second"),
        "learning rate": ("train/lr",),
    },
}


def workspace(project: str, entity: str) -> Any:
    """The view, not yet saved.

    Raises:
        ImportError: without `wandb-workspaces`.
    """
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    sections = [
        workspaces.Section(
            name=name,
            panels=[reports.LinePlot(title=title, x="Step", y=list(metrics)) for title, metrics in panels.items()],
            is_open=True,
        )
        for name, panels in SECTIONS.items()
    ]
    return workspaces.Workspace(name="Recursive reasoners", entity=entity, project=project, sections=sections)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; status 2 and one message where the view cannot be saved."""
    parser = argparse.ArgumentParser(prog="python -m reports.wandb_workspace", description="A project's dashboard.")
    parser.add_argument("--project", help="project_name of the runs")
    parser.add_argument("--entity", help="the account or team that it belongs to")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the panels there instead of saving a view")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if arguments.json is not None:
        try:
            arguments.json.write_text(json.dumps(SECTIONS, indent=1) + "\n")
        except OSError as error:
            parser.exit(2, f"error: {arguments.json}: {error.strerror}\n")
        return
    if not (arguments.project and arguments.entity):
        parser.error("--project and --entity say where the view is saved (or --json FILE writes the panels)")
    try:
        view = workspace(arguments.project, arguments.entity)
    except ImportError:
        parser.exit(2, "error: wandb-workspaces is not installed: pip install -e '.[workspace]', or use --json FILE\n")
    try:
        view.save()
    except Exception as error:  # noqa: BLE001 - the library raises what its HTTP client does
        parser.exit(2, f"error: the view could not be saved ({type(error).__name__}: {error}); is there a key?\n")
    log.info("%s", view.url)


if __name__ == "__main__":
    main()
