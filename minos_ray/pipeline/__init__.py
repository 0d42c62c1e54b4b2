"""Running all stages in order, and checking everything beforehand."""
