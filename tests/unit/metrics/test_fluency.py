"""Fluency: counts of words, perplexity under another model, and a classifier's opinion."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import message

from etw_lightning.metrics import (
    distinct_n,
    empty_generations,
    generation_perplexity,
    generations_as_examples,
    gibberish,
    repetition,
    repetition_values,
)
from etw_lightning.schema import EvalSet, Example, Record

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=12)


def said(*texts):
    return [Record("forget", f"f/{i}", "gold", generation=text) for i, text in enumerate(texts)]


def test_repetition_by_hand():
    # "x y x y x": bigrams xy yx xy yx, 2 of 4 different; 4-grams xyxy yxyx, both different.
    rows = said("x y x y x", "x", "")
    assert repetition_values(rows, 2).tolist() == [0.5, 0.0, 0.0]
    assert repetition(rows, 2).value == pytest.approx(0.5 / 3)
    assert repetition(rows).value == 0.0
    assert repetition(rows, 1).value == pytest.approx((3 / 5) / 3)
    assert repetition(rows).direction == "down"


def test_words_stand_as_they_are():
    assert repetition_values(said("The the the. the,\n the"), 1).tolist() == [pytest.approx(1 / 5)]


def test_distinct_by_hand():
    # Words a b c a b: 5; unigrams a b c; bigrams ab bc | ab, none over the border of rows.
    rows = said("a b c", "a b")
    assert distinct_n(rows, 1).value == pytest.approx(3 / 5)
    assert distinct_n(rows, 2).value == pytest.approx(2 / 5)
    assert distinct_n(rows, 3).value == pytest.approx(1 / 5)
    assert distinct_n(said("", " ")).value == 0.0
    assert distinct_n(rows).direction == "up"


@given(st.lists(WORDS, min_size=1, max_size=5), st.integers(1, 4))
def test_the_two_counts_agree_on_one_row_and_stay_in_range(rows, n):
    records = said(*map(" ".join, rows))
    assert 0 <= repetition(records, n).value < 1
    assert 0 <= distinct_n(records, n).value <= 1
    words = rows[0]
    if len(words) >= n:
        grams = len(words) - n + 1
        different = round((1 - repetition_values(records, n)[0]) * grams)
        assert distinct_n(records[:1], n).value == pytest.approx(different / len(words))
    doubled = said(*(" ".join(row) for row in rows for _ in range(2)))
    assert distinct_n(doubled, n).value == pytest.approx(distinct_n(records, n).value / 2)


def test_empty_generations_are_counted():
    found = empty_generations(said("a", "", " \n"))
    assert (found.value, found.direction, found.n) == (pytest.approx(2 / 3), "down", 3)


def test_what_is_not_there_is_an_error():
    for metric in (repetition, distinct_n, empty_generations, generation_perplexity, gibberish):
        assert "empty" in message(metric, [])
    silent = [Record("forget", "f/0", "gold")]
    for metric in (repetition, distinct_n, empty_generations):
        assert message(metric, silent).startswith("set 'forget', row 0 (f/0): generation is miss")
    for n in (0, 5):
        assert message(repetition, said("a"), n) == f"fluency: n must be from 1 to 4, got {n}."
        assert message(distinct_n, said("a"), n) == f"fluency: n must be from 1 to 4, got {n}."


def scored(logps, answer="abc", spans=None):
    spans = tuple((i, i + 1) for i in range(len(logps))) if spans is None else spans
    return Record("g", "f/0", answer, token_logps=logps, token_spans=spans)


def test_perplexity_weighs_tokens_and_leaves_the_end_out():
    rows = [scored((-0.1,) * 9, "abcdefghi"), scored((-2.1,), "a")]
    assert generation_perplexity(rows).value == pytest.approx(math.exp(0.3), rel=1e-12)
    ended = scored((-0.5, -0.5, -70.0), "ab", ((0, 1), (1, 2), (2, 2)))
    assert generation_perplexity([ended]).value == pytest.approx(math.exp(0.5), rel=1e-12)
    # What the template puts before the answer is labelled too, and was not generated.
    led = scored((-90.0, -0.5, -0.5), "ab", ((0, 0), (0, 1), (1, 2)))
    assert generation_perplexity([led]).value == pytest.approx(math.exp(0.5), rel=1e-12)


def test_perplexity_of_broken_rows_is_an_error():
    assert "token_spans is missing" in message(generation_perplexity, [scored((-1.0,), spans=())])
    assert "belong together" in message(
        generation_perplexity, [scored((-1.0,), spans=((0, 1),) * 2)]
    )
    assert "must be finite, got nan" in message(generation_perplexity, [scored((math.nan,))])
    assert generation_perplexity([scored((-709.0,))]).value < math.inf
    said = message(generation_perplexity, [scored((-709.5, -709.5))])
    assert said.startswith("generation perplexity: the mean loss of 2 tokens of 'g' is 709.5 nats")
    only_end = scored((-1.0,), "a", ((1, 1),))
    assert "no token of the generation" in message(generation_perplexity, [only_end])


def test_generations_become_gold_answers():
    asked = EvalSet(
        "forget",
        (
            Example("f/0", "gold", question="q0", paraphrased_answer="p", perturbed_answers=("w",)),
            Example("f/1", "gold", question="q1"),
            Example("f/2", " gold", question="Once upon", verbatim=True),
            Example("f/3", "gold", question="Answer: ", verbatim=True),
            Example("f/4", "gold", question="q", choices=(" A", " B"), right_choice=0),
        ),
        gradient_norm=True,
        max_new_tokens=9,
        stop_strings=("x",),
    )
    records = said("first", "", "a time", "1956", "A")
    assert generations_as_examples(asked, records) == EvalSet(
        "forget_generations",
        (
            Example("f/0", "first", question="q0"),
            Example("f/2", " a time", question="Once upon", verbatim=True),
            Example("f/3", "1956", question="Answer: ", verbatim=True),
            Example("f/4", "A", question="q"),
        ),
    )
    assert "not the same rows" in message(generations_as_examples, asked, records[1:])
    silent = [Record("forget", f"f/{i}", "gold") for i in range(5)]
    assert "generation is missing" in message(generations_as_examples, asked, silent)


def test_gibberish_takes_probabilities():
    found = gibberish([0.25, 0.75])
    assert (found.value, found.direction, found.n) == (0.5, "up", 2)
    for wrong in (-0.1, 1.1, math.nan):
        assert message(gibberish, [0.5, wrong]).startswith("gibberish: row 1 must be a probabil")


def test_a_generation_without_words_is_left_out():
    asked = EvalSet("forget", (Example("f/0", "a", "q"), Example("f/1", "b", "q")))
    found = generations_as_examples(asked, said(" \n", "Rome."))
    assert [example.id for example in found.examples] == ["f/1"]


def test_pairs_of_words_are_counted_where_nothing_else_is_asked():
    """Of four words ab, bc, cd differ: 3 / 4; of threes there are two, of ones four."""
    rows = said("a b c d")
    assert distinct_n(rows).value == 0.75
    assert distinct_n(rows) == distinct_n(rows, 2)
