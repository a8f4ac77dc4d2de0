"""What wandb's environment variables do to a run: each acts, or it is said that it does not."""

import os
from pathlib import Path
from typing import Any

from utils.processes import JOB_TOKEN_VARIABLE

MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
YES = ("1", "true", "yes", "on")
ID_FILE = "wandb_id"
WITHOUT_EFFECT = {
    "WANDB_RESUME": "a run that goes on keeps its id in wandb by itself",
    "WANDB_CONSOLE": "a process of its own sends, which does not see the run's output",
}


def chosen_mode() -> str | None:
    """What WANDB_MODE or WANDB_DISABLED asks for; None where neither does."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode:
        return MODES.get(mode.lower(), "offline")
    return "disabled" if os.environ.get("WANDB_DISABLED", "").lower() in YES else None


def project_of(config: dict[str, Any]) -> str:
    """The project in wandb."""
    return os.environ.get("WANDB_PROJECT") or config["project_name"]


def name_of(folder: Path) -> str:
    """The name in wandb of a run with this folder."""
    return os.environ.get("WANDB_NAME") or folder.name


def group_of(config: dict[str, Any]) -> str | None:
    """The group in wandb."""
    return config.get("wandb_group") or os.environ.get("WANDB_RUN_GROUP")


def keep_directory() -> None:
    """Let WANDB_DIR mean the same folder after the working directory has changed; it is made."""
    if directory := os.environ.get("WANDB_DIR"):
        path = Path(directory).expanduser().absolute()
        path.mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_DIR"] = str(path)


def directory() -> str:
    """Where wandb writes its files: WANDB_DIR, or the run folder, which the process that sends is in."""
    return os.environ.get("WANDB_DIR") or "."


def notices(folder: Path, config: dict[str, Any]) -> list[str]:
    """What is to be said of the variables, for a run in a folder."""
    said = []
    here = f"the run folder stays {folder}"
    for name, own in (("WANDB_PROJECT", config["project_name"]), ("WANDB_NAME", folder.name)):
        if (value := os.environ.get(name)) and value != own:
            said.append(f"{name}={value}: this is what wandb shows instead of {own}; {here}")
    for name, why in WITHOUT_EFFECT.items():
        if value := os.environ.get(name):
            said.append(f"{name}={value} is ignored: {why}")
    mode = os.environ.get("WANDB_MODE", "")
    if mode and mode.lower() not in MODES:
        said.append(f"WANDB_MODE={mode} is none of {', '.join(MODES)}: offline is taken")
    group, own_group = os.environ.get("WANDB_RUN_GROUP"), config.get("wandb_group")
    if group and own_group not in (None, group) and JOB_TOKEN_VARIABLE not in os.environ:
        said.append(f"WANDB_RUN_GROUP={group} is ignored: the run has wandb_group={own_group}")
    run_id, known = os.environ.get("WANDB_RUN_ID"), known_id(folder)
    if run_id and known not in ("", run_id):
        said.append(f"WANDB_RUN_ID={run_id} is ignored: wandb knows this run as {known} ({folder / ID_FILE})")
    return said


def known_id(folder: Path) -> str:
    """The id that wandb knows a run by; empty before it has one."""
    path = folder / ID_FILE
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""
