"""Learning from a loss: one training step, optimizers, weight averages, guards against numbers out of range."""
