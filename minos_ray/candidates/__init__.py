"""Stage `sample`: the plan of missing candidates, and the vLLM actors that generate them."""
