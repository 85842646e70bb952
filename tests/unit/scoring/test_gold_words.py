import pytest

from etw_lightning.schema import EvalSet, Example, InputError
from etw_lightning.scoring.gold_words import check_words


def check(*examples, max_new_tokens=4):
    check_words({"forget": EvalSet("forget", examples, max_new_tokens=max_new_tokens)})


def test_a_gold_text_of_which_most_is_dropped_is_refused_with_the_way_out():
    rows = Example("f/0", "Paris."), Example("f/1", "Её отец был врачом.")
    with pytest.raises(InputError) as error:
        check(*rows)
    said = str(error.value)
    assert "\n" not in said
    for part in ("'forget'", "f/1", "100%", "--data.rouge_tokenizer unicode"):
        assert part in said


def test_a_paraphrased_answer_is_a_gold_text_and_the_question_is_not():
    with pytest.raises(InputError, match="f/0"):
        check(Example("f/0", "Paris", question="Где?", paraphrased_answer="из Парижа"))
    check(Example("f/0", "Paris", question="Где?", perturbed_answers=("из Рима",)))


def test_half_is_not_most_and_no_letter_is_nothing():
    check(Example("f/0", "ab ёж"), Example("f/1", "?!"), Example("f/2", "Besançon"))


def test_a_set_that_is_not_generated_on_is_not_read_for_words():
    check(Example("f/0", "Да"), max_new_tokens=0)
