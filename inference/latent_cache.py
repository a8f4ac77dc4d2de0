"""The latents of task texts on disk: the language model reads each text once, training needs none in memory.

    <text_cache>/<hash of model, tokenizer, layer, pooling, dtype>/
        identity.json                  what the hash is of
        <2 digits>/<hash of text>.npy          z_init, float32 (text_hidden)
        <2 digits>/<hash of text>.states.npy   all hidden states, float32 (tokens, text_hidden), where they are used

Each file is written under a temporary name and renamed, so it is complete if it is there; two processes that make the
same file write the same. A text's latents depend on nothing but the text: with `text_batch_size` 1 each goes through
the model alone, and a hit equals recomputation bit for bit.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from config.schema import HybridArch
from models.language_models import ModelSource, TextModelError, locate_model
from models.text_reasoning import TaskText, TaskTokenizer, TextReasoningModule, absolute_layer, pad_tokens
from utils.distributed import choose_device
from utils.files import replacing, sha256_of, sha256_of_json, sha256_of_text, write_json

log = logging.getLogger(__name__)
CACHE_FORMAT = 1
IDENTITY_FILE = "identity.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True)
class TextSystem:
    """The language model that an `arch` config names, with its tokenizer; the model itself is loaded on demand.

    Raises:
        TextModelError: see `locate_model` and `TaskTokenizer`.
    """

    arch: HybridArch

    @cached_property
    def source(self) -> ModelSource:
        return locate_model(self.arch.text_model, self.arch.revision, self.arch.local_files_only)

    @cached_property
    def tokenizer(self) -> TaskTokenizer:
        return TaskTokenizer(
            self.source,
            chat_template=self.arch.chat_template,
            max_tokens=self.arch.max_text_tokens,
            overflow=self.arch.demo_overflow,
        )

    def load(self) -> TextReasoningModule:
        """The model in memory, on `arch.text_device`."""
        arch = self.arch
        device = choose_device(arch.text_device, int(os.environ.get("LOCAL_RANK", "0")))
        return TextReasoningModule(
            self.source, layer=arch.layer, pooling=arch.pooling, dtype=arch.text_dtype, device=device
        )

    @cached_property
    def identity(self) -> dict[str, str | int]:
        """What latents depend on besides the text."""
        return {
            "format": CACHE_FORMAT,
            "model": _model_identity(self.arch.text_model, self.source),
            "tokenizer": self.tokenizer.identity,
            "layer": absolute_layer(self.arch.layer, self.tokenizer.num_layers),
            "pooling": self.arch.pooling,
            "dtype": self.arch.text_dtype,
        }


def _model_identity(name: str, source: ModelSource) -> str:
    """A hub model's name and commit; a local one's config and weights, hashed."""
    if source.commit is not None:
        return f"{name}@{source.commit}"
    weights = [path for path in source.folder.iterdir() if path.suffix in WEIGHT_SUFFIXES]
    files = sorted([source.folder / "config.json", *weights])
    return f"sha256:{sha256_of_text(''.join(f'{path.name}:{sha256_of(path)}' + chr(10) for path in files))}"


class LatentCache:
    """The latents of one text system on disk.

    Args:
        folder: `arch.text_cache`.
        with_states: keep all hidden states beside z_init.

    Raises:
        TextModelError: the cache at this place was made by something else.
    """

    def __init__(self, system: TextSystem, folder: Path, *, with_states: bool):
        self.system, self.with_states = system, with_states
        name = sha256_of_json(system.identity)[:16]
        self.folder = folder / name
        self._claim()

    def _claim(self) -> None:
        path = self.folder / IDENTITY_FILE
        expected = self.system.identity
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, expected)
            return
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise TextModelError(f"{path}: damaged; delete {self.folder}") from error
        differing = [key for key in expected if not isinstance(found, dict) or found.get(key) != expected[key]]
        if differing:
            keys = ", ".join(differing)
            raise TextModelError(f"{self.folder} was made by another model or settings ({keys} differ); delete it")

    def path(self, text: TaskText) -> Path:
        """Where the z_init of a text is."""
        name = sha256_of_text(text.text)
        return self.folder / name[:2] / f"{name}.npy"

    def states_path(self, text: TaskText) -> Path:
        """Where the hidden states of a text are."""
        return self.path(text).with_suffix(".states.npy")

    def has(self, text: TaskText) -> bool:
        """Whether all that is kept of a text is there."""
        return self.path(text).exists() and (not self.with_states or self.states_path(text).exists())

    def fill(self, texts: Sequence[TaskText], *, progress: bool = True) -> int:
        """Compute what is missing, in batches; returns how many texts were. The model is in memory meanwhile."""
        missing = [text for text in {text.text: text for text in texts}.values() if not self.has(text)]
        if not missing:
            return 0
        missing.sort(key=lambda text: len(text.tokens))  # little padding within a batch
        size = self.system.arch.text_batch_size
        module = self.system.load()
        with tqdm(total=len(missing), desc="read tasks", unit="text", disable=not progress) as bar:
            for start in range(0, len(missing), size):
                batch = missing[start : start + size]
                new = [text for text in batch if not self.has(text)]  # another process may have been faster
                if new:
                    self._compute(module, new)
                bar.update(len(batch))
        return len(missing)

    def _compute(self, module: TextReasoningModule, texts: Sequence[TaskText]) -> None:
        device = next(module.parameters()).device
        ids, mask = pad_tokens(texts)
        latents = module(ids.to(device), mask.to(device))
        z_init, states = latents.z_init.float().cpu().numpy(), latents.states.float().cpu().numpy()
        for text, z, hidden in zip(texts, z_init, states, strict=True):
            if not np.isfinite(z).all():
                raise TextModelError(
                    f"the hidden states of a text of {len(text.tokens)} tokens are not finite in "
                    f"arch.text_dtype={self.system.arch.text_dtype}; try bfloat16 or float32"
                )
            if self.with_states:
                _save(self.states_path(text), hidden[: len(text.tokens)])
            _save(self.path(text), z)

    def read(self, texts: Sequence[TaskText]) -> Float32[np.ndarray, "texts text_hidden"]:
        """z_init of texts that are all there.

        Raises:
            TextModelError: a file is damaged.
        """
        return np.stack([_load(self.path(text)) for text in texts])


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def _load(path: Path) -> Float32[np.ndarray, " text_hidden"]:
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise TextModelError(f"{path}: damaged; delete it and it is made again") from error
