"""Rounds in which a model improves: the critic learns from its own critiques, the generator from its own solutions."""
