"""Models: load one by hub name, folder or GGUF file, and score labelled tokens with it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from etw_lightning.hub import hub_answers
from etw_lightning.kernels import linear_scores
from etw_lightning.schema import IGNORE_INDEX, InputError
from etw_lightning.signals import Signal, TokenSignals

__all__ = [
    "DType",
    "LabelScorer",
    "check_vocabulary",
    "load_config",
    "load_model",
    "load_tokenizer",
]

#: Precision the weights are kept in; ``float32`` masters with ``trainer.precision`` bf16-mixed is
#: the usual choice.
DType = Literal["float32", "bfloat16", "float16"]


def load_model(
    pretrained: str,
    dtype: DType = "float32",
    attention: str | None = None,
    key: str = "model.pretrained",
) -> Any:
    """Load a causal language model.

    Args:
        pretrained: Hub name, folder in Hugging Face layout, or ``.gguf`` file.
        dtype: Precision of the weights, whatever the file holds.
        attention: ``sdpa``, ``eager``, ``flash_attention_2``; None lets the library choose.
        key: Configuration key that errors name.

    Returns:
        A ``transformers`` model on the CPU, in evaluation mode, that ``save_pretrained`` can save.

    Raises:
        InputError: If there is no such model, or it can't be reached.
    """
    from transformers import AutoModelForCausalLM

    extra = {} if attention is None else {"attn_implementation": attention}
    # A device context of the caller would ask for weights straight on that device.
    with torch.device("cpu"), _input_errors(pretrained, key):
        model = AutoModelForCausalLM.from_pretrained(
            **_location(pretrained, key), dtype=getattr(torch, dtype), use_safetensors=True, **extra
        )
    return _without_quantization(model) if _is_gguf(pretrained) else model


def load_config(pretrained: str, key: str = "model.pretrained") -> Any:
    """Load a model's configuration without its weights.

    Raises:
        InputError: As ``load_model``.
    """
    from transformers import AutoConfig

    with _input_errors(pretrained, key):
        return AutoConfig.from_pretrained(**_location(pretrained, key))


def load_tokenizer(pretrained: str, key: str = "model.pretrained") -> Any:
    """Load the tokenizer that comes with a model.

    Raises:
        InputError: As ``load_model``.
    """
    from transformers import AutoTokenizer

    with _input_errors(pretrained, key):
        return AutoTokenizer.from_pretrained(**_location(pretrained, key, "tokenizer_config.json"))


def check_vocabulary(
    tokenizer: Any, config: Any, pretrained: str, key: str = "model.pretrained"
) -> None:
    """Refuse a tokenizer that can produce ids the model has no row for.

    Args:
        tokenizer: The tokenizer.
        config: The model's configuration.
        pretrained: What the user gave: the tokenizer or the model that does not fit.
        key: Configuration key it was given under.

    Raises:
        InputError: If the tokenizer's vocabulary is larger than the model's.
    """
    if len(tokenizer) > config.get_text_config().vocab_size:
        raise InputError(
            f"{key} {pretrained!r}: the tokenizer has {len(tokenizer)} tokens, the "
            f"model only {config.get_text_config().vocab_size}. Use the tokenizer the model was "
            "trained with, or resize the model's embeddings."
        )


class LabelScorer(nn.Module):
    """A language model that answers for labelled tokens only.

    The body runs once over all rows; only the positions that predict a label go through the
    output head, in chunks.

    Args:
        lm: A ``transformers`` causal language model.
        chunk_size: Positions at a time in the output head.
    """

    def __init__(self, lm: Any, chunk_size: int = 256) -> None:
        super().__init__()
        self.lm = lm
        self.chunk_size = chunk_size

    def _apply(self, fn: Any, recurse: bool = True) -> LabelScorer:
        """Move and cast, but leave float32 buffers as wide as they are.

        Rotary frequencies are such buffers: a model cast to bfloat16 with them would mistake far
        positions, and differ from the same model loaded in bfloat16.
        """
        wide = {
            name: buffer
            for name, buffer in self.named_buffers(remove_duplicate=False)
            if buffer.dtype == torch.float32
        }
        super()._apply(fn, recurse)
        for name, buffer in wide.items():
            cast = self.get_buffer(name)
            if cast.dtype.itemsize < buffer.dtype.itemsize:
                owner, _, leaf = name.rpartition(".")
                setattr(self.get_submodule(owner), leaf, buffer.to(cast.device))
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        needs: Collection[Signal] = (),
        temperature: float = 1.0,
    ) -> TokenSignals:
        """Return the signals of all labelled tokens, row by row.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: 1 for tokens, 0 for padding, ``(B, T)``.
            labels: Not shifted, ``IGNORE_INDEX`` where nothing is scored, ``(B, T)``.
            needs: Signals besides ``logps``.
            temperature: Of the entropies, > 0.
        """
        is_label = labels[:, 1:] != IGNORE_INDEX
        wants_states = "hidden_states" in needs
        out = self.lm.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=wants_states,
        )
        hidden = out.last_hidden_state[:, :-1][is_label]
        picked = labels[:, 1:][is_label]
        head = self.lm.get_output_embeddings()
        bias = getattr(head, "bias", None)
        scores = linear_scores(
            hidden,
            head.weight,
            picked,
            bias,
            temperature=temperature,
            chunk_size=self.chunk_size,
            entropy="entropies" in needs,
        )
        distributions = states = None
        if "distributions" in needs:
            distributions = _log_distributions(hidden, head.weight, bias)
        if wants_states:
            states = torch.stack([state[:, :-1][is_label] for state in out.hidden_states])
        return TokenSignals(
            labels=picked,
            rows=is_label.nonzero()[:, 0],
            num_rows=len(labels),
            logps=scores.logps,
            entropies=scores.entropies,
            distributions=distributions,
            hidden_states=states,
        )

    def frozen_copy(self) -> LabelScorer:
        """Return a copy that is never trained: the reference model."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    @torch.no_grad()
    def check_head(self) -> None:
        """Refuse a model whose logits are not just ``hidden @ weight.T + bias``.

        Soft-capped or scaled logits would be scored wrongly without a word.

        Raises:
            InputError: If the model's own logits differ from the output head's.
        """
        head = self.lm.get_output_embeddings()
        # Along the longest rows of the head, so that logits reach 50 and a soft cap shows.
        ids = head.weight.float().square().sum(-1).topk(4).indices[None]
        hidden = head.weight[ids].float()
        hidden = (50 * hidden / hidden.square().sum(-1, keepdim=True)).to(head.weight.dtype)

        def say_hidden(_module: nn.Module, _args: Any, out: Any) -> Any:
            out.last_hidden_state = hidden
            return out

        handle = self.lm.base_model.register_forward_hook(say_hidden)
        own = self.lm(input_ids=ids, use_cache=False).logits.float()
        handle.remove()
        if not torch.allclose(head(hidden).float(), own, rtol=1e-2, atol=1e-2):
            raise InputError(
                f"model.pretrained: {type(self.lm).__name__} changes its logits after the output "
                "head (soft cap or scale), which the fused head does not do; losses would be "
                "wrong. Such models are not supported."
            )


