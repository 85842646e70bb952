"""Dropout and jitter: what makes a model say something else in training than in evaluation."""

from __future__ import annotations

from typing import Any, Literal

import torch

from etw_lightning.models.probes import is_alike, last_states, mode_of, probe_ids
from etw_lightning.notices import warn_first
from etw_lightning.schema import InputError

__all__ = ["Dropout", "describe_noise", "named_noise", "quieten", "settle_noise"]

#: Whether a model that is trained says what is scored, or is thinned as its configuration has it.
Dropout = Literal["off", "as_configured"]

#: Passes in training mode: what drops whole layers does so now and then.
_PASSES = 3


def settle_noise(lm: Any, dropout: Dropout | None, *, reads_cache: bool) -> bool:
    """Decide whether a model trains without its dropout and jitter, and say so.

    Args:
        lm: A ``transformers`` causal language model with its weights.
        dropout: ``model.dropout``.
        reads_cache: Whether an objective compares what the model says in training with cached
            values, which were computed in evaluation.

    Returns:
        Whether ``quieten`` is to be called whenever the model is put in training mode.

    Raises:
        InputError: If it is, and the model says something else in training all the same.
    """
    noise = describe_noise(lm)
    if noise is None:
        return False
    if dropout == "as_configured" or (dropout is None and not reads_cache):
        if dropout is None or reads_cache:
            warn_first(
                f"model.pretrained trains with {noise}: losses, and what weightings read, are of a "
                "thinned model, evaluations of the whole one. --model.dropout off trains what is "
                "scored."
            )
        return False
    with mode_of(lm, training=True), torch.no_grad():
        quieten(lm)
        ids = probe_ids(lm)
        found = last_states(lm, ids, torch.ones_like(ids))
    with mode_of(lm, training=False), torch.no_grad():
        wanted = last_states(lm, ids, torch.ones_like(ids))
    if not is_alike(found, wanted):
        raise InputError(
            f"model.dropout off can't be had of {type(lm).__name__}, which says something else in "
            f"training ({noise}) all the same; set it to as_configured."
        )
    if dropout is None:
        warn_first(
            f"model.pretrained has {noise}, which is left out: cached reference values have none. "
            "--model.dropout off says the same without this line, as_configured trains with it."
        )
    return True


@torch.no_grad()
def describe_noise(lm: Any) -> str | None:
    """Return what makes a model say something else in training; None if nothing does.

    Returns:
        Names and numbers of its configuration, such as ``attn_pdrop 0.1``.
    """
    ids = probe_ids(lm)
    mask = torch.ones_like(ids)
    with mode_of(lm, training=False):
        wanted = last_states(lm, ids, mask)
    named = named_noise(lm)
    with mode_of(lm, training=True):
        is_same = all(is_alike(last_states(lm, ids, mask), wanted) for _ in range(_PASSES))
    if is_same and not any("layer" in name for name in named):
        return None
    said = ", ".join(f"{name} {value:g}" for name, value in named.items())
    return said or "noise that its configuration does not name"


def quieten(lm: Any) -> None:
    """Have a model in training say what it says in evaluation: no dropout, no jitter.

    What makes activations anew in the backward pass asks for training mode; such modules stay in
    it, without their own dropout. An adapter's dropout is the user's and stays too.
    """
    lm.eval()
    for name, module in lm.named_modules():
        if "lora_dropout" in name:
            module.training = True
        elif getattr(module, "gradient_checkpointing", False):
            module.training = True
            for attribute, value in vars(module).items():
                if "drop" in attribute and isinstance(value, float):
                    setattr(module, attribute, 0.0)


def named_noise(lm: Any) -> dict[str, float]:
    """Return what of a configuration is random in training by its name, where it is not 0."""
    config = lm.config.get_text_config().to_dict()
    return {
        name: value
        for name, value in config.items()
        if ("drop" in name or "jitter" in name)
        and "classifier" not in name
        and "summary" not in name
        and isinstance(value, int | float)
        and value > 0
    }
