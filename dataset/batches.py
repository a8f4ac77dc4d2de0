"""What a batch is: tensors by name, the first axis of each its samples; and the demonstrations in it."""

from typing import NamedTuple

from jaxtyping import Bool, Integer
from torch import Tensor

Batch = dict[str, Tensor]
DEMONSTRATION_KEYS = ("demo_inputs", "demo_labels", "demo_mask")


class Demonstrations(NamedTuple):
    """The demonstration pairs of a batch as tokens; `mask` says which of the K slots hold a pair."""

    inputs: Integer[Tensor, "batch demos 900"]
    labels: Integer[Tensor, "batch demos 900"]
    mask: Bool[Tensor, "batch demos"]

    @classmethod
    def of(cls, batch: Batch) -> "Demonstrations":
        """Those of a batch, by its `DEMONSTRATION_KEYS`."""
        return cls(*(batch[key] for key in DEMONSTRATION_KEYS))
