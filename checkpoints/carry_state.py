"""A model's carry as it stands in a checkpoint: nested dictionaries of tensors."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from checkpoints.checkpoint import CheckpointError


def carry_tensors(carry: Any) -> dict[str, Any]:
    """A carry as nested dictionaries of tensors; empty for None."""
    if isinstance(carry, dict):
        return carry
    fields = {} if carry is None else vars(carry)
    return {k: v if isinstance(v, Tensor) else carry_tensors(v) for k, v in fields.items()}


def filled_carry(template: Any, saved: Any, name: str = "carry") -> Any:
    """The saved tensors in a carry like `template`.

    Raises:
        CheckpointError: names the first part that is missing or has another shape.
    """
    if isinstance(template, Tensor):
        if not isinstance(saved, Tensor) or saved.shape != template.shape or saved.dtype != template.dtype:
            raise CheckpointError(f"{name} is {getattr(saved, 'shape', 'missing')} instead of {template.shape}")
        return saved.to(template.device)
    if not isinstance(saved, dict):
        raise CheckpointError(f"{name} is missing")
    if not isinstance(template, dict):
        parts = vars(template)
        return replace(template, **{k: filled_carry(v, saved.get(k), f"{name}.{k}") for k, v in parts.items()})
    return {key: filled_carry(value, saved.get(key), f"{name}.{key}") for key, value in template.items()}
