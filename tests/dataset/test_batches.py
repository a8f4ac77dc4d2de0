"""The demonstrations of a batch."""

from dataset.batches import DEMONSTRATION_KEYS, Batch, Demonstrations


def test_demonstrations_are_the_named_tensors_of_the_batch(batch: Batch) -> None:
    shown = Demonstrations.of(batch)
    assert shown.inputs is batch["demo_inputs"]
    assert shown.labels is batch["demo_labels"]
    assert shown.mask is batch["demo_mask"]
    assert {key for key in batch if key.startswith("demo_")} == set(DEMONSTRATION_KEYS)
