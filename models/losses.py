"""Losses and training metrics: token cross-entropy, halting, KL."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from config.arch_schema import ArchConfig, CropLossConfig, LossConfig
from dataset.batches import Batch
from dataset.grids import EOS, PAD
from evaluators.eos_utils import compute_exact_match, counted_targets
from models.act import RecursiveReasoner
from models.pair_vectors import of_one_task, pair_loss

Q_HALT_WEIGHT = 0.5


def valid_labels(labels: Int[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Positions that carry loss: neither PAD nor IGNORE_LABEL_ID."""
    return labels > PAD


def log_stablemax(logits: Float[Tensor, "*shape vocab"]) -> Float[Tensor, "*shape vocab"]:
    """log of s(x) / Σ s(x), with s(x) = x + 1 for x ≥ 0 and 1 / (1 - x) for x < 0, in float64.

    Source: "Grokking at the Edge of Numerical Stability", arXiv 2501.04697.
    """
    x = logits.double()
    scores = torch.where(x < 0, 1 / (1 - x.clamp(max=0)), x.clamp(min=0) + 1)
    return torch.log(scores) - torch.log(scores.sum(-1, keepdim=True))


def log_softmax(logits: Float[Tensor, "*shape vocab"]) -> Float[Tensor, "*shape vocab"]:
    """The usual log-probabilities, in float32."""
    return torch.log_softmax(logits.float(), dim=-1)


