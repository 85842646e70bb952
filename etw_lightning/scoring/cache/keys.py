"""What the scores of a model and a set depend on, hashed: scores are found again by it.

Each part of a set has a key of its own: a hash of the weights, the rows, the encoding, the
precision and the code.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import etw_lightning
from etw_lightning.catalogue.entries import Part
from etw_lightning.data.encode import Encoder
from etw_lightning.files.code_hash import code_hash
from etw_lightning.files.stored_weights import find_checkpoint, is_checkpoint
from etw_lightning.models.loading import load_config
from etw_lightning.schema import EvalSet
from etw_lightning.scoring.parts import parts_of, with_parts

__all__ = ["model_identity", "precision_name", "rows_hash", "score_keys"]

#: Beside the weights, what decides a model's scores and where its generations end.
_MODEL_FILES = ("config.json", "generation_config.json")
_WEIGHTS = (".safetensors", ".gguf", ".ckpt", ".distcp", ".pt")
#: Modules whose text decides what a record holds.
_CODE = (
    "tuning.adapter_settings",
    "tuning.adapters",
    "scoring.answers.batches",
    "scoring.answers.gradients",
    "scoring.answers.losses",
    "scoring.answers.rows",
    "files.misfit",
    "files.stored_weights",
    "files.tokenizer_files",
    "files.weight_headers",
    "models.checkpoints",
    "tuning.decoder",
    "kernels.distributions",
    "data.answer_rows",
    "data.encode",
    "data.kept_rows",
    "data.row_layout",
    "data.rendering",
    "data.stored_rows",
    "models.continuation",
    "models.generation",
    "models.stopping",
    "kernels.head",
    "models.head_probe",
    "kernels.logits",
    "kernels.plain_rows",
    "models.label_scorer",
    "models.loading",
    "models.noise",
    "models.packed_attention",
    "models.packing",
    "models.positions",
    "models.probes",
    "models.step_layout",
    "schema",
    "scoring.scores",
    "scoring.batches",
    "kernels.signals",
    "models.weight_fit",
)


def model_identity(pretrained: str, key: str = "model.pretrained") -> str:
    """Return a hash of a local model's bytes, or a hub model's name and revision.

    Args:
        pretrained: Hub name, folder, GGUF file or checkpoint.
        key: Configuration key that errors name.
    """
    path = Path(pretrained).expanduser()
    if not path.exists():
        return f"{pretrained}@{getattr(load_config(pretrained, key), '_commit_hash', None)}"
    files = [path] if path.is_file() else sorted(path.glob("*"))
    if is_checkpoint(pretrained):
        found = find_checkpoint(pretrained, key)
        files = [found] if found.is_file() else sorted(found.rglob("*"))
    digest = hashlib.sha256()
    for file in files:
        if file.suffix in _WEIGHTS or file.name in _MODEL_FILES:
            state = file.stat()
            digest.update(_file_digest(str(file), (state.st_size, state.st_mtime_ns)))
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _file_digest(path: str, _state: tuple[int, int]) -> bytes:
    """Hash a file once, as long as its size and time stay the same."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def rows_hash(eval_set: EvalSet) -> str:
    """Hash the rows of a set, whatever is scored of them; 24 hexadecimal digits."""
    # That of their list as JSON, of which one row is made at a time.
    digest = hashlib.sha256(b"[")
    for number, example in enumerate(eval_set.examples):
        row = asdict(example)
        # Rows without them have the hash that older records of them name.
        for key in [key for key in ("turns", "labels_turns", "lead") if not row[key]]:
            del row[key]
        digest.update(f"{', ' if number else ''}{json.dumps(row, sort_keys=True)}".encode())
    digest.update(b"]")
    return digest.hexdigest()[:24]


def _hash(state: Any) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:24]


def precision_name(dtype: str, precision: str, attention: str | None) -> str:
    """Return what scores are computed in, for ``score_keys``.

    Args:
        dtype: Precision of the weights.
        precision: The trainer's.
        attention: Implementation that was asked for; None for the library's choice.

    Example:
        >>> precision_name("bfloat16", "bf16-true", "eager")
        'bfloat16 bf16-true eager'
    """
    return " ".join(filter(None, (dtype, precision, attention)))


def score_keys(
    identity: str, eval_set: EvalSet, encoder: Encoder, precision: str
) -> dict[Part, str]:
    """Hash everything that the scores of one model and set depend on, part by part.

    Args:
        identity: The model's ``model_identity``.
        eval_set: What is scored; a key for each of its parts.
        encoder: How text becomes tokens.
        precision: Its ``precision_name``.

    Returns:
        24 hexadecimal digits for each part.
    """
    import torch
    import transformers

    state = {
        "model": identity,
        "rows": rows_hash(eval_set),
        "encoder": encoder.content_key,
        "precision": precision,
        "versions": [etw_lightning.__version__, torch.__version__, transformers.__version__],
        "code": code_hash(_CODE),
    }
    keys = {}
    for part in parts_of(eval_set):
        only = replace(with_parts(eval_set, [part]), examples=())
        keys[part] = _hash({**state, "part": asdict(only)})
    return keys
