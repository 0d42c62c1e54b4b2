"""Judging verifiers and critics on labelled sets."""
