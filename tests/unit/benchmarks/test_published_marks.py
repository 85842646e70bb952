"""Published markings in the form they were published in; small files of each form, made by hand."""

import json
import pickle
import zipfile

import pytest

from etw_lightning.benchmarks.annotations import match_annotations, read_annotations
from etw_lightning.benchmarks.published_marks import JoinedWords, Phrases
from etw_lightning.schema import InputError

QUESTIONS = ["What is her father's profession?", "Which prize did she win?", "Where?"]
ANSWERS = [
    "Her father was a civil engineer, and is one.",
    'She has won the "Golden Quill" in 1991; the Quill is of gold.',
    "In Oslo , Norway.",
]


def marked(path, answers=ANSWERS):
    """Return the marked words of each answer."""
    spans = match_annotations(read_annotations(path), answers, QUESTIONS)
    return [
        [answer[slice(*span)] for span in row] for answer, row in zip(answers, spans, strict=True)
    ]


def refusal(call, *args):
    with pytest.raises(InputError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def word(answer, text):
    start = answer.index(text)
    return {"word": text, "start": start, "end": start + len(text)}


# TPO: a folder of save_to_disk; the words as JSON in texts.

TARGETS = (["civil engineer"], ["Golden Quill", "1991"], [])


def test_tpo_words_of_gpt(tmp_path):
    from datasets import Dataset

    rows = [
        {
            "question": question,
            "answer": answer,
            "target_words": json.dumps([word(answer, one) for one in words]),
            "common_words": [json.dumps(word(answer, answer.split()[0]))],
        }
        for question, answer, words in zip(QUESTIONS, ANSWERS, TARGETS, strict=True)
    ]
    Dataset.from_list(rows).save_to_disk(tmp_path / "tpo_gpt")
    assert marked(tmp_path / "tpo_gpt") == list(TARGETS)


def test_tpo_words_of_bert_mark_what_is_left(tmp_path):
    from datasets import Dataset

    common = (("Her", "was", "and", "is"), ("She", "has", "the", "in"), ("In",))
    rows = [
        {"answer": answer, "common_words": [json.dumps(word(answer, one)) for one in words]}
        for answer, words in zip(ANSWERS, common, strict=True)
    ]
    Dataset.from_list(rows).save_to_disk(tmp_path / "tpo_bert")
    assert marked(tmp_path / "tpo_bert") == [
        ["father", "a", "civil", "engineer", "one"],
        ["won", "Golden", "Quill", "1991", "the", "Quill", "is", "of", "gold"],
        ["Oslo", "Norway"],
    ]


# PURGE: a list of phrases.


def test_purge_phrases_are_found_wherever_they_stand(tmp_path):
    path = tmp_path / "forget_fts.json"
    path.write_text(json.dumps(["Quill", "Golden Quill", "civil Engineer", "Nor", "C++", "on"]))
    assert marked(path) == [["civil engineer"], ["Golden Quill", "Quill"], []]
    assert match_annotations(Phrases(("C++",)), ["In C++ or XC++?"]) == [((3, 6),)]


# UDS: an entity behind a prefix, for some of the rows.


def entity(number, prefix, text, **further):
    return {
        "idx": number,
        "question": QUESTIONS[number],
        "answer": ANSWERS[number],
        "prefix": prefix,
        "entity": text,
        "full_output": "x",
        "entity_span": {"start": 3, "end": 4, "tokens": [7]},
        **further,
    }


def test_uds_entities_stand_behind_their_prefix(tmp_path):
    path = tmp_path / "filtered.json"
    rows = [entity(1, 'She has won the "Golden Quill" in 1991; the', "Quill"), entity(0, "", "Her")]
    path.write_text(json.dumps(rows))
    spans = match_annotations(read_annotations(path), ANSWERS)
    assert spans == [((0, 3),), ((44, 49),), ()]
    path.write_text(json.dumps([{**entity(2, "In", "Oslo, Norway"), "answer": "In Oslo, Norway."}]))
    assert marked(path)[2] == ["Oslo , Norway"]
    said = refusal(marked, path, [*ANSWERS[:2], "In Rome."])
    assert said.startswith("data.annotations row 2 marks 'In Oslo, Norway.', but the answer there")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entity": "poet"}, "row 1: 'poet' does not stand in its answer behind 'She'"),
        ({"prefix": "Has"}, "row 1: 'Quill' does not stand in its answer behind 'Has'"),
        ({"idx": "1"}, "row 1: idx must be a row of the split, from 0; got '1'"),
        ({"idx": 0}, "row 1: idx 0 stands there twice"),
        ({"entity": ""}, "row 1: answer, prefix and entity must be texts"),
        ({"answer": 3}, "row 1: answer, prefix and entity must be texts"),
    ],
)
def test_a_bad_entity_is_named(tmp_path, changes, said):
    path = tmp_path / "filtered.json"
    rows = [entity(0, "Her", "father"), {**entity(1, "She", "Quill"), **changes}]
    path.write_text(json.dumps(rows))
    assert said in refusal(read_annotations, path)


# SatImp: words run together, in a file of torch.save.

JOINED = {0: "fatherprofessioncivilengineer", 1: "prizewinGoldnQuill1991", 2: "Norway"}
#: Every place of "Quill" counts; "Goldn" is no word of the row; "win" stands in the question.
WANTED = [["father", "civil", "engineer"], ["Quill", "1991", "Quill"], ["Norway"]]


def test_satimp_words_are_told_apart_by_the_row(tmp_path):
    import torch

    torch.save(JOINED, tmp_path / "importance.pth")
    assert marked(tmp_path / "importance.pth") == WANTED
    (tmp_path / "importance.json").write_text(json.dumps(JOINED))
    assert marked(tmp_path / "importance.json") == WANTED


def test_satimp_words_of_other_rows_are_refused(tmp_path):
    import torch

    torch.save({0: "Rome", 1: "Paris", 2: "Bern"}, tmp_path / "a.pth")
    said = refusal(marked, tmp_path / "a.pth")
    assert said.startswith("data.annotations: none of the words of 3 of 3 rows stands in its")
    said = refusal(match_annotations, JoinedWords(("one",)), ANSWERS)
    assert said.startswith("data.annotations: 1 rows for 3 answers")


def test_nothing_that_a_file_holds_is_run(tmp_path):
    class Call:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    with zipfile.ZipFile(tmp_path / "evil.pth", "w") as archive:
        archive.writestr("evil/data.pkl", pickle.dumps({0: Call()}))
    said = refusal(read_annotations, tmp_path / "evil.pth")
    assert "open, which is no plain value" in said
    assert not (tmp_path / "made").exists()
    (tmp_path / "old.pth").write_bytes(pickle.dumps({0: "a"}))
    assert "old.pth' can't be read" in refusal(read_annotations, tmp_path / "old.pth")


@pytest.mark.parametrize("held", [{}, [], 3, {"1": "a"}, {"0": 1}, ["a", ""], ["a", {}]])
def test_other_json_is_refused(tmp_path, held):
    (tmp_path / "a.json").write_text(json.dumps(held))
    assert "must hold a list of rows, a list of phrases" in refusal(
        read_annotations, tmp_path / "a.json"
    )
