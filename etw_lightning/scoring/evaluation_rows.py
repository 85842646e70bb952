"""Evaluation sets laid out in batches, part by part; what is known already is left out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby

from etw_lightning.benchmarks import Benchmark
from etw_lightning.catalogue.entries import Part
from etw_lightning.data.encode import Encoder
from etw_lightning.schema import EvalSet, MissingRowsError
from etw_lightning.scoring.batches import Score, ScoreBatch, build_batches, join_generations
from etw_lightning.scoring.parts import parts_of, with_parts

__all__ = ["IDLE", "EvaluationRows", "ScoreWork", "deal", "join_works"]


class ScoreWork:
    """One batch of one part of an evaluation set.

    No dataclass: the trainer would take it apart in search of tensors.

    Args:
        dataset: Name of the set.
        part: What of it is scored.
        rows: Row in the set of each row the batch was made of.
        batch: The batch; None for a process that nothing is left for, as the trainer takes no
            empty loader and would leave the process out of what all must join.
        is_repeated: Another process has the batch too, and keeps its scores: it is run here only
            so that all processes run the model equally often.
    """

    def __init__(
        self,
        dataset: str,
        part: Part,
        rows: Sequence[int],
        batch: ScoreBatch | None,
        *,
        is_repeated: bool = False,
    ) -> None:
        self.dataset, self.part, self.rows, self.batch = dataset, part, rows, batch
        self.is_repeated = is_repeated

    def in_set(self, scores: Sequence[Score]) -> list[Score]:
        """Return the batch's scores with the rows' places in the whole set."""
        return [score._replace(row=self.rows[score.row]) for score in scores]


def deal(works: Sequence[ScoreWork], rank: int, world: int) -> list[ScoreWork]:
    """Return one process's share of a part of a set, filled up to as many as any process has.

    Questions are joined first: with one batch more than another, a process may have fewer then.

    Example:
        >>> works = [ScoreWork("forget", "answers", (), None) for _ in range(3)]
        >>> [work.is_repeated for work in deal(works, 1, 2)]
        [False, True]
    """
    shares = [join_works(works[one::world]) for one in range(world)]
    mine = shares[rank]
    for work in works[: max(map(len, shares)) - len(mine)]:
        again = ScoreWork(work.dataset, work.part, work.rows, work.batch, is_repeated=True)
        mine.append(again)
    return mine


def join_works(works: Sequence[ScoreWork]) -> list[ScoreWork]:
    """Put questions that follow one another in a process's share together, as far as they may be.

    See ``join_generations``.
    """
    joined: list[ScoreWork] = []
    for (dataset, part), group in groupby(works, lambda one: (one.dataset, one.part)):
        some = list(group)
        batches = [work.batch for work in some if work.batch is not None]
        if part == "generation" and batches:
            rows = some[0].rows
            joined += (ScoreWork(dataset, part, rows, one) for one in join_generations(batches))
        else:
            joined += some
    return joined


#: What a process gets that nothing is left for.
IDLE = ScoreWork("", "answers", (), None)


class EvaluationRows:
    """The evaluation sets of a run.

    ``wanted`` says which parts of which sets are to be scored; ``sets`` holds them, once loaded.
    """

    def __init__(self) -> None:
        self.wanted: dict[str, set[Part]] = {}
        self.sets: dict[str, EvalSet] = {}
        self._offered: dict[str, EvalSet] = {}
        self._batches: dict[tuple[str, Part], list[ScoreBatch]] = {}
        self._encoder: Encoder | None = None
        self._batch_size: int
        #: What makes other rows of those that are read; None leaves them as they are.
        self.rewrite: Callable[[EvalSet], EvalSet] | None = None

    def require(self, needs: Mapping[str, Collection[Part]]) -> None:
        """Add parts of sets to those that are scored."""
        for name, parts in needs.items():
            self.wanted.setdefault(name, set()).update(parts)

    def missing(self, name: str, benchmark: Benchmark) -> str:
        """Read an evaluation set; return why it is not there, empty if it is."""
        if name not in self._offered:
            try:
                self._read(benchmark, [name])
            except MissingRowsError as error:
                return str(error)
        return ""

    def _read(self, benchmark: Benchmark, names: Sequence[str]) -> None:
        found = benchmark.eval_sets(names)
        rewrite = self.rewrite or (lambda one: one)
        self._offered |= {name: rewrite(one) for name, one in found.items()}

    def offered(self, name: str) -> EvalSet:
        """Return a set that has been read, with all that can be scored of it."""
        return self._offered[name]

    def load(self, benchmark: Benchmark, encoder: Encoder, batch_size: int) -> None:
        """Read the sets that are wanted.

        Raises:
            InputError: If a set is not there.
        """
        self._encoder, self._batch_size = encoder, batch_size
        missing = sorted(set(self.wanted) - set(self._offered))
        if missing:
            self._read(benchmark, missing)
        for name, parts in self.wanted.items():
            self.sets[name] = with_parts(self._offered[name], parts)

    def check(self, known: Mapping[tuple[str, Part], Collection[Score]]) -> None:
        """Lay out what is to be scored, so that a row that can't be is found before anything is.

        Args:
            known: Scores there are already; a part of a set that has them all is left alone.

        Raises:
            InputError: If a row can't be scored.
        """
        for name, eval_set in self.sets.items():
            for part in parts_of(eval_set):
                done = {score.row for score in known.get((name, part), ())}
                if len(done) < len(eval_set.examples):
                    self._laid_out(name, part)

    def works(self, name: str, part: Part, known: Collection[Score]) -> list[ScoreWork]:
        """Return the batches of a part of a set, without the rows that need no scoring."""
        done = {score.row for score in known}
        rows = [row for row in range(len(self.sets[name].examples)) if row not in done]
        if not done:
            batches = self._laid_out(name, part)
        else:
            batches = self._batches_of(name, part, rows) if rows else []
        return [ScoreWork(name, part, rows, batch) for batch in batches]

    def _laid_out(self, name: str, part: Part) -> list[ScoreBatch]:
        """Return the batches of a whole set; they are made once."""
        if (name, part) not in self._batches:
            self._batches[name, part] = self._batches_of(name, part, None)
        return self._batches[name, part]

    def _batches_of(self, name: str, part: Part, rows: Sequence[int] | None) -> list[ScoreBatch]:
        assert self._encoder is not None, "load() first"
        only = with_parts(self._offered[name], [part])
        return build_batches(only, self._encoder, self._batch_size, rows)
