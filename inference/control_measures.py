"""Is the rule read from the demonstrations? Every control's figures, beside those of chance, at each evaluation.

A number of queries is chosen, the same for all ranks and runs: first the versions of puzzles as they are. Their figures
with the right demonstrations are those of the evaluation itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, Int64
from torch import Tensor

from config.schema import TrainConfig
from dataset.batches import Batch
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.grids import VOCAB_SIZE
from inference.control_table import CONDITIONAL, FAMILY_MEASURES, PREFIX, READING_GAIN
from inference.controls import (
    Control,
    deranged,
    first_demonstrations,
    most_frequent_color,
    recolored,
    reordered,
    unconditioned,
)
from inference.donors import Donors
from inference.evaluation import step_outputs
from models.canvas import with_canvas
from models.losses import ACTLossHead
from utils.distributed import Ranks, gather_lists

CONTROL_SEED = 0  # not the run's: runs that differ in their seed are asked the same
Record = dict[str, float]


def choose_queries(dataset: FewshotEvalDataset, count: int, seed: int) -> Int64[np.ndarray, " n"]:
    """At most `count` queries whose answer is known, drawn from a seed: those of puzzles as they are, then the second
    versions, and so on. The draw does not depend on which puzzles and versions are evaluated."""
    store = dataset.store
    version = dataset.query_augmentation - store.puzzle_augmentations[dataset.query_puzzle]
    rank = np.random.default_rng(seed).permutation(len(store.grid_shapes) // 2)[dataset.query_pair]
    order = np.lexsort((rank, version))
    is_labelled = store.grid_shapes[2 * dataset.query_pair + 1, 0] > 0
    return order[is_labelled[order]][:count]


class ControlMeasures:
    """Follows an evaluation (`inference.evaluation.evaluate`), then asks the chosen queries under every control.

    Args:
        count: how many queries are chosen.
    """

    def __init__(
        self, head: ACTLossHead, dataset: FewshotEvalDataset, ranks: Ranks, count: int, seed: int = CONTROL_SEED
    ):
        self.head, self.dataset, self.ranks, self.seed = head, dataset, ranks, seed
        self.chosen = choose_queries(dataset, count, seed)
        self.is_chosen = np.zeros(len(dataset.query_row), dtype=bool)
        self.is_chosen[self.chosen] = True
        self.donors = Donors(dataset, head.model.condition_keys)
        shown = (dataset.demo_pairs(self.chosen) >= 0).sum(axis=1)
        self.most_demos = int(shown.max(initial=0))
        self.right: list[tuple[int, Record]] = []

    def keep(self, queries: Int64[np.ndarray, " batch"], batch: Batch, outputs: dict[str, Tensor]) -> None:
        """Note the figures of the chosen queries among those that the evaluation has just predicted."""
        rows = np.flatnonzero(self.is_chosen[queries])
        if not len(rows):
            return
        index = torch.from_numpy(rows).to(batch["labels"].device)
        outputs = {key: outputs[key][index] for key in ("logits", "q_halt_logits", "kl_loss")}
        figures = self._figures("right", outputs, batch["labels"][index])
        self.right += zip(queries[rows].tolist(), figures, strict=True)

    def metrics(self, stop: Any = False) -> dict[str, float]:
        """Ask the chosen queries under every control, over all ranks; given up early as soon as `stop` is true."""
        right = dict(gather_lists(self.right, self.ranks))
        model = self.head.model
        was_training = model.training
        model.eval()
        mine = self.chosen[self.ranks.rank :: self.ranks.world_size]
        records: list[tuple[int, Record]] = []
        bounds = self.dataset.bounds_of(mine)
        for start, end in pairwise(bounds.tolist()):
            if stop:
                break
            queries = mine[start:end]
            records += zip(queries.tolist(), self._records(queries, right), strict=True)
        model.train(was_training)
        found = dict(gather_lists(records, self.ranks))
        return summarized([found[query] for query in sorted(found)], self._families(sorted(found)), self._conditional)

    @property
    def _conditional(self) -> tuple[str, ...]:
        return CONDITIONAL if self.donors.reads_demonstrations else ("donor",)

    def _families(self, queries: Iterable[int]) -> list[str | None]:
        rules = (self.donors.rule_of(query) for query in queries)
        return [None if rule is None else rule.family for rule in rules]

    def _generators(self, queries: Int64[np.ndarray, " n"], control: str) -> list[np.random.Generator]:
        """A fresh generator for each query under a control, keyed by its pair and version in the data set."""
        stream = CONDITIONAL.index(control)
        pairs, versions = self.dataset.query_pair[queries].tolist(), self.dataset.query_augmentation[queries].tolist()
        return [np.random.default_rng((self.seed, stream, *key)) for key in zip(pairs, versions, strict=True)]

    def _records(self, queries: Int64[np.ndarray, " n"], right: Mapping[int, Record]) -> list[Record]:
        """All figures of some queries."""
        batch = self.dataset.queries(queries)
        del batch["query_indices"]
        batch = with_canvas(batch)
        records = [dict(right[query]) for query in queries.tolist()]
        donation = self.donors.of(batch, queries, self._generators(queries, "donor"))
        logits = self._measure("donor", donation.control, records)
        for row in donation.control.is_possible.nonzero().squeeze(1).tolist():
            records[row]["donor_same_size"] = float(donation.same_size[row])
        if logits is not None:
            is_answer = self.head.exact(logits, donation.answers.to(logits.device)).tolist()
            for row in donation.is_known.nonzero().squeeze(1).tolist():
                records[row]["donor_answer_share"] = float(is_answer[row])
        for name, control in self._controls(batch, queries):
            self._measure(name, control, records)
        self._add_chance(batch, queries, records)
        return records

    def _controls(self, batch: Batch, queries: Int64[np.ndarray, " n"]) -> Iterator[tuple[str, Control]]:
        """The controls but the donor; a model that reads no demonstrations has those of its condition alone."""
        yield "none", unconditioned(batch, self.head.model.condition_keys)
        if not self.donors.reads_demonstrations:
            return
        for name, make in (("deranged", deranged), ("order", reordered), ("colors", recolored)):
            yield name, make(batch, self._generators(queries, name))
        for count in range(1, self.most_demos):
            yield f"demos_{count}", first_demonstrations(batch, count)

    def _measure(self, name: str, control: Control, records: list[Record]) -> Tensor | None:
        """Add the figures of a control to the records of its queries; the logits of all, zeros where none was made."""
        is_right = torch.zeros_like(control.is_possible) if control.is_right is None else control.is_right
        for row in (control.is_possible & is_right).nonzero().squeeze(1).tolist():
            records[row] |= {key.replace("right", name): records[row][key] for key in _names("right")}
        rows = (control.is_possible & ~is_right).nonzero().squeeze(1)
        if not len(rows):
            return None
        asked = {key: value[rows].to(self.ranks.device) for key, value in control.batch.items()}
        with torch.no_grad():
            *_, outputs = step_outputs(self.head.model, asked)
            figures = self._figures(name, outputs, asked["labels"])
        for row, found in zip(rows.tolist(), figures, strict=True):
            records[row] |= found
        logits = outputs["logits"]
        return logits.new_zeros(len(records), *logits.shape[1:]).index_copy(0, rows.to(logits.device), logits)

    def _figures(self, name: str, outputs: dict[str, Tensor], labels: Tensor) -> list[Record]:
        terms = self.head.terms(outputs, labels)
        values = zip(terms["exact_accuracy"].tolist(), terms["accuracy"].tolist(), strict=True)
        return [dict(zip(_names(name), pair, strict=True)) for pair in values]

    def _add_chance(self, batch: Batch, queries: Int64[np.ndarray, " n"], records: list[Record]) -> None:
        """What a copy of the input gets, what one colour does, and a random rule of the family where that is known."""
        labels = batch["labels"]
        for name, tokens in (("chance_copy", batch["inputs"]), ("chance_color", most_frequent_color(batch))):
            for record, found in zip(records, self._figures(name, _as_outputs(tokens), labels), strict=True):
                record |= found
        for record, query in zip(records, queries.tolist(), strict=True):
            if (rule := self.donors.rule_of(query)) is not None:
                record["chance_rule_exact_accuracy"] = rule.chance


def create_controls(
    config: TrainConfig, head: ACTLossHead, dataset: FewshotEvalDataset, ranks: Ranks
) -> ControlMeasures | None:
    """The controls that a run's config asks for."""
    return ControlMeasures(head, dataset, ranks, config.eval_control_queries) if config.eval_controls else None


