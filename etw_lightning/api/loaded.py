"""A model and its tokenizer, as they are given or by name; and a trainer that is silent."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, get_args

from lightning.pytorch import Callback, Trainer

from etw_lightning.benchmarks.source import check_name
from etw_lightning.data.encode import Template
from etw_lightning.models.loading import DType, check_vocabulary, load_model, load_tokenizer
from etw_lightning.schema import InputError
from etw_lightning.training import quickstart_models
from etw_lightning.training.given import GivenModel

__all__ = ["interruptible", "make_trainer", "quietly", "restored", "take_model", "template_of"]


def take_model(model: Any, tokenizer: Any = None, dtype: DType = "float32") -> GivenModel:
    """Return a model with its tokenizer; what is a name is loaded.

    Args:
        model: A causal language model of ``transformers``; or hub name, folder, GGUF file,
            checkpoint, ``quickstart:target``, ``quickstart:retain``.
        tokenizer: Its tokenizer, or where that comes from; None where ``model`` is a name.
        dtype: Precision of the weights of a model that is loaded here.

    Raises:
        InputError: If something can't be loaded, or the two don't belong together.
    """
    name = None
    if isinstance(model, str | PathLike):
        name = quickstart_models.resolve(str(model), key="model")
        model = load_model(name, dtype, key="model")
    elif tokenizer is None:
        raise InputError("tokenizer must be given where model is no name: the model's tokenizer.")
    if tokenizer is None or isinstance(tokenizer, str):
        tokenizer = load_tokenizer(tokenizer or name or "", "tokenizer")
    given = GivenModel(model, tokenizer)
    given.check()
    check_vocabulary(tokenizer, model.config, given.name, "tokenizer")
    return given


def template_of(tokenizer: Any, template: Template | None) -> Template:
    """Return the template asked for; None takes the tokenizer's chat template if it has one."""
    if template is not None:
        check_name("template", template, get_args(Template))
        return template
    return "chat" if getattr(tokenizer, "chat_template", None) else "plain"


def make_trainer(
    model: Any, callbacks: Sequence[Callback], *, progress: bool, **settings: Any
) -> Trainer:
    """Return a trainer for one device, the model's own, that writes no file.

    Args:
        model: What it is for.
        callbacks: Its callbacks.
        progress: Draw bars.
        settings: Further arguments of ``lightning.Trainer``.
    """
    device = next(model.parameters()).device
    kind = {"cuda": "gpu"}.get(device.type, device.type)
    place = {"accelerator": kind, "devices": 1 if device.index is None else [device.index]}
    defaults = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": progress,
        "num_sanity_val_steps": -1,
        "use_distributed_sampler": False,
    }
    return Trainer(callbacks=list(callbacks), **{**place, **defaults, **settings})


@contextmanager
def interruptible() -> Iterator[None]:
    """Make an interrupt of it again what the trainer turns into the end of the process."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        # The trainer has had further ones ignored, for good.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from end


@contextmanager
def quietly() -> Iterator[None]:
    """Leave out what libraries say of themselves; warnings of ours stay."""
    loggers = [
        logging.getLogger(name)
        for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (".*LeafSpec.*", ".*many workers.*", ".*in eval mode at the start.*"):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """Give a model back where it was, in the mode it was in, with the weights training that did."""
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    trains = {name: weight.requires_grad for name, weight in model.named_parameters()}
    try:
        yield
    finally:
        model.to(device)
        for module, mode in modes:
            module.training = mode
        for name, weight in model.named_parameters():
            weight.requires_grad_(trains.get(name, True))
