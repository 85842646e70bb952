"""Whether the weights that are stored are those of the model that is built: all, no others, whole.

``transformers`` gives a weight that a file lacks random values, leaves out one that its model has
no place for, and says both in a table. Here either is an error, wherever a model comes from. The
names and shapes in the files' headers go through the library's own loader, so what it renames,
joins and ties counts as it does in loading, and no weight is read for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from etw_lightning.files.foreign_models import NO_CODE
from etw_lightning.files.misfit import Misfit, Shape, refuse_misfit, shapes_of
from etw_lightning.files.quantized_names import quantized_misfit, unpacked_shapes
from etw_lightning.files.weight_headers import (
    PLAIN,
    read_dtypes,
    read_headers,
    read_packing,
    weight_files,
)
from etw_lightning.notices import warn_first
from etw_lightning.schema import InputError

__all__ = [
    "PREFIXES",
    "ConversionError",
    "check_quantized",
    "empty_model",
    "fitting_names",
    "keep_untied",
    "load_renamed",
    "read_report",
    "refuse_training",
    "without_reports",
]

#: What trainers and wrappers put before the names of a model's weights.
PREFIXES = ("base_model.model.", "module.", "_orig_mod.", "_forward_module.")

#: Methods whose weights the library may unpack as it loads them.
_MADE_PLAIN = ("fp8", "gguf", "mxfp4")


def fitting_names(
    folder: Path,
    config: Any,
    given: str,
    key: str,
    auto_class: str = "AutoModelForCausalLM",
) -> dict[str, str] | None:
    """Return the model's name of each stored weight; None if they are stored under these.

    Args:
        folder: In Hugging Face layout.
        config: The model's configuration.
        given: The model, as the user gave it.
        key: Configuration key it was given under.
        auto_class: Class of ``transformers`` that loads it.

    Raises:
        InputError: If the weights are not the model's, with known prefixes taken off or not.
    """
    if getattr(config, "quantization_config", None) is not None:
        check_quantized(folder, config, given, key)
        return None
    shapes = read_headers(weight_files(folder, key), key)
    model = empty_model(config, auto_class)
    misfit = _reported(shapes, config, model)
    if not misfit:
        return None
    for names, taken in _without_prefixes(shapes):
        if not _reported({names[name]: shapes[name] for name in shapes}, config, model):
            warn_first(
                f"{key} {given!r}: {' and '.join(map(repr, taken))} is taken off the names of its "
                "weights, which then are the model's."
            )
            return names
    refuse_misfit(misfit, given, key, _way_out(misfit, model))
    return None


def empty_model(config: Any, auto_class: str = "AutoModelForCausalLM") -> Any:
    """Return the model without memory for its weights."""
    import transformers

    with torch.device("meta"), without_reports():
        return getattr(transformers, auto_class).from_config(config, **NO_CODE)


def _reported(shapes: Mapping[str, Shape], config: Any, model: Any) -> Misfit:
    """Return what the library says of weights of these names and shapes."""
    from transformers.core_model_loading import revert_weight_conversion

    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        return read_report(model, None, config=config, state_dict=weights, device_map={"": "meta"})[
            1
        ]
    except ConversionError:
        # It does not say of what: as stored, a part of what it joins differs from a whole model's.
        whole = revert_weight_conversion(model, model.state_dict())
        return Misfit.between(shapes, shapes_of(whole)) or Misfit(unexpected=("some joined",))


def check_quantized(folder: Path, config: Any, given: str, key: str) -> str:
    """Refuse quantized weights that are not the model's, as far as their headers tell.

    Args:
        folder: In Hugging Face layout.
        config: The model's configuration, which says how it is quantized.
        given: The model, as the user gave it.
        key: Configuration key it was given under.

    Returns:
        What has been compared, for the user.

    Raises:
        InputError: If of a weight nothing is stored, a tensor stands for none, or one was packed
            from another shape; or if a library that reads such weights is not there.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
        revert_weight_conversion,
    )

    settings, method = _packing_of(config)
    files = weight_files(folder, key)
    shapes, dtypes = read_headers(files, key), read_dtypes(files)
    told = read_packing(files, key)
    packed = {name for name, dtype in dtypes.items() if dtype not in PLAIN}
    # These may be packed in numbers of any kind.
    packed |= {name.partition(".quant_state.")[0] for name in told} & dtypes.keys()
    model = empty_model(config)
    ignored = model._keys_to_ignore_on_load_unexpected or ()
    tied = set(model.all_tied_weights_keys)

    def misfit_of(names: Mapping[str, str], weights: Mapping[str, Any]) -> tuple[Misfit, int]:
        stored = {names[name]: shape for name, shape in shapes.items()}
        known = {names[name]: one for name, one in told.items()}
        wanted = {name: shape for name, shape in shapes_of(weights).items() if name not in tied}
        wanted |= {name: stored[name] for name in tied & stored.keys()}
        dtypes_now = {names[name]: dtype for name, dtype in dtypes.items()}
        unpacked = unpacked_shapes(stored, dtypes_now, known, settings)
        packed_now = {names[name] for name in packed}
        misfit = quantized_misfit(stored, packed_now, wanted, ignored, unpacked.shapes)
        if not misfit:
            misfit = Misfit(tuple(unpacked.missing), reshaped=tuple(unpacked.reshaped))
        plain = stored.keys() - packed_now
        return misfit, len(wanted.keys() - plain - unpacked.shapes.keys())

    # As they are saved, and as the library renames and joins them: either will do.
    whole = revert_weight_conversion(model, model.state_dict())
    misfit, num_unseen = misfit_of({name: name for name in shapes}, whole)
    conversions = get_model_conversion_mapping(model)
    if misfit and conversions:
        kinds = [
            [entry for entry in conversions if isinstance(entry, kind)]
            for kind in (WeightRenaming, WeightConverter)
        ]
        renamed = {name: rename_source_key(name, *kinds)[0] for name in shapes}
        other, num_other = misfit_of(renamed, model.state_dict())
        if not other:
            misfit, num_unseen = Misfit(), num_other
    refuse_misfit(misfit, given, key)
    _check_reader(settings, given, key)
    said = f"all that the model has, by the names in their files (quantized: {method})"
    if not num_unseen:
        return f"{said}, and by the shapes that these were packed from"
    return (
        f"{said}; the shapes of {num_unseen} can't be seen there and are not compared, but for "
        "what the library finds when it loads them"
    )


