"""Pictures of token weights for TensorBoard: a histogram, and forget rows in colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from etw_lightning.boards.grouped import GroupedTensorBoard
from etw_lightning.boards.shades import shade, shares
from etw_lightning.notices import visible
from etw_lightning.training.module import UnlearningModule

__all__ = ["WeightPictures", "heat_map"]

_WIDTH, _LINE, _MARGIN, _GAP = 960, 26, 6, 8
#: Rows that a picture shows.
_ROWS = 8


def heat_map(rows: Sequence[Sequence[tuple[str, float]]]) -> np.ndarray:
    """Return rows of tokens as a picture, each token on the colour of its weight.

    Args:
        rows: Tokens with their weights, >= 0.

    Returns:
        Red, green and blue, ``(H, W, 3)``, 0 to 255.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(14)
    boxes, line = [], 0
    for row in rows:
        left = _MARGIN
        for (token, _), share in zip(row, shares([weight for _, weight in row]), strict=True):
            text = visible(token)
            width = int(font.getlength(text)) + 3
            if left + width > _WIDTH - _MARGIN and left > _MARGIN:
                left, line = _MARGIN, line + 1
            boxes.append((left, line, width, text, shade(share)))
            left += width
        line += 1
    height = max(line, 1) * (_LINE + _GAP // 2) + _GAP
    picture = Image.new("RGB", (_WIDTH, height), "white")
    draw = ImageDraw.Draw(picture)
    for left, place, width, text, colour in boxes:
        top = _GAP // 2 + place * (_LINE + _GAP // 2)
        draw.rectangle((left, top, left + width - 1, top + _LINE - 1), fill=colour)
        draw.text((left + 1, top + 4), text, fill="black", font=font)
    return np.asarray(picture)


class WeightPictures(Callback):
    """Shows how the weights of the last micro-batch lay, whenever the model is evaluated."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what the step before has noted."""
        logger = trainer.logger
        found = cast(UnlearningModule, pl_module).last_weights
        if found is None or not trainer.is_global_zero:
            return
        if not isinstance(logger, GroupedTensorBoard) or trainer.sanity_checking:
            return
        labels, places, weights = (part.cpu() for part in found)
        if not len(weights):
            # Of several processes this one had no row left in the step before.
            return
        step = trainer.global_step
        logger.experiment.add_histogram("weights/all", weights.float(), step)
        tokenizer = cast(UnlearningModule, pl_module).datamodule.encoder.tokenizer
        rows: dict[int, list[tuple[str, float]]] = {}
        for label, place, weight in zip(
            labels.tolist(), places.tolist(), weights.tolist(), strict=True
        ):
            rows.setdefault(place, []).append((tokenizer.decode([label]), weight))
        picture = heat_map(list(rows.values())[:_ROWS])
        logger.experiment.add_image("weights/heat map", picture, step, dataformats="HWC")
