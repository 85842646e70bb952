"""What is shown of a run while it goes on: curves in groups, pictures of weights, lines."""
