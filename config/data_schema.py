"""What the `data` section may hold: the source of training batches, with options of its own."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from config.arch_schema import Condition
from config.fields import FilePath, ListOrOne, NonNegative, Positive, Probability, Section
from dataset.known_rules.family import Lesson, Review, RuleError, TaskSettings
from dataset.known_rules.generator import check_settings, draw_task, generator_of

# By the name of the arch; every other arch reads demonstrations.
DEFAULT_SOURCES = {
    "recursive_reasoning.trm@TRM": "puzzle_id",
    "recursive_reasoning.trm_hybrid@HybridTRMModel": "text",
}


DEFAULT_THRESHOLD = 0.9


class DataConfig(Section):
    """A source of training batches. Each has a `name` in `training.sources.SOURCES`, and an arch that reads what its
    batches tell of a puzzle."""

    condition: ClassVar[Condition] = "demonstrations"

    def unused_keys(self) -> dict[str, str]:
        """Top-level keys that the source does not read, with the reason."""
        return {}


class FewshotData(DataConfig):
    """Puzzles of a store, each query with demonstrations.

    versions: so many samples of a puzzle stand side by side, each in another version of it.
    """

    name: Literal["fewshot"]
    translate: bool = True
    versions: Positive = 1


class PuzzleIdData(DataConfig):
    """Puzzles of a store, each query with the number of its puzzle."""

    name: Literal["puzzle_id"]
    condition: ClassVar[Condition] = "puzzle identifiers"

    def unused_keys(self) -> dict[str, str]:
        return {
            "query_sampling": "TRM trains on every pair of a puzzle",
            "min_demos": "TRM reads no demonstrations",
        }


class TextData(DataConfig):
    """A finite table of tasks of a store, each query with the latents of its text."""

    name: Literal["text"]
    condition: ClassVar[Condition] = "texts"

    def unused_keys(self) -> dict[str, str]:
        return {"min_demos": "the text of a task has its demonstrations in full"}


class KnownRulesLevel(Section):
    """A level of difficulty: what it leaves out is as in the section."""

    sides: tuple[Positive, Positive] | None = None
    colors: Positive | None = None
    demos: tuple[Positive, Positive] | None = None
    distinct: bool | None = None
    rules: Positive | None = None


class KnownRulesTrack(Section):
    """Families that climb the same levels, each at its own pace; one is read with this share of exact answers."""

    families: tuple[str, ...] = Field(min_length=1)
    levels: tuple[KnownRulesLevel, ...] = Field(min_length=1)
    threshold: Probability = 0.9


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
    curriculum: tuple[KnownRulesTrack, ...]
    at_once: Positive
    patience: Positive
    earlier_share: Probability
    settle_after: Positive | None = None
    review: Review = "even"
    measure_steps: Positive
    measure_samples: Positive = 64

    @model_validator(mode="after")
    def _has_rules(self) -> "KnownRulesData":
        _check(self.own_settings(), "data")
        named = [name for track in self.curriculum for name in track.families]
        for name in named:
            if name not in self.families or named.count(name) > 1:
                raise ValueError(f"data.curriculum: the family '{name}' must be one of data.families, and named once")
        for index, track in enumerate(self.curriculum):
            for number, level in enumerate(track.levels):
                settings = replace(self.own_settings(), families=track.families, **level.model_dump(exclude_none=True))
                _check(settings, f"data.curriculum.{index}.levels.{number}")
        _check_tasks(self.own_settings(), set(self.families) - set(named), "data")
        for index, track in enumerate(self.curriculum):
            for number, level in enumerate(track.levels):
                settings = replace(self.own_settings(), **level.model_dump(exclude_none=True))
                _check_tasks(settings, track.families, f"data.curriculum.{index}.levels.{number}")
        return self

    @property
    def most_demos(self) -> int:
        """The most demonstrations of any lesson."""
        return max(lesson.settings.demos[1] for ladder in self.ladders() for lesson in ladder)

    def own_settings(self) -> TaskSettings:
        """The tasks that the section itself describes."""
        return TaskSettings(self.families, self.sides, self.colors, self.demos, self.distinct)

    def ladders(self) -> list[list[Lesson]]:
        """The lessons of each family: first those of the curriculum, in its order, then the others with one each."""
        own = self.own_settings()
        ladders = {
            name: [_lesson(own, name, level, track.threshold) for level in track.levels]
            for track in self.curriculum
            for name in track.families
        }
        rest = (name for name in self.families if name not in ladders)
        return [*ladders.values(), *([Lesson(replace(own, families=(name,)), DEFAULT_THRESHOLD)] for name in rest)]

    def unused_keys(self) -> dict[str, str]:
        unused = {
            "epochs": "data.num_batches says how long a run of known rules is",
            "query_sampling": "a task of known rules has one query",
            "min_demos": "data.demos says how many demonstrations are shown",
        }
        if not self.curriculum:
            keys = (
                "at_once",
                "patience",
                "earlier_share",
                "settle_after",
                "review",
                "measure_steps",
                "measure_samples",
            )
            unused |= {f"data.{key}": "data.curriculum is empty: all families from the start" for key in keys}
        elif self.settle_after is not None and self.settle_after >= self.num_batches:
            unused["data.settle_after"] = f"the run ends with data.num_batches={self.num_batches}"
        return unused


def _check(settings: TaskSettings, where: str) -> None:
    try:
        check_settings(settings, "train")
    except RuleError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_tasks(settings: TaskSettings, families: Iterable[str], where: str) -> None:
    """Draw a task of each family: what cannot be drawn would end a run in the midst of it."""
    for name in families:
        try:
            draw_task(generator_of(0, 0, 0), replace(settings, families=(name,)))
        except RuleError as error:
            raise ValueError(f"{where}: {error}") from error


def _lesson(own: TaskSettings, family: str, level: KnownRulesLevel, threshold: float) -> Lesson:
    return Lesson(replace(own, families=(family,), **level.model_dump(exclude_none=True)), threshold)


class RearcData(DataConfig):
    """Pairs of RE-ARC's generators, regrouped into new tasks."""

    name: Literal["rearc"]
    data_paths: Annotated[tuple[FilePath, ...], ListOrOne, Field(min_length=1)]
    num_batches: Positive
    epoch_batches: Positive
    demos: tuple[Positive, Positive]
    translate: bool

    @model_validator(mode="after")
    def _goes_up(self) -> "RearcData":
        if self.demos[0] > self.demos[1]:
            raise ValueError(f"demos={list(self.demos)}: the smaller number first")
        return self

    @property
    def most_demos(self) -> int:
        """The most demonstrations of any task."""
        return self.demos[1]

    def unused_keys(self) -> dict[str, str]:
        return {
            "epochs": "data.num_batches says how long a run of RE-ARC is",
            "query_sampling": "any pair of a generator is asked for",
            "min_demos": "data.demos says how many demonstrations are shown",
        }


