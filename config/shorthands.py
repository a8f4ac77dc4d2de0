"""The TRM hybrid's own overrides: top-level names which its config files interpolate into the keys of the run.

    num_train_problems: 10
    max_train_groups: ${num_train_problems}

A shorthand stands in the composed config only; the validated config has the keys.
"""

from collections.abc import Sequence
from typing import Any

SHORTHANDS = {
    "num_train_problems": "max_train_groups",
    "num_val_problems": "max_eval_groups",
    "num_epochs": "epochs",
    "batch_size": "global_batch_size",
    "warmup_steps": "lr_warmup_steps",
    "gradient_clip": "grad_clip_norm",
    "H_cycles": "arch.H_cycles",
    "L_cycles": "arch.L_cycles",
    "L_layers": "arch.L_layers",
    "hidden_size": "arch.hidden_size",
    "text_model": "arch.text_model",
}


def without_shorthands(composed: Any, declared: Any) -> Any:
    """A composed, resolved config without the shorthands.

    Args:
        declared: the same config without overrides: what is no shorthand in there stays, and is an unknown key.
    """
    return {key: value for key, value in composed.items() if key not in SHORTHANDS or key not in declared}


def set_twice(keys: Sequence[str]) -> str | None:
    """What is wrong with overriding a shorthand and its key at once; None where nobody does."""
    for short, key in SHORTHANDS.items():
        if short in keys and key in keys:
            return f"{short} and {key} are both overridden: {short} stands for {key}"
    return None


def explained(message: str, keys: Sequence[str]) -> str:
    """An error's message, with the overridden shorthands whose keys it names."""
    notes = [f"{short} stands for {key}" for short, key in SHORTHANDS.items() if short in keys and key in message]
    return "\n".join([message, *notes])
