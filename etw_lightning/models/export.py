"""The trained model as a folder that other libraries load."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from etw_lightning.files.tokenizer_files import encoding_of
from etw_lightning.models.fixed_text import text_logits, text_logps
from etw_lightning.models.label_scorer import LabelScorer
from etw_lightning.models.loading import load_model, load_tokenizer
from etw_lightning.tuning.adapters import Adapter

__all__ = ["ExportError", "export_model"]


class ExportError(RuntimeError):
    """A saved model does not say what the trained one says."""


def export_model(
    lm: Any,
    tokenizer: Any,
    folder: str | Path,
    adapter: Adapter | None = None,
    said: Tensor | None = None,
) -> Path:
    """Save a model in Hugging Face layout, load it again and compare what it says.

    Written to a temporary name first: the folder appears whole or not at all.

    Args:
        lm: The trained ``transformers`` model; of one in shards, a whole copy.
        tokenizer: Its tokenizer.
        folder: Where to; replaced if it exists.
        adapter: The adapter that was trained, if any: a copy of the model with it merged is saved.
        said: ``text_logps`` of the run's own model, where ``lm`` is a copy of it.

    Returns:
        The folder: safetensors, configuration, generation configuration, tokenizer.

    Raises:
        ExportError: If the reloaded tokenizer is another; or the reloaded model's logits differ
            from those of the model that was saved at all, or from an adapted model's, or a
            model's in shards, by more than rounding.
    """
    folder = Path(folder)
    draft = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    saved = lm if adapter is None else adapter.merged_copy()
    saved.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    if encoding_of(load_tokenizer(str(draft))) != encoding_of(tokenizer):
        raise ExportError(
            f"The tokenizer saved in {draft} encodes otherwise than the run's. The folder is kept "
            "for inspection."
        )
    logits = text_logits(saved)
    reloaded = load_model(str(draft), _dtype_name(saved), lm.config._attn_implementation)
    again = text_logits(reloaded.to(logits.device))
    _require((logits - again).abs().max().item() <= 1e-4, logits, again, draft)
    if adapter is not None:
        _check_merge(text_logits(lm), logits, lm, adapter, draft)
    if said is not None:
        scorer = LabelScorer(reloaded)
        scorer.check_head()
        copied = text_logps(scorer, logits.device)
        said = said.to(logits.device)
        error = (copied - said).norm()
        _require(bool(error <= _rounding(lm) * said.norm()), said, copied, draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return folder


def _rounding(lm: Any) -> float:
    """Return what sums in another order may change, as a share of the whole.

    They make 1e-6 in float32. Weights rounded to the eight bits of bfloat16 make up to 0.4 % each,
    and a few percent after all layers.
    """
    return 1e-4 if next(lm.parameters()).dtype.itemsize >= 4 else 0.05


def _check_merge(trained: Tensor, merged: Tensor, lm: Any, adapter: Adapter, draft: Path) -> None:
    """Refuse merged weights that say something else; warn of an effect lost in rounding."""
    error = (merged - trained).norm()
    _require(bool(error <= _rounding(lm) * trained.norm()), trained, merged, draft)
    with adapter.switched_off():
        effect = (trained - text_logits(lm)).norm()
    is_wide = next(lm.parameters()).dtype.itemsize >= 4
    if not is_wide and error > effect / 2:
        warnings.warn(
            f"Merged into {_dtype_name(lm)} weights, {error / effect:.0%} of what the adapter does "
            "is rounded away: the saved model is hardly the trained one. Train with "
            "--model.dtype float32.",
            stacklevel=3,
        )


def _require(is_near: bool, trained: Tensor, saved: Tensor, draft: Path) -> None:
    if not is_near:
        difference = (trained - saved).abs().max().item()
        raise ExportError(
            f"The model saved in {draft} differs from the trained one: what it says by up to "
            f"{difference:.3g}. The folder is kept for inspection."
        )


def _dtype_name(lm: Any) -> Any:
    """Return the precision of a model's own weights; an adapter's may be another."""
    return str(lm.get_output_embeddings().weight.dtype).removeprefix("torch.")
