"""Critiques: prompts, client, limits, cache, and a critic of one's own behind vLLM."""
