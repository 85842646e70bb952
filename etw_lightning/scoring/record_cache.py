"""Scores of models that were scored before, found again by what they depend on.

Each part of a set has a folder of its own, named by a hash of the weights, the rows, the encoding,
the precision and the code. Every process adds the batches it has finished to a journal there, one
checked line each, so that what is interrupted goes on from its last batch. A file that
``$ETW_SCORED`` names gets a line then, by which a job script sees that a life was not in vain.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import etw_lightning
from etw_lightning.catalogue.entries import Part
from etw_lightning.data.encode import Encoder, shared_pair
from etw_lightning.files.code_hash import code_hash
from etw_lightning.files.places import cache_dir
from etw_lightning.files.stored_weights import find_checkpoint, is_checkpoint
from etw_lightning.models.loading import DType, LabelScorer, load_config, load_model
from etw_lightning.schema import EvalSet, InputError, Numbers, Record
from etw_lightning.scoring.batches import (
    Score,
    build_batches,
    expected_scores,
    join_generations,
    make_records,
    score_in_turn,
)
from etw_lightning.scoring.parts import parts_of, with_parts
from etw_lightning.scoring.scores import TOKEN_FIELDS, is_finite

__all__ = [
    "Journal",
    "Known",
    "known_scores",
    "model_identity",
    "note_progress",
    "precision_name",
    "rows_hash",
    "score_keys",
    "score_model",
]

#: Beside the weights, what decides a model's scores and where its generations end.
_MODEL_FILES = ("config.json", "generation_config.json")
_WEIGHTS = (".safetensors", ".gguf", ".ckpt", ".distcp", ".pt")
#: Modules whose text decides what a record holds.
_CODE = (
    "tuning.adapter_settings",
    "tuning.adapters",
    "scoring.answers",
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
#: Seconds of finished batches that a crash of the machine may cost.
_SYNC_SECONDS = 2.0


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


class Journal:
    """Finished batches of one part of one set, written as they are finished.

    Each process writes a file of its own. Scores that are not finite numbers are left out: a
    broken model's rows are to be scored again.

    Args:
        key: One of ``score_keys``.
        of_rows: Whether the next run of the same command reads what rows there are of a part of
            which some are missing, so that each batch brings it on.
    """

    def __init__(self, key: str, *, of_rows: bool) -> None:
        self._path, self._of_rows = _folder(key) / f"{uuid.uuid4().hex}.jsonl", of_rows
        self._stream: BinaryIO | None = None
        self._synced = time.monotonic()

    def append(self, scores: Sequence[Score]) -> None:
        """Add one batch."""
        if not all(is_finite(score.value) for score in scores):
            return
        text = json.dumps([list(score) for score in scores], default=list).encode()
        with _writing():
            if self._stream is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._path.open("ab")
            self._stream.write(b"%08x %b\n" % (zlib.crc32(text), text))
            self._stream.flush()
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()
        if self._of_rows:
            note_progress()

    def close(self) -> None:
        """Bring what is left to the disk."""
        if self._stream is not None:
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._stream = None


def note_progress() -> None:
    """Add a line to the file that a job script counts, if there is one: something was kept.

    Raises:
        InputError: If it can't be written.
    """
    path = os.environ.get("ETW_SCORED")
    if path:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as stream:
                stream.write(b"scored\n")
        except OSError as error:
            raise InputError(
                f"ETW_SCORED: {path} can't be written ({error.strerror or error}); give another "
                "output_dir, beside which it may be."
            ) from error


@contextmanager
def _writing() -> Iterator[None]:
    """Name the cache where it can't be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"ETW_CACHE: {cache_dir()} can't be written ({error.strerror or error}); make room "
            "there, or set ETW_CACHE to another folder."
        ) from error


def _folder(key: str) -> Path:
    return cache_dir() / "scores" / key


@dataclass(frozen=True)
class Known:
    """What has been scored of one part of a set.

    Args:
        scores: Of the rows that are complete.
        pending: Rows that are not.
        damage: What of the files could not be read, in words; empty for nothing.
    """

    scores: list[Score]
    pending: tuple[int, ...]
    damage: str = ""


def known_scores(key: str, eval_set: EvalSet) -> Known:
    """Read the journals of one part of a set.

    A line that was cut, or changed since, costs its own rows only.

    Args:
        key: One of ``score_keys``.
        eval_set: The set with this part alone.
    """
    found: dict[int, dict[tuple[str, int], Score]] = {}
    damage: list[str] = []
    for path in sorted(_folder(key).glob("*.jsonl")):
        lines = path.read_bytes().split(b"\n")
        bad = 0
        for line in lines:
            batch = _read_line(line)
            bad += batch is None and line != b""
            for score in batch or ():
                found.setdefault(score.row, {})[score.field, score.place] = score
        if bad:
            damage.append(f"{bad} of {sum(line != b'' for line in lines)} lines of {path}")
    scores: list[Score] = []
    pending = []
    for row, example in enumerate(eval_set.examples):
        values = found.get(row, {})
        if all(place in values for place in expected_scores(eval_set, example)):
            scores += values.values()
        else:
            pending.append(row)
    return Known(scores, tuple(pending), ", ".join(damage))


