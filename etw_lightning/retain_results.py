"""Saves, finds and checks the retain model's records; reads published logs as well.

Forget quality and privleak compare a run with a model that never saw the forget set. Its records
come from a results folder of ours or from a log published by open-unlearning.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etw_lightning.schema import InputError, Record

__all__ = [
    "RetainResults",
    "load_records",
    "load_retain_results",
    "save_records",
    "write_atomically",
]

_KEY = "data.retain_results"
_WAY_OUT = (
    "give the folder of a run that fine-tuned the retain model, or a published TOFU_EVAL.json or "
    "MUSE_EVAL.json"
)
#: Published metric -> our set and the record field that its rows fill.
_TOFU_SETS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
_TOFU_LOSSES = {
    "Q_A_Prob": "answer_loss",
    "Q_A_PARA_Prob": "paraphrase_loss",
    "Q_A_PERT_Prob": "perturbed_losses",
}
_ROUGE_SETS = {f"{key}_Q_A_ROUGE": name for key, name in _TOFU_SETS.items()} | {
    "forget_verbmem_ROUGE": "verbmem",
    "forget_knowmem_ROUGE": "knowmem_forget",
    "retain_knowmem_ROUGE": "knowmem_retain",
}


@dataclass(frozen=True)
class RetainResults:
    """What the retain model said.

    Args:
        source: The path as the user gave it.
        records: Its records by set name, in row order.
    """

    source: str
    records: dict[str, list[Record]]

    def require(self, set_name: str, n: int) -> list[Record]:
        """Return the records of one set.

        Args:
            set_name: Name of the ``EvalSet``.
            n: Rows that the run scores in that set.

        Raises:
            InputError: If the set is missing or has another number of rows.

        Example:
            >>> results = RetainResults("folder", {"forget": [Record("forget", "forget/0", "a")]})
            >>> len(results.require("forget", 1))
            1
        """
        if set_name not in self.records:
            raise InputError(
                f"{_KEY}: {self.source} holds no rows of {set_name!r}, only "
                f"{', '.join(sorted(self.records))}; {_WAY_OUT}."
            )
        found = self.records[set_name]
        if len(found) != n:
            raise InputError(
                f"{_KEY}: {self.source} holds {len(found)} rows of {set_name!r}, this run scores "
                f"{n}: it was made for another {_of_which_split(set_name)}; {_WAY_OUT}."
            )
        return found


def save_records(folder: str | Path, records_by_set: Mapping[str, Sequence[Record]]) -> None:
    """Write ``records/<set>.jsonl.gz`` into ``folder``, one record a line, in the order given.

    Equal records give equal bytes. A file appears whole or not at all; files of sets that aren't
    in ``records_by_set`` stay. NaN and infinity are an InputError that names the row.
    """
    for name, records in records_by_set.items():
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise InputError(f"set name {name!r}: use letters, digits, '_', '-' and '.' only.")
        lines = [_dump_record(name, record) for record in records]
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as stream:
            stream.write("".join(lines).encode("utf-8"))
        write_atomically(Path(folder) / "records" / f"{name}.jsonl.gz", packed.getvalue())


def load_records(folder: str | Path) -> dict[str, list[Record]]:
    """Read back what ``save_records`` wrote: set name to records, sets in alphabetical order."""
    paths = sorted((Path(folder) / "records").glob("*.jsonl.gz"))
    if not paths:
        raise InputError(f"{_KEY}: {folder} holds no records/*.jsonl.gz; {_WAY_OUT}.")
    loaded: dict[str, list[Record]] = {}
    for path in paths:
        # Not splitlines: a text may hold one of the other line separators of Unicode.
        rows = [_parse(line, path) for line in _read_text(path).split("\n") if line]
        try:
            loaded[path.name.removesuffix(".jsonl.gz")] = [Record.from_json(row) for row in rows]
        except (TypeError, AttributeError) as error:
            raise InputError(f"{_KEY}: {path} is not a file of records ({error}).") from error
    return loaded


def load_retain_results(path: str | Path) -> RetainResults:
    """Read the retain model's records from a results folder or from a published log.

    Published logs hold no ids: rows are named ``set/row``, and ``question`` is the whole prompt.
    Their loss is the mean over the answer's tokens, as ours.

    Args:
        path: A results folder, the ``results.json`` in it, or a published ``TOFU_EVAL.json`` or
            ``MUSE_EVAL.json``; the latter two may be gzipped.

    Raises:
        InputError: If nothing is there, it is broken, or it is none of these.
    """
    source, path = str(path), Path(path)
    if not path.exists():
        raise InputError(f"{_KEY}: {source} does not exist; {_WAY_OUT}.")
    if path.is_dir():
        return RetainResults(source, load_records(path))
    log = _parse(_read_text(path), path)
    if isinstance(log, dict):
        records = _from_published(log, path)
        if records:
            return RetainResults(source, records)
        if path.name == "results.json":
            return RetainResults(source, load_records(path.parent))
    raise InputError(f"{_KEY}: {source} is JSON of an unknown shape; {_WAY_OUT}.")


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file by way of a temporary one beside it, so that nobody reads half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _of_which_split(set_name: str) -> str:
    return "forget split" if "forget" in set_name else "version of that set"


def _dump_record(name: str, record: Record) -> str:
    try:
        return json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise InputError(f"set {name!r}, row {record.id}: holds NaN or infinity.") from error


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return content.decode("utf-8")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{_KEY}: {path} is a broken gzip file ({error}); copy it anew."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{_KEY}: {path} is not UTF-8 text; {_WAY_OUT}.") from error


def _parse(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{_KEY}: {path} is not JSON ({error}); {_WAY_OUT}.") from error


def _from_published(log: dict[str, Any], path: Path) -> dict[str, list[Record]]:
    """Return the sets of a published log; none if it has none of its metrics."""
    fields: dict[str, dict[int, dict[str, Any]]] = {}
    try:
        for metric, name in _ROUGE_SETS.items():
            for row, entry in _rows(log, metric):
                target = fields.setdefault(name, {}).setdefault(row, {})
                target["question"], target["answer"] = entry["input"], entry["ground_truth"]
                target["generation"] = entry["generation"]
        for key, name in _TOFU_SETS.items():
            for suffix, field in _TOFU_LOSSES.items():
                for row, entry in _rows(log, f"{key}_{suffix}"):
                    loss = entry["avg_loss"]
                    value = tuple(loss) if field == "perturbed_losses" else loss
                    fields.setdefault(name, {}).setdefault(row, {})[field] = value
        for side in ("forget", "holdout"):
            for row, entry in _rows(log.get("mia_min_k", {}), side):
                fields.setdefault(f"privleak_{side}", {})[row] = {"min_k": entry["score"]}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{_KEY}: {path} looks like a published log, but a row can't be read ({error!r})."
        ) from error
    return {name: _to_records(name, rows, path) for name, rows in fields.items()}


def _rows(log: dict[str, Any], metric: str) -> list[tuple[int, dict[str, Any]]]:
    by_index = log.get(metric, {}).get("value_by_index", {})
    return sorted((int(index), entry) for index, entry in by_index.items())


def _to_records(name: str, rows: dict[int, dict[str, Any]], path: Path) -> list[Record]:
    first = set(rows.get(0, {}))
    if sorted(rows) != list(range(len(rows))) or any(set(row) != first for row in rows.values()):
        raise InputError(
            f"{_KEY}: {path} does not hold the same rows in every metric of {name!r}; copy it anew."
        )
    return [
        Record(**{"dataset": name, "id": f"{name}/{row}", "answer": "", **rows[row]})
        for row in range(len(rows))
    ]
