"""What the `data` section may hold: the source of training batches, with options of its own."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from config.arch_schema import Condition
from config.fields import Positive, Probability, Section
from dataset.known_rules.family import RuleError, Stage, TaskSettings
from dataset.known_rules.generator import check_settings

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


class KnownRulesStage(Section):
    """A stage of the curriculum: what it leaves out is as in the section."""

    families: tuple[str, ...] | None = None
    sides: tuple[Positive, Positive] | None = None
    colors: Positive | None = None
    distinct: bool | None = None
    threshold: Probability = 0.9
    max_batches: Positive | None = None


class KnownRulesData(DataConfig):
    """Tasks whose rule is known, made as they are read."""

    name: Literal["known_rules"]
    num_batches: Positive
    epoch_batches: Positive
    families: tuple[str, ...]
    sides: tuple[Positive, Positive]
    colors: Positive
    demos: tuple[Positive, Positive]
    distinct: bool
    translate: bool
    stages: tuple[KnownRulesStage, ...]
    earlier_share: Probability
    measure_steps: Positive

    @model_validator(mode="after")
    def _has_rules(self) -> "KnownRulesData":
        for index, stage in enumerate(self.curriculum_stages()):
            try:
                check_settings(stage.settings, "train")
            except RuleError as error:
                raise ValueError(f"data{f'.stages.{index}' if self.stages else ''}: {error}") from error
        return self

    def curriculum_stages(self) -> tuple[Stage, ...]:
        """The stages; one of the section's own settings where it names none."""
        own = TaskSettings(self.families, self.sides, self.colors, self.demos, self.distinct)
        return tuple(_stage(stage, own) for stage in self.stages) or (Stage(own),)

    def unused_keys(self) -> dict[str, str]:
        unused = {
            "epochs": "data.num_batches says how long a run of known rules is",
            "query_sampling": "a task of known rules has one query",
        }
        if len(self.stages) < 2:
            unused |= dict.fromkeys(("data.earlier_share", "data.measure_steps"), "data.stages has no second stage")
        return unused


def _stage(stage: KnownRulesStage, settings: TaskSettings) -> Stage:
    changed = stage.model_dump(exclude_none=True)
    limits = {key: changed.pop(key) for key in ("threshold", "max_batches") if key in changed}
    return Stage(replace(settings, **changed), **limits)


AnyData = FewshotData | PuzzleIdData | TextData | KnownRulesData


def with_source(values: dict[str, Any]) -> dict[str, Any]:
    """A config's values with the source that its arch reads, where `data.name` is "auto" or there is none."""
    data, arch = values.get("data", {}), values.get("arch")
    if not isinstance(data, dict) or data.get("name", "auto") != "auto":
        return values
    arch_name = str(arch.get("name")) if isinstance(arch, dict) else ""
    return {**values, "data": {**data, "name": DEFAULT_SOURCES.get(arch_name, "fewshot")}}
