"""Asking a trained model: evaluation, votes, traces of ACT steps, answers to new tasks."""
