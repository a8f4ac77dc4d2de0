"""What a run can lower when memory runs out, by what it was doing."""

from contextlib import AbstractContextManager

from config.schema import TrainConfig
from utils.faults import memory_for


def memory_of_start(config: TrainConfig) -> AbstractContextManager[None]:
    """For data, model and optimizer."""
    return memory_for("before the first step", f"lower arch.hidden_size={config.arch.hidden_size}, or free some")


def memory_of_step(config: TrainConfig) -> AbstractContextManager[None]:
    """For one ACT step with its gradients."""
    remedy = f"lower the batch size, global_batch_size={config.global_batch_size}, or max_demos={config.max_demos}"
    return memory_for("in a training step", remedy + _smaller_canvas(config))


def memory_of_evaluation(config: TrainConfig) -> AbstractContextManager[None]:
    """For the queries that are answered at once."""
    key = "eval_batch_size" if config.eval_batch_tokens is None else "eval_batch_tokens"
    remedy = f"lower the queries at once, {key}={getattr(config, key)}"
    return memory_for("in an evaluation", remedy + _smaller_canvas(config))


def _smaller_canvas(config: TrainConfig) -> str:
    has_choice = config.arch.canvas == "full" and not config.arch.mlp_t
    return "; or compute fewer cells by arch.canvas=task" if has_choice else ""
