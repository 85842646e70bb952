"""Questions in other words: the answer stays, and files say what is wrong with them."""

import json

import pytest

from etw_lightning.data.rewording import (
    FORMATS,
    formatted,
    paraphrased,
    prefixed,
    read_prefixes,
    read_questions,
)
from etw_lightning.schema import Example, InputError

ROW = Example(
    "forget/3",
    "In Quillmere.",
    "Where was the author Mara Venn born, according to her letters?",
    paraphrased_question="What is Mara Venn's birthplace?",
)
ROWS = [Example(f"forget/{number}", "a", f"What of {number}?") for number in range(3)]


@pytest.mark.parametrize(
    ("how", "question"),
    [
        ("upper", "WHERE WAS THE AUTHOR MARA VENN BORN, ACCORDING TO HER LETTERS?"),
        ("lower", "where was the author mara venn born, according to her letters?"),
        ("quoted", '"Where was the author Mara Venn born, according to her letters?"'),
        ("completion", "Q: Where was the author Mara Venn born, according to her letters?\nA:"),
    ],
)
def test_formats(how, question):
    found = formatted(ROW, how)
    assert found.question == question
    assert (found.id, found.answer) == (ROW.id, ROW.answer)


def test_typos_exchange_two_inner_letters_of_every_third_long_word():
    found = formatted(ROW, "typos").question
    assert found == formatted(ROW, "typos").question
    pairs = list(zip(ROW.question.split(), found.split(), strict=True))
    changed = [(old, new) for old, new in pairs if old != new]
    # Long words: Where author Mara Venn born according letters.
    assert [old for old, _ in changed] == ["Where", "Venn", "letters?"]
    for old, new in changed:
        assert sorted(old) == sorted(new)
        assert (old[0], old[-1]) == (new[0], new[-1])
    rows = [Example(f"forget/{number}", "a", ROW.question) for number in range(20)]
    assert len({formatted(row, "typos").question for row in rows}) > 1


def test_every_format_has_a_form():
    assert {how: formatted(ROW, how).question for how in FORMATS}.keys() == set(FORMATS)
    assert len({formatted(ROW, how).question for how in FORMATS}) == len(FORMATS)


def test_prefix_and_paraphrase():
    assert prefixed(ROW, "As her friend:").question.startswith("As her friend: Where was the")
    assert paraphrased(ROW).question == "What is Mara Venn's birthplace?"
    with pytest.raises(InputError, match="Row forget/0 has no paraphrased question"):
        paraphrased(ROWS[0])


def test_raw_text_can_not_be_asked_otherwise():
    with pytest.raises(InputError, match="Row raw/0 is raw text"):
        formatted(Example("raw/0", "Some text."), "upper")


def test_prefixes_one_a_line(tmp_path):
    path = tmp_path / "prefixes.txt"
    path.write_text("As a friend:\n\n  Say it once:  \n")
    assert read_prefixes(path, "attack.prefixes") == ["As a friend:", "Say it once:"]
    path.write_text("\n \n")
    with pytest.raises(InputError, match=r"attack\.prefixes '.*' holds no prefix"):
        read_prefixes(path, "attack.prefixes")
    with pytest.raises(InputError, match=r"attack\.prefixes '.*' can't be read: No such file"):
        read_prefixes(tmp_path / "no.txt", "attack.prefixes")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="it is not UTF-8 text"):
        read_prefixes(path, "attack.prefixes")


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_questions_by_number_or_id(tmp_path):
    path = write(
        tmp_path / "questions.jsonl",
        {"row": 1, "questions": ["B?", "Bb?"]},
        {"row": "forget/0", "question": "A?"},
        {"row": 2, "question": "C?"},
        {"row": 0, "question": "Aa?"},
    )
    assert read_questions(path, ROWS, "attack.questions") == [["A?", "Aa?"], ["B?", "Bb?"], ["C?"]]


def test_a_question_may_hold_what_ends_lines_elsewhere(tmp_path):
    """JSON leaves Unicode's separators of lines as they are, and ends no line at them."""
    question = "What\u2028of\u2029it\u0085?"
    line = json.dumps({"row": 0, "question": question}, ensure_ascii=False)
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{line}\n", encoding="utf-8")
    assert read_questions(path, ROWS[:1], "attack.questions") == [[question]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: is no JSON"),
        ("[1]", r'line 1: must be \{"row": 0'),
        ('{"row": 0}', "line 1: must be"),
        ('{"row": 0, "questions": []}', "line 1: must be"),
        ('{"row": 0, "questions": ["A?", " "]}', "line 1: must be"),
        ('{"row": true, "question": "A?"}', "line 1: must be"),
        ('{"row": 3, "question": "A?"}', "there is no row 3; give its number, 0 to 2, or its id"),
        ('{"row": "f/0", "question": "A?"}', "there is no row 'f/0'"),
        ('{"row": 1, "question": "A?"}', "has no question for 2 of 3 rows, forget/0 first"),
    ],
)
def test_what_a_file_of_questions_is_refused_for(tmp_path, line, said):
    path = tmp_path / "questions.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=said) as caught:
        read_questions(path, ROWS, "attack.questions")
    assert str(caught.value).startswith("attack.questions '")
    assert "\n" not in str(caught.value)
