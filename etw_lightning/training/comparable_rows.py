"""What of a data module's rows can be scored and compared: its sets, and other models' records."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Literal, cast, get_args

from lightning.pytorch import LightningDataModule

from etw_lightning.benchmarks import Benchmark
from etw_lightning.benchmarks.annotations import match_annotations
from etw_lightning.benchmarks.choice import Choice
from etw_lightning.benchmarks.own import OwnBenchmark
from etw_lightning.benchmarks.quickstart_alternatives import annotations_of
from etw_lightning.benchmarks.readers import BenchmarkName
from etw_lightning.benchmarks.source import check_name
from etw_lightning.catalogue.entries import FAMILIES, Ability, Extra, Family, Part
from etw_lightning.data.encode import Encoder
from etw_lightning.schema import Conventions, EvalSet, InputError, Record
from etw_lightning.scoring.evaluation_rows import EvaluationRows
from etw_lightning.scoring.other_results import Role, checked_records, missing_results, read_results
from etw_lightning.scoring.retain_results import RetainResults

__all__ = ["ComparableRows", "Role", "Spans"]

#: Marked characters of each answer of a set, ends exclusive.
Spans = list[tuple[tuple[int, int], ...]]


class ComparableRows(LightningDataModule):
    """The part of ``UnlearningDataModule`` that callbacks and commands ask what there is."""

    benchmark_name: str
    annotations: str | None
    retain_model: str | None
    target_model: str | None
    #: Paths of other models' records.
    results_paths: dict[Role, str | None]
    _reader: BenchmarkName | OwnBenchmark

    def __init__(self) -> None:
        super().__init__()
        #: What passes after the scoring will give; ``evaluate`` makes them, training does not.
        self.further: frozenset[Extra] = frozenset()
        #: Records of the other models, as far as they have been read or scored.
        self.results: dict[Role, RetainResults] = {}
        #: What of other models' records is known to be there and to fit, by set.
        self._of_others: dict[Role, dict[str, set[Part]]] = {"retain": {}, "target": {}}
        #: In what other precision records of the other models were made, in words.
        self.precision_of_others: dict[Role, str] = {}
        #: The model a run starts from is the target model.
        self.starts_from_target = False
        self.conventions = Conventions()
        self._rows = EvaluationRows()

    @abstractmethod
    def _benchmark(self) -> Benchmark:
        """Return the reader, with the split names the user gave or the benchmark's own."""

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """What encodes rows that are scored, once ``load`` has run."""

    @property
    def eval_sets(self) -> dict[str, EvalSet]:
        """The sets that are scored, each with the parts that are wanted of it."""
        return self._rows.sets

    def split_of(self, role: Literal["forget", "retain"]) -> str:
        """Return the name of what is to be forgotten or kept, the benchmark's own by default."""
        benchmark = self._benchmark()
        return benchmark.forget_split if role == "forget" else benchmark.retain_split

    def rewrite_sets(self, rewrite: Callable[[EvalSet], EvalSet]) -> None:
        """Score other rows than the benchmark's: what this makes of each set as it is read.

        Args:
            rewrite: Takes a set and returns one with the same ids in the same order.
        """
        self._rows.rewrite = rewrite

    def offered(self, name: str) -> EvalSet:
        """Return a set that is scored, with all that the benchmark can have scored of it."""
        return self._rows.offered(name)

    def num_offered(self, name: str) -> int:
        """Return the rows of an evaluation set.

        Raises:
            InputError: If they are not there, or can't be read.
        """
        missing = self._rows.missing(name, self._benchmark())
        if missing:
            raise InputError(missing)
        return len(self._rows.offered(name).examples)

    @property
    def extras(self) -> set[Extra]:
        """What metrics can be given besides the model's own records.

        Raises:
            InputError: If results that are given can't be read.
        """
        self._load_results()
        given: set[Extra] = set()
        if "retain" in self.results or self.retain_model is not None:
            given.add("retain")
            if "retain" not in self.results or not self.results["retain"].is_published:
                given.add("retain_tokens")
        if "target" in self.results or self.target_model is not None or self.starts_from_target:
            given.add("target")
        if self.annotations is not None:
            given.add("annotations")
        return given | self.further

    @property
    def family(self) -> Family:
        """Whose evaluation sets the benchmark has, which says what metrics it offers."""
        if isinstance(self._reader, OwnBenchmark):
            check_name("family of data.benchmark", self._reader.family, get_args(Family))
            return cast(Family, self._reader.family)
        return FAMILIES[self.benchmark_name]

    @property
    def forget_sets(self) -> tuple[str, ...]:
        """Choice tests on which accuracy should fall."""
        benchmark = self._benchmark()
        return benchmark.forget_sets if isinstance(benchmark, Choice) else ()

    def spans(self, names: Collection[str]) -> dict[str, Spans]:
        """Return the marked characters of each answer of the forget set, if there are annotations.

        Args:
            names: Sets that are scored.

        Raises:
            InputError: If the annotations can't be read or are of other rows.
        """
        if self.annotations is None or "forget" not in names:
            return {}
        examples = self.eval_sets["forget"].examples
        answers = [example.answer for example in examples]
        questions = [example.question or "" for example in examples]
        matched = match_annotations(annotations_of(self.annotations), answers, questions)
        return {"forget": [tuple((span.start, span.stop) for span in row) for row in matched]}

    @property
    def retain_sets(self) -> tuple[str, ...] | None:
        """Sets that the retain results hold; None where a retain model can be asked for any.

        Raises:
            InputError: If results that are given can't be read.
        """
        self._load_results()
        return tuple(self.results["retain"].records) if "retain" in self.results else None

    def _load_results(self) -> None:
        for role, path in self.results_paths.items():
            if role not in self.results and path is not None:
                self.results[role] = read_results(path, role, self.conventions)

    @property
    def offered_sets(self) -> tuple[str, ...]:
        """Evaluation sets whose rows are there.

        Raises:
            InputError: If rows that are there can't be read.
        """
        benchmark = self._benchmark()
        return tuple(one for one in benchmark.EVAL_SETS if not self._rows.missing(one, benchmark))

    @property
    def is_own(self) -> bool:
        """The rows are the user's own."""
        return self.family == "own"

    @property
    def set_names(self) -> tuple[str, ...]:
        """Every evaluation set that the benchmark may have."""
        return self._benchmark().EVAL_SETS

    @property
    def able(self) -> dict[str, set[Ability]] | None:
        """What the rows of each set of own rows allow; None for those of a benchmark.

        Raises:
            InputError: If rows that are there can't be read.
        """
        if not self.is_own:
            return None
        found: dict[str, set[Ability]] = {}
        for name in self.offered_sets:
            eval_set = self._rows.offered(name)
            rated = all(
                one.paraphrased_answer and one.perturbed_answers for one in eval_set.examples
            )
            found[name] = {"truth_ratio"} if rated else set()
            found[name] |= {"generation"} if eval_set.max_new_tokens else set()
        return found

    @property
    def beside(self) -> dict[str, Collection[str]]:
        """Sets of own rows whose numbers other models have too: those that were given."""
        if not self.is_own:
            return {}
        self._load_results()
        given = {"retain": self.retain_model, "target": self.target_model}
        found: dict[str, Collection[str]] = {}
        for role in get_args(Role):
            if self.results_paths[role] is not None:
                found[role] = set(self.results[role].records) & set(self.offered_sets)
            elif given[role] is not None:
                found[role] = self.offered_sets
        return found

    def why_missing(self) -> str:
        """Say why the first evaluation set that is missing is; empty if none is."""
        benchmark = self._benchmark()
        found = (self._rows.missing(name, benchmark) for name in benchmark.EVAL_SETS)
        return next(filter(None, found), "")

    def require(self, needs: Mapping[str, Collection[Part]]) -> None:
        """Score these parts of these evaluation sets in the validation loop."""
        self._rows.require(needs)

    def retain_records(self, name: str) -> list[Record]:
        """Return the retain model's records of a set.

        Raises:
            InputError: If there are none, or of other rows or tokens; says how to make them.
        """
        return self._records("retain", name)

    def target_records(self, name: str) -> list[Record]:
        """Return the target model's records of a set.

        Raises:
            InputError: As ``retain_records``.
        """
        return self._records("target", name)

    def _records(self, role: Role, name: str) -> list[Record]:
        if role not in self.results:
            raise InputError(missing_results(role, self._benchmark()))
        examples = self.eval_sets[name].examples
        return checked_records(self.results[role], name, examples, self.encoder)

    def note_of_other(self, role: Role, needs: Mapping[str, Collection[Part]]) -> None:
        """Remember that these parts of another model's records are there and fit."""
        for name, parts in needs.items():
            self._of_others[role].setdefault(name, set()).update(parts)

    def has_of_other(self, role: Role, needs: Mapping[str, Collection[Part]]) -> bool:
        """Tell whether all of this has been noted."""
        noted = self._of_others[role]
        return all(set(parts) <= noted.get(name, set()) for name, parts in needs.items())
