"""Draws one answer that is to be forgotten, each token coloured by the weight that ETW gives it.

    python docs/make_picture.py docs/_static/weights.svg

The model is the quickstart's target model, trained on the spot where there is none yet; the numbers
under the tokens are what a training step would use.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

from etw_lightning import weights
from etw_lightning.benchmarks.quickstart import build_corpus

__all__ = ["draw", "main", "weighed"]

_FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"
_WIDTH, _MARGIN, _LINE, _CHARACTER = 600, 22, 64, 9.7


def weighed(row: int) -> tuple[str, list[tuple[str, float, float]]]:
    """Return a forget question, and the text, weight and entropy of each answer token.

    Args:
        row: Of the quickstart's forget set, from 0.
    """
    given = build_corpus()["forget"][row]
    found = weights("quickstart:target", text=given)
    return given["question"], list(zip(found.tokens, found.weights, found.entropies, strict=True))


def draw(question: str, tokens: list[tuple[str, float, float]]) -> str:
    """Return the picture as SVG, on a card of its own that dark and light pages can hold.

    Args:
        question: Shown above the answer.
        tokens: Text, weight and entropy in nats of each answer token.
    """
    largest = max(weight for _, weight, _ in tokens)
    left, top, boxes = _MARGIN, 96, []
    for text, weight, entropy in tokens:
        shown = "end" if text.startswith("<|") else text.strip()
        width = max(len(shown) * _CHARACTER + 12, 42)
        if left + width > _WIDTH - _MARGIN:
            left, top = _MARGIN, top + _LINE
        boxes.append(_box(left, top, width, shown, weight, entropy, weight / largest))
        left += width + 3
    height = top + _LINE + 34
    told = (
        "Under each token: its weight w = n H / sum H. "
        f"Mean 1; here {min(w for _, w, _ in tokens):.2f} to {largest:.2f}."
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            f'font-family="{_FONT}" role="img">',
            f"<title>{escape(question)} {escape(told)}</title>",
            f'<rect width="{_WIDTH}" height="{height}" rx="12" fill="#fbfaf7" stroke="#d8d4ca"/>',
            f'<text x="{_MARGIN}" y="38" font-size="14" fill="#6b665c">to be forgotten</text>',
            f'<text x="{_MARGIN}" y="66" font-size="16" fill="#2b2925">{escape(question)}</text>',
            *boxes,
            f'<text x="{_MARGIN}" y="{height - 20}" font-size="13" fill="#6b665c">{told}</text>',
            "</svg>\n",
        ]
    )


def _box(
    left: float, top: float, width: float, text: str, weight: float, entropy: float, share: float
) -> str:
    """Return one token: white where it weighs nothing, dark orange where it weighs most."""
    red, green, blue = (round(255 + (end - 255) * share) for end in (200, 80, 10))
    ink = "#ffffff" if share > 0.55 else "#2b2925"
    middle = left + width / 2
    shown = escape(text)
    return (
        f"<g><title>{shown}: entropy {entropy:.3f} nats, weight {weight:.3f}</title>"
        f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="30" rx="4" '
        f'fill="rgb({red},{green},{blue})" stroke="#e3dccf"/>'
        f'<text x="{middle:.1f}" y="{top + 20}" font-size="16" text-anchor="middle" '
        f'fill="{ink}">{shown}</text>'
        f'<text x="{middle:.1f}" y="{top + 45}" font-size="12.5" text-anchor="middle" '
        f'fill="#6b665c">{weight:.2f}</text></g>'
    )


def main(path: str, row: int = 21) -> None:
    """Write the picture of one row.

    Args:
        path: The file.
        row: Of the quickstart's forget set, from 0.
    """
    Path(path).write_text(draw(*weighed(row)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
