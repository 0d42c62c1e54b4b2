"""Monitoring: progress, numbers as JSONL and as Ray metrics, and why work failed."""
