"""Comparing answers: graders, numbers, LaTeX, in processes that can be killed."""
