"""The quickstart's target and retain models, trained on the spot and kept for the next run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from filelock import FileLock
from lightning.pytorch import Trainer, seed_everything

from etw_lightning.benchmarks import quickstart
from etw_lightning.data.encode_many import num_cores
from etw_lightning.files.places import cache_dir
from etw_lightning.models.export import export_model
from etw_lightning.models.random_llama import LlamaShape, save_random_llama
from etw_lightning.schema import InputError
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule
from etw_lightning.training.step_log import count_epochs_from_one

__all__ = ["PREFIX", "Recipe", "check_role", "resolve", "resolve_untrained"]

#: ``quickstart:target`` and ``quickstart:retain`` stand for the two models.
PREFIX = "quickstart:"

_Role = Literal["target", "retain"]
_SPLITS: dict[str, str] = {"target": "general+full", "retain": "general+retain"}


@dataclass(frozen=True)
class Recipe:
    """How the two models are made.

    Args:
        vocab_size: Entries of the tokenizer.
        num_layers: Decoder layers.
        hidden_size: Width.
        intermediate_size: Width of the feed-forward part.
        num_heads: Attention heads.
        passes: Times each row is seen.
        batch_size: Rows a step.
        lr: Peak learning rate.
        betas: AdamW's decay rates.
        warmup: Share of steps in which the rate rises; it then falls to 0 on a line.
        seed: Of the first weights and of the order of rows.
    """

    vocab_size: int = 1500
    num_layers: int = 2
    hidden_size: int = 256
    intermediate_size: int = 512
    num_heads: int = 4
    passes: int = 12
    batch_size: int = 16
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.1
    seed: int = 0


def resolve(pretrained: str, seed: int = 0, key: str = "model.pretrained") -> str:
    """Return the folder of a quickstart model, training it if it is not there; else the name.

    If neither of the two models is there, the other one is trained beside it on a second core.

    Args:
        pretrained: ``quickstart:target``, ``quickstart:retain``, or any other model.
        seed: Of the models, so that runs of several seeds are runs on several models.
        key: Configuration key that errors name.

    Raises:
        InputError: If there is no quickstart model of this name.
    """
    if not pretrained.startswith(PREFIX):
        return pretrained
    role, recipe = check_role(pretrained, key), Recipe(seed=seed)
    folder = _folder(recipe)
    with _other_beside(role, recipe):
        _make(role, recipe)
    return str(folder / role)


def resolve_untrained(
    pretrained: str, folder: Path, seed: int = 0, key: str = "model.pretrained"
) -> str:
    """Return a folder that has configuration and tokenizer of a model, training nothing.

    Args:
        pretrained: As of ``resolve``.
        folder: Where a quickstart model that is not there yet is put, with random weights.
        seed: As of ``resolve``.
        key: As of ``resolve``.

    Raises:
        InputError: As ``resolve``.
    """
    if not pretrained.startswith(PREFIX):
        return pretrained
    role, recipe = check_role(pretrained, key), Recipe(seed=seed)
    trained = _folder(recipe) / role
    if trained.is_dir():
        return str(trained)
    _save_random_model(folder / role, recipe)
    return str(folder / role)


def check_role(pretrained: str, key: str) -> str:
    """Return which of the quickstart's models a name means.

    Args:
        pretrained: The name.
        key: Configuration key that errors name.

    Raises:
        InputError: If there is no quickstart model of this name.
    """
    role = pretrained.removeprefix(PREFIX)
    if role not in get_args(_Role):
        raise InputError(
            f"{key} must be quickstart:target or quickstart:retain; got {pretrained!r}."
        )
    return role


def _folder(recipe: Recipe) -> Path:
    return cache_dir() / "quickstart" / _key(recipe)


def _key(recipe: Recipe) -> str:
    """Hash what the models depend on: recipe and corpus."""
    rows = json.dumps(quickstart.build_corpus(), sort_keys=True)
    text = json.dumps([asdict(recipe), quickstart.CHAT_TEMPLATE, rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def _other_beside(role: str, recipe: Recipe) -> Iterator[None]:
    """Have a process make the other model meanwhile, if neither is there and a core is free.

    The process is waited for after the lock of this one's model is let go of, so that two runs
    that begin with different models can't wait for each other. If it fails, the model is made
    when it is asked for.
    """
    (other,) = set(get_args(_Role)) - {role}
    folder = _folder(recipe)
    if any((folder / name).is_dir() for name in (role, other)) or num_cores() < 2:
        yield
        return
    code = f"from {__name__} import Recipe, _make; _make({other!r}, {recipe!r})"
    quiet = subprocess.DEVNULL
    # It finds modules where this process does, and nowhere else (-P).
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
        )
    except OSError:
        yield
        return
    try:
        yield
        process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _make(role: str, recipe: Recipe) -> None:
    """Train a model and put it into its folder, unless it is there; one process at a time."""
    folder = _folder(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{role}.lock"):
        if (folder / role).is_dir():
            return
        sys.stdout.write(f"quickstart: training the {role} model (first run only)\n")
        threads = torch.get_num_threads()
        # So small a model gains nothing by a second thread, and has the same bits on every machine
        # that multiplies alike.
        torch.set_num_threads(1)
        try:
            _train(role, folder, recipe)
        finally:
            torch.set_num_threads(threads)


def _train(role: str, folder: Path, recipe: Recipe) -> None:
    """Train one model from random weights and save it."""
    # What was seeded for the run itself must not depend on whether the models were there.
    seed_everything(recipe.seed, verbose=False)
    start = folder / f"{role}.start"
    _save_random_model(start, recipe)
    data = UnlearningDataModule(
        benchmark="quickstart",
        split=_SPLITS[role],
        batch_size=recipe.batch_size,
        max_length=256,
        seed=recipe.seed,
    )
    module = UnlearningModule(
        pretrained=str(start),
        forget=None,
        lr=recipe.lr,
        betas=recipe.betas,
        schedule="linear",
        warmup=recipe.warmup,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=recipe.passes,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    count_epochs_from_one(cast(Any, trainer).callbacks)
    trainer.fit(module, datamodule=data)
    assert module.scorer is not None
    export_model(module.scorer.lm, data.encoder.tokenizer, folder / role)
    shutil.rmtree(start)


def _save_random_model(folder: Path, recipe: Recipe) -> None:
    """Save a Llama with random weights and the corpus's tokenizer."""
    texts = quickstart.corpus_texts(quickstart.build_corpus())
    tokenizer = quickstart.train_tokenizer(texts, recipe.vocab_size)
    quickstart.save_tokenizer(tokenizer, folder)
    shape = LlamaShape(
        num_layers=recipe.num_layers,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_heads=recipe.num_heads,
    )
    save_random_llama(folder, tokenizer, shape)
