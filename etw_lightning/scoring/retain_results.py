"""Saves, finds and checks records of other models; reads published logs as well.

Forget quality and privleak compare a run with a model that never saw the forget set, other metrics
with the target model. Their records come from a results folder of ours or from a log published by
open-unlearning.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etw_lightning.files.places import require_inside
from etw_lightning.schema import InputError, Record
from etw_lightning.scoring.published import from_published
from etw_lightning.scoring.record_checks import check_records

__all__ = [
    "RetainResults",
    "differing",
    "load_provenance",
    "load_records",
    "load_retain_results",
    "load_set",
    "made_of",
    "save_provenance",
    "save_records",
    "write_atomically",
    "write_lines",
]

_KEY = "data.retain_results"
_WAY_OUT = (
    "give the folder of a run that fine-tuned or evaluated the model, or a published "
    "TOFU_EVAL.json or MUSE_EVAL.json"
)
_SET_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_PROVENANCE = "provenance.json"
#: What is kept of each part of each set, as parts are made one after the other.
_OF_PARTS = ("dtype", "precision", "versions", "git_commit")
_SETTINGS = ("max_new_tokens", "stop_strings")


@dataclass(frozen=True)
class RetainResults:
    """What the retain model, or the target model, said.

    Args:
        source: The path as the user gave it.
        records: Its records by set name, in row order.
        provenance: What they were made with, as ``save_provenance`` wrote it; empty if unknown.
        key: Configuration key that errors name.
        is_published: The records come from a log of open-unlearning.
    """

    source: str
    records: dict[str, list[Record]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    key: str = _KEY
    is_published: bool = False

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
                f"{self.key}: {self.source} holds no rows of {set_name!r}, only "
                f"{', '.join(sorted(self.records))}; {_WAY_OUT}."
            )
        found = self.records[set_name]
        written = self.provenance.get("sets", {}).get(set_name, {}).get("rows", len(found))
        if len(found) != written:
            raise InputError(
                f"{self.key}: {self.source} holds {len(found)} of the {written} rows of "
                f"{set_name!r} that were written: the file was cut; make it anew."
            )
        if len(found) != n:
            whole = " or leave out data.rows" if len(found) > n else ""
            raise InputError(
                f"{self.key}: {self.source} holds {len(found)} rows of {set_name!r}, this run "
                f"scores {n}: it was made for another {_of_which_split(set_name)}; {_WAY_OUT}"
                f"{whole}."
            )
        return found

    def check_made_like(self, settings: Mapping[str, Any]) -> None:
        """Refuse records that were made of other tokens, or under other conventions.

        Args:
            settings: ``template`` and ``conventions`` of this run, as in its own provenance.

        Raises:
            InputError: If one differs; names the first that does. Records of unknown provenance
                pass.
        """
        for part, where in (("conventions", "conventions"), ("template", "data")):
            then, now = self.provenance.get(part), settings[part]
            if then is None or then == now:
                continue
            differing = [name for name in now if name != "key" and then.get(name) != now[name]]
            if not differing and then.get("key") == now.get("key"):
                continue
            said = (
                f"{where}.{differing[0]} {then.get(differing[0])!r}, this run has "
                f"{now[differing[0]]!r}"
                if differing
                else "another tokenizer or chat template than this run's"
            )
            raise InputError(
                f"{self.key}: {self.source} was made with {said}; evaluate that model with this "
                "run's settings, or set this run's to those."
            )

    def made_another_way(self, set_name: str, part: str, settings: Mapping[str, Any]) -> str:
        """Say in what a part of a set was made with other settings; empty if in nothing known.

        Args:
            set_name: Name of the set.
            part: Its part.
            settings: Those of this run.
        """
        return differing(made_of(self.provenance, set_name).get(part, {}), settings)

    def unknown(self) -> list[str]:
        """Return what can't be compared, as nothing says what the records were made with."""
        names = [
            name
            for name in ("template", "conventions", "dtype", "precision")
            if self.provenance.get(name) is None
        ]
        generated = [
            name for name, rows in self.records.items() if rows and rows[0].generation is not None
        ]
        made = [made_of(self.provenance, name).get("generation", {}) for name in generated]
        names += [name for name in _SETTINGS if any(one.get(name) is None for one in made)]
        return names


