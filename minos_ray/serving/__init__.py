"""Scores of solutions that lie outside of a run: `minos rank` for files, `minos serve` over HTTP, on Ray Serve."""
