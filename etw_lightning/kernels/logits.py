"""What some models make of their output head's logits: a scale, a soft cap, a cut vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["LogitTransform"]


@dataclass(frozen=True)
class LogitTransform:
    """``cap * tanh(scale * logits / cap)`` of the first ``size`` tokens.

    Gradients and entropies are those of the changed logits, as the model itself says them. The
    slope, ``scale * (1 - (changed / cap)^2)``, vanishes where a logit has come to the cap.

    Args:
        scale: Multiplies the logits, not 0; 1 leaves them as they are.
        cap: Bound of the logits' size, > 0; None for none.
        size: Tokens that are kept, from the first, >= 1; None keeps all.

    Raises:
        ValueError: If a number is out of range.

    Source: Gemma 2's report, arXiv:2408.00118, section 2, for the soft cap.

    Example:
        >>> import torch
        >>> LogitTransform(scale=2.0, cap=30.0).change_(torch.tensor([0.0, 1.0, 1000.0]))
        tensor([ 0.0000,  1.9970, 30.0000])
    """

    scale: float = 1.0
    cap: float | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if not abs(self.scale) > 0:
            raise ValueError(f"LogitTransform.scale must not be 0, got {self.scale}.")
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"LogitTransform.cap must be > 0, got {self.cap}.")
        if self.size is not None and self.size < 1:
            raise ValueError(f"LogitTransform.size must be >= 1, got {self.size}.")

    def cut(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return an output head's weight ``(V, D)`` and bias ``(V,)`` of the tokens kept."""
        if self.size is None:
            return weight, bias
        return weight[: self.size], None if bias is None else bias[: self.size]

    def change(self, logits: Tensor) -> Tensor:
        """Return scaled and capped logits, differentiable; the vocabulary is cut already."""
        scaled = logits if self.scale == 1 else logits * self.scale
        return scaled if self.cap is None else (scaled / self.cap).tanh() * self.cap

    def change_(self, logits: Tensor) -> Tensor:
        """Scale and cap logits in place, and return them."""
        if self.scale != 1:
            logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, changed: Tensor) -> Tensor | float:
        """Return the derivative of the changed logits by the head's own.

        Args:
            changed: What ``change`` has made.

        Returns:
            One number for all where nothing is capped; else the shape of ``changed``.
        """
        if self.cap is None:
            return self.scale
        return (changed / self.cap).square_().neg_().add_(1).mul_(self.scale)
