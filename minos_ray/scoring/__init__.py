"""Scores: ORM, PRM and the critic over test candidates."""
