"""Joining Ray, and asking nodes for room."""
