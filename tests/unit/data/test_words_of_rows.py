"""Which word each label of a row belongs to, against the answers that the labels spell."""

import re

import pytest
from transformers import AutoTokenizer

from etw_lightning.data.encode import Encoder
from etw_lightning.data.marks import number_words
from etw_lightning.schema import IGNORE_INDEX, Example, InputError

ANSWERS = (
    'Basil Mahfouz Al-Kuwaiti\'s novel, "Promise by the Seine", won in 2003.',
    "  Caf\u00e9 \u00c5ngstr\u00f6m -- \u6771\u4eac.\n\nIt was 1 of 3!",
    "No",
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def rows_of(encoder, answers=ANSWERS):
    examples = [
        Example(f"forget/{number}", answer, "Who is Basil, and why?")
        for number, answer in enumerate(answers)
    ]
    return examples, [encoder.encode(example) for example in examples]


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("max_length", [256, 24])
def test_the_tokens_of_a_word_spell_it(tokenizer, template, max_length):
    encoder = Encoder(tokenizer, template, max_length)
    examples, rows = rows_of(encoder)
    found = number_words(examples, rows, encoder)
    for example, row, numbers in zip(examples, rows, found, strict=True):
        assert len(numbers) == len(row.input_ids)
        pairs = list(zip(row.labels, numbers, strict=True))
        assert all(number == -1 for label, number in pairs if label == IGNORE_INDEX)
        words = re.findall(r"\w+(?:['-]\w+)*", example.answer)
        spelt = {number for _, number in pairs if number >= 0}
        if not row.is_cut:
            assert spelt == set(range(len(words)))
        for number in sorted(spelt)[: -1 if row.is_cut else None]:
            tokens = [label for label, own in pairs if own == number]
            text = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
            assert text.strip(" \n\"'(").startswith(words[number])
        loose = [label for label, number in pairs if label != IGNORE_INDEX and number < 0]
        assert not re.search(r"\w", tokenizer.decode(loose, skip_special_tokens=True))


def test_raw_text_is_counted_on_over_its_rows(tokenizer):
    encoder = Encoder(tokenizer, "chat", 12)
    examples = [
        Example("raw/0", "The old mill by the river."),
        Example("raw/1", "It burned twice."),
    ]
    rows = encoder.chunk(examples, "raw")
    found = number_words(examples, rows, encoder)
    words = ["The", "old", "mill", "by", "the", "river", "It", "burned", "twice"]
    spelt = dict.fromkeys(range(len(words)), "")
    for row, numbers in zip(rows, found, strict=True):
        for label, number in zip(row.labels, numbers, strict=True):
            if number >= 0:
                spelt[number] += tokenizer.decode([label])
    # The first token of each row is no label.
    for number, text in spelt.items():
        assert text.strip(" \n.") in words[number]
    assert sum(text.strip(" \n.") == words[number] for number, text in spelt.items()) > 3
    assert len(rows) > 1


def test_turns_that_are_all_labelled_are_refused(tokenizer):
    encoder = Encoder(tokenizer, "chat", 64)
    turns = (("user", "Hi"), ("assistant", "Yes"), ("user", "Who?"))
    example = Example("chat/0", "Basil", "Who?", turns=turns, labels_turns=True)
    with pytest.raises(InputError, match=r"data\.which_turns is 'all'.*row chat/0"):
        number_words([example], [], encoder)
