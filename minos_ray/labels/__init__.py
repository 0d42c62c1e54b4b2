"""Labels: answers, steps, error types."""
