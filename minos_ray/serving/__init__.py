"""A verifier over HTTP, on Ray Serve."""
