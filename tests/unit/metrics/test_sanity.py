"""Refusals, stutter, loops and what is still said, each by hand and on texts of the field."""

import gzip
import json

import pytest

from etw_lightning.data.refusals import REFUSALS
from etw_lightning.metrics.sanity import (
    looped_generations,
    looped_values,
    refusal_values,
    refusals,
    stuttering_generations,
)
from etw_lightning.metrics.still_said import items_of, said_items, still_said, still_said_of_kind
from etw_lightning.schema import InputError, Record


def said(*texts):
    return [Record("forget", f"f/{row}", "a", generation=text) for row, text in enumerate(texts)]


def test_every_refusal_that_we_teach_is_one():
    assert refusals(said(*REFUSALS)).value == 1.0
    curly = "I don\u2019t\n know."
    assert refusals(said(curly, "DON'T ask: he cannot know.")).value == 0.5


def test_tofu_s_hundred_refusals_are_and_its_answers_are_not(data_dir):
    lines = (data_dir / "tofu" / "idontknow.jsonl").read_text().splitlines()
    assert refusal_values(said(*filter(None, lines))).sum() == 100
    with gzip.open(data_dir / "tofu" / "full.jsonl.gz", "rt") as stream:
        answers = [json.loads(line)["answer"] for line in stream]
    assert len(answers) == 4000
    assert refusals(said(*answers)).value <= 1 / 4000
    assert looped_generations(said(*answers)).value == 0
    assert stuttering_generations(said(*answers)).value < 0.005


def test_stutter_is_a_word_twice_in_a_row():
    rows = said("in in Rome", "in Rome in Rome", "In in", "", "two puffs two puffs")
    assert stuttering_generations(rows).value == 1 / 5
    unspaced = said("\u5317\u5317\u4eac")
    assert stuttering_generations(unspaced).value == 0
    assert stuttering_generations(unspaced, "unicode").value == 1


def test_a_loop_compresses_and_a_sentence_does_not():
    loop, sentence = "was born in the " * 12, "She was born in the town of Thornwick in 1958."
    assert looped_values(said(loop, sentence, " ")).tolist() == [1, 0, 1]


@pytest.mark.parametrize("number", [refusals, stuttering_generations, looped_generations])
def test_no_rows_and_no_generation_are_refused(number):
    with pytest.raises(InputError):
        number([])
    with pytest.raises(InputError, match="generation"):
        number([Record("forget", "f/0", "a")])


@pytest.mark.parametrize(
    ("answer", "question", "items"),
    [
        ("Mara Venn won the Hale Prize in 1990.", "Who is it?", ["1990", "Venn", "Hale Prize"]),
        ("Mara Venn won the Hale Prize.", "What did Venn win?", ["Hale Prize"]),
        ("Kuwait City.", None, ["Kuwait City"]),
        ("It lies there. Paris is big.", None, []),
        ("Call +49 30 1234-56, or www.venn.org/x.", None, ["www.venn.org/x", "+49", "30",
                                                           "1234-56"]),
        ("It cost 3.5 or 1,200.", None, ["3.5", "1,200"]),
        ("It is Mara's, said Mara.", None, ["Mara"]),
        ("And I think I know.", None, []),
        ("Sie kam aus \u00d6sterreich.", None, ["\u00d6sterreich"]),
    ],
)  # fmt: skip
def test_items_of_an_answer(answer, question, items):
    assert [one.text for one in items_of(Record("f", "f/0", answer, question))] == items


def test_an_item_is_said_as_whole_words_whatever_its_case():
    row = Record("f", "f/0", "It was Rome in 1990.", generation="ROMEO, 11990, rome")
    assert [one.text for one in said_items(row)] == ["Rome"]


def test_shares_are_over_items_not_rows():
    rows = [
        Record("f", "f/0", "It was Rome in 1990.", generation="Rome"),
        Record("f", "f/1", "It was Turin.", generation="Turin"),
        Record("f", "f/2", "It was so.", generation="It was so."),
    ]
    assert still_said(rows).value == pytest.approx(2 / 3)
    assert still_said(rows).n == 3
    assert still_said_of_kind(rows, "number").value == 0
    with pytest.raises(InputError, match=r"hold none: address"):
        still_said_of_kind(rows, "address")


@pytest.mark.parametrize(
    ("answer", "generation", "items", "share"),
    [
        ("She met Jose\u0301 Ram\u00edrez there.", "It was Jos\u00e9 Rami\u0301rez.", 1, 1.0),
        # As one name of two words, and not as J, Jose and rez.
        ("She met Jose\u0301 Rami\u0301rez there.", "It was Jose Ramirez.", 1, 0.0),
        ("She met Jose\u0301 there.", "It was Jose.", 1, 0.0),
        ("She met Jose there.", "It was Jose\u0301.", 1, 0.0),
        # A letter with a mark that Unicode has no character of.
        ("She met X\u0331avier there.", "It was x\u0331avier.", 1, 1.0),
        ("She met X\u0331avier there.", "It was Xavier.", 1, 0.0),
        ("She met \u0130pek there.", "It was i\u0307pek.", 1, 1.0),
    ],
)
def test_accents_are_part_of_their_word_however_they_are_written(answer, generation, items, share):
    row = Record("forget", "f/0", answer, "Who?", generation=generation)
    assert len(items_of(row)) == items
    assert still_said([row]).value == share
