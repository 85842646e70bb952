"""What a model makes of its output head's logits: numbers of its configuration, found by trial."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from etw_lightning.kernels.logits import LogitTransform
from etw_lightning.schema import InputError
from etw_lightning.tuning.decoder import body_of

__all__ = ["configured_transforms", "find_transform", "vocabulary_size"]

#: Size of the logits in the trial: soft caps of 50 and below show clearly.
_SIZE = 50.0


@torch.no_grad()
def find_transform(lm: Any, key: str = "model.pretrained") -> LogitTransform | None:
    """Return what a model's logits are beyond ``hidden @ weight.T + bias``; None for nothing more.

    The model says its logits for hidden states that are put into it, and of all scales and caps
    that its configuration names the ones are taken that give the same.

    Args:
        lm: A ``transformers`` causal language model with its weights.
        key: Configuration key that errors name.

    Raises:
        InputError: If none does; says why.
    """
    head = lm.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or weight.dim() != 2:
        raise _refused(lm, key, "has no output head of one matrix, one row for each token")
    # Along the longest rows of the head, so that logits reach _SIZE and a soft cap shows.
    lengths = weight.float().square().sum(-1)
    if not lengths.isfinite().all():
        raise InputError(
            f"{key}: the output head of {type(lm).__name__} holds what is no finite number: its "
            "weights are broken."
        )
    ids = lengths.topk(4).indices[None]
    hidden = weight[ids].float()
    hidden = (_SIZE * hidden / hidden.square().sum(-1, keepdim=True)).to(weight.dtype)
    # What is asked is what the model does, not how it rounds.
    with torch.autocast(weight.device.type, enabled=False):
        logits, states, read = _with_last_hidden(lm, head, ids, hidden)
        raw = nn.functional.linear(hidden.float(), weight.float(), _bias(head))
    if not torch.equal(states, hidden):
        raise _refused(lm, key, "changes its last hidden states behind its body")
    if read is not None and not _is_multiple(read, hidden):
        raise _refused(lm, key, "transforms its hidden states before the output head, as BERT does")
    size = logits.shape[-1] if logits.shape[-1] < len(weight) else None
    raw = raw[..., :size]
    found = _likeliest(lm.config.get_text_config(), raw, logits.float())
    tolerance = 1e-4 if weight.dtype.itemsize >= 4 else 1e-2
    changed = raw if found is None else found.change(raw)
    largest = changed.abs().max().clamp(max=1.0).item()
    if not torch.allclose(changed, logits.float(), rtol=tolerance, atol=tolerance * largest):
        raise _refused(lm, key, "changes its logits in a way that its configuration does not name")
    if size is None:
        return found
    plain = LogitTransform() if found is None else found
    return LogitTransform(plain.scale, plain.cap, size)


def configured_transforms(config: Any) -> Iterator[LogitTransform | None]:
    """Yield what a model may do with its logits by the names in its configuration, nothing first.

    Which of them it does can't be told from the names: Granite divides by its ``logits_scaling``,
    HyperCLOVA X multiplies by it, MPT leaves its ``logit_scale`` out.

    Args:
        config: Of the text model.
    """
    scales, caps = [1.0], list[float | None]([None])
    for name, value in {**config.to_dict(), **_properties(config)}.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or value == 0:
            continue
        if "soft" in name and "cap" in name and "logit" in name and "att" not in name:
            caps.append(float(value))
        elif ("scal" in name or "mult" in name) and ("logit" in name or "lm_head" in name):
            scales += [float(value), 1 / float(value)]
    for scale, cap in product(scales, caps):
        is_plain = scale == 1 and cap is None
        if cap is None or cap > 0:
            yield None if is_plain else LogitTransform(scale, cap)


def vocabulary_size(config: Any) -> int:
    """Return how many tokens a model can say: less than it has rows where some are padding.

    Args:
        config: A ``transformers`` configuration.
    """
    text = config.get_text_config()
    return int(min(getattr(text, "unpadded_vocab_size", None) or text.vocab_size, text.vocab_size))


def _properties(config: Any) -> dict[str, Any]:
    """Return numbers that a configuration works out, as MiniCPM's scale."""
    names = [name for name, one in vars(type(config)).items() if isinstance(one, property)]
    return {name: getattr(config, name) for name in names if "logit" in name}


def _likeliest(config: Any, raw: Tensor, logits: Tensor) -> LogitTransform | None:
    """Return the configured change that comes nearest, of equal ones the first."""

    def error(transform: LogitTransform | None) -> float:
        changed = raw if transform is None else transform.change(raw)
        return (changed - logits).norm().item()

    return min(configured_transforms(config), key=error)


def _with_last_hidden(
    lm: Any, head: nn.Module, ids: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return logits and last hidden states of a model whose body says ``hidden``.

    Also what its output head reads, if that is run as a module.
    """
    body = body_of(lm)
    bodies = [body]
    # OPT's head reads the decoder inside the body, whose own forward is left out.
    if lm.get_decoder() not in (body, lm):
        bodies.append(lm.get_decoder())
    said: list[nn.Module] = []
    read: list[Tensor] = []

    def say_hidden(module: nn.Module, _args: Any, out: Any) -> Any:
        said.append(module)
        out.last_hidden_state = hidden
        return out

    for place in bodies:
        handles = [
            place.register_forward_hook(say_hidden),
            head.register_forward_pre_hook(lambda _, args: read.append(args[0])),
        ]
        try:
            logits = lm(input_ids=ids, use_cache=False).logits
            is_read = bool(said)
            states = body(input_ids=ids, use_cache=False).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        if is_read:
            break
    return logits, states, read[-1] if read else None


def _is_multiple(read: Tensor, hidden: Tensor) -> bool:
    """Tell whether what a head reads is the hidden states times one number."""
    if read.shape != hidden.shape:
        return False
    factor = (read.double() * hidden.double()).sum() / hidden.double().square().sum()
    error = (read.double() - factor * hidden.double()).norm()
    return bool(error <= (1e-4 if hidden.dtype.itemsize >= 4 else 2e-2) * read.double().norm())


def _bias(head: Any) -> Tensor | None:
    bias = getattr(head, "bias", None)
    return None if bias is None else bias.float()


def _refused(lm: Any, key: str, what: str) -> InputError:
    return InputError(
        f"{key}: {type(lm).__name__} {what}; losses from its last hidden states and the head's "
        "matrix would be wrong. Such models are not supported."
    )