def _log_distributions(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return log-probabilities of the whole vocabulary, as precise as the fused head's."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    with torch.autocast(hidden.device.type, enabled=False):
        wide = None if bias is None else bias.to(dtype)
        return nn.functional.linear(hidden.to(dtype), weight.to(dtype), wide).log_softmax(-1)


def _is_gguf(pretrained: str) -> bool:
    return pretrained.endswith(".gguf")


def _location(pretrained: str, key: str, needed: str = "config.json") -> dict[str, Any]:
    """Return ``from_pretrained``'s arguments; a missing folder or file is told from a hub name."""
    path = Path(pretrained).expanduser()
    if _is_gguf(pretrained):
        if not path.is_file():
            raise InputError(f"{key}: there is no file {pretrained!r}.")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    looks_local = pretrained.startswith((".", "/", "~")) or pretrained.count("/") > 1
    if path.is_dir():
        if not (path / needed).is_file():
            raise InputError(
                f"{key}: folder {pretrained!r} holds no {needed}; give a folder saved by "
                "save_pretrained, a .gguf file or a hub name."
            )
        return {"pretrained_model_name_or_path": str(path)}
    if looks_local:
        raise InputError(
            f"{key}: there is no folder {pretrained!r}; give a folder saved by "
            "save_pretrained, a .gguf file or a hub name such as owner/name."
        )
    # Without a connection only the cache is asked: the library would try five times first.
    return {
        "pretrained_model_name_or_path": pretrained,
        "local_files_only": not hub_answers(),
    }


@contextmanager
def _input_errors(pretrained: str, key: str) -> Iterator[None]:
    """Turn the library's many ways to say "not there" into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not Path(pretrained).expanduser().exists() and not hub_answers():
            reason = "the hub can't be reached and there is no local copy"
        raise InputError(
            f"{key} {pretrained!r} could not be loaded: {reason}. Give a folder in Hugging Face "
            f"layout or a .gguf file: --{key} DIR"
        ) from error


def _without_quantization(model: Any) -> Any:
    """Rebuild a model read from GGUF as a plain one: the loaded object refuses to be saved."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config).to(model.dtype)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.tie_weights()
    return plain.eval()
