"""Where in a language model the text is read: its body, and the decoder's layers within."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from etw_lightning.schema import InputError

__all__ = ["body_of", "find_layers", "hidden_of", "layers_of", "listening"]


#: Parts of the names of what reads no text.
_TOWERS = ("vision", "visual", "image", "audio", "speech")
#: Share of a decoder's weights, its embeddings apart, that no other list than its layers has.
_NEARLY_ALL = 0.9


def body_of(lm: Any) -> Any:
    """Return the part of a model whose last hidden states its output head reads."""
    body = lm.base_model
    if body is not lm:
        return body
    # The prefix of some classes (Llama 4's) is that of a composite model they are a part of; then
    # the library takes the whole model for its body.
    embeddings = lm.get_input_embeddings()
    for child in lm.children():
        if child is not embeddings and any(part is embeddings for part in child.modules()):
            return child
    return lm


def find_layers(lm: Any) -> nn.ModuleList | None:
    """Return the decoder's layers, from the embedding up; None if there is no such list.

    Looked for in the decoder alone, and not in the towers of a composite model, which may have as
    many; of several lists of the right length it is the one with the most weights. Where none is of
    that length, the list that has nearly all of the decoder's weights.
    """
    count = getattr(lm.config.get_text_config(), "num_hidden_layers", None)
    body = body_of(lm)
    decoder = body.get_decoder() if hasattr(body, "get_decoder") else body
    lists = [
        part
        for name, part in decoder.named_modules()
        if isinstance(part, nn.ModuleList) and not any(tower in name for tower in _TOWERS)
    ]
    fitting = [part for part in lists if len(part) == count]
    if fitting or not lists:
        # A step asks for them: what has no rival is not weighed.
        return fitting[0] if len(fitting) == 1 else max(fitting, key=_num_weights, default=None)
    # As in LongCat, which counts two layers where it has one.
    embeddings = {id(weight) for weight in lm.get_input_embeddings().parameters()}
    whole = sum(w.numel() for w in decoder.parameters() if id(w) not in embeddings)
    largest = max(lists, key=_num_weights)
    return largest if _num_weights(largest) > _NEARLY_ALL * whole else None


def layers_of(lm: Any) -> nn.ModuleList:
    """Return the decoder's layers, from the embedding up.

    Raises:
        InputError: If there is no list of as many layers as the configuration says.
    """
    layers = find_layers(lm)
    if layers is None:
        raise InputError(
            f"model.pretrained: the decoder layers of {type(lm).__name__} can't be found, which "
            "methods that read hidden states, unlearning depth and shards need; take a method that "
            "reads what the model says (any but RMU), and --config strategy/single or strategy/ddp."
        )
    return layers


def hidden_of(output: Any) -> Tensor:
    """Return the hidden states of a layer's output, which may come with more, ``(B, T, D)``.

    Raises:
        InputError: If the layer has more than one state for each token.
    """
    hidden: Tensor = output[0] if isinstance(output, tuple | list) else output
    if hidden.dim() != 3:
        raise InputError(
            "model.pretrained: a decoder layer of this model says several states of each token "
            f"(shape {tuple(hidden.shape)}, as Gemma 3n's); methods that read hidden states and "
            "unlearning depth need one. Take a method that reads what the model says (any but RMU)."
        )
    return hidden


@contextmanager
def listening(lm: Any, layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Keep what some layers say while the context lasts, ``(B, T, D)`` each.

    The model's own list of hidden states would not do: its last one is normalised.

    Raises:
        InputError: If there are no such layers, or a layer runs more than once.
    """
    heard: dict[int, Tensor] = {}

    def hook(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _args: Any, out: Any) -> None:
            if layer in heard:
                raise InputError(
                    f"model.pretrained: {type(lm).__name__} runs layer {layer} more than once for "
                    "each text, so that it has no one state; take a method that reads what the "
                    "model says (any but RMU)."
                )
            heard[layer] = hidden_of(out)

        return keep

    stack = layers_of(lm) if layers else nn.ModuleList()
    handles = [stack[layer].register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _num_weights(layers: nn.ModuleList) -> int:
    return sum(weight.numel() for weight in layers.parameters())