def _read_line(line: bytes) -> list[Score] | None:
    """Return the scores of one line; None if it is not as it was written."""
    head, _, text = line.partition(b" ")
    if not text or head != b"%08x" % zlib.crc32(text):
        return None
    return [
        Score(row, field, place, _plain(field, value))
        for row, field, place, value in json.loads(text)
    ]


def _plain(field: str, value: Any) -> Any:
    """Return a value as it was scored: of all that holds several numbers JSON makes lists."""
    if field in TOKEN_FIELDS:
        return Numbers(value)
    if field == "token_spans":
        return tuple(shared_pair(*pair) for pair in value)
    return value


@contextmanager
def _locked(key: str, *, waits: bool) -> Iterator[bool]:
    """Let one process score while the others of this machine do something else, or wait.

    Args:
        key: One of ``score_keys``.
        waits: Wait for a process that has it; else tell whether there was none.
    """
    from filelock import FileLock, Timeout

    folder = cache_dir() / "locks"
    with _writing():
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(timeout=-1 if waits else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _share_out(
    todo: Mapping[tuple[str, Part], str], work: Callable[[tuple[str, Part]], list[Score]]
) -> dict[tuple[str, Part], list[Score]]:
    """Do the work for each part of a set, one process at a time for each.

    Processes that were started together share the parts out: each takes what no other is at, and
    waits in the end for what it then only reads.

    Args:
        todo: Parts to their keys.
        work: Scores what is not known of a part.
    """
    done: dict[tuple[str, Part], list[Score]] = {}
    for waits in (False, True):
        for place, key in todo.items():
            if place not in done:
                with _locked(key, waits=waits) as is_mine:
                    if is_mine:
                        done[place] = work(place)
    return done


def score_model(
    pretrained: str,
    eval_sets: Mapping[str, EvalSet],
    encoder: Encoder,
    batch_size: int,
    *,
    key: str = "data.retain_model",
    dtype: DType = "float32",
    precision: str = "32-true",
    attention: str | None = None,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    place: Callable[[LabelScorer], LabelScorer] = lambda scorer: scorer,
) -> dict[str, list[Record]]:
    """Return another model's records of some sets; what was scored before is read, not computed.

    Args:
        pretrained: Hub name, folder, GGUF file or checkpoint.
        eval_sets: What to score.
        encoder: How text becomes tokens; belongs to the model's tokenizer.
        batch_size: Rows at a time.
        key: Configuration key that errors name.
        dtype: Precision of the weights.
        precision: The trainer's precision, for the key.
        attention: As of ``load_model``.
        context: Makes the autocast that belongs to it.
        place: Moves the model to the run's device and precision.

    Raises:
        InputError: If the model can't be loaded, is of a kind that can't be scored or gives a loss
            that is not finite.
    """
    from rich.progress import track

    computed_in = precision_name(dtype, precision, attention)
    identity = model_identity(pretrained, key)
    scorer: LabelScorer | None = None

    def loaded() -> LabelScorer:
        nonlocal scorer
        if scorer is None:
            scorer = LabelScorer(load_model(pretrained, dtype, attention, key)).eval()
            scorer.check_head(key, continues=any(part == "generation" for _, part in todo))
            scorer = place(scorer)
        return scorer

    def score(only: EvalSet, rows: Sequence[int], cached: str, title: str) -> list[Score]:
        journal, scores = Journal(cached, of_rows=True), []
        batches = join_generations(build_batches(only, encoder, batch_size, rows))
        for batch in track(batches, f"Scoring {Path(pretrained).name}: {title}"):
            with context():
                for some in score_in_turn(loaded(), batch, encoder.tokenizer):
                    done = [score._replace(row=rows[score.row]) for score in some]
                    journal.append(done)
                    scores += done
        journal.close()
        return scores

    todo = {
        (name, part): cached
        for name, eval_set in eval_sets.items()
        for part, cached in score_keys(identity, eval_set, encoder, computed_in).items()
    }

    def known_and_new(which: tuple[str, Part]) -> list[Score]:
        name, part = which
        only = with_parts(eval_sets[name], [part])
        known = known_scores(todo[which], only)
        if not known.pending:
            return list(known.scores)
        return [*known.scores, *score(only, known.pending, todo[which], f"{name}, {part}")]

    scores = _share_out(todo, known_and_new)
    found: dict[str, list[Record]] = {}
    for name, eval_set in eval_sets.items():
        own = [one for which, part in scores.items() if which[0] == name for one in part]
        try:
            found[name] = make_records(eval_set, own)
        except InputError as error:
            raise InputError(f"{key} {pretrained!r}: {error}") from error
    return found
