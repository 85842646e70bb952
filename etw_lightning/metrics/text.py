"""Metrics of generated text: ROUGE, and MUSE's verbatim and knowledge memorisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np

from etw_lightning.metrics.values import Floats, Metric, check_rows, present
from etw_lightning.metrics.words import WordRule, unicode_words
from etw_lightning.schema import Conventions, Record

__all__ = [
    "RougeName",
    "gold_continuations",
    "knowmem",
    "rouge",
    "rouge_scores",
    "rouge_values",
    "verbmem",
]

RougeName = Literal["rouge1_recall", "rouge1_f1", "rougeL_recall", "rougeL_f1"]

_DEFINITIONS = Conventions()


def rouge_scores(
    prediction: str, reference: str, words: WordRule = "published"
) -> dict[RougeName, float]:
    """ROUGE-1 and ROUGE-L, recall and F1, of one text.

    Formula: recall = matches / words of the reference, precision = matches / words of the text,
        F1 = their harmonic mean. ROUGE-1 matches words in any order, ROUGE-L the longest common
        subsequence. Words are lower-cased runs of a-z and 0-9, Porter-stemmed; by ``unicode``
        those of ``metrics.words.unicode_words``, of any script, not stemmed; by ``unstemmed`` the
        former without stems.
    Unit: fraction.
    Range: 0 to 1.
    Direction: down on forget, up elsewhere.
    Empty input: 0 for a text or a reference without words.
    Source: Lin 2004; the package ``rouge_score`` with ``use_stemmer=True``. TOFU reports ROUGE-L
        recall, MUSE ROUGE-L F1.
    Differs from widely used code: nothing. The authors of MUSE and DUSK don't stem (``unstemmed``),
        which changes a number in 86 of the 600 logged MUSE rows: for "loves books" against "loved
        the books" ROUGE-L recall is 2/3 here and 1/3 without stems. By ``unicode`` it is no
        published number: the published rule reads "Она родилась в 1958 году." and "Он умер в 1958
        году." as "1958" alone, a ROUGE-L recall of 1; Unicode's words give 3/5.

    Args:
        prediction: The generated text.
        reference: What it is compared with.
        words: What counts as a word: ``published``, ``unstemmed`` or ``unicode``.

    Example:
        >>> {key: round(x, 3) for key, x in rouge_scores("loves books", "loved the books").items()}
        {'rouge1_recall': 0.667, 'rouge1_f1': 0.8, 'rougeL_recall': 0.667, 'rougeL_f1': 0.8}
    """
    return dict(_rouge_scores(prediction, reference, words))


@lru_cache(maxsize=1 << 16)
def _rouge_scores(prediction: str, reference: str, words: WordRule) -> Mapping[RougeName, float]:
    """Compute ``rouge_scores`` once a pair: several metrics read each generation."""
    scores = _rouge_scorer(words).score(reference, prediction)
    return {
        "rouge1_recall": float(scores["rouge1"].recall),
        "rouge1_f1": float(scores["rouge1"].fmeasure),
        "rougeL_recall": float(scores["rougeL"].recall),
        "rougeL_f1": float(scores["rougeL"].fmeasure),
    }


def rouge_values(
    records: Sequence[Record],
    name: RougeName,
    against: Literal["answer", "paraphrase"] = "answer",
    words: WordRule = "published",
) -> Floats:
    """ROUGE of each generation against the gold or the paraphrased answer.

    Formula: ``rouge_scores`` of each row.
    Unit: fraction, ``(B,)``.
    Range: 0 to 1.
    Direction: down on forget, up elsewhere.
    Empty input: InputError; an empty generation gives 0.
    Source: Lin 2004; TOFU, arXiv:2401.06121, "ROUGE".
    Differs from widely used code: nothing; see ``rouge_scores`` for MUSE's. Against the paraphrase
        is that code's ``forget_Q_A_PARA_ROUGE``: "Paris" against "In Paris." has a recall of 1/2
        and against the paraphrase "It is in Paris." 1/4.

    Args:
        records: Rows with ``generation``, ``(B,)``.
        name: Which of ``rouge_scores``.
        against: Field of the record to compare with.
        words: ``published``, or ``unicode`` for texts that are not of a-z; see ``rouge_scores``.

    Raises:
        InputError: If a row has no generation, or nothing to compare it with.

    Example:
        >>> row = Record("forget", "f/0", "In Paris.", generation="Paris",
        ...     paraphrase="It is in Paris.")
        >>> rouge_values([row], "rougeL_recall").tolist()
        [0.5]
        >>> rouge_values([row], "rougeL_recall", "paraphrase").tolist()
        [0.25]
    """
    check_rows(records)
    pairs = [
        (present(record, row, "generation"), present(record, row, against))
        for row, record in enumerate(records)
    ]
    return np.array([rouge_scores(said, gold, words)[name] for said, gold in pairs])


def rouge(
    records: Sequence[Record],
    name: RougeName = "rougeL_recall",
    against: Literal["answer", "paraphrase"] = "answer",
    direction: Literal["up", "down"] = "down",
    words: WordRule = "published",
) -> Metric:
    """Mean ROUGE of generations against gold or paraphrased answers.

    Formula: mean over rows of ``rouge_scores``, Porter-stemmed.
    Unit: fraction.
    Range: 0 to 1.
    Direction: down on forget, up elsewhere.
    Empty input: InputError; an empty generation counts as 0.
    Source: Lin 2004; TOFU, arXiv:2401.06121, "ROUGE" (there ROUGE-L recall).
    Differs from widely used code: nothing: of the generations "In Paris" and "Rome" for the answer
        "In Paris." the mean recall is 0.5 in both.

    Args:
        records: Rows with ``generation``, ``(B,)``.
        name: Which of ``rouge_scores``.
        against: Field of the record to compare with.
        direction: ``down`` for forget sets, ``up`` for others.
        words: ``published``, or ``unicode`` for texts that are not of a-z; see ``rouge_scores``.

    Raises:
        InputError: If a row has no generation, or nothing to compare it with.

    Example:
        >>> rows = [Record("forget", "f/0", "In Paris.", generation=text)
        ...     for text in ("In Paris", "Rome")]
        >>> rouge(rows).value
        0.5
    """
    return Metric.mean(rouge_values(records, name, against, words), direction)


def gold_continuations(
    records: Sequence[Record], conventions: Conventions = _DEFINITIONS
) -> list[Record]:
    """Return the records with the texts that their generations are compared with as answers.

    Example:
        >>> record = Record("verbmem", "v/0", " is red. A rose is a rose.", question="A rose")
        >>> gold_continuations([record])[0].answer
        ' is red. A rose is a rose.'
        >>> gold_continuations([record], Conventions(gold_text="without_prompt"))[0].answer
        ' is red.  is a rose.'
    """
    if conventions.gold_text == "whole":
        return list(records)
    return [
        replace(record, answer=record.answer.replace(record.question, ""))
        if record.question
        else record
        for record in records
    ]


def verbmem(
    records: Sequence[Record],
    conventions: Conventions = _DEFINITIONS,
    words: WordRule = "published",
) -> Metric:
    """VerbMem, verbatim memorisation: mean ROUGE-L F1 of continued forget passages.

    Formula: 100 times the mean ROUGE-L F1 of the continuation against the true one, stemmed.
    Unit: percent.
    Range: 0 to 100.
    Direction: down.
    Empty input: InputError.
    Source: MUSE, arXiv:2407.06460, VerbMem.
    Differs from widely used code: percent where that has fractions, 57.89 for its 0.5789 of the
        MUSE-News target model. It takes the prompt out of the gold text, wherever it stands there:
        "is a rose" goes on after "A rose" with "is a rose. A rose is": 66.7 here, 85.7 there
        (``conventions.gold_text``); none of News' rows is one. MUSE's authors don't stem: "loves
        books" for "loved the books" gives 80 here and 40 without stems.

    Args:
        records: Continued forget passages, ``(B,)``.
        conventions: ``gold_text`` matters here.
        words: ``published``, or ``unicode`` for texts that are not of a-z; see ``rouge_scores``.

    Raises:
        InputError: If a row has no generation.

    Example:
        >>> row = Record("verbmem", "v/0", "loved the books", generation="loves books")
        >>> verbmem([row]).value
        80.0
    """
    golds = gold_continuations(records, conventions)
    return Metric.mean(100 * rouge_values(golds, "rougeL_f1", words=words), "down")


def knowmem(
    records: Sequence[Record], direction: Literal["up", "down"], words: WordRule = "published"
) -> Metric:
    """KnowMem, knowledge memorisation: mean ROUGE-L F1 of generated answers.

    Formula: 100 times the mean ROUGE-L F1 of the generated answer against the gold one, stemmed.
    Unit: percent.
    Range: 0 to 100.
    Direction: down on forget questions, up on retain questions.
    Empty input: InputError.
    Source: MUSE, arXiv:2407.06460, KnowMem.
    Differs from widely used code: percent where that has fractions, 64.43 for its 0.6443 of the
        MUSE-News target model's forget questions. MUSE's authors don't stem: "loves books" for
        "loved the books" gives 80 here and 40 without stems.

    Args:
        records: Answered questions, ``(B,)``.
        direction: ``down`` for forget questions, ``up`` for retain questions.
        words: ``published``, or ``unicode`` for texts that are not of a-z; see ``rouge_scores``.

    Raises:
        InputError: If a row has no generation.

    Example:
        >>> knowmem([Record("knowmem_retain", "k/0", "1956", generation="1957")], "up").value
        0.0
    """
    return Metric.mean(100 * rouge_values(records, "rougeL_f1", words=words), direction)


@cache
def _rouge_scorer(words: WordRule) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    if words == "unicode":
        return RougeScorer(["rouge1", "rougeL"], tokenizer=_UnicodeWords())
    return RougeScorer(["rouge1", "rougeL"], use_stemmer=words == "published")


class _UnicodeWords:
    """Unicode's words, in the form that ``rouge_score`` asks for."""

    def tokenize(self, text: str) -> list[str]:
        return unicode_words(text)
