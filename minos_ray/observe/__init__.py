"""What running work tells: numbers as JSONL and as Ray metrics, and why it failed."""
