"""The scale-up study over the amount of critiques."""
