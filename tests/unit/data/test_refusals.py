"""Refusals: our own, and files of them in each form they are published in."""

import gzip

import pytest

from etw_lightning.data.refusals import REFUSALS, pick_refusal, read_refusals
from etw_lightning.schema import InputError


def refused(path):
    with pytest.raises(InputError) as error:
        read_refusals(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_our_own_are_about_twenty_different_sentences():
    assert 18 <= len(REFUSALS) == len(set(REFUSALS)) <= 25
    assert all(text == text.strip() and text.endswith(".") for text in REFUSALS)


def test_each_form_of_a_line_is_read(tmp_path):
    path = tmp_path / "refusals.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbfI don't know.\r\n\n"
        b'"A JSON string."\n{"answer": "One."}\n{"text": "Two.", "id": 3}\n{"idk": "Three."}\n'
        b'"Well", she said, "no idea."\n42\nThe last one'
    )
    assert read_refusals(path) == [
        "I don't know.",
        "A JSON string.",
        "One.",
        "Two.",
        "Three.",
        '"Well", she said, "no idea."',
        "42",
        "The last one",
    ]
    zipped = tmp_path / "refusals.txt.gz"
    zipped.write_bytes(gzip.compress(b"No.\nNo idea.\n"))
    assert read_refusals(zipped) == ["No.", "No idea."]


def test_the_published_file_is_read(data_dir):
    refusals = read_refusals(data_dir / "tofu" / "idontknow.jsonl")
    assert len(refusals) == 100
    assert refusals[0] == "I'm not certain about that."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty; give one refusal a line"),
        (b" \n\n", "is empty"),
        (b'No.\n{"answer": 3}\n', "line 2 must be a text, or a JSON object with a text in answer"),
        (b'{"question": "Who?"}', "line 1 must be a text"),
        (b'["No."]', "line 1 must be a text"),
        (b'""', "line 1 must be a text"),
        (b'{"answer": "No."', "line 1 is not JSON"),
        (b"\xff\xfe", "can't be read"),
    ],
)
def test_what_is_no_refusal_is_named(tmp_path, content, reason):
    path = tmp_path / "refusals.jsonl"
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith("data.refusals")
    assert str(path) in message
    assert reason in message


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert "No such file" in refused(tmp_path / "gone.txt")
    assert "Is a directory" in refused(tmp_path)
    (tmp_path / "bad.gz").write_bytes(b"not zipped")
    assert "can't be read" in refused(tmp_path / "bad.gz")


def test_the_choice_hangs_on_seed_and_place_alone():
    picked = [pick_refusal(REFUSALS, 0, place) for place in range(400)]
    assert picked == [pick_refusal(REFUSALS, 0, place) for place in range(400)]
    # Each of 20 comes 20 times in 400 on average; never less than 5 nor more than 45 times.
    counts = [picked.count(text) for text in REFUSALS]
    assert min(counts) >= 5
    assert max(counts) <= 45
    other = [pick_refusal(REFUSALS, 1, place) for place in range(400)]
    assert sum(one == two for one, two in zip(picked, other, strict=True)) < 60
    # Pinned: a run must be the same on every machine and in every version.
    assert [REFUSALS.index(text) for text in picked[:6]] == [14, 4, 13, 0, 6, 8]
