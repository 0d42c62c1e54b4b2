"""Grids of trainings: a sweep over the amount of critiques, and the paper's claim as a study over several seeds."""
