"""Evaluation: selection, statistics, meta-evaluation, error types."""
