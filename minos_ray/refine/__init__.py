"""Rounds of the critic: it criticises labelled candidates, and learns from the critiques that agree with the labels."""
