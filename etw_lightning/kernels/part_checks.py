"""What a weighting or an objective has returned, checked where a run begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from etw_lightning.kernels.signals import Level, TokenSignals
from etw_lightning.schema import InputError

__all__ = ["check_terms", "check_weights"]


def check_weights(weights: Any, signals: TokenSignals, name: str) -> None:
    """Refuse what are no token weights.

    Args:
        weights: What a weighting has returned.
        signals: What it was given.
        name: Of the weighting, for the message.

    Raises:
        InputError: If they are no tensor of numbers, of another shape than ``(N,)``, not detached,
            negative, or not finite though the signals are.

    Example:
        >>> rows = torch.tensor([0, 0])
        >>> signals = TokenSignals(labels=rows, rows=rows, num_rows=1, logps=torch.zeros(2))
        >>> check_weights(torch.tensor([1.0, 0.0]), signals, "Mine")
        >>> check_weights(torch.tensor([1.0]), signals, "Mine")
        Traceback (most recent call last):
            ...
        etw_lightning.schema.InputError: model.weighting Mine must return one weight a token, \
(2,); got (1,).
    """
    where = f"model.weighting {name} must return"
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise InputError(f"{where} a tensor of numbers; got {got}.")
    if weights.shape != signals.logps.shape:
        shapes = f"{tuple(signals.logps.shape)}; got {tuple(weights.shape)}"
        raise InputError(f"{where} one weight a token, {shapes}.")
    if weights.requires_grad:
        raise InputError(
            f"{where} detached weights; got some with a gradient, which would train the weights "
            "instead of the model: end with .detach()."
        )
    if _are_finite(signals) and not bool(weights.isfinite().all()):
        raise InputError(f"{where} finite weights; got {_first(weights, ~weights.isfinite())}.")
    if bool((weights < 0).any()):
        raise InputError(
            f"{where} weights >= 0; got {_first(weights, weights < 0)}: a negative one would teach "
            "what is to be forgotten."
        )


def check_terms(terms: Any, signals: TokenSignals, level: Level, key: str, name: str) -> None:
    """Refuse what are no terms of a loss.

    Args:
        terms: What an objective has returned.
        signals: The tokens the terms belong to.
        level: What the objective says one term stands for.
        key: ``model.forget`` or ``model.retain``.
        name: Of the objective, for the message.

    Raises:
        InputError: If they are no tensor of numbers, not one a token (or a row, where ``level`` is
            ``sequence``), not finite though the signals are, or no gradient comes back from them.

    Example:
        >>> rows = torch.tensor([0, 0])
        >>> signals = TokenSignals(labels=rows, rows=rows, num_rows=1, logps=torch.zeros(2))
        >>> check_terms(signals.logps.mean(), signals, "token", "model.forget", "Mine")
        Traceback (most recent call last):
            ...
        etw_lightning.schema.InputError: model.forget Mine must return one term a token, (2,); \
got (): terms are averaged for it.
    """
    where = f"{key} {name} must return"
    if not isinstance(terms, Tensor) or not terms.is_floating_point():
        got = terms.dtype if isinstance(terms, Tensor) else type(terms).__name__
        raise InputError(f"{where} a tensor of numbers; got {got}.")
    is_token = level == "token"
    wanted = (len(signals.logps),) if is_token else (signals.num_rows,)
    if tuple(terms.shape) != wanted:
        other = (signals.num_rows,) if is_token else (len(signals.logps),)
        way = "terms are averaged for it"
        if tuple(terms.shape) == other:
            way = f"set level to {'sequence' if is_token else 'token'} for these"
        unit = "a token" if is_token else "a row"
        raise InputError(f"{where} one term {unit}, {wanted}; got {tuple(terms.shape)}: {way}.")
    if _are_finite(signals) and not bool(terms.isfinite().all()):
        place = int((~terms.isfinite()).nonzero()[0, 0])
        unit = "token" if is_token else "row"
        got = f"{terms[place].item():g} for {unit} {place} of {len(terms)}"
        raise InputError(f"{where} finite terms; got {got}.")
    trains = torch.is_grad_enabled() and signals.logps.requires_grad
    if trains and len(signals.logps) and not terms.requires_grad:
        raise InputError(
            f"{where} terms that the model can be trained by; got some without a gradient: compute "
            "them from signals.logps or signals.distributions, not detached."
        )


def _are_finite(signals: TokenSignals) -> bool:
    """Tell whether the model itself is whole; a broken one is told of elsewhere, with its rows."""
    read = (signals.logps, signals.entropies, signals.reference_logps, signals.reference_entropies)
    return all(one is None or bool(one.isfinite().all()) for one in read)


def _first(values: Tensor, is_bad: Tensor) -> str:
    place = int(is_bad.nonzero()[0, 0])
    return f"{values[place].item():g} for token {place} of {len(values)}"
