"""Which model, on which weights, laid out how."""
