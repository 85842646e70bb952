"""Which tensors of a GGUF file a model takes; the library leaves out those it has no name for."""

from __future__ import annotations

import re
from collections import defaultdict
from math import prod
from pathlib import Path
from typing import Any

from etw_lightning.files.misfit import Misfit, Shape, shapes_of

__all__ = ["gguf_misfit"]


def gguf_misfit(file: Path, lm: Any) -> Misfit:
    """Compare names and sizes of a file's tensors with a model's weights; no tensor is read.

    Sizes are counts of numbers, of one weight in all that it is made of: the library turns, joins
    and stretches what is stored.

    Args:
        file: The ``.gguf`` file.
        lm: The model that its metadata describe; its tensors may be of the meta device.

    Returns:
        Names of the file's tensors that are left out, of weights that it lacks, and of those of
        another size.
    """
    from transformers.integrations.gguf.reader import GgufHeader
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    header = GgufHeader.from_file(str(file))
    wanted = shapes_of(lm.state_dict())
    if is_gguf_arch_supported(header.architecture):
        names = _converted_names(header, lm)
        expected = set(wanted)
    else:
        names = _listed_names(header, lm)
        expected = {own for own in names.values() if own in wanted}
    stored: dict[str, list[Shape]] = defaultdict(list)
    for info in header.tensors:
        if info.name in names:
            stored[names[info.name]].append(info.shape)
    # Of a tied head some files hold a copy, which the library takes care of.
    tied = set(lm.all_tied_weights_keys)
    known = names.keys() | ({"output.weight"} if tied else set())
    return Misfit(
        missing=tuple(sorted(expected - stored.keys() - tied)),
        unexpected=tuple(sorted({info.name for info in header.tensors} - known)),
        reshaped=tuple(
            (own, shapes[0], wanted[own])
            for own, shapes in sorted(stored.items())
            if own in wanted and sum(map(prod, shapes)) != prod(wanted[own])
        ),
    )


def _listed_names(header: Any, lm: Any) -> dict[str, str]:
    """Return the model's name of each tensor that a file of this architecture may hold."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config={})
    names: dict[str, str] = get_gguf_hf_weights_map(lm, processor)
    return names


def _converted_names(header: Any, lm: Any) -> dict[str, str]:
    """Return the model's name of each tensor of a file that the library reads by conversions."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    from transformers.integrations.gguf.utils import get_gguf_conversion_mapping

    entries = get_gguf_conversion_mapping(header.architecture, lm.config)
    renamings = [entry for entry in entries if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in entries if isinstance(entry, WeightConverter)]
    weights = lm.state_dict().keys()
    ignored = lm._keys_to_ignore_on_load_unexpected or ()
    names = {
        info.name: rename_source_key(info.name, renamings, converters)[0] for info in header.tensors
    }
    return {
        name: own
        for name, own in names.items()
        if own in weights or any(re.search(pattern, own) for pattern in ignored)
    }
