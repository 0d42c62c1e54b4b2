"""A policy that improves: the generator learns its own solutions that a verifier prefers."""
