"""``export``: a checkpoint of any strategy as a Hugging Face folder, without the run's devices."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

from etw_lightning.commands.refusals.options import Options
from etw_lightning.schema import InputError

if TYPE_CHECKING:
    from etw_lightning.models.loading import DType

__all__ = ["export", "parser"]

_KEY = "checkpoint"


def export(args: Sequence[str]) -> int:
    """Run ``export``.

    Args:
        args: Words after ``export``.

    Returns:
        0, once the folder is there.

    Raises:
        InputError: If the options, the checkpoint or the folder can't be used.
    """
    options = parser().parse_args(list(args))
    # Not before the options are in order: these take seconds.
    from etw_lightning.commands.quiet import be_quiet
    from etw_lightning.files.stored_weights import find_checkpoint
    from etw_lightning.models.checkpoints import checkpoint_dtype

    be_quiet()
    if options.negate is not None:
        return _negate(options)
    saved = _saved_model(Path(options.checkpoint).expanduser())
    if saved is not None:
        return _hand_on(saved, options)
    found = find_checkpoint(options.checkpoint, _KEY)
    folder = _asked(options) or _beside(found)
    held = found.parent.parent.parent / "model"
    _check_place(folder, may_replace=options.overwrite, reads=(held,))
    _write(str(found), options, options.dtype or checkpoint_dtype(str(found), _KEY), folder)
    return 0


def _write(place: str, options: argparse.Namespace, dtype: str, folder: Path) -> None:
    """Load what is at a place and write it as a folder."""
    from etw_lightning.models.export import export_model
    from etw_lightning.models.loading import load_model, load_tokenizer

    key = "tokenizer" if options.tokenizer else _KEY
    tokenizer = load_tokenizer(options.tokenizer or place, key)
    lm = load_model(place, cast("DType", dtype), None, _KEY)
    folder.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"model: {export_model(lm, tokenizer, folder)}\n")


def _negate(options: argparse.Namespace) -> int:
    """Write the model that a fine-tuning run began with, moved against what the run changed."""
    import torch

    from etw_lightning.files.stored_weights import find_checkpoint
    from etw_lightning.models.export import export_model
    from etw_lightning.models.loading import load_config, load_model, load_tokenizer
    from etw_lightning.runs.folder import settings_in
    from etw_lightning.training.quickstart_models import resolve
    from etw_lightning.tuning.task_vectors import negate

    run = Path(options.checkpoint).expanduser()
    if not run.is_dir():
        find_checkpoint(options.checkpoint, _KEY)
    settings = settings_in(run)
    given, seed = settings.get("model"), settings.get("seed_everything") or 0
    model = given if isinstance(given, dict) and isinstance(seed, int) else {}
    is_tuned = (run / "model" / "config.json").is_file() and model.get("pretrained")
    if not is_tuned or model.get("forget") is not None:
        raise InputError(
            f"negate: checkpoint {str(run)!r} must be the folder of a finished run of fit that "
            "fine-tuned on what is to be forgotten: model.forget null, data.split the forget split."
        )
    folder = _asked(options) or run / f"negated-{options.negate:g}"
    place = resolve(str(model["pretrained"]), seed)
    _check_place(folder, may_replace=options.overwrite, reads=(run / "model", Path(place)))
    stored = getattr(load_config(place, "model.pretrained"), "dtype", None) or "float32"
    # What a run changed of 16-bit weights is smaller than their steps.
    start = load_model(place, "float32", None, "model.pretrained")
    negate(start, load_model(str(run / "model"), "float32", None, _KEY), options.negate)
    start = start.to(getattr(torch, options.dtype or str(stored).removeprefix("torch.")))
    tokenizer = load_tokenizer(options.tokenizer or str(run / "model"), _KEY)
    folder.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"model: {export_model(start, tokenizer, folder)}\n")
    return 0


def _saved_model(run: Path) -> Path | None:
    """Return the model of a finished run that has kept no checkpoint; None of anything else."""
    from etw_lightning.files.checkpoint_folder import saved_checkpoints
    from etw_lightning.runs.folder import finished_command

    model = run / "model"
    if not (model / "config.json").is_file() or saved_checkpoints(run):
        return None
    return model if finished_command(run) == "fit" else None


def _hand_on(saved: Path, options: argparse.Namespace) -> int:
    """Say where a finished run's model is, or copy it where it is wanted."""
    from etw_lightning.models.loading import load_config

    told = "the run is finished and holds no checkpoint; its model is a folder already"
    changes = [name for name in ("dtype", "tokenizer") if getattr(options, name) is not None]
    if options.output_dir is None:
        asked = [*changes, *["overwrite"] * options.overwrite]
        if asked:
            raise InputError(f"{asked[0]}: {told}, {str(saved)!r}; give --output_dir for a copy.")
        sys.stdout.write(f"{told}\nmodel: {saved}\n")
        return 0
    folder = _asked(options)
    assert folder is not None
    _check_place(folder, may_replace=options.overwrite, reads=(saved,))
    sys.stdout.write(f"{told}\n")
    if changes:
        stored = getattr(load_config(str(saved), _KEY), "dtype", None) or "float32"
        dtype = options.dtype or str(stored).removeprefix("torch.")
        _write(str(saved), options, dtype, folder)
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".export-") as beside:
        copy = Path(beside) / "model"
        shutil.copytree(saved, copy)
        if folder.exists():
            shutil.rmtree(folder)
        copy.replace(folder)
    sys.stdout.write(f"model: {folder}\n")
    return 0