def _packing_of(config: Any) -> tuple[dict[str, Any], str]:
    """Return what a configuration says of how its weights are packed, and the method's name."""
    settings = config.quantization_config
    settings = dict(settings if isinstance(settings, Mapping) else settings.to_dict())
    method = settings.get("quant_method")
    return settings, str(getattr(method, "value", method))


def _check_reader(settings: Mapping[str, Any], given: str, key: str) -> None:
    """Refuse a way of packing that no library here reads."""
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantizer = AutoHfQuantizer.from_config(dict(settings), pre_quantized=True)
        # What it says of devices is of this machine, and weights may be meant for another.
        with suppress(RuntimeError, ValueError), without_reports():
            quantizer.validate_environment(device_map={"": "cpu"})
    except ImportError as error:
        raise InputError(f"{key} {given!r} could not be loaded: {error}") from error


def refuse_training(config: Any, key: str, *, is_loaded: bool = False) -> None:
    """Refuse to train weights that stay packed.

    Args:
        config: The model's configuration.
        key: Configuration key that errors name.
        is_loaded: It is that of a model in memory, whose weights are packed.

    Raises:
        InputError: If the library makes no floating-point numbers of them.
    """
    if getattr(config, "quantization_config", None) is None:
        return
    _, method = _packing_of(config)
    if method in _MADE_PLAIN and not is_loaded:
        return
    raise InputError(
        f"{key}: its weights are quantized ({method}), and what is packed can't be trained; give "
        "the model as it was before. evaluate takes it as it is."
    )


