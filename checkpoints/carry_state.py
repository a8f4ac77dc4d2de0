"""A model's carry as it stands in a checkpoint: nested dictionaries of tensors."""

from dataclasses import fields, replace
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

    A field of a carry that is marked as ragged (`field(metadata={"ragged": True})`) may have any number of rows.

    Raises:
        CheckpointError: names the first part that is missing or has another shape.
    """
    if isinstance(template, Tensor):
        return _filled_tensor(template, saved, name, is_ragged=False)
    if not isinstance(saved, dict):
        raise CheckpointError(f"{name} is missing")
    if isinstance(template, dict):
        return {key: filled_carry(value, saved.get(key), f"{name}.{key}") for key, value in template.items()}
    ragged = {f.name for f in fields(template) if f.metadata.get("ragged")}
    filled = {
        key: _filled_tensor(value, saved.get(key), f"{name}.{key}", is_ragged=True)
        if key in ragged
        else filled_carry(value, saved.get(key), f"{name}.{key}")
        for key, value in vars(template).items()
    }
    return replace(template, **filled)


def _filled_tensor(template: Tensor, saved: Any, name: str, *, is_ragged: bool) -> Tensor:
    free = int(is_ragged)
    if (
        not isinstance(saved, Tensor)
        or saved.dtype != template.dtype
        or saved.dim() != template.dim()
        or saved.shape[free:] != template.shape[free:]
    ):
        raise CheckpointError(f"{name} is {getattr(saved, 'shape', 'missing')} instead of {template.shape}")
    return saved.to(template.device)
