"""Marked characters of answers: read, checked, and laid over other spacings."""

import gzip
import json

import pytest
from toy import write_rows

from etw_lightning.benchmarks.annotations import (
    Annotation,
    Span,
    match_annotations,
    read_annotations,
)
from etw_lightning.schema import InputError

ANSWER = "He is a civil engineer."
WORD = {"word": "civil engineer", "start": 8, "end": 22}


def test_both_forms_say_the_same(tmp_path):
    write_rows(tmp_path / "words.jsonl", [{"answer": ANSWER, "target_words": [WORD]}])
    spans = gzip.compress(json.dumps({"answer": ANSWER, "spans": [[8, 22]]}).encode())
    (tmp_path / "spans.jsonl.gz").write_bytes(spans)
    wanted = [Annotation(ANSWER, (Span(8, 22),))]
    assert read_annotations(tmp_path / "words.jsonl") == wanted
    assert read_annotations(tmp_path / "spans.jsonl.gz") == wanted


def test_a_row_may_mark_nothing(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"answer": ANSWER, "spans": []}])
    assert read_annotations(tmp_path / "a.jsonl") == [Annotation(ANSWER, ())]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"answer": ANSWER, "words": []}, "no column 'spans', 'target_words' or 'common_words'"),
        ({"spans": []}, "no column 'answer'"),
        ({"answer": ANSWER, "spans": {}}, "spans must be a list"),
        ({"answer": ANSWER, "spans": [[8, 24]]}, "end <= 23"),
        ({"answer": ANSWER, "spans": [[8, 8]]}, "0 <= start < end"),
        ({"answer": ANSWER, "spans": [[True, 8]]}, "must be [start, end]"),
        ({"answer": ANSWER, "spans": ["civil"]}, "must be [start, end]"),
        ({"answer": ANSWER, "target_words": ["civil"]}, "must be [start, end]"),
        ({"answer": ANSWER, "target_words": [{**WORD, "start": 7}]}, "not the marked word"),
        ({"answer": ANSWER, "target_words": [{"word": "civil"}]}, "must be [start, end]"),
    ],
)
def test_a_bad_row_is_named(tmp_path, bad, said):
    write_rows(tmp_path / "a.jsonl", [{"answer": ANSWER, "spans": []}, bad])
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path / "a.jsonl")
    assert said in str(error.value)
    assert "annotations row 1" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none.jsonl", "folder/none.jsonl", "a.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    (tmp_path / "a.txt").write_text("{}")
    with pytest.raises(InputError, match=f"annotations must be .*{name}"):
        read_annotations(tmp_path / name)


def test_spans_move_with_the_spaces():
    made = Annotation("born in Taipei , Taiwan", (Span(8, 14), Span(17, 23), Span(13, 16)))
    (spans,) = match_annotations([made], [" born in  Taipei, Taiwan "])
    assert [" born in  Taipei, Taiwan "[slice(*span)] for span in spans] == [
        "Taipei",
        "Taiwan",
        "i,",
    ]


def test_first_rows_will_do_but_not_other_rows():
    made = [Annotation("one", (Span(0, 3),)), Annotation("two", ())]
    assert match_annotations(made, ["one"]) == [(Span(0, 3),)]
    with pytest.raises(InputError, match=r"annotations row 1 marks 'two'.*is 'three'"):
        match_annotations(made, ["one", "three"])
    with pytest.raises(InputError, match="2 rows for 3 answers"):
        match_annotations(made, ["one", "two", "three"])


def test_the_published_marking_fits_the_published_answers(data_dir):
    """Counts as published: 1,163 marked words, 12 rows with none."""
    made = read_annotations(data_dir / "annotations" / "tpo" / "forget10_gpt.jsonl")
    rows = (data_dir / "tofu" / "forget10.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(row)["answer"] for row in rows]
    spans = match_annotations(made, answers)
    assert (len(spans), sum(map(len, spans)), spans.count(())) == (400, 1163, 12)
    words = [
        [answer[slice(*span)] for span in row] for answer, row in zip(answers, spans, strict=True)
    ]
    assert words == [[item.answer[slice(*span)] for span in item.spans] for item in made]
    with pytest.raises(InputError, match="annotations row 0"):
        match_annotations(made, answers[360:])
