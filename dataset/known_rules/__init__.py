"""Few-shot tasks without end whose rule is known: families of rules, the generator, the curriculum, the source."""