def _names(control: str) -> tuple[str, str]:
    return f"{control}_exact_accuracy", f"{control}_accuracy"


def _as_outputs(tokens: Int[Tensor, "batch 900"]) -> dict[str, Tensor]:
    """Tokens as if a model had predicted them."""
    zeros = torch.zeros(len(tokens))
    return {"logits": F.one_hot(tokens.long(), VOCAB_SIZE).float(), "q_halt_logits": zeros, "kl_loss": zeros}


def summarized(
    records: list[Record], families: list[str | None], conditional: Iterable[str] = CONDITIONAL
) -> dict[str, float]:
    """The metrics of all queries and of each family: means over the queries that a control can be made of."""
    if not records:
        return {}
    metrics = {f"{PREFIX}/queries": float(len(records))} | _means(records, PREFIX)
    for control in conditional:
        impossible = sum(f"{control}_accuracy" not in record for record in records)
        metrics[f"{PREFIX}/{control}_impossible"] = float(impossible)
    gains = [r["right_exact_accuracy"] - r["donor_exact_accuracy"] for r in records if "donor_exact_accuracy" in r]
    if gains:
        metrics[READING_GAIN] = float(np.mean(gains))
    for family in sorted({family for family in families if family is not None}):
        own = [record for record, name in zip(records, families, strict=True) if name == family]
        shown = [{key: record[key] for key in FAMILY_MEASURES if key in record} for record in own]
        metrics |= {f"{PREFIX}/{family}/queries": float(len(own))} | _means(shown, f"{PREFIX}/{family}")
    return metrics


def _means(records: list[Record], prefix: str) -> dict[str, float]:
    names = dict.fromkeys(name for record in records for name in record)
    return {f"{prefix}/{name}": float(np.mean([r[name] for r in records if name in r])) for name in names}
