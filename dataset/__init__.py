"""ARC tasks: loading, validation, augmentation, the compact data set and the batches made from it."""
