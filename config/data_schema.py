"""What the `data` section may hold: the source of training batches, with options of its own."""

from typing import Any, ClassVar, Literal

from config.arch_schema import Condition
from config.fields import Section

# By the name of the arch; every other arch reads demonstrations.
DEFAULT_SOURCES = {
    "recursive_reasoning.trm@TRM": "puzzle_id",
    "recursive_reasoning.trm_hybrid@HybridTRMModel": "text",
}


class DataConfig(Section):
    """A source of training batches. Each has a `name` in `training.sources.SOURCES`, and an arch that reads what its
    batches tell of a puzzle."""

    condition: ClassVar[Condition] = "demonstrations"

    def unused_keys(self) -> dict[str, str]:
        """Top-level keys that the source does not read, with the reason."""
        return {}


class FewshotData(DataConfig):
    """Puzzles of a store, each query with demonstrations."""

    name: Literal["fewshot"]


class PuzzleIdData(DataConfig):
    """Puzzles of a store, each query with the number of its puzzle."""

    name: Literal["puzzle_id"]
    condition: ClassVar[Condition] = "puzzle identifiers"

    def unused_keys(self) -> dict[str, str]:
        return {"query_sampling": "TRM trains on every pair of a puzzle"}


class TextData(DataConfig):
    """A finite table of tasks of a store, each query with the latents of its text."""

    name: Literal["text"]
    condition: ClassVar[Condition] = "texts"


AnyData = FewshotData | PuzzleIdData | TextData


def with_source(values: dict[str, Any]) -> dict[str, Any]:
    """A config's values with the source that its arch reads, where `data.name` is "auto" or there is none."""
    data, arch = values.get("data", {}), values.get("arch")
    if not isinstance(data, dict) or data.get("name", "auto") != "auto":
        return values
    arch_name = str(arch.get("name")) if isinstance(arch, dict) else ""
    return {**values, "data": {**data, "name": DEFAULT_SOURCES.get(arch_name, "fewshot")}}
