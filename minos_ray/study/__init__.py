"""The claim as an experiment: critiques against none over several seeds of data and training, with ablations."""
