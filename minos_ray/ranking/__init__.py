"""Scoring and ranking solutions that lie outside of a run."""
