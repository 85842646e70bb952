"""What numbers and records were made with, in a form that is stored and compared."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from etw_lightning.data.encode import Encoder
from etw_lightning.schema import EvalSet
from etw_lightning.scoring.cache.keys import rows_hash
from etw_lightning.scoring.parts import parts_of

__all__ = ["describe", "encoding", "generating", "git_commit", "library_versions", "texts_hashes"]

_LIBRARIES = (
    "torch",
    "lightning",
    "transformers",
    "datasets",
    "torchmetrics",
    "rouge-score",
    "uniseg",
)


def describe(
    name: str,
    identity: str | None,
    eval_sets: Mapping[str, EvalSet],
    encoder: Encoder,
    dtype: str,
    precision: str,
) -> dict[str, Any]:
    """Return what records of some sets are made with.

    Args:
        name: The model, as the user gave it.
        identity: Hash of its bytes; None for weights that are stored nowhere.
        eval_sets: What is scored.
        encoder: How text becomes tokens.
        dtype: Precision of the weights.
        precision: The trainer's.
    """
    numeric = {"dtype": dtype, "precision": precision}
    code = {"versions": library_versions(), "git_commit": git_commit()}
    return {
        "model": {"name": name, "hash": identity},
        **numeric,
        **encoding(encoder),
        "sets": {
            key: {
                "rows": len(eval_set.examples),
                "hash": rows_hash(eval_set),
                "texts": texts_hashes(eval_set),
                "parts": list(parts_of(eval_set)),
                "made": {
                    part: {
                        **numeric,
                        **(generating(eval_set) if part == "generation" else {}),
                        **code,
                    }
                    for part in parts_of(eval_set)
                },
            }
            for key, eval_set in eval_sets.items()
        },
        **code,
    }


def texts_hashes(eval_set: EvalSet) -> dict[str, str]:
    """Hash what is asked, and each kind of text that may be scored, whatever the rows are called.

    Returns:
        24 hexadecimal digits each; of a kind of which the rows have none, nothing.

    Example:
        >>> from etw_lightning.schema import Example
        >>> rows = (Example("f/0", "Rome", "Where?", perturbed_answers=("Bonn",)),)
        >>> sorted(texts_hashes(EvalSet("forget", rows)))
        ['answers', 'questions', 'wrong answers']
    """
    rows = eval_set.examples
    kinds: dict[str, list[Any]] = {
        "questions": [
            [row.question, row.verbatim, row.labels_turns, *row.turns, *filter(None, [row.lead])]
            for row in rows
        ],
        "answers": [row.answer for row in rows],
        "paraphrased answers": [row.paraphrased_answer for row in rows],
        "wrong answers": [row.perturbed_answers for row in rows],
        "options": [row.choices for row in rows],
    }
    return {
        kind: hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:24]
        for kind, texts in kinds.items()
        if any(texts)
    }


def generating(eval_set: EvalSet) -> dict[str, Any]:
    """Return what decides where the generations of a set end.

    Example:
        >>> generating(EvalSet("forget", (), max_new_tokens=3, stop_strings=("END",)))
        {'max_new_tokens': 3, 'stop_strings': ['END']}
    """
    return {
        "max_new_tokens": eval_set.max_new_tokens,
        "stop_strings": list(eval_set.stop_strings),
    }


def encoding(encoder: Encoder) -> dict[str, Any]:
    """Return what decides the tokens and scores of a row: its template and the conventions."""
    conventions = asdict(encoder.conventions)
    # Of a metric alone; records do not depend on it.
    del conventions["floor"]
    settings: dict[str, Any] = {
        "key": encoder.template_key,
        "template": encoder.template,
        "system_prompt": encoder.system_prompt,
        "template_kwargs": encoder.template_kwargs,
        "max_length": encoder.max_length,
    }
    if encoder.set_right:
        settings["set_right"] = list(encoder.set_right)
    # As it looks when it is read again.
    return dict(json.loads(json.dumps({"template": settings, "conventions": conventions})))


def library_versions() -> dict[str, str]:
    """Return the versions of this package and of the libraries that decide its numbers."""
    return {name: version(name) for name in ("etw-lightning", *_LIBRARIES)}


def git_commit() -> str | None:
    """Return the commit of the package's sources, ``+`` if they were changed since; else None."""
    where = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*where, "rev-parse", "HEAD"], capture_output=True, text=True)
        dirty = subprocess.run([*where, "diff", "--quiet", "HEAD", "--", "."], capture_output=True)
    except FileNotFoundError:
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+" if dirty.returncode else "")
