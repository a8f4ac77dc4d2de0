"""The run folder and its logs. `metrics.jsonl` is the source of truth; wandb mirrors it and can never stop a run."""

import json
import logging
import math
import netrc
import os
from pathlib import Path
from typing import Any

import yaml

from config.schema import TrainConfig, dump_config

log = logging.getLogger(__name__)
RUNS = Path("runs")


def run_folder(config: TrainConfig) -> Path:
    """`runs/<project_name>/<run_name>`."""
    arch = config.arch
    system = arch.name.split("@")[0].rsplit(".", 1)[-1] + (
        f"-fct{arch.num_act_steps}" if arch.halting == "fixed" else ""
    )
    default = f"{system}-{arch.encoder_name}-seed{config.seed}"
    return RUNS / config.project_name / (config.run_name or default)


def create_run_folder(config: TrainConfig) -> Path:
    """An empty run folder with the run's `config.yaml`; an earlier run of that name is moved aside, never mixed in."""
    folder = run_folder(config)
    if folder.exists() and any(folder.iterdir()):
        number = 1
        while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
            number += 1
        folder.rename(aside)
        log.warning("%s existed and was moved to %s", folder, aside)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dump_config(config), sort_keys=False))
    return folder


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class RunLogger:
    """Writes metrics of rank 0; on other ranks (`folder` None) it does nothing."""

    def __init__(self, folder: Path | None, config: TrainConfig):
        self.folder = folder
        self.file = None if folder is None else (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self.wandb_run = None if folder is None else self._start_wandb(folder, config)

    @staticmethod
    def _start_wandb(folder: Path, config: TrainConfig) -> Any:
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
        if mode == "disabled":
            return None
        try:
            import wandb

            return wandb.init(
                project=config.project_name,
                name=folder.name,
                dir=folder,
                config=dump_config(config),
                mode=mode,  # pyright: ignore[reportArgumentType]
                settings=wandb.Settings(silent=True, console="off"),
            )
        except Exception as error:  # noqa: BLE001 - whatever happens inside wandb, the run goes on
            log.warning("wandb could not start (%s): metrics go to metrics.jsonl only", error)
            return None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write one line; values that are not finite are left out."""
        if self.file is None:
            return
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()
        self._to_wandb(lambda run: run.log(finite, step=step))

    def log_page(self, step: int, name: str, html: str) -> None:
        """Put a page into the run folder and, as a panel, into wandb."""
        if self.folder is None:
            return
        (self.folder / name).write_text(html, encoding="utf-8")

        def send(run: Any) -> None:
            import wandb

            run.log({name.removesuffix(".html"): wandb.Html(html)}, step=step)

        self._to_wandb(send)

    def _to_wandb(self, send: Any) -> None:
        if self.wandb_run is None:
            return
        try:
            send(self.wandb_run)
        except Exception as error:  # noqa: BLE001 - see above
            log.warning("wandb failed (%s): metrics go to metrics.jsonl only from here on", error)
            self.wandb_run = None

    def close(self) -> None:
        """Flush and end."""
        if self.file is not None:
            self.file.close()
        self._to_wandb(lambda run: run.finish())
