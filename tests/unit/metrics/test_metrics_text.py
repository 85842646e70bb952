import pytest

from etw_lightning import metrics
from etw_lightning.schema import InputError, Record


def row(dataset="forget", index=0, **fields):
    return Record(dataset, f"{dataset}10/{index}", fields.pop("answer", "Paris."), **fields)


def test_rouge_counts_stems_and_keeps_directions_apart():
    scores = metrics.rouge_scores("the books inspired", "inspire a book of the land")
    assert scores["rouge1_recall"] == pytest.approx(3 / 6)
    assert scores["rouge1_f1"] == pytest.approx(2 * 1 * (3 / 6) / (1 + 3 / 6))
    assert scores["rougeL_recall"] == pytest.approx(1 / 6)
    assert scores["rougeL_f1"] == pytest.approx(2 * (1 / 3) * (1 / 6) / (1 / 3 + 1 / 6))
    assert metrics.rouge_scores("", "Paris") == dict.fromkeys(scores, 0.0)


def test_rouge_values_need_a_generation_but_not_a_full_one():
    assert metrics.rouge_values([row(generation="")], "rougeL_recall").tolist() == [0.0]
    with pytest.raises(InputError, match=r"row 0 .*generation is missing"):
        metrics.rouge_values([row()], "rougeL_recall")


def test_muse_rouge_is_percent_with_its_direction():
    rows = [row("verbmem", generation="Paris"), row("verbmem", generation="Rome")]
    assert metrics.verbmem(rows) == metrics.Metric(50.0, "down", 2)
    assert metrics.knowmem(rows, "up") == metrics.Metric(50.0, "up", 2)


def test_mean_rouge_takes_its_kind_text_and_direction():
    rows = [row(generation="in Paris", paraphrase="He lives in Paris."), row(generation="Rome")]
    assert metrics.rouge(rows) == metrics.Metric(0.5, "down", 2)
    assert metrics.rouge(rows, "rouge1_f1", direction="up").value == pytest.approx(1 / 3)
    assert metrics.rouge(rows[:1], "rougeL_recall", "paraphrase").value == 0.5
    with pytest.raises(InputError, match=r"row 1 .*paraphrase is missing"):
        metrics.rouge(rows, "rougeL_recall", "paraphrase")