def _asked(options: argparse.Namespace) -> Path | None:
    """Return the folder that was asked for; None where none was."""
    given: str | None = options.output_dir
    if given is not None and not given.strip():
        raise InputError(f"output_dir must be a folder; got {given!r}.")
    return None if given is None else Path(given).expanduser()


def _check_place(folder: Path, *, may_replace: bool, reads: Sequence[Path] = ()) -> None:
    """Refuse a place that is taken; what is no saved model is not replaced either.

    Args:
        folder: The place.
        may_replace: A model that is there may be replaced.
        reads: Models that the run holds or began with, which are never replaced.
    """
    if any(folder.resolve() == one.resolve() for one in reads):
        raise InputError(f"output_dir {str(folder)!r} is where the model is; give another folder.")
    file = next((one for one in folder.parents if one.exists() and not one.is_dir()), None)
    if file is not None:
        raise InputError(f"output_dir must be a folder; {str(file)!r} is a file.")
    if not folder.exists():
        return
    if not may_replace:
        raise InputError(
            f"output_dir {str(folder)!r} is there already; give another folder, or --overwrite to "
            "replace it."
        )
    held = list(folder.iterdir()) if folder.is_dir() else [folder]
    is_model = (folder / "config.json").is_file() and not any(path.is_dir() for path in held)
    if held and not is_model:
        raise InputError(
            f"output_dir {str(folder)!r} is no saved model, so --overwrite does not replace it; "
            "give another folder."
        )


def _beside(found: Path) -> Path:
    """Return where a model goes by default.

    A run's checkpoint becomes ``exported/<step>`` in the run's folder, where no clearing up of old
    checkpoints meets it; another one a folder beside it.
    """
    step = found.parent
    if step.parent.name == "checkpoints":
        return step.parent.parent / "exported" / step.name
    return found.with_name(f"{found.name.removesuffix('.ckpt')}-model")


def parser() -> Options:
    """Return the command's options."""
    parser = Options("export", __doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="a .ckpt file, a folder of shards (FSDP2, DeepSpeed stage 2 or 3), a run's folder "
        "(its newest step) or one step's; of a finished run without any, its model is handed on",
    )
    parser.add_argument(
        "--output_dir",
        help="the folder to write; by default exported/ in the run's folder, or beside the "
        "checkpoint",
    )
    parser.add_argument("--tokenizer", help="where it comes from, if the run's own is gone")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="precision of the saved weights; by default the run's",
    )
    parser.add_argument(
        "--negate",
        type=_positive,
        metavar="ALPHA",
        help="task vector: of a run that fine-tuned on what is to be forgotten, write the model it "
        "began with minus ALPHA times what it changed; by default in the run's folder",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model in the folder")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number > 0; got {text!r}")
    return value
