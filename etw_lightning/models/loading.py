"""Models: load one by hub name, folder, GGUF file or checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from etw_lightning.files.foreign_models import (
    NO_CODE,
    check_attention,
    check_no_adapter,
    check_weights,
    refusal,
)
from etw_lightning.files.gguf_names import gguf_misfit
from etw_lightning.files.gguf_splits import unknown_split
from etw_lightning.files.hub import hub_answers
from etw_lightning.files.misfit import Misfit, refuse_misfit
from etw_lightning.files.tokenizer_files import STORED, difference, named_class, own_code
from etw_lightning.models.checkpoints import (
    check_checkpoint_weights,
    checkpoint_config,
    checkpoint_model,
    checkpoint_tokenizer,
    is_checkpoint,
)
from etw_lightning.models.head_probe import vocabulary_size
from etw_lightning.models.label_scorer import LabelScorer
from etw_lightning.models.weight_fit import (
    ConversionError,
    check_quantized,
    empty_model,
    fitting_names,
    keep_untied,
    load_renamed,
    read_report,
    without_reports,
)
from etw_lightning.notices import warn_first
from etw_lightning.schema import InputError

__all__ = [
    "DType",
    "LabelScorer",
    "check_stored",
    "check_vocabulary",
    "is_hub_name",
    "load_config",
    "load_model",
    "load_tokenizer",
]

#: Precision the weights are kept in; ``float32`` masters with ``trainer.precision`` bf16-mixed is
#: the usual choice.
DType = Literal["float32", "bfloat16", "float16"]

#: The class of tokenizers that follows their file.
_AS_IT_IS = "TokenizersBackend"
#: What ``check_stored`` says of weights whose headers tell all.
_COMPARED = "all that the model has, by the names and shapes in their files"


def load_model(
    pretrained: str,
    dtype: DType = "float32",
    attention: str | None = None,
    key: str = "model.pretrained",
) -> Any:
    """Load a causal language model.

    Args:
        pretrained: Hub name, folder in Hugging Face layout, ``.gguf`` file, or a checkpoint of a
            run of ours, as ``stored_weights.find_checkpoint`` takes it.
        dtype: Precision of the weights, whatever the file holds.
        attention: ``sdpa``, ``eager``, ``flash_attention_2``; None lets the library choose.
        key: Configuration key that errors name.

    Returns:
        A ``transformers`` model on the CPU, in evaluation mode, that ``save_pretrained`` can save.

    Raises:
        InputError: If there is no such model, it can't be reached, its weights are pickled, it
            needs code of its own, or what is stored is not the model that its configuration
            describes: weights are missing, unknown or of another shape.
    """
    how: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if attention is not None:
        how["attn_implementation"] = attention
    # A device context of the caller would ask for weights straight on that device.
    with torch.device("cpu"), _input_errors(pretrained, key):
        if is_checkpoint(pretrained):
            return checkpoint_model(pretrained, key, how.pop("dtype"), how)
        location = _location(pretrained, key)
        if _is_gguf(pretrained):
            lm, misfit = _loaded(location, how)
            refuse_misfit(misfit, pretrained, key)
            refuse_misfit(gguf_misfit(Path(pretrained).expanduser(), lm), pretrained, key)
        else:
            lm = _load_folder(location, pretrained, key, how)
        keep_untied(lm, pretrained, key)
        return _without_quantization(lm) if _is_gguf(pretrained) else lm


def check_stored(pretrained: str, key: str = "model.pretrained") -> str:
    """Find by names and shapes what ``load_model`` would refuse, without loading a weight.

    Args:
        pretrained: As of ``load_model``.
        key: Configuration key that errors name.

    Returns:
        What has been compared, for the user; empty if the weights are not on this machine.

    Raises:
        InputError: As ``load_model``.
    """
    with _input_errors(pretrained, key):
        if is_checkpoint(pretrained):
            check_checkpoint_weights(pretrained, key)
            return _COMPARED
        location, config = _location(pretrained, key), load_config(pretrained, key)
        if _is_gguf(pretrained):
            found = gguf_misfit(Path(pretrained).expanduser(), empty_model(config))
            refuse_misfit(found, pretrained, key)
            return _COMPARED
        folder = _stored_folder(location)
        if folder is not None:
            check_weights(folder, key)
        # A configuration alone is enough to plan with.
        if folder is None or not _has_weights(folder):
            return ""
        if getattr(config, "quantization_config", None) is not None:
            return check_quantized(folder, config, pretrained, key)
        fitting_names(folder, config, pretrained, key)
        return _COMPARED


def _load_folder(
    location: Mapping[str, Any], pretrained: str, key: str, how: Mapping[str, Any]
) -> Any:
    """Return a model in Hugging Face layout; what is stored is compared before it is read."""
    config, names = load_config(pretrained, key), None
    # A hub model's copy may be of yesterday: the library asks the hub first.
    asks_hub = location.get("local_files_only") is False
    folder = None if asks_hub else _stored_folder(location)
    if folder is not None:
        check_weights(folder, key)
        names = fitting_names(folder, config, pretrained, key)
    if names is None:
        lm, misfit = _loaded(location, how)
        if not misfit:
            return lm
        folder = _stored_folder(location)
        names = None if folder is None else fitting_names(folder, config, pretrained, key)
    if folder is not None and names is not None:
        lm, misfit = load_renamed(folder, names, config, key, how)
    refuse_misfit(misfit, pretrained, key)
    return lm


def _loaded(location: Mapping[str, Any], how: Mapping[str, Any]) -> tuple[Any, Misfit]:
    """Return a model as the library loads it, and what it had to make up or leave out."""
    from transformers import AutoModelForCausalLM

    try:
        return read_report(AutoModelForCausalLM, **location, use_safetensors=True, **NO_CODE, **how)
    except ConversionError:
        # The headers tell which.
        return None, Misfit(missing=("some that are joined",))


def _stored_folder(location: Mapping[str, Any]) -> Path | None:
    """Return the folder of a model in Hugging Face layout; None of one that is on the hub alone."""
    found = _stored_file(location, "config.json")
    is_own = found is not None and Path(location["pretrained_model_name_or_path"]).is_dir()
    return found.parent if found is not None and (is_own or _has_weights(found.parent)) else None


def _stored_file(location: Mapping[str, Any], name: str) -> Path | None:
    """Return a file of a model, in its folder or in the copy of a hub model; None if not there."""
    from huggingface_hub import try_to_load_from_cache

    given = location["pretrained_model_name_or_path"]
    if Path(given).is_dir():
        file = Path(given) / name
        return file if file.is_file() else None
    found = try_to_load_from_cache(given, name)
    return Path(found) if isinstance(found, str) else None


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors*"))


def load_config(pretrained: str, key: str = "model.pretrained") -> Any:
    """Load a model's configuration without its weights.

    Raises:
        InputError: As ``load_model``.
    """
    from transformers import AutoConfig

    with _input_errors(pretrained, key):
        if is_checkpoint(pretrained):
            return checkpoint_config(pretrained, key)
        config = AutoConfig.from_pretrained(**_location(pretrained, key), **NO_CODE)
        check_attention(config, pretrained, key)
        return config


def load_tokenizer(pretrained: str, key: str = "model.pretrained") -> Any:
    """Load the tokenizer that comes with a model.

    Raises:
        InputError: As ``load_model``; or if no class that the folder or the library names encodes
            as its ``tokenizer.json`` does.
    """
    import transformers

    with _input_errors(pretrained, key):
        while is_checkpoint(pretrained):
            pretrained = checkpoint_tokenizer(pretrained, key)
        location = _location(pretrained, key, "tokenizer_config.json")
        settings = None if _is_gguf(pretrained) else _stored_file(location, "tokenizer_config.json")
        if settings is not None and (own := own_code(settings.parent)):
            raise InputError(
                f"{key} {pretrained!r} could not be loaded: it needs Python code of its own for "
                f"its tokenizer {own}, which is never run; give a tokenizer of a class that "
                "transformers holds."
            )
        tokenizer = _tokenizer_of("AutoTokenizer", location)
        if _is_gguf(pretrained):
            _settle_split(tokenizer, pretrained, key)
            return tokenizer
        stored = _stored_file(location, STORED)
        if stored is None or not tokenizer.is_fast:
            return tokenizer
        differs = difference(tokenizer, stored)
        named = named_class(stored.parent)
        if differs and hasattr(transformers, named):
            # The library took another by the model's type.
            tokenizer = _tokenizer_of(named, location)
            differs = difference(tokenizer, stored)
        if differs and not difference(tokenizer, stored, outer_spaces=False):
            tokenizer = _tokenizer_of(_AS_IT_IS, location)
            differs = difference(tokenizer, stored)
            if not differs:
                warn_first(
                    f"{key} {pretrained!r}: {named} would build other rules for spaces at the ends "
                    f"of a text, or beside its own tokens, than {STORED} holds; the file is read "
                    "as it is."
                )
    if differs:
        kind = type(tokenizer).__name__
        way_out = (
            "take out of tokenizer_config.json what says otherwise"
            if kind == _AS_IT_IS
            else f'set tokenizer_class to "{_AS_IT_IS}" in tokenizer_config.json, which reads it '
            "as it is"
        )
        raise InputError(
            f"{key} {pretrained!r}: its tokenizer, as {kind} builds it, does not encode as its "
            f"{STORED} does: {differs}. If {STORED} is right, {way_out}."
        )
    return tokenizer


def _settle_split(tokenizer: Any, pretrained: str, key: str) -> None:
    """Have a GGUF file's tokenizer cut texts as the model's does; refuse one of unknown rules."""
    name = unknown_split(tokenizer, Path(pretrained).expanduser())
    if name:
        raise InputError(
            f"{key} {pretrained!r}: its tokenizer cuts texts by the rule {name!r}, which the "
            "library does not know: it would cut as GPT-2 does. Give the folder of the model's own "
            "tokenizer as data.tokenizer."
        )
    if name is not None:
        warn_first(
            f"{key} {pretrained!r} does not say by which rule its tokenizer cuts texts, and "
            "GPT-2's is used; if the model has another, give the folder of its own tokenizer as "
            "data.tokenizer."
        )


def _tokenizer_of(class_name: str, location: Mapping[str, Any]) -> Any:
    import transformers

    try:
        with without_reports():
            return getattr(transformers, class_name).from_pretrained(**location, **NO_CODE)
    except Exception as error:
        # The tokenizers package raises the first, and no other, for whatever it can't build; the
        # second is for settings of a wrong kind.
        if type(error) in (Exception, TypeError):
            raise ValueError(str(error)) from error
        raise


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
    size = vocabulary_size(config)
    if len(tokenizer) > size:
        raise InputError(
            f"{key} {pretrained!r}: the tokenizer has {len(tokenizer)} tokens, the "
            f"model only {size}. Use the tokenizer the model was trained with, or resize the "
            "model's embeddings."
        )


def _is_gguf(pretrained: str) -> bool:
    return pretrained.endswith(".gguf")


def is_hub_name(pretrained: str) -> bool:
    """Tell whether a model is looked for on the hub: nothing here has its name, nor can have.

    Args:
        pretrained: As of ``load_model``.

    Example:
        >>> is_hub_name("owner/name"), is_hub_name("./name"), is_hub_name("runs/one/model")
        (True, False, False)
    """
    looks_local = pretrained.startswith((".", "/", "~")) or pretrained.count("/") > 1
    is_here = is_checkpoint(pretrained) or Path(pretrained).expanduser().is_dir()
    return not (looks_local or _is_gguf(pretrained) or is_here)


def _location(pretrained: str, key: str, needed: str = "config.json") -> dict[str, Any]:
    """Return ``from_pretrained``'s arguments; a missing folder or file is told from a hub name."""
    path = Path(pretrained).expanduser()
    if _is_gguf(pretrained):
        if not path.is_file():
            raise InputError(f"{key}: there is no file {pretrained!r}.")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_dir():
        check_no_adapter(path, key)
        if not (path / needed).is_file():
            raise InputError(
                f"{key}: folder {pretrained!r} holds no {needed}; give a folder saved by "
                "save_pretrained, a .gguf file or a hub name."
            )
        return {"pretrained_model_name_or_path": str(path)}
    if not is_hub_name(pretrained):
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
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not Path(pretrained).expanduser().exists() and not hub_answers():
            reason = "the hub can't be reached and there is no local copy"
        reason = refusal(error) or reason
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
