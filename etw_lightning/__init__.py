"""Language-model unlearning with entropy-guided token weighting, on PyTorch Lightning."""

__version__ = "0.1.0"
