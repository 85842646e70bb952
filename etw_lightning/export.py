"""The trained model as a folder that other libraries load."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from etw_lightning.models import load_model

__all__ = ["ExportError", "export_model"]


class ExportError(RuntimeError):
    """A saved model does not say what the trained one says."""


def export_model(lm: Any, tokenizer: Any, folder: str | Path) -> Path:
    """Save a model in Hugging Face layout, load it again and compare the logits.

    Written to a temporary name first: the folder appears whole or not at all.

    Args:
        lm: The trained ``transformers`` model.
        tokenizer: Its tokenizer.
        folder: Where to; replaced if it exists.

    Returns:
        The folder: safetensors, configuration, generation configuration, tokenizer.

    Raises:
        ExportError: If the reloaded model's logits differ from the trained model's.
    """
    folder = Path(folder)
    draft = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    lm.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    difference = logit_difference(lm, draft)
    if not difference <= 1e-4:
        raise ExportError(
            f"The model saved in {draft} differs from the trained one: its logits by up to "
            f"{difference:.3g}. The folder is kept for inspection."
        )
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return folder


@torch.no_grad()
def logit_difference(lm: Any, folder: Path) -> float:
    """Return the largest difference of two models' logits on a fixed text of 32 tokens."""
    was_training = lm.training
    lm.eval()
    parameter = next(lm.parameters())
    vocab = lm.get_output_embeddings().weight.shape[0]
    ids = (torch.arange(32, device=parameter.device) * 7919 % vocab)[None]
    trained = lm(input_ids=ids, use_cache=False).logits.float()
    dtype: Any = str(parameter.dtype).removeprefix("torch.")
    reloaded = load_model(str(folder), dtype, lm.config._attn_implementation).to(parameter.device)
    saved = reloaded(input_ids=ids, use_cache=False).logits.float()
    lm.train(was_training)
    return (trained - saved).abs().max().item()
