"""What an entry of the catalogue of metrics is, and what its numbers are computed from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from etw_lightning.metrics import Metric
from etw_lightning.metrics.words import WordRule
from etw_lightning.schema import Conventions, Record

__all__ = [
    "FAMILIES",
    "KEYS",
    "Ability",
    "Compute",
    "Entry",
    "Extra",
    "Family",
    "Found",
    "Given",
    "Part",
    "Sets",
]

#: What can be scored of a set on its own.
Part = Literal["answers", "generation", "gradient_norm"]
#: What the rows of a set of own rows may allow besides being scored.
Ability = Literal["generation", "truth_ratio"]
#: Shape of a benchmark: its evaluation sets and what they are for.
Family = Literal["tofu", "muse", "dusk", "reasoning", "choice", "own"]
#: What a metric may need besides the model's own records, and the key that gives it.
Extra = Literal[
    "retain",
    "retain_tokens",
    "target",
    "annotations",
    "classifier",
    "generations",
    "depth",
    "spacy",
]

#: ``data.benchmark`` to its family.
FAMILIES: Mapping[str, Family] = {
    "tofu": "tofu",
    "quickstart": "tofu",
    "muse_news": "muse",
    "muse_books": "muse",
    "dusk": "dusk",
    "r_tofu": "reasoning",
    "choice": "choice",
    "jsonl": "own",
}
#: The key that gives an extra.
KEYS: Mapping[Extra, str] = {
    "retain": "data.retain_results or data.retain_model",
    "retain_tokens": "data.retain_model, or retain results of ours (published logs hold no tokens)",
    "target": "data.target_results or data.target_model",
    "annotations": "data.annotations",
    "classifier": "gibberish_classifier",
    "generations": "data.target_model",
    "depth": "data.retain_model and data.target_model",
    "spacy": "spacy_model",
}
Sets = Mapping[str, Sequence[Record]]


@dataclass(frozen=True)
class Given:
    """All that metrics are computed from.

    Args:
        records: What the model said, by set.
        retain: What the retain model said; None without one.
        target: What the target model said; None without one.
        conventions: Definitions, or widely used code's way.
        forget_sets: Choice tests on which accuracy should fall.
        spans: Marked characters of each answer of the annotated sets, by set.
        clean: Probability of each generation being clean text, by set; of ``run`` and ``target``.
        generations: What the target model said of the generations, by set.
        spacy_spans: Characters of the words spaCy finds in each answer, by kind and set.
        depth: Deltas of the retain and of this model, each ``(B, layers)``, nats per token.
        words: What counts as a word of a generated text.
    """

    records: Sets
    retain: Sets | None = None
    target: Sets | None = None
    conventions: Conventions = field(default_factory=Conventions)
    forget_sets: Sequence[str] = ()
    spans: Mapping[str, Sequence[Sequence[tuple[int, int]]]] = field(default_factory=dict)
    clean: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    generations: Sets = field(default_factory=dict)
    spacy_spans: Mapping[str, Mapping[str, Sequence[Sequence[tuple[int, int]]]]] = field(
        default_factory=dict
    )
    depth: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]] = ((), ())
    words: WordRule = "published"


#: Numbers by name.
Found = dict[str, Metric]
Compute = Callable[[Given, tuple[str, ...]], Found]


@dataclass(frozen=True)
class Entry:
    """One metric of the catalogue.

    Args:
        pages: Functions whose docstrings say what the numbers are, the metric's own first.
        sets: Sets it reads, by family, ``*`` for all there are; a benchmark of another family does
            not offer it.
        compute: Makes the numbers from what is given and the names of the sets.
        emits: Names of the numbers; ``{set}`` stands for a set.
        parts: What must have been scored of the sets.
        needs: What else it can't do without.
        by_default: Part of the whole suite, where its needs are met.
        is_rated: The rows of its sets must have a paraphrased and wrong answers.
        detail: Makes what is no single number, such as histograms, ready for JSON.
    """

    pages: tuple[Callable[..., Any], ...]
    sets: Mapping[Family, tuple[str, ...]]
    compute: Compute
    emits: tuple[str, ...]
    parts: frozenset[Part] = frozenset({"answers"})
    needs: frozenset[Extra] = frozenset()
    by_default: bool = True
    is_rated: bool = False
    detail: Callable[[Given, tuple[str, ...]], dict[str, Any]] | None = None

    @property
    def is_by_set(self) -> bool:
        """Whether each of its numbers is of one set alone."""
        return all(form.startswith("{set}_") for form in self.emits)

    @property
    def known_sets(self) -> frozenset[str]:
        """The sets it reads, of all families; ``*`` for any."""
        return frozenset(name for names in self.sets.values() for name in names)

    def gives(self, name: str, sets: Collection[str]) -> bool:
        """Tell whether it makes a number of this name.

        Args:
            name: As in ``results.json``.
            sets: What ``{set}`` may stand for, ``*`` for anything.
        """
        for form in self.emits:
            before, mark, after = form.partition("{set}")
            if not mark:
                if name == form:
                    return True
            elif name.startswith(before) and name.endswith(after):
                middle = name[len(before) : len(name) - len(after)]
                if middle in sets or (middle and "*" in sets):
                    return True
        return False
