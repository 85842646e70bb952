"""Traces and answers of models that think, against formulas of their own."""

import itertools

import numpy as np
import pytest
from refusals import message

from etw_lightning.metrics import (
    Metric,
    answer_rouge,
    retain_deviation,
    rouge_scores,
    trace_rouge,
    trace_step_rouge,
    unfinished_traces,
)
from etw_lightning.metrics.reasoning import parted, steps_of
from etw_lightning.schema import Record

TRACE = "Let me think. Basil wrote of sand. The prize went to Basil!"
GOLD = TRACE + "\n</think>\n\nBasil wrote of sand."
SAID = [
    "<think>\nThe prize went to nobody. Basil sang of sand.\n</think>\n\nBasil sang.",
    "Hm. I do not know who wrote of sand",
    "\n</think>\n\nBasil wrote of sand.",
    "",
]


def rows(*generations, gold=GOLD):
    return [Record("forget", f"f/{i}", gold, generation=said) for i, said in enumerate(generations)]


def words_of(text):
    """Lower-cased runs of letters; none of these words has another stem."""
    return "".join(one if one.isalnum() else " " for one in text.lower()).split()


def recall(said, gold):
    """ROUGE-L recall by all subsequences of the gold words, the longest first."""
    said, gold = words_of(said), words_of(gold)

    def holds(part):
        rest = iter(said)
        return all(word in rest for word in part)

    for size in range(len(gold), 0, -1):
        if any(holds(part) for part in itertools.combinations(gold, size)):
            return size / len(gold)
    return 0.0


def halves(text):
    """The authors' way: a trace ends where ``</think>`` is, an answer begins behind it."""
    trace = text[: text.find("</think>")] if "</think>" in text else text
    answer = text.split("</think>\n\n", 1)[1] if "</think>\n\n" in text else ""
    return trace.replace("<think>", "").strip(), answer


def test_the_recall_of_this_file_is_rouge():
    for said, gold in itertools.product(["a b c", "c a", "", "d a b b"], ["a b c", "b c a b"]):
        assert recall(said, gold) == pytest.approx(rouge_scores(said, gold)["rougeL_recall"])


def test_traces_are_compared_as_published():
    expected = np.mean([recall(halves(one)[0], halves(GOLD)[0]) for one in SAID])
    found = trace_rouge(rows(*SAID), "down")
    assert found.value == pytest.approx(float(expected), abs=1e-12)
    assert (found.direction, found.n) == ("down", 4)


def test_steps_are_compared_as_published():
    def score(said):
        steps = steps_of(halves(said)[0])
        found = []
        for gold in ("Let me think.", "Basil wrote of sand.", "The prize went to Basil!"):
            scores = [recall(step, gold) for step in steps]
            found.append(max(scores) if scores else 0.0)
        return sum(found) / len(found)

    values = [score(one) for one in SAID]
    assert values[0] == pytest.approx((0 + 3 / 4 + 4 / 5) / 3)
    found = trace_step_rouge(rows(*SAID), "up").value
    assert found == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_a_step_may_stand_anywhere():
    turned = "The prize went to Basil! Basil wrote of sand. Let me think.\n</think>\n\nx"
    assert trace_step_rouge(rows(turned), "down").value == 1.0
    assert trace_rouge(rows(turned), "down").value < 0.5


def test_answers_are_compared_as_published():
    expected = np.mean([recall(halves(one)[1], halves(GOLD)[1]) for one in SAID])
    assert answer_rouge(rows(*SAID), "down").value == pytest.approx(float(expected), abs=1e-12)
    # Of a set without traces the whole answer is gold.
    assert answer_rouge(rows("Hm.\n</think>\n\nIn Paris", gold="Paris"), "up").value == 1.0


def test_traces_without_an_end_are_counted():
    assert unfinished_traces(rows(*SAID)) == Metric(0.5, "down", 4)


def test_a_text_is_parted_at_the_first_end():
    assert parted("a</think>b</think>c") == ("a", "b</think>c")
    assert parted("<think>a") == ("a", None)
    assert parted("") == ("", None)


def test_a_gold_answer_without_trace_is_an_error():
    for metric in (trace_rouge, trace_step_rouge):
        for gold in ("Basil.", "\n</think>\n\nBasil."):
            text = message(metric, rows("x", gold=gold), "down")
            assert text.startswith("set 'forget', row 0 (f/0): its answer has no trace")
    assert "empty" in message(trace_rouge, [], "down")
    assert "generation" in message(answer_rouge, [Record("forget", "f/0", GOLD)], "down")


def test_the_deviation_of_what_stays():
    for auc, retain in ((0.8, 0.5), (0.2, 0.5), (0.5, 0.5), (0.9, 0.95)):
        found = retain_deviation(Metric(auc, "retain", 9), retain)
        assert found.value == pytest.approx(abs((auc - retain) / retain) * 100, abs=1e-12)
        assert (found.direction, found.n, found.interval) == ("down", 9, None)
    spans = {(0.4, 0.7): (0.0, 40.0), (0.6, 0.7): (20.0, 40.0), (0.1, 0.3): (40.0, 80.0)}
    for ends, expected in spans.items():
        found = retain_deviation(Metric(ends[0], "retain", 9, ends), 0.5)
        assert found.interval == pytest.approx(expected)
    for wrong in (0.0, 1.5):
        assert "above 0 and at most 1" in message(retain_deviation, Metric(0.5, "up", 2), wrong)


def test_the_unstemmed_rule_is_the_published_one_without_stems():
    scores = rouge_scores("loves books", "loved the books", "unstemmed")
    assert scores["rougeL_recall"] == pytest.approx(1 / 3)
    assert scores["rougeL_f1"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert rouge_scores("loves books", "loved the books")["rougeL_recall"] == pytest.approx(2 / 3)
