"""What the target model says of the training rows, computed once and read from a file.

A loss that compares with the reference model then needs no second model in memory. A file belongs
to one group of rows and is named by a hash of all that decides its numbers. In a folder of the
user's own it is named by the group, and refused if it was made for anything else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import etw_lightning
from etw_lightning.files.code_hash import code_hash
from etw_lightning.files.places import cache_dir
from etw_lightning.files.reference_file import DamagedError, read_tensors, write_tensors
from etw_lightning.notices import warn_first
from etw_lightning.schema import EncodedRow, InputError
from etw_lightning.training.references.model import (
    ReferenceModel,
    ReferenceValues,
    Wanted,
    compute_values,
)

__all__ = ["ReferenceModel", "ReferenceValues", "Wanted", "reference_values"]

#: Modules whose text decides the values.
_CODE = (
    "models.checkpoints",
    "tuning.decoder",
    "kernels.distributions",
    "kernels.head",
    "models.head_probe",
    "kernels.logits",
    "kernels.plain_rows",
    "models.label_scorer",
    "models.loading",
    "training.references.model",
    "scoring.batches",
)
#: What a file was made for, in the words of an error.
_WORDS = {
    "pretrained": "another model",
    "model": "another model",
    "template": "another template",
    "rows": "other rows",
    "signals": "other signals",
    "temperature": "another temperature",
    "top_k": "another model.reference_top_k",
    "precision": "another precision",
    "versions": "other versions",
    "code": "another state of the code",
}
#: Said of a file, but of no influence on its numbers.
_SAID_ONLY = ("pretrained", "template")


def reference_values(
    rows: Sequence[EncodedRow],
    wanted: Wanted,
    model: ReferenceModel,
    *,
    group: str,
    batch_size: int,
    folder: str | None = None,
) -> ReferenceValues:
    """Return what the target model says of some rows, from their file if there is one.

    Else the model runs once over them, the file is written, and read. Other processes of this
    machine that want the same wait for it.

    Args:
        rows: The rows, in the order of the indices they will be asked by.
        wanted: What is to be known.
        model: The target model.
        group: What the rows are: ``forget``, ``retain`` or ``alternative``.
        batch_size: Rows at a time.
        folder: The user's own (``model.reference_cache``), where the file is called by the group;
            None for the cache of all runs.

    Raises:
        InputError: If the folder's file was made for something else or is damaged, nothing can be
            written there, the model can't be loaded, or a value is not a finite number.
    """
    made_for = _made_for(rows, wanted, model)
    key = _hash({name: made_for[name] for name in made_for if name not in _SAID_ONLY})
    where = cache_dir() / "reference" if folder is None else Path(folder).expanduser()
    file = where / f"{key if folder is None else group}.safetensors"
    if folder is not None and where.is_file():
        raise InputError(f"model.reference_cache {folder!r} is a file; give a folder.")
    stored = _stored(file, key, made_for, folder)
    if stored is not None:
        return stored
    with _locked(file, folder):
        stored = _stored(file, key, made_for, folder)
        if stored is None:
            computed = compute_values(rows, wanted, model, group, batch_size)
            tensors = {"offsets": computed.offsets, **computed.values}
            with _writing(where, folder):
                write_tensors(file, tensors, {"key": key, "made_for": json.dumps(made_for)})
            del computed, tensors
            stored = _stored(file, key, made_for, folder)
    assert stored is not None
    return stored


def _made_for(rows: Sequence[EncodedRow], wanted: Wanted, model: ReferenceModel) -> dict[str, Any]:
    """Return everything that decides the values, and two names for the reader."""
    import transformers

    return {
        "pretrained": model.pretrained,
        "model": model.identity,
        "template": model.template,
        "rows": _hash_of_rows(rows),
        **wanted.key_fields(),
        "precision": model.computed_in,
        "versions": [etw_lightning.__version__, torch.__version__, transformers.__version__],
        "code": code_hash(_CODE)[:24],
    }


def _hash(state: Any) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:24]


def _hash_of_rows(rows: Sequence[EncodedRow]) -> str:
    """Return ``_hash`` of the ids and labels of all rows, which are read one by one."""
    digest, before = hashlib.sha256(), "["
    for row in rows:
        digest.update(f"{before}{json.dumps([row.input_ids, row.labels])}".encode())
        before = ", "
    digest.update(b"]" if rows else b"[]")
    return digest.hexdigest()[:24]


def _stored(
    file: Path, key: str, made_for: Mapping[str, Any], folder: str | None
) -> ReferenceValues | None:
    """Return what a file holds if it is there and made for this; None if it is to be made."""
    try:
        tensors, said = read_tensors(file)
        found = json.loads(said["made_for"])
        values = {name: tensor for name, tensor in tensors.items() if name != "offsets"}
        stored = ReferenceValues(tensors["offsets"], values)
    except FileNotFoundError:
        return None
    except (DamagedError, OSError, KeyError) as error:
        if folder is not None:
            raise InputError(
                f"model.reference_cache {folder!r}: {file.name} is damaged or not a file of "
                "reference values; give another folder or remove it."
            ) from error
        warn_first(f"{file} can't be read ({error}); its values are computed again.")
        return None
    if said.get("key") == key:
        return stored
    if folder is None:
        warn_first(f"{file} was made for something else; its values are computed again.")
        return None
    raise InputError(
        f"model.reference_cache {folder!r}: {file.name} was made for "
        f"{_differences(found, made_for)}; give another folder or remove it."
    )


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Say in words in what two descriptions differ."""
    differs = [name for name in _WORDS if found.get(name) != expected.get(name)]
    if "model" not in differs:
        # The same weights at another place are the same model.
        differs = [name for name in differs if name != "pretrained"]
    elif "pretrained" in differs:
        differs.remove("model")
    pairs = [(name, _short(found.get(name)), _short(expected.get(name))) for name in differs]
    return " and ".join(f"{_WORDS[name]} ({old}; here {new})" for name, old, new in pairs)


def _short(value: Any) -> str:
    return " + ".join(map(str, value)) if isinstance(value, list) else str(value)


@contextmanager
def _locked(file: Path, folder: str | None) -> Iterator[None]:
    """Let one process compute a file while the others wait for it."""
    from filelock import FileLock

    with _writing(file.parent, folder):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_name(f".{file.name}.lock"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing(where: Path, folder: str | None) -> Iterator[None]:
    """Name the folder where it can't be written."""
    try:
        yield
    except OSError as error:
        key = "ETW_CACHE" if folder is None else "model.reference_cache"
        raise InputError(
            f"{key}: {where} can't be written ({error.strerror or error}); make room there, or "
            "give another folder."
        ) from error
