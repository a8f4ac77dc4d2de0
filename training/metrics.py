"""What a training run logs of its steps, what it keeps of its predictions, and the table that ends it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from dataset.batches import Batch
from dataset.context_limit import LEFT_OUT_KEY
from evaluators.arc import QueryResult
from inference.control_table import control_table
from inference.diagnostics import encoder_health
from inference.traces import QueryTrace, plain_queries, trace_queries, with_votes
from training.trainer import Trainer
from utils import distributed
from utils.run_folder import REPORT_FILE

SHOWN_QUERIES = 16
SHOWN_VOTES = 5


def step_metrics(
    trainer: Trainer, sums: dict[str, Tensor], outputs: dict[str, Tensor], base_lr: float
) -> dict[str, float]:
    """Learning rates, gradient norms and encoder health of the last step, over the samples of all ranks; and what the
    source of batches has to say."""
    ranks = trainer.ranks
    tensors = {key: value for key, value in sums.items() if key.startswith("grad/")}
    if trainer.model.reads_demonstrations and trainer.carry is not None:
        context, mask = outputs["context"], outputs.get("context_mask")
        if mask is not None:
            mask = distributed.gather_padded_rows(mask, ranks)
        context = distributed.gather_padded_rows(context, ranks)
        groups = distributed.gather_rows(health_groups(trainer.carry.current_data), ranks)
        tensors |= {f"train/{key}": value for key, value in encoder_health(context, groups, mask).items()}
    if trainer.carry is not None and LEFT_OUT_KEY in trainer.carry.current_data:
        left_out = distributed.gather_rows(trainer.carry.current_data[LEFT_OUT_KEY], ranks)
        tensors[f"train/{LEFT_OUT_KEY}"] = left_out.double().mean()
    for key in sorted(key for key in outputs if key.startswith("encoder_carry_")):
        tensors[f"train/{key}"] = distributed.gather_rows(outputs[key], ranks).mean()
    values = torch.stack([t.double() for t in tensors.values()]).tolist() if tensors else []
    metrics = dict(zip(tensors, values, strict=True))
    metrics |= learning_rates(trainer, base_lr) | trainer.train_data.metrics()
    if hasattr(trainer.model, "encoder") and "grad/inner_norm" in metrics:  # a step that was skipped has none
        encoder, inner = metrics.get("grad/encoder_norm", 0.0), metrics["grad/inner_norm"]
        metrics["grad/encoder_share"] = encoder / (encoder + inner) if encoder + inner > 0 else 0.0
    return metrics


def health_groups(data: Batch) -> Int[Tensor, " batch"]:
    """Which samples are of one puzzle; of generated tasks, whose identifiers are below zero, which are of one rule."""
    identifiers, groups = data["puzzle_identifiers"], data["puzzle_groups"]
    return torch.where(identifiers < 0, identifiers, groups.to(identifiers.dtype))


def learning_rates(trainer: Trainer, base_lr: float) -> dict[str, float]:
    """The schedule's rate, what AdamATan2 makes of it in the encoder, and Muon's."""
    config = trainer.config
    rates = {"train/lr": base_lr}
    if hasattr(trainer.model, "encoder"):
        groups = trainer.learner.optimizer.param_groups
        encoder = [group["lr"] for group in groups if group["name"] == "encoder" and "fused" not in group]
        rates["train/encoder_lr"] = encoder[0] if encoder else 0.0
    if config.optimizer == "muon":
        rates["train/muon_lr"] = base_lr / config.lr * config.muon_lr
    return rates


def shown_predictions(trainer: Trainer, results: Sequence[QueryResult] = ()) -> dict[str, list[QueryTrace]]:
    """What the model does with the first training and held-out queries.

    Args:
        results: the votes of the evaluation that was just made.
    """
    device = trainer.ranks.device
    sections: dict[str, list[QueryTrace]] = {}
    for name, data in (("Training puzzles", trainer.train_queries), ("Held-out puzzles", trainer.eval_data)):
        sections[name] = trace_queries(trainer.model, data, plain_queries(data, SHOWN_QUERIES), device)
    sections["Held-out puzzles"] = with_votes(sections["Held-out puzzles"], trainer.eval_data, results, SHOWN_VOTES)
    return sections


def summary(metrics: dict[str, float], folder: Path) -> str:
    """The table that ends a run, and that of its controls."""
    num_puzzles = int(metrics.get("ARC/num_puzzles", 0))

    def shown(key: str, form: str, scale: float = 1.0) -> str:
        return form.format(scale * metrics[key]) if key in metrics else "-"

    rows = [
        ("train token accuracy", shown("train/accuracy", "{:.1f} %", 100)),
        ("train exact match", shown("train/exact_accuracy", "{:.1f} %", 100)),
        ("mean ACT steps", shown("train/steps", "{:.2f}")),
        ("held-out token accuracy", shown("eval/accuracy", "{:.1f} %", 100)),
        ("held-out (validation) exact match", shown("eval/exact_accuracy", "{:.1f} %", 100)),
    ]
    for k in (1, 2):
        for name in (f"pass@{k}", f"contaminated_pass@{k}"):
            if f"ARC/{name}" in metrics:
                solved, low, high = (metrics[f"ARC/{name}_{part}"] for part in ("solved", "low", "high"))
                interval = f"{solved:g}/{num_puzzles}, 95 %: {100 * low:.1f}-{100 * high:.1f} %"
                rows.append((f"held-out {name}", f"{100 * metrics[f'ARC/{name}']:.1f} % ({interval})"))
    rows += [("run folder", str(folder)), ("report", str(folder / REPORT_FILE))]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    return "\n".join((*lines, *control_table(metrics).splitlines()))