def save_records(folder: str | Path, records_by_set: Mapping[str, Sequence[Record]]) -> None:
    """Write ``records/<set>.jsonl.gz`` into ``folder``, one record a line, in the order given.

    Equal records give equal bytes. A file appears whole or not at all; files of sets that aren't
    in ``records_by_set`` stay. NaN and infinity are an InputError that names the row.
    """
    for name, records in records_by_set.items():
        if not _SET_NAME.fullmatch(name):
            raise InputError(f"set name {name!r}: use letters, digits, '_', '-' and '.' only.")
        lines = (_dump_record(name, record) for record in records)
        write_lines(Path(folder) / "records" / f"{name}.jsonl.gz", lines)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines that end in a newline, gzipped as they come; equal lines give equal bytes."""
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as stream:
        for line in lines:
            stream.write(line.encode("utf-8"))
    write_atomically(path, packed.getvalue())


def save_provenance(folder: str | Path, provenance: Mapping[str, Any]) -> None:
    """Write what the records in ``folder`` were made with, beside them."""
    text = json.dumps(provenance, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    write_atomically(Path(folder) / "records" / _PROVENANCE, text.encode("utf-8"))


def load_provenance(folder: str | Path, key: str = _KEY) -> dict[str, Any]:
    """Read back what ``save_provenance`` wrote; empty where there is none."""
    path = Path(folder) / "records" / _PROVENANCE
    if not path.is_file():
        return {}
    require_inside(path, Path(folder), key)
    found = _parse(_read_text(path, key), path, key)
    if not isinstance(found, dict):
        raise InputError(f"{key}: {path} must hold an object; got {found!r:.60}.")
    sets = found.get("sets", {})
    if not isinstance(sets, dict):
        raise InputError(f"{key}: {path} must hold sets by name; got {sets!r:.60}.")
    for name in sets:
        if not _SET_NAME.fullmatch(name):
            raise InputError(
                f"{key}: {path} names a set {name!r:.60}; names hold letters, digits, '_', '-' and "
                "'.' only. Give a folder that a run of this package has written."
            )
    return found


def made_of(provenance: Mapping[str, Any], set_name: str) -> dict[str, dict[str, Any]]:
    """Return what each part of a set was made with; empty if nothing is known of the set.

    What is said of all sets alike counts for a part of which nothing more is said.

    Example:
        >>> made_of({"dtype": "float32", "sets": {"forget": {"parts": ["answers"]}}}, "forget")
        {'answers': {'dtype': 'float32'}}
    """
    found = provenance.get("sets", {}).get(set_name, {})
    alike = {key: provenance[key] for key in _OF_PARTS if key in provenance}
    return {part: found.get("made", {}).get(part, alike) for part in found.get("parts", ())}


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say which settings differ; one that is unknown does not.

    Example:
        >>> differing({"dtype": "float32"}, {"dtype": "bfloat16", "precision": "bf16-true"})
        "dtype 'float32', this run has 'bfloat16'"
    """
    return ", ".join(
        f"{name} {then[name]!r}, this run has {value!r}"
        for name, value in now.items()
        if then.get(name) is not None and then[name] != value
    )


def load_records(folder: str | Path, key: str = _KEY) -> dict[str, list[Record]]:
    """Read back what ``save_records`` wrote: set name to records, sets in alphabetical order."""
    paths = sorted((Path(folder) / "records").glob("*.jsonl.gz"))
    if not paths:
        raise InputError(f"{key}: {folder} holds no records/*.jsonl.gz; {_WAY_OUT}.")
    for path in paths:
        require_inside(path, Path(folder), key)
    return {path.name.removesuffix(".jsonl.gz"): load_set(path, key) for path in paths}


def load_set(path: Path, key: str = _KEY) -> list[Record]:
    """Read the records of one file.

    Raises:
        InputError: If it was cut, is no file of records, or holds what no model can have said.
    """
    found = []
    for row, line in enumerate(_lines_of(_read_text(path, key))):
        try:
            record = Record.from_json(_parse(line, path, key))
        except (TypeError, AttributeError) as error:
            raise InputError(f"{key}: {path} is not a file of records ({error}).") from error
        check_records([record], f"{key}: {path}", row)
        found.append(record.packed())
    return found


def _lines_of(text: str) -> Iterator[str]:
    """Give the lines of a text one by one, without empty ones.

    Not ``splitlines``: a text may hold one of the other line separators of Unicode.
    """
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if end > start:
            yield text[start:end]
        start = end + 1


def load_retain_results(path: str | Path, key: str = _KEY) -> RetainResults:
    """Read the retain model's records from a results folder or from a published log.

    Published logs hold no ids: rows are named ``set/row``, and ``question`` is the whole prompt.
    Their loss is the mean over the answer's tokens, as ours.

    Args:
        path: A results folder, the ``results.json`` in it, or a published ``TOFU_EVAL.json`` or
            ``MUSE_EVAL.json``; the latter two may be gzipped.
        key: Configuration key that errors name.

    Raises:
        InputError: If nothing is there, it is broken, or it is none of these.
    """
    source, path = str(path), Path(path)
    if not path.exists():
        raise InputError(f"{key}: {source} does not exist; {_WAY_OUT}.")
    if path.is_dir():
        return RetainResults(source, load_records(path, key), load_provenance(path, key), key)
    log = _parse(_read_text(path, key), path, key)
    if isinstance(log, dict):
        records = from_published(log, path, key)
        if records:
            for name, rows in records.items():
                check_records(rows, f"{key}: {source}, {name}")
            return RetainResults(source, records, key=key, is_published=True)
        if path.name == "results.json":
            folder = path.parent
            return RetainResults(
                source, load_records(folder, key), load_provenance(folder, key), key
            )
    raise InputError(f"{key}: {source} is JSON of an unknown shape; {_WAY_OUT}.")


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file by way of a temporary one beside it, so that nobody reads half of it.

    Raises:
        InputError: If it can't be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"output_dir: {path} can't be written ({error.strerror or error}); make room there, or "
            "give another folder."
        ) from error


def _of_which_split(set_name: str) -> str:
    return "forget split" if "forget" in set_name else "version of that set"


def _dump_record(name: str, record: Record) -> str:
    try:
        return json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise InputError(f"set {name!r}, row {record.id}: holds NaN or infinity.") from error


def _read_text(path: Path, key: str) -> str:
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return content.decode("utf-8")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{key}: {path} is a broken gzip file ({error}); copy it anew.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{key}: {path} is not UTF-8 text; {_WAY_OUT}.") from error


def _parse(text: str, path: Path, key: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{key}: {path} is not JSON ({error}); {_WAY_OUT}.") from error
