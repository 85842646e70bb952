"""Other models' records: read as far as they are known, scored where they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from etw_lightning.catalogue.entries import Part
from etw_lightning.data.encode import Encoder
from etw_lightning.files.places import cache_dir
from etw_lightning.models.loading import DType, LabelScorer, load_model
from etw_lightning.schema import EvalSet, InputError, Record
from etw_lightning.scoring.batches import (
    Score,
    build_batches,
    join_generations,
    make_records,
    score_in_turn,
)
from etw_lightning.scoring.cache.journals import Journal, known_scores, writing
from etw_lightning.scoring.cache.keys import model_identity, precision_name, score_keys
from etw_lightning.scoring.parts import with_parts

__all__ = ["score_model"]


@contextmanager
def _locked(key: str, *, waits: bool) -> Iterator[bool]:
    """Let one process score while the others of this machine do something else, or wait.

    Args:
        key: One of ``score_keys``.
        waits: Wait for a process that has it; else tell whether there was none.
    """
    from filelock import FileLock, Timeout

    folder = cache_dir() / "locks"
    with writing():
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
        for batch in track(batches, f"Scoring {Path(pretrained).name}: {title}", transient=True):
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
