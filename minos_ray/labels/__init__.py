"""Stage `label`: grades answers and labels steps, by a function or by rollouts."""
