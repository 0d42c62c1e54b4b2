"""Critiques: prompts, client, cache, parser, the miniature's own server."""
