"""Stage `problems`: its loaders; and choices among the rows of a split, for all later stages."""