class ConversionError(ValueError):
    """The library could not join or split weights as its model has them."""


def read_report(loader: Any, *args: Any, **how: Any) -> tuple[Any, Misfit]:
    """Load a model by a class of ``transformers``, and see what it made up or left out.

    Args:
        loader: The class, or a model of it.
        *args: As of its ``from_pretrained``.
        **how: The same.

    Raises:
        ConversionError: If weights can't be brought into the model's form.
    """
    try:
        with without_reports():
            model, report = loader.from_pretrained(
                *args, ignore_mismatched_sizes=True, output_loading_info=True, **how
            )
    except RuntimeError as error:
        if "conversion of the weights" in str(error):
            raise ConversionError("its weights can't be joined as the model has them") from error
        raise
    return model, Misfit.of_report(report)


def load_renamed(
    folder: Path, names: Mapping[str, str], config: Any, key: str, how: Mapping[str, Any]
) -> tuple[Any, Misfit]:
    """Load weights under other names than they are stored under.

    Args:
        folder: In Hugging Face layout.
        names: As of ``fitting_names``.
        config: The model's configuration.
        key: Configuration key that errors name.
        how: Further arguments of ``from_pretrained``.

    Returns:
        The model, in evaluation mode, and what the library had to make up or leave out.
    """
    from safetensors.torch import load_file
    from transformers import GenerationConfig

    weights = {
        names[name]: weight
        for file in weight_files(folder, key)
        for name, weight in load_file(file).items()
    }
    model_class = type(empty_model(config))
    lm, misfit = read_report(model_class, None, config=config, state_dict=weights, **how)
    if (folder / "generation_config.json").is_file():
        lm.generation_config = GenerationConfig.from_pretrained(str(folder))
    return lm, misfit


def _without_prefixes(names: Iterable[str]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Give the names without prefixes, and which were taken off: first in front, then anywhere."""
    alternatives = "|".join(map(re.escape, PREFIXES))
    for pattern in (rf"^(?:{alternatives})+", rf"(?:(?<=\.)|^)(?:{alternatives})"):
        found = {name: re.sub(pattern, "", name) for name in names}
        taken = [one for one in PREFIXES if any(one in name for name in names)]
        if taken and len(set(found.values())) == len(found):
            yield found, taken


def _way_out(misfit: Misfit, model: Any) -> str:
    """Return what else to do if nothing but the output head is missing."""
    head = model.get_output_embeddings()
    own = {name for name, weight in model.named_parameters() if head is not None}
    heads = {name for name in own if model.get_parameter(name) is getattr(head, "weight", None)}
    if heads and set(misfit.missing) == heads and not (misfit.unexpected or misfit.reshaped):
        return (
            "if the output head is the embeddings, set tie_word_embeddings to true in its "
            "config.json; else give the whole model"
        )
    return ""


def keep_untied(lm: Any, given: str, key: str) -> None:
    """Let the configuration say so if weights that it ties were stored as two different ones.

    The library then loads both; whoever builds the model anew would tie them.
    """
    untied = set(lm.get_expanded_tied_weights_keys(all_submodels=True)) - set(
        lm.all_tied_weights_keys
    )
    if untied:
        for config in {id(one): one for one in (lm.config, lm.config.get_text_config())}.values():
            config.tie_word_embeddings = False
        warn_first(
            f"{key} {given!r}: its configuration ties {min(untied)} to another weight, but both "
            "are stored and differ; they are used as they are stored, and tie_word_embeddings is "
            "false from here on."
        )


@contextmanager
def without_reports() -> Iterator[None]:
    """Keep the library's tables of what it loads, and its bars, from the terminal."""
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # The reader of GGUF files draws a bar that the library's own switch does not reach.
    bar = gguf_reader.tqdm
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gguf_reader.tqdm = logging.tqdm
    try:
        yield
    finally:
        gguf_reader.tqdm = bar
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