class MixturePart(Section):
    """A source with its share of each batch in samples; two numbers are the first and the last."""

    share: Annotated[tuple[NonNegative, ...], ListOrOne, Field(min_length=1, max_length=2)]
    source: Annotated[FewshotData | KnownRulesData | RearcData, Field(discriminator="name")]


class MixtureData(DataConfig):
    """Several sources, each with a share of every batch."""

    name: Literal["mixture"]
    num_batches: Positive
    epoch_batches: Positive
    share_batches: Positive
    sources: Annotated[tuple[MixturePart, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _has_shares(self) -> "MixtureData":
        for number, part in enumerate(self.sources):
            settles = part.source.settle_after if isinstance(part.source, KnownRulesData) else None
            if settles and settles >= self.num_batches:
                raise ValueError(
                    f"data.sources.{number}.source.settle_after={settles}: the run ends with "
                    f"data.num_batches={self.num_batches}"
                )
            if not any(part.share):
                raise ValueError(f"data.sources.{number}.share: a source without any sample is left out")
            if isinstance(part.source, FewshotData) and part.source.versions > 1 and part.share[0] != part.share[-1]:
                raise ValueError(
                    f"data.sources.{number}.source.versions={part.source.versions}: those of a puzzle stand side by "
                    "side, which a share that changes would tear apart"
                )
        known = [part.source.families for part in self.sources if isinstance(part.source, KnownRulesData)]
        names = [name for families in known for name in families]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"data.sources: two sources of known rules have the family '{name}'; both would draw the same tasks"
                )
        return self

    @property
    def most_demos(self) -> int:
        """The most demonstrations of any source that draws tasks of its own."""
        return max(
            (part.source.most_demos for part in self.sources if not isinstance(part.source, FewshotData)), default=0
        )

    def unused_keys(self) -> dict[str, str]:
        unused = {"epochs": "data.num_batches says how long a run of a mixture is"}
        if not any(isinstance(part.source, FewshotData) for part in self.sources):
            unused |= dict.fromkeys(("query_sampling", "min_demos"), "no source of the mixture is fewshot")
        if all(part.share[0] == part.share[-1] for part in self.sources):
            unused["data.share_batches"] = "no share changes"
        return unused


AnyData = FewshotData | PuzzleIdData | TextData | KnownRulesData | RearcData | MixtureData


def with_source(values: dict[str, Any]) -> dict[str, Any]:
    """A config's values with the source that its arch reads, where `data.name` is "auto" or there is none."""
    data, arch = values.get("data", {}), values.get("arch")
    if not isinstance(data, dict) or data.get("name", "auto") != "auto":
        return values
    arch_name = str(arch.get("name")) if isinstance(arch, dict) else ""
    return {**values, "data": {**data, "name": DEFAULT_SOURCES.get(arch_name, "fewshot")}}
