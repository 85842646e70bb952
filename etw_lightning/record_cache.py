"""Records of a model that was scored before, found again by what they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import etw_lightning
from etw_lightning.encode import Encoder
from etw_lightning.models import DType, LabelScorer, load_config, load_model
from etw_lightning.retain_results import load_records, save_records
from etw_lightning.schema import EvalSet, Record
from etw_lightning.scoring import build_batches, make_records, score_batch

__all__ = ["cache_dir", "cached_records", "records_key", "score_model", "store_records"]

_RETAIN_KEY = "data.retain_model"
#: Beside the weights, what decides a model's scores and where its generations end.
_MODEL_FILES = ("config.json", "generation_config.json")
#: Files whose text decides what a record holds.
_CODE = ("encode.py", "kernels.py", "models.py", "schema.py", "scoring.py", "signals.py")


def cache_dir() -> Path:
    """Return the folder of all that is kept between runs: ``$ETW_CACHE`` or the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ETW_CACHE") or Path(base) / "etw_lightning")


def records_key(
    pretrained: str,
    eval_set: EvalSet,
    encoder: Encoder,
    precision: str,
    key: str = "model.pretrained",
) -> str:
    """Hash everything the records of one model and set depend on.

    The weights (all bytes of a local model, name and revision of a hub one), the rows, how text
    becomes tokens, precision, library versions and our own code.

    Args:
        pretrained: Hub name, folder or GGUF file.
        eval_set: What is scored.
        encoder: How text becomes tokens.
        precision: Of the weights and of the run, in words.
        key: Configuration key that errors name.

    Returns:
        24 hexadecimal digits.
    """
    import torch
    import transformers

    here = Path(__file__).parent
    state = {
        "model": _model_identity(str(Path(pretrained).expanduser()), key),
        "rows": asdict(eval_set),
        "encoder": encoder.content_key,
        "precision": precision,
        "versions": [etw_lightning.__version__, torch.__version__, transformers.__version__],
        "code": [hashlib.sha256((here / name).read_bytes()).hexdigest() for name in _CODE],
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:24]


def _model_identity(pretrained: str, key: str) -> str:
    """Return a hash of a local model's bytes, or a hub model's name and revision."""
    path = Path(pretrained)
    if not path.exists():
        return f"{pretrained}@{getattr(load_config(pretrained, key), '_commit_hash', None)}"
    files = [path] if path.is_file() else sorted(path.glob("*"))
    digest = hashlib.sha256()
    for file in files:
        if file.suffix in (".safetensors", ".gguf") or file.name in _MODEL_FILES:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def cached_records(key: str, name: str) -> list[Record] | None:
    """Return the records stored under a key, or None."""
    folder = cache_dir() / "records" / key
    return load_records(folder).get(name) if folder.is_dir() else None


def store_records(key: str, name: str, records: list[Record]) -> None:
    """Keep records under a key."""
    save_records(cache_dir() / "records" / key, {name: records})


@contextmanager
def _locked(key: str) -> Iterator[None]:
    """Let one process score while the others of this machine wait for its result."""
    from filelock import FileLock

    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):
        yield


def score_model(
    pretrained: str,
    eval_sets: Mapping[str, EvalSet],
    encoder: Encoder,
    batch_size: int,
    *,
    dtype: DType = "float32",
    precision: str = "32-true",
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    place: Callable[[LabelScorer], LabelScorer] = lambda scorer: scorer,
) -> dict[str, list[Record]]:
    """Return a retain model's records of some sets; what was scored before is read, not computed.

    Args:
        pretrained: Hub name, folder or GGUF file.
        eval_sets: What to score.
        encoder: How text becomes tokens; belongs to the model's tokenizer.
        batch_size: Rows at a time.
        dtype: Precision of the weights.
        precision: The trainer's precision, for the key.
        context: Makes the autocast that belongs to it.
        place: Moves the model to the run's device and precision.

    Raises:
        InputError: If the model can't be loaded or gives a loss that is not finite.
    """
    from rich.progress import track

    found: dict[str, list[Record]] = {}
    scorer: LabelScorer | None = None
    for name, eval_set in eval_sets.items():
        key = records_key(pretrained, eval_set, encoder, f"{dtype} {precision}", _RETAIN_KEY)
        with _locked(key):
            records = cached_records(key, name)
            if records is None:
                scorer = (
                    scorer
                    or place(LabelScorer(load_model(pretrained, dtype, key=_RETAIN_KEY))).eval()
                )
                scores = []
                batches = build_batches(eval_set, encoder, batch_size)
                for batch in track(batches, f"Scoring {Path(pretrained).name}: {name}"):
                    with context():
                        scores += score_batch(scorer, batch, encoder.tokenizer)
                records = make_records(eval_set, scores)
                store_records(key, name, records)
        found[name] = records
    return found
