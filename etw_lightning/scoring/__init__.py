"""What a model said of a set, kept and found again."""
