"""Is what the model generates still language? Counts of words, and two models' opinions of it.

Words are the runs of a generation between white space, as they stand: no lower-casing, no stemming.
By ``unicode`` runs of scripts without spaces are cut further (``metrics.words.running_words``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from etw_lightning.metrics.values import Floats, Metric, check_rows, finite, mean_of, present
from etw_lightning.metrics.values import where as named
from etw_lightning.metrics.words import WordRule, running_words
from etw_lightning.schema import EvalSet, Example, InputError, Record

__all__ = [
    "checked_probabilities",
    "distinct_n",
    "emptiness",
    "empty_generations",
    "generation_perplexity",
    "generations_as_examples",
    "gibberish",
    "perplexity_of",
    "repetition",
    "repetition_values",
    "text_losses",
]

#: Largest whole number of nats whose exponential is finite.
_LARGEST_LOSS = 709


def repetition(records: Sequence[Record], n: int = 4, words: WordRule = "published") -> Metric:
    """Share of the n-grams of a generation that it has said before, averaged over generations.

    Formula: mean over rows of 1 - |set of n-grams| / |n-grams|, n-grams of words; n from 1 to 4.
    A generation of fewer than n words has no n-gram and repeats nothing: 0.
    Unit: fraction of n-grams.
    Range: 0 to below 1.
    Direction: down; a collapsed model that says one word again and again is near 1. A model that
    says nothing has 0 too: read it beside ``empty_generations``.
    Empty input: InputError; an empty generation: 0.
    Source: Welleck et al. 2019, arXiv:1908.04319, seq-rep-n.
    Differs from widely used code: open-unlearning has no such number. The paper counts the model's
    own tokens, here words, so that models of different tokenizers can be compared: "the the cat"
    has 1 repeated of 3 words, .333; with the tokens "the", " the", " cat" none is.

    Args:
        records: Rows with a generation, ``(B,)``.
        n: Words of an n-gram, 1 to 4.
        words: ``unicode`` cuts runs of scripts without spaces; see ``metrics.words.running_words``.

    Raises:
        InputError: If there are no rows, a row has no generation, or ``n`` is out of range.

    Example:
        >>> row = Record("forget", "f/0", "a", generation="a b a b a b")
        >>> repetition([row], n=2).value
        0.6
    """
    return Metric.mean(repetition_values(records, n, words), "down")


def repetition_values(
    records: Sequence[Record], n: int = 4, words: WordRule = "published"
) -> Floats:
    """Share of repeated n-grams of each generation, ``(B,)``; see ``repetition``.

    Example:
        >>> rows = [Record("forget", "f/0", "a", generation=text) for text in ("x x x x", "x")]
        >>> repetition_values(rows, n=1).tolist()
        [0.75, 0.0]
    """
    check_rows(records)
    grams = [_ngrams(_words(record, row, words), n) for row, record in enumerate(records)]
    return np.array([1 - len(set(found)) / len(found) if found else 0.0 for found in grams])


def distinct_n(records: Sequence[Record], n: int = 2, words: WordRule = "published") -> Metric:
    """Different n-grams of all generations together, over all their words.

    Formula: |set of n-grams of all rows| / number of words of all rows; no n-gram spans two rows.
    Unit: n-grams per word.
    Range: 0 to 1.
    Direction: up; compare sets of equal size only, it falls with the number of words.
    Empty input: InputError; generations without any word: 0.
    Source: Li et al. 2016, arXiv:1510.03055, distinct-1 and distinct-2.
    Differs from widely used code: open-unlearning has no such number. Other code often divides by
    the number of n-grams, not of words: "a b c" has 2 different bigrams, 2/3 here and 2/2 there;
    for rows of 50 words the two differ by 2 % of the value.

    Args:
        records: Rows with a generation, ``(B,)``.
        n: Words of an n-gram, 1 to 4.
        words: ``unicode`` cuts runs of scripts without spaces; see ``metrics.words.running_words``.

    Raises:
        InputError: If there are no rows, a row has no generation, or ``n`` is out of range.

    Example:
        >>> rows = [Record("forget", "f/0", "a", generation=text) for text in ("a b", "a b")]
        >>> distinct_n(rows, n=2).value
        0.25
    """
    check_rows(records)
    said = [_words(record, row, words) for row, record in enumerate(records)]
    total = sum(map(len, said))
    different = {gram for found in said for gram in _ngrams(found, n)}
    return Metric(len(different) / total if total else 0.0, "up", len(records))


def empty_generations(records: Sequence[Record]) -> Metric:
    """Share of generations without a word.

    Formula: (1/B) sum over rows of [generation has no word].
    Unit: fraction of rows.
    Range: 0 to 1.
    Direction: down; such a row looks well in ``repetition`` and is not asked for perplexity.
    Empty input: InputError.
    Source: none; it says how many rows the other numbers of fluency can't speak of.
    Differs from widely used code: open-unlearning has no such number: of "yes" and " " half
    are empty, 0.5.

    Args:
        records: Rows with a generation, ``(B,)``.

    Raises:
        InputError: If there are no rows, or a row has no generation.

    Example:
        >>> rows = [Record("forget", "f/0", "a", generation=text) for text in ("yes", " ")]
        >>> empty_generations(rows).value
        0.5
    """
    return Metric.mean(emptiness(records), "down")


def emptiness(records: Sequence[Record]) -> Floats:
    """1 where a generation has no word, else 0, ``(B,)``; see ``empty_generations``.

    Example:
        >>> emptiness([Record("forget", "f/0", "a", generation=" ")]).tolist()
        [1.0]
    """
    check_rows(records)
    return np.array([float(not _words(record, row)) for row, record in enumerate(records)])


def generation_perplexity(records: Sequence[Record]) -> Metric:
    """How surprised the target model is by what the unlearned model generates, per token.

    Formula: exp(-(sum over rows and tokens of log p(token)) / (number of tokens)), over the tokens
    that hold characters of the generation. What the template puts before it is left out, and the
    token that would end it: a generation cut at ``max_new_tokens`` or a stop string does not end
    there.
    Unit: none; effective number of choices per token.
    Range: 1 or more.
    Direction: down, towards that of the target model's own generations; text below it is blander
    than the target model's, not better, and one word said again and again is likely too.
    Empty input: InputError; an empty generation has no token and is not asked
    (``generations_as_examples`` leaves it out, ``empty_generations`` counts it).
    Source: perplexity as in Jelinek et al. 1977, with the target model as the judge.
    Differs from widely used code: open-unlearning has no such number. Averaged over tokens, not
    over rows: losses .1 (9 tokens) and 2.1 (1 token) give exp(.3) = 1.35, not exp(1.1) = 3.00.

    Args:
        records: What the target model said of the set that ``generations_as_examples`` made,
            ``(B,)``.

    Raises:
        InputError: If there are no rows, a row has no scored token or a NaN, or the mean loss is
            too high for a floating-point number (above 709 nats).

    Example:
        >>> row = Record("g", "f/0", "ab", token_logps=(0.0, -9.0), token_spans=((0, 2), (2, 2)))
        >>> generation_perplexity([row]).value
        1.0
    """
    check_rows(records)
    return Metric(perplexity_of(text_losses(records), records[0].dataset), "down", len(records))


def text_losses(records: Sequence[Record]) -> list[float]:
    """Minus the log-probability of each token that holds characters of the text, all rows, nats.

    Example:
        >>> row = Record("g", "f/0", "ab", token_logps=(-1.0, -9.0), token_spans=((0, 2), (2, 2)))
        >>> text_losses([row])
        [1.0]
    """
    return [loss for row, record in enumerate(records) for loss in _text_losses(record, row)]


def perplexity_of(losses: Sequence[float] | Floats, name: str) -> float:
    """Exponential of the mean of ``text_losses``; see ``generation_perplexity``.

    Args:
        losses: Of each token, nats.
        name: The set, for errors.

    Raises:
        InputError: If there is none, or the mean is above 709 nats.

    Example:
        >>> perplexity_of([0.0, 0.0], "forget")
        1.0
    """
    mean = mean_of(losses)
    if mean > _LARGEST_LOSS:
        raise InputError(
            f"generation perplexity: the mean loss of {len(losses)} tokens of "
            f"{name!r} is {mean:.1f} nats, whose exponential is no floating-point "
            "number: check the target model, or leave generation_perplexity out of --metrics."
        )
    return math.exp(mean)


def gibberish(clean_probabilities: Sequence[float]) -> Metric:
    """Mean probability that a classifier gives to a generation being clean text.

    Formula: (1/B) sum over rows of P(clean | generation), of a classifier the user names.
    Unit: fraction.
    Range: 0 to 1.
    Direction: up.
    Empty input: InputError; an empty generation is judged as the classifier judges empty text.
    Source: open-unlearning's ``forget_Q_A_gibberish``, with
    madhurjindal/autonlp-Gibberish-Detector-492513457, labels clean, mild gibberish, noise, word
    salad.
    Differs from widely used code: nothing in the number; that takes label 0 of any classifier,
    here the label is found by its name, ``clean``. A classifier that lists noise first and says
    .9 noise, .1 clean gives .9 there, .1 here.

    Args:
        clean_probabilities: Of each generation, ``(B,)``, as
            ``gibberish_classifier.clean_probabilities`` gives them.

    Raises:
        InputError: If there are none, or one is no probability.

    Example:
        >>> gibberish([1.0, 0.5]).value
        0.75
    """
    return Metric.mean(checked_probabilities(clean_probabilities), "up")


def checked_probabilities(clean_probabilities: Sequence[float] | Floats) -> Floats:
    """Return what ``gibberish`` averages, ``(B,)``; one that is no probability is an InputError.

    Example:
        >>> checked_probabilities([0.5]).tolist()
        [0.5]
    """
    for row, value in enumerate(clean_probabilities):
        if not 0 <= value <= 1:
            raise InputError(f"gibberish: row {row} must be a probability, got {value}.")
    return np.asarray(clean_probabilities, dtype=np.float64)


def generations_as_examples(eval_set: EvalSet, records: Sequence[Record]) -> EvalSet:
    """Return what a model generated as gold answers, for another model to score.

    Empty generations are left out. After a finished prompt that does not end in white space a
    space is put before the generation, which was stored without outer spaces.

    Args:
        eval_set: The set the generations answer.
        records: Its records, one an example, in its order.

    Returns:
        A set named ``{name}_generations`` with the same ids and questions, losses only; without
        examples where every generation is empty.

    Raises:
        InputError: If the records are of other rows or hold no generation.

    Example:
        >>> asked = EvalSet("forget", (Example("f/0", "Paris.", question="Where?"),))
        >>> said = [Record("forget", "f/0", "Paris.", generation="Rome.")]
        >>> generations_as_examples(asked, said).examples[0].answer
        'Rome.'
    """
    if [record.id for record in records] != [example.id for example in eval_set.examples]:
        raise InputError(
            f"set {eval_set.name!r}: its {len(eval_set.examples)} rows and the {len(records)} "
            "records of generations are not the same rows; generate again."
        )
    answered = [
        _answered(example, record.generation)
        for row, (example, record) in enumerate(zip(eval_set.examples, records, strict=True))
        if _words(record, row) and record.generation
    ]
    return EvalSet(f"{eval_set.name}_generations", tuple(answered))


def _answered(example: Example, generation: str) -> Example:
    joins = example.verbatim and not (example.question or " ")[-1].isspace()
    return replace(
        example,
        answer=f" {generation}" if joins else generation,
        paraphrased_answer=None,
        perturbed_answers=(),
        alternative_answer=None,
        choices=(),
        right_choice=None,
    )


def _words(record: Record, row: int, words: WordRule = "published") -> list[str]:
    return running_words(str(present(record, row, "generation")), words)


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    if not 1 <= n <= 4:
        raise InputError(f"fluency: n must be from 1 to 4, got {n}.")
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _text_losses(record: Record, row: int) -> list[float]:
    """Return the losses of the tokens that hold characters of the text."""
    logps = present(record, row, "token_logps")
    spans = present(record, row, "token_spans")
    if len(logps) != len(spans):
        raise InputError(
            f"{named(record, row)}: {len(logps)} token_logps and {len(spans)} token_spans do not "
            "belong together; score the set again."
        )
    losses = [
        -finite(logp, record, row, "token_logps")
        for logp, (start, stop) in zip(logps, spans, strict=True)
        if start < stop
    ]
    if not losses:
        raise InputError(f"{named(record, row)}: no token of the generation was scored.")
    return losses
