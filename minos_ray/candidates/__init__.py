"""Candidates: the plan of what is missing, the vLLM actor, the stage."""
