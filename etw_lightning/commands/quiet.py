"""What the libraries say of themselves, left out."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from etw_lightning.files.setting_names import as_typed
from etw_lightning.notices import printable
from etw_lightning.runs.launched import is_torchrun

__all__ = ["be_quiet"]


def be_quiet(typed: Sequence[str] = ()) -> None:
    """Leave out what the libraries say of themselves; warnings that matter stay, one line each.

    Args:
        typed: Words of the command, for the names of settings.
    """
    cast(Any, warnings).formatwarning = partial(_one_warning, typed)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # A frozen copy of the target model is meant to be so.
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
    # A script with words of its own may well call ``main`` with others.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if is_torchrun() or "SLURM_JOB_ID" not in os.environ:
        # Said on every machine that has Slurm, though nobody has asked for a job.
        warnings.filterwarnings("ignore", message="The `srun` command is available.*")
    # DeepSpeed, where it is installed, tells everybody without a GPU that there is none.
    logging.getLogger("DeepSpeed").addFilter(
        lambda record: "Setting accelerator to CPU" not in record.getMessage()
    )
    # bitsandbytes, where it is installed, tells that it has no fast kernel for the processor, also
    # where peft alone has imported it.
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
        lambda record: "gemm_4bit_forward" not in record.getMessage()
    )
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _one_warning(typed: Sequence[str], message: Warning | str, *_: Any) -> str:
    text = as_typed(" ".join(str(message).split()), typed)
    return f"warning: {printable(text)}\n"
