"""Which weights train: an adapter's, those whose names match, or all but the embeddings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from etw_lightning.schema import InputError

__all__ = ["choose_trained", "freeze_embeddings", "recompute_activations", "train_only"]


def choose_trained(
    lm: Any, patterns: Sequence[str] | None = None, *, freeze: bool = False
) -> list[str]:
    """Choose the weights that train, by the keys of ``model``.

    Args:
        lm: A ``transformers`` causal language model, changed in place; one that carries an adapter
            trains that alone.
        patterns: ``model.train_only``, see ``train_only``; None for all weights.
        freeze: ``model.freeze_embeddings``, see ``freeze_embeddings``; what it freezes stays so
            even if a pattern matches it.

    Returns:
        Names of the weights that train.

    Raises:
        InputError: If the keys contradict each other, or nothing is left to train.
    """
    # peft leaves its settings on a model that it has changed.
    if hasattr(lm, "peft_config"):
        for key, is_given in (("train_only", patterns is not None), ("freeze_embeddings", freeze)):
            if is_given:
                raise InputError(
                    f"model.{key} can't be given with model.peft, which trains the adapter alone; "
                    "leave one of the two out."
                )
    if patterns is not None:
        train_only(lm, patterns)
    if freeze:
        freeze_embeddings(lm)
    names = [name for name, weight in lm.named_parameters() if weight.requires_grad]
    if not names:
        raise InputError(
            "model.freeze_embeddings leaves nothing to train of what model.train_only "
            f"{list(patterns or ())} matches; leave one of the two out."
        )
    return names


def train_only(lm: Any, patterns: Sequence[str], key: str = "model.train_only") -> list[str]:
    """Freeze all weights but those whose whole name matches one of some regular expressions.

    A weight that is shared, such as a tied output head, trains if any of its names matches.

    Args:
        lm: The model.
        patterns: Regular expressions on names as ``lm.named_parameters()`` has them.
        key: Configuration key that errors name.

    Returns:
        Names of the weights that train.

    Raises:
        InputError: If a pattern is no regular expression or matches no weight.

    Example:
        >>> import torch
        >>> train_only(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()), [r".*bias"])
        ['0.bias']
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise InputError(f"{key} must be a list of patterns or null; got [].")
    weights = dict(lm.named_parameters(remove_duplicate=False))
    chosen: set[int] = set()
    for pattern in patterns:
        try:
            found = [name for name in weights if re.fullmatch(pattern, name)]
        except re.error as error:
            raise InputError(
                f"{key} must be regular expressions; {pattern!r} is none: {error}."
            ) from error
        if not found:
            raise InputError(_no_match(key, pattern, list(weights)))
        chosen.update(id(weights[name]) for name in found)
    for weight in lm.parameters():
        weight.requires_grad_(id(weight) in chosen)
    return [name for name, weight in lm.named_parameters() if weight.requires_grad]


def freeze_embeddings(lm: Any) -> list[str]:
    """Freeze the input embeddings; an output head that is tied to them is the same tensor.

    A head of its own trains on: it is no embedding but the last layer.

    Returns:
        Names of the frozen weights.
    """
    frozen = {id(weight.requires_grad_(False)) for weight in lm.get_input_embeddings().parameters()}
    return [name for name, weight in lm.named_parameters() if id(weight) in frozen]


def recompute_activations(lm: Any) -> None:
    """Have the backward pass compute each layer's activations anew instead of keeping them.

    Raises:
        InputError: If the class of the model can't.
    """
    try:
        lm.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise InputError(
            f"model.gradient_checkpointing can't be had of {type(lm).__name__}, whose class in "
            "transformers does not recompute its activations; set it to false."
        ) from error


def _no_match(key: str, pattern: str, names: Sequence[str]) -> str:
    """Say what a pattern that matches nothing might have meant."""
    if any(re.search(pattern, name) for name in names):
        hint = f"it matches parts of names only, '.*{pattern}.*' would match them whole"
    else:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
        hint = f"there are {', '.join(near)} and others, {len(names)} in all"
    return f"{key} must match names of weights; {pattern!r} matches none: {hint}."
