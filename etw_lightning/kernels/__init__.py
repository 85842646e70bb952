"""What a model says at a label: log-probabilities, entropies, distributions, in chunks."""
