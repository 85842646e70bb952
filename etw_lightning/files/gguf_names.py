"""Which tensors of a GGUF file a model takes; the library leaves out those it has no name for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from etw_lightning.files.misfit import Misfit

__all__ = ["gguf_misfit"]


def gguf_misfit(file: Path, lm: Any) -> Misfit:
    """Compare the names of a file's tensors with a model's weights; no tensor is read.

    Architectures that the library reads by a list of conversions are left to it, as it then
    reports what is left over; of all others it does not.

    Args:
        file: The ``.gguf`` file.
        lm: The model that its metadata describe; its tensors may be of the meta device.

    Returns:
        Names of the file's tensors that are left out, and of weights that it lacks.
    """
    from transformers.integrations.gguf.reader import GgufHeader
    from transformers.integrations.gguf.utils import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    header = GgufHeader.from_file(str(file))
    if is_gguf_arch_supported(header.architecture):
        return Misfit()
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config={})
    names = get_gguf_hf_weights_map(lm, processor)
    stored = {info.name for info in header.tensors}
    # Of a tied head some files hold a copy, which the library takes care of.
    tied = set(lm.all_tied_weights_keys)
    missing = {own for name, own in names.items() if name not in stored} - tied
    return Misfit(
        missing=tuple(sorted(missing & lm.state_dict().keys())),
        unexpected=tuple(sorted(stored - names.keys() - ({"output.weight"} if tied else set()))),
    )