def stablemax_cross_entropy(
    logits: Float[Tensor, "*shape vocab"], labels: Int[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """-`log_stablemax` of the labels; zero where the label is PAD or IGNORE_LABEL_ID."""
    return _pick(log_stablemax(logits), labels)


def softmax_cross_entropy(
    logits: Float[Tensor, "*shape vocab"], labels: Int[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The usual cross-entropy in float32; zero where the label is PAD or IGNORE_LABEL_ID."""
    return _pick(log_softmax(logits), labels)


def _pick(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    index = labels.long().clamp(min=0)
    picked = log_probabilities.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return torch.where(valid_labels(labels), -picked, 0)


TOKEN_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "stablemax_cross_entropy": stablemax_cross_entropy,
    "softmax_cross_entropy": softmax_cross_entropy,
}
LOG_PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "stablemax_cross_entropy": log_stablemax,
    "softmax_cross_entropy": log_softmax,
}


class ACTLossHead(nn.Module):
    """A model and its loss. All terms are sums over the batch; divide by the global batch size.

    Token loss averaged over a sample's valid tokens, + 0.5 × binary cross-entropy of q_halt against "every valid
    token of the sample is right", + `kl_weight` × KL, + in training `pair_weight` × the loss between a task's pairs.
    """

    def __init__(self, model: RecursiveReasoner, loss_config: LossConfig | CropLossConfig):
        super().__init__()
        self.model = model
        self.token_loss = TOKEN_LOSSES[loss_config.loss_type]
        self.kl_weight, self.pair_weight = loss_config.kl_weight, loss_config.pair_weight

    def forward(self, carry: Any, batch: Batch) -> tuple[Any, Float[Tensor, ""], dict[str, Tensor], dict[str, Tensor]]:
        """One ACT step.

        Returns:
            (new carry, loss, sums for the metrics, the model's outputs). Sums are detached scalars: `count` samples
            have halted in this step, `inflight_count` were worked on. The outputs have `exact` (B) besides, 1 where a
            sample is exactly right.
        """
        carry, outputs = self.model(carry, batch)
        if "target_logits" in outputs:
            terms = self._terms_of_targets(outputs)
        else:
            terms = self.terms(outputs, carry.current_data["labels"])
        if "pairs" in outputs:
            data = carry.current_data
            terms["pair_loss"] = pair_loss(outputs["pairs"], data["demo_mask"], of_one_task(data))
        loss = self.total(terms)
        with torch.no_grad():
            sums = self._sums(terms, carry, loss)
        return carry, loss, sums, {**outputs, "exact": terms["exact_accuracy"]}

    def total(self, terms: dict[str, Float[Tensor, "*groups samples"]]) -> Float[Tensor, "*groups"]:
        """The loss of samples, summed: what is minimised."""
        loss = terms["lm_loss"].sum(-1) + Q_HALT_WEIGHT * terms["q_halt_loss"].sum(-1)
        loss = loss + self.kl_weight * terms["kl_loss"].sum(-1)
        return loss + self.pair_weight * terms["pair_loss"].sum(-1) if "pair_loss" in terms else loss

    def terms(self, outputs: dict[str, Tensor], labels: Int[Tensor, "batch 900"]) -> dict[str, Float[Tensor, " batch"]]:
        """Each sample's losses and measures.

        `accuracy` is the share of its valid tokens that are right, `exact_accuracy` and `q_halt_accuracy` are 0 or 1,
        `labelled` says whether it has any valid token.
        """
        counted = self.counted_labels(labels)
        valid = valid_labels(counted)
        count = valid.sum(-1)
        labelled = count > 0
        logits = outputs["logits"]
        lm_loss = self.token_loss(logits, counted).sum(-1) / count.clamp(min=1)
        with torch.no_grad():
            correct = (valid & (logits.argmax(-1) == labels)).sum(-1)
            exact = self.exact(logits, labels)
        q_halt = outputs["q_halt_logits"]
        return {
            "lm_loss": lm_loss,
            "q_halt_loss": F.binary_cross_entropy_with_logits(q_halt, exact.float(), reduction="none"),
            "kl_loss": outputs["kl_loss"],
            "accuracy": correct / count.clamp(min=1),
            "exact_accuracy": exact.float(),
            "q_halt_accuracy": ((q_halt > 0) == exact).float(),
            "labelled": labelled.float(),
        }

    def _terms_of_targets(self, outputs: dict[str, Tensor]) -> dict[str, Float[Tensor, " batch"]]:
        """Where every pair is a target: losses are means over a sample's targets, measures those of its query."""
        sample, query = outputs["target_samples"], outputs["target_queries"]
        asked = {key: outputs[f"target_{key}"] for key in ("logits", "q_halt_logits")}
        each = self.terms({**asked, "kl_loss": outputs["kl_loss"][sample]}, outputs["target_labels"])
        count = torch.zeros_like(each["labelled"][query]).index_add(0, sample, torch.ones_like(each["labelled"]))
        terms = {key: value[query] for key, value in each.items()}
        for key in ("lm_loss", "q_halt_loss"):
            terms[key] = torch.zeros_like(terms[key]).index_add(0, sample, each[key]) / count
        return terms

    def counted_labels(self, labels: Int[Tensor, "batch 900"]) -> Int[Tensor, "batch 900"]:
        """The labels, PAD where they carry no loss."""
        return labels

    def exact(
        self, logits: Float[Tensor, "batch 900 vocab"], labels: Int[Tensor, "batch 900"]
    ) -> Bool[Tensor, " batch"]:
        """Which samples are right in every valid token; none without any."""
        valid = valid_labels(labels)
        return (~valid | (logits.argmax(-1) == labels)).all(-1) & valid.any(-1)

    @staticmethod
    def _sums(terms: dict[str, Tensor], carry: Any, loss: Tensor) -> dict[str, Tensor]:
        """Sums over the samples that halted (accuracies, steps), and over all in flight (losses, `inflight_*`)."""
        labelled = terms["labelled"]
        halted = carry.halted.float() * labelled
        measures = {key: terms[key] for key in ("accuracy", "exact_accuracy", "q_halt_accuracy")}
        measures["steps"] = carry.steps.float()
        sums = {"count": halted.sum(), "inflight_count": labelled.sum(), "loss": loss.detach()}
        for key, value in measures.items():
            sums[key] = (value * halted).sum()
            sums[f"inflight_{key}"] = (value * labelled).sum()
        for key in ("lm_loss", "q_halt_loss", "kl_loss", *({"pair_loss"} & terms.keys())):
            sums[key] = terms[key].detach().float().sum()
        return sums


class CropLossHead(ACTLossHead):
    """The loss of queries that stand untranslated at (0, 0): what counts is the grid that is cropped from the tokens.

    Token loss over the targets that are colours (with `include_eos` also EOS), averaged over those of a sample; a
    sample is exact when the cropped prediction equals the cropped target. The other terms are `ACTLossHead`'s.
    """

    def __init__(self, model: RecursiveReasoner, loss_config: CropLossConfig):
        super().__init__(model, loss_config)
        self.include_eos = loss_config.include_eos

    def counted_labels(self, labels: Int[Tensor, "batch 900"]) -> Int[Tensor, "batch 900"]:
        return torch.where(counted_targets(labels, self.include_eos), labels, PAD)

    def exact(self, logits: Float[Tensor, "batch 900 vocab"], labels: Int[Tensor, "batch 900"]) -> Tensor:
        return compute_exact_match(logits, labels) & (labels > EOS).any(-1)


LOSS_HEADS: dict[str, Callable[[RecursiveReasoner, Any], ACTLossHead]] = {
    "losses@ACTLossHead": ACTLossHead,
    "losses@CropLossHead": CropLossHead,
}


def create_loss_head(arch: ArchConfig, model: RecursiveReasoner) -> ACTLossHead:
    """The loss head named by `arch.loss.name`.

    Raises:
        ValueError: an unknown name.
    """
    if arch.loss.name not in LOSS_HEADS:
        raise ValueError(f"arch.loss.name '{arch.loss.name}' is not one of {', '.join(LOSS_HEADS)}")
    return LOSS_HEADS[arch.loss.name](model, arch.loss)
