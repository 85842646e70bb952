"""The parts of a model: where they are, which of them train, and by which optimiser."""
