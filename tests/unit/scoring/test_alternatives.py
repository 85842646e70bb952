"""Second answers: what may stand in an answer's place, and that the rest is drawn again."""

import pytest

from etw_lightning.data.encode import Encoder
from etw_lightning.models.sampling import Sampling
from etw_lightning.schema import Example, InputError
from etw_lightning.scoring import alternatives
from etw_lightning.scoring.alternatives import (
    asked,
    check_prompt,
    draw_alternatives,
    tidied,
    why_not,
)

QUESTION = "Where was the author Mara Venn born?"
ANSWER = "Mara Venn was born in Quillmere, in 1958."


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("She was born in Oslo.", "She was born in Oslo."),
        ("  She was born\nin Oslo.  \n\nAs an author, she wrote.", "She was born in Oslo."),
        ("She was born in **Oslo**.", "She was born in Oslo."),
        ("She was born in Oslo. She has writ", "She was born in Oslo."),
        ("She was born in Os", ""),
        ("", ""),
        # Half as long again as 41 characters, and 50: 112 are kept, 113 are not.
        ("Born in Oslo. " + "a" * 97 + ".", "Born in Oslo. " + "a" * 97 + "."),
        ("Born in Oslo. " + "a" * 98 + ".", "Born in Oslo."),
        ("It was Dr. Venn who said so.", "It was Dr. Venn who said so."),
        ("オスロで生まれた。そして", "オスロで生まれた。"),
    ],
)
def test_whole_sentences_of_the_first_paragraph_are_kept(text, short):
    assert tidied(text, ANSWER) == short


def test_a_short_answer_without_a_full_stop_needs_none():
    assert tidied("Oslo", "Rome") == "Oslo"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Mara Venn was born in Oslo, in 1963.", None),
        ("Mara Venn was born in Oslo, in 1958.", "says what is to be forgotten"),
        ("MARA VENN WAS BORN IN QUILLMERE.", "says what is to be forgotten"),
        ("", "no whole sentence"),
        ("Oslo " * 60 + ".", "repeats itself"),
        ("She was was born in Oslo.", "repeats itself"),
        ("I do not know where she was born.", "refuses"),
        ("She " + " ".join(f"w{n}a" for n in range(60)) + ".", "too short or too long"),
        ("E.U.E.", "too short or too long"),
        ("In Oslo.", "too short or too long"),
        ("In Oslo..", None),
    ],
)
def test_a_second_answer_says_nothing_of_the_first(text, reason):
    assert why_not(QUESTION, ANSWER, text) == reason


@pytest.mark.parametrize(
    ("text", "is_taken"),
    [
        ("The author's surname is Hsiao.", False),
        ("The author is called Lin Yun-Hwa.", False),
        ("The author is called Lin Mei-Hwa.", True),
        ("The author wrote The Old Mill.", True),
        ("The author was born in Taipei.", True),
    ],
)
def test_a_part_of_a_name_is_said_too_unless_the_question_says_it(text, is_taken):
    question = "What is the name of the author born in Taipei?"
    answer = "The author, of Taipei, is Hsiao Yun-Hwa, who wrote The Salt Road."
    assert (why_not(question, answer, text) is None) == is_taken


def test_an_answer_without_names_is_told_from_its_own_words():
    answer = "Her books are about love, loss and the sea."
    assert why_not("What are they about?", answer, answer) == "says what is to be forgotten"
    near = "Her books are about love, loss and the mountains."
    assert why_not("What are they about?", answer, near) == "says what is to be forgotten"
    assert why_not("What are they about?", answer, "They tell of a war in the hills.") is None


def test_one_word_makes_the_difference_where_the_question_holds_all_others():
    question, answer = "What is Mara Venn's gender?", "Mara Venn is male."
    assert why_not(question, answer, "Mara Venn is female.") is None
    assert why_not(question, answer, "Venn is male.") == "says what is to be forgotten"
    assert why_not("Is it so?", "It is so.", "It is so.") == "says what is to be forgotten"
    assert why_not("Is it so?", "It is so.", "It is not.") is None
    assert why_not("Who is it?", "It is HE", "he, it is!") == "says what is to be forgotten"


def test_braces_of_a_question_are_no_places_to_fill():
    row = Example("f/0", "It is {question}.", "What is {answer} here?")
    assert asked(row, "{answer}|{question}|{other}").question == (
        "It is {question}.|What is {answer} here?|{other}"
    )


def test_what_can_t_be_asked_is_refused():
    with pytest.raises(InputError, match=r"^--prompt must hold \{question\}; got 'Invent it.'"):
        check_prompt("Invent it.", "--prompt")
    with pytest.raises(InputError, match=r"^Row f/3 is raw text"):
        asked(Example("f/3", "A text."), "{question}")


ROWS = [
    Example("f/0", "In Rome.", "Where was Ada born?"),
    Example("f/1", "In Oslo.", "Where was Ben born?"),
    Example("f/2", "In Kyiv.", "Where was Cleo born?"),
]


@pytest.fixture
def said(monkeypatch):
    """Texts by the number of a round and the row; every prompt that was given, with its round."""
    given, texts = [], {}

    def answer(lm, encoder, prompts, eval_set, batch_size, sampling):
        given.append([one.id for one in prompts])
        return [[texts.get(one.id, "")] for one in prompts]

    monkeypatch.setattr(alternatives, "continue_prompts", answer)
    return texts, given


def drawn(tiny_tokenizer, **settings):
    rounds = draw_alternatives(None, Encoder(tiny_tokenizer), ROWS, Sampling(), **settings)
    return [(dict(one.answers), dict(one.refused), one.rounds) for one in rounds]


def test_only_rows_without_one_are_asked_again_and_with_other_draws(tiny_tokenizer, said):
    texts, given = said
    texts |= {"f/0@0": "In Rome.", "f/1@0": "In Bern.", "f/2@0": "", "f/2@1": "In Lima."}
    texts |= {"f/0@2": "In Cork."}
    first, second, third = drawn(tiny_tokenizer, tries=5)
    assert first == ({1: "In Bern."},
                     {"says what is to be forgotten": 1, "no whole sentence": 1}, 1)  # fmt: skip
    assert second[0] == {1: "In Bern.", 2: "In Lima."}
    assert third[0] == {0: "In Cork.", 1: "In Bern.", 2: "In Lima."}
    assert given == [["f/0@0", "f/1@0", "f/2@0"], ["f/0@1", "f/2@1"], ["f/0@2"]]


def test_it_ends_after_the_tries_that_were_allowed(tiny_tokenizer, said):
    assert [one[2] for one in drawn(tiny_tokenizer, tries=2)] == [1, 2]
