"""Candidates by a search over steps that a process reward model guides."""
