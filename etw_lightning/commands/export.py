"""``export``: a checkpoint of any strategy as a Hugging Face folder, without the run's devices."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from etw_lightning.commands.options import Options
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
    from etw_lightning.models.export import export_model
    from etw_lightning.models.loading import load_model, load_tokenizer

    be_quiet()
    found = find_checkpoint(options.checkpoint, _KEY)
    folder = Path(options.output_dir).expanduser() if options.output_dir else _beside(found)
    _check_place(folder, may_replace=options.overwrite)
    place = str(found)
    key = "tokenizer" if options.tokenizer else _KEY
    tokenizer = load_tokenizer(options.tokenizer or place, key)
    lm = load_model(
        place, cast("DType", options.dtype or checkpoint_dtype(place, _KEY)), None, _KEY
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"model: {export_model(lm, tokenizer, folder)}\n")
    return 0


def _check_place(folder: Path, *, may_replace: bool) -> None:
    """Refuse a place that is taken; what is no saved model is not replaced either."""
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
        "(its newest step) or one step's",
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
    parser.add_argument("--overwrite", action="store_true", help="replace a model in the folder")
    return parser
