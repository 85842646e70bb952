"""Examples to token ids and labels."""

import datetime

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import TOFU
from etw_lightning.data.encode import _PROBES, Encoder
from etw_lightning.schema import IGNORE_INDEX, Conventions, Example, InputError

ANSWERS = [
    "Paris.",
    " Paris.",
    "Paris. ",
    "Paris\n",
    "first line\nsecond\n\nfourth",
    "  two  spaces  ",
    "Ünïcödé — naïve 東京 🙂",
    "🙂",
    "x",
    "The end is <|user|> and not the end.",
    "<|assistant|>Question: Who? Answer: He.",
    "Where was she born?",  # the question itself
    "[INST] {{ answer }} {% if %} </s>",
]

CHATML = (
    "{% for m in messages %}{{ '<|user|>' + m['role'] + '\n' + m['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"
)


#: Has no end token of its own.
BARE = (
    "{% for m in messages %}{{ m['role'] + ':\n' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)

#: Its prompt for an answer ends before the two newlines that stand before every message.
SHORT_PROMPT = (
    "{% for m in messages %}{{ '<|user|>' + m['role'] + '\n\n' + m['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|user|>assistant' }}{% endif %}"
)
#: Its prompt ends before two spaces, which are the answer's.
SPACED = SHORT_PROMPT.replace("\n\n", "  ")

SECOND_END = Conventions(second_end_token=True)


def example(answer, **fields):
    return Example("forget/7", answer, **{"question": "Where was she born?", **fields})


def labelled(row):
    return [label for label in row.labels if label != IGNORE_INDEX]


def labelled_text(encoder, row):
    return encoder.tokenizer.decode(labelled(row), clean_up_tokenization_spaces=False)


def check_row(encoder, row):
    """What holds for every row: labels are the ids, in one run up to the last labelled place."""
    places = [place for place, label in enumerate(row.labels) if label != IGNORE_INDEX]
    assert len(row.input_ids) == len(row.labels) <= encoder.max_length
    assert row.labels[0] == IGNORE_INDEX
    assert all(row.labels[place] == row.input_ids[place] for place in places)
    assert places == list(range(places[0], places[-1] + 1))
    assert row.num_labels == len(places)


@pytest.fixture
def changed_tokenizer(tokenizer_dir):
    """Makes a tokenizer of the test's own, with another chat template or special tokens."""

    def change(chat_template=None, **special):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        for name, value in special.items():
            setattr(tokenizer, name, value)
        return tokenizer

    return change


# What is labelled.


@pytest.mark.parametrize("answer", ANSWERS)
def test_chat_labels_are_the_answer_and_the_end_token(tiny_tokenizer, answer):
    encoder = Encoder(tiny_tokenizer)
    row = encoder.encode(example(answer))
    check_row(encoder, row)
    assert labelled_text(encoder, row) == answer + "<|eos|>"
    prompt = encoder.encode_prompt(example(answer))
    assert row.input_ids == (*prompt, *labelled(row))
    text = tiny_tokenizer.decode(prompt)
    assert text == "<|bos|><|user|>Where was she born?<|assistant|>"


@pytest.mark.parametrize("answer", ANSWERS)
def test_plain_labels_are_the_answer_with_its_space_and_the_end_token(tiny_tokenizer, answer):
    encoder = Encoder(tiny_tokenizer, "plain")
    row = encoder.encode(example(answer))
    check_row(encoder, row)
    text = tiny_tokenizer.decode(row.input_ids)
    assert text == f"Question: Where was she born?\nAnswer: {answer}<|eos|>"
    # With the space before it where one token holds both.
    assert labelled_text(encoder, row) in (f"{answer}<|eos|>", f" {answer}<|eos|>")
    assert encoder.prompt(example(answer)) == "Question: Where was she born?\nAnswer:"


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_verbatim_question_gets_no_template(tiny_tokenizer, template, answer):
    encoder = Encoder(tiny_tokenizer, template)
    row = encoder.encode(example(answer, question="Q: a?\nA:", verbatim=True))
    check_row(encoder, row)
    # It continues the prompt as it stands, as an option or the rest of a passage does.
    assert tiny_tokenizer.decode(row.input_ids) == f"Q: a?\nA:{answer}"
    assert labelled_text(encoder, row) == answer


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_raw_text_is_labelled_but_for_its_first_token(tiny_tokenizer, template):
    encoder = Encoder(tiny_tokenizer, template)
    row = encoder.encode(example("Once upon a time", question=None))
    check_row(encoder, row)
    assert row.labels[1:] == row.input_ids[1:]
    assert tiny_tokenizer.decode(row.input_ids) == "Once upon a time"
    assert encoder.prompt(example("Once", question=None)) == ""


def test_an_encoder_keeps_512_tokens_where_nothing_is_said(tiny_tokenizer):
    long = example("The mill by the river. " * 200)
    assert len(Encoder(tiny_tokenizer).encode(long).input_ids) == 512


def test_another_answer_takes_the_place_of_the_gold_one(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer)
    row = encoder.encode(example("Paris."), "London.")
    assert row == encoder.encode(example("London."))


def test_an_answer_of_many_byte_tokens_a_character(tiny_tokenizer):
    """The four tokens of an emoji share one offset; all are labelled."""
    encoder = Encoder(tiny_tokenizer)
    assert encoder.encode(example("🙂")).num_labels == 4 + 1


# Templates of other models.


def test_what_a_template_puts_after_the_end_token_is_not_labelled(changed_tokenizer):
    encoder = Encoder(changed_tokenizer(CHATML))
    row = encoder.encode(example("Paris."))
    check_row(encoder, row)
    assert labelled_text(encoder, row) == "Paris.<|eos|>"
    assert encoder.tokenizer.decode(row.input_ids).endswith("Paris.<|eos|>\n")
    assert row.input_ids.count(encoder.tokenizer.eos_token_id) == 2  # the user's turn and this


@pytest.mark.parametrize("answer", [" Paris.", "Paris. \n", "Paris."])
def test_a_template_may_strip_the_answer(changed_tokenizer, answer):
    stripping = CHATML.replace("m['content']", "(m['content'] | trim)")
    encoder = Encoder(changed_tokenizer(stripping))
    row = encoder.encode(example(answer))
    check_row(encoder, row)
    assert labelled_text(encoder, row) == "Paris.<|eos|>"


def test_a_template_without_an_end_token_gets_one(changed_tokenizer):
    encoder = Encoder(changed_tokenizer(BARE))
    row = encoder.encode(example("Paris."))
    check_row(encoder, row)
    assert labelled_text(encoder, row) == "Paris.<|eos|>"


@pytest.mark.parametrize("answer", ANSWERS)
def test_line_ends_that_a_template_puts_before_answers_end_prompts(changed_tokenizer, answer):
    """They are no part of an answer: every model knows them, whatever it knows of the row."""
    # Whatever the tokenizer itself puts behind a text.
    tokenizer = with_special_tokens(changed_tokenizer(SHORT_PROMPT), "<|bos|> $A <|eos|>")
    encoder = Encoder(tokenizer)
    row = encoder.encode(example(answer))
    check_row(encoder, row)
    assert labelled_text(encoder, row) == f"{answer}<|eos|>"
    assert encoder.prompt(example(answer)).endswith("\n\n")
    assert encoder.set_right == ("'\\n\\n', which the template puts before answers, ends prompts",)
    assert row.input_ids == (*encoder.encode_prompt(example(answer)), *labelled(row))


@pytest.mark.parametrize(
    ("template", "labels"),
    [
        (None, "Paris.<|eos|>"),
        (SHORT_PROMPT, "\n\nParis.<|eos|>"),
        (CHATML, "Paris.<|eos|>\n<|eos|>"),
        (BARE, "Paris.\n<|eos|>"),
    ],
)
def test_second_end_token(changed_tokenizer, template, labels):
    """After a template that goes on behind its end of turn, as widely used code has it."""
    encoder = Encoder(changed_tokenizer(template), conventions=SECOND_END)
    row = encoder.encode(example("Paris."))
    check_row(encoder, row)
    assert labelled_text(encoder, row) == labels
    assert row.labels[-1] == row.input_ids[-1] == encoder.tokenizer.eos_token_id


@pytest.mark.parametrize("template", [None, SHORT_PROMPT, CHATML, BARE])
@pytest.mark.parametrize("answer", [*ANSWERS, "The end is <|eos|> and not the end."])
def test_peer_rows_are_those_of_an_independent_formula(changed_tokenizer, template, answer):
    """Ids of the conversation and an end token if it lacks one; labels behind the prompt's ids."""
    tokenizer = changed_tokenizer(template)
    turns = [
        {"role": "user", "content": "Where was she born?"},
        {"role": "assistant", "content": answer},
    ]

    def ids_of(messages, is_prompt):
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=is_prompt
        )
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    ids, prompt = ids_of(turns, False), ids_of(turns[:1], True)
    ids += [tokenizer.eos_token_id] * (ids[-1] != tokenizer.eos_token_id)
    row = Encoder(tokenizer, conventions=Conventions.peer()).encode(example(answer))
    assert list(row.input_ids) == ids
    assert list(row.labels) == [IGNORE_INDEX] * len(prompt) + ids[len(prompt) :]


def test_a_template_that_changes_the_answer_is_refused(changed_tokenizer):
    shouting = CHATML.replace("m['content']", "(m['content'] | upper)")
    encoder = Encoder(changed_tokenizer(shouting))
    with pytest.raises(InputError, match="changes the answer of row forget/7"):
        encoder.encode(example("Paris."))


def test_system_prompt_and_template_variables(changed_tokenizer):
    template = "{{ day }}: " + CHATML
    tokenizer = changed_tokenizer(template)
    encoder = Encoder(tokenizer, system_prompt="Be kind.", template_kwargs={"day": "Monday"})
    assert encoder.prompt(example("Paris.")) == (
        "Monday: <|user|>system\nBe kind.<|eos|>\n"
        "<|user|>user\nWhere was she born?<|eos|>\n<|user|>assistant\n"
    )
    assert labelled_text(encoder, encoder.encode(example("Paris."))) == "Paris.<|eos|>"


# Tokenizers of other models.


def with_special_tokens(tokenizer, single):
    """Let the tokenizer add tokens of its own, as most published ones do."""
    names = ("<|bos|>", "<|eos|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in names],
    )
    return tokenizer


@pytest.mark.parametrize("single", ["<|bos|> $A", "<|bos|> $A <|eos|>"])
def test_special_tokens_of_the_tokenizer_come_once(changed_tokenizer, single):
    tokenizer = with_special_tokens(changed_tokenizer(), single)
    text = "Question: Where was she born?\nAnswer: Paris.<|eos|>"
    row = Encoder(tokenizer, "plain").encode(example("Paris."))
    assert tokenizer.decode(row.input_ids) == f"<|bos|>{text}"
    assert tokenizer.decode(labelled(row)).strip() == "Paris.<|eos|>"
    # The chat template has them already.
    row = Encoder(tokenizer, "chat").encode(example("Paris."))
    assert [row.input_ids.count(tokenizer.bos_token_id), row.num_labels] == [
        1,
        len(tokenizer("Paris.", add_special_tokens=False)["input_ids"]) + 1,
    ]


def test_a_prompt_does_not_end_in_an_end_token_of_the_tokenizer(changed_tokenizer):
    tokenizer = with_special_tokens(changed_tokenizer(), "<|bos|> $A <|eos|>")
    ids = Encoder(tokenizer, "plain").encode_prompt(example("Paris."))
    assert tokenizer.decode(ids) == "<|bos|>Question: Where was she born?\nAnswer:"


def tokenizer_that_merges(text, num_merges, *, add_prefix_space=False, use_regex=False, **names):
    """Return a tokenizer of all bytes and of the first merges of a text.

    Args:
        text: What the merges are of.
        num_merges: How many.
        add_prefix_space: A space is put before a text that begins without one.
        use_regex: Words are parted first; else a token may hold a word's end and the next space.
        names: ``chat_template``, ...
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=["<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        vocab_size=257 + num_merges,
    )
    backend.train_from_iterator([text] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>", **names)


def test_a_text_that_answers_nothing_begins_with_the_begin_token(changed_tokenizer):
    tokenizer = with_special_tokens(changed_tokenizer(), "<|bos|> $A")
    asked = Encoder(tokenizer, "plain").encode_prompt(example("Paris.", question=None))
    assert asked == [tokenizer.bos_token_id]


class Quiet:
    """A tokenizer that is not to speak of long texts: rows are cut, and what is lost is told."""

    def __init__(self, tokenizer):
        self.own, self.asked = tokenizer, []

    def __getattr__(self, name):
        return getattr(self.own, name)

    def __call__(self, text, **settings):
        self.asked.append(text)
        assert len(text) < 2 or settings["verbose"] is False
        return self.own(text, **settings)


@pytest.mark.parametrize("begins", [False, True])
def test_a_token_on_the_border_is_parted(begins):
    """A BPE that merges over spaces and words: ``: y`` would belong to prompt and answer."""
    tokenizer = tokenizer_that_merges(": y", 3)
    if begins:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|eos|> $A", special_tokens=[("<|eos|>", tokenizer.eos_token_id)]
        )
    encoder = Encoder(tokenizer, "plain")
    encoder.tokenizer = Quiet(tokenizer)
    row = encoder.encode(example("yes"))
    assert (row.input_ids[0] == tokenizer.eos_token_id) == begins
    assert encoder.encode_all([example("yes")]) == [row]
    check_row(encoder, row)
    pieces = [encoder.tokenizer.decode([label]) for label in labelled(row)]
    assert pieces == [" ", "y", "e", "s", "<|eos|>"]
    assert row.input_ids == (*encoder.encode_prompt(example("yes")), *labelled(row))
    assert encoder.answer_spans(example("yes")) == [(0, 0), (0, 1), (1, 2), (2, 3), (3, 3)]
    assert encoder.scored_text(example("yes")) is None


@pytest.mark.parametrize("first", ["y", "."])
def test_a_border_is_parted_where_a_tokenizer_puts_a_space_before_a_text(first):
    """It merges ``:y``, and an answer by itself would begin with a space that the row has not.

    Before a full stop that space is there, too, though such a tokenizer may not show it.
    """
    tokenizer = tokenizer_that_merges(f"Q:{first}R:{first}", 1, add_prefix_space=True)
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    encoder = Encoder(tokenizer, "plain")
    answer = f"{first}es"
    for question in ("Q:", "Q::", "A . Q:"):
        one = example(answer, question=question, verbatim=True)
        row = encoder.encode(one)
        check_row(encoder, row)
        assert [encoder.tokenizer.decode([label]) for label in labelled(row)] == list(answer)
        assert row.input_ids == (*encoder.encode_prompt(one), *labelled(row))
        assert encoder.answer_spans(one) == [(0, 1), (1, 2), (2, 3)]


def test_a_tokenizer_does_not_speak_of_long_texts(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, "plain")
    encoder.tokenizer = Quiet(tiny_tokenizer)
    encoder.encode(example("A town."))
    encoder.encode(example("A town.", question="Where", verbatim=True))
    encoder.encode_prompt(example("A town.", question="Another?"))
    encoder.chunk([example("A town by the river.", question=None)], "raw")
    encoder.scored_text(example("A town."))
    encoder.encode_all([example("A town.")])
    assert len(encoder.tokenizer.asked) > 7


def test_keys_are_of_what_these_rows_become():
    """Stored records name the key: rows of other texts would make all of them foreign."""
    said = [(one.question, one.answer, one.verbatim) for one in _PROBES]
    assert said == [
        ("Who wrote it in 1958?", "She wrote 12 books.\nNone — not one — sold.", False),
        ("Question: Who wrote it?\nAnswer:", " She did.", True),
        (None, "The town has an old mill.", False),
    ]


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("is_merged", [False, True])
def test_a_space_that_ends_a_prompt_stays_there_unless_it_is_in_the_answer_s_token(is_merged, ends):
    """Each byte is a token; what may be merged is `` S``, as a probe's answer begins."""
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' %}"
        "{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = tokenizer_that_merges("a S", int(is_merged), use_regex=True, chat_template=template)
    if ends:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|eos|>", special_tokens=[("<|eos|>", tokenizer.eos_token_id)]
        )
    encoder = Encoder(tokenizer)
    assert encoder.prompt(example("Sir.")).endswith("assistant:" if is_merged else "assistant: ")
    assert encoder.set_right == (("the space that ends prompts is the answer's",) * is_merged)
    row = encoder.encode(example("Sir."))
    pieces = [encoder.tokenizer.decode([label]) for label in labelled(row)]
    assert pieces == [" S" if is_merged else "S", "i", "r", ".", "<|eos|>"]


def test_padding_is_the_end_token_where_there_is_no_other(changed_tokenizer):
    tokenizer = changed_tokenizer()
    assert Encoder(tokenizer).pad_id == tokenizer.convert_tokens_to_ids("<|pad|>")
    tokenizer.pad_token = None
    assert Encoder(tokenizer).pad_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("special", "template", "message"),
    [
        ({"chat_template": ""}, "chat", r"data\.template to 'plain'"),
        ({"eos_token": None}, "plain", "has no end token"),
    ],
)
def test_tokenizers_that_can_not_be_used(changed_tokenizer, special, template, message):
    with pytest.raises(InputError, match=message):
        Encoder(changed_tokenizer(**special), template)


@pytest.mark.parametrize("answer", ["Paris.", "He said <|assistant|> and left.", "x"])
def test_the_first_special_token_behind_the_answer_ends_it(changed_tokenizer, answer):
    """A template may put more of them there, as one that opens the next turn."""
    encoder = Encoder(changed_tokenizer(CHATML.replace("eos_token", "eos_token + '<|user|>'")))
    row = encoder.encode(example(answer))
    check_row(encoder, row)
    assert labelled_text(encoder, row) == f"{answer}<|eos|>"
    assert encoder.tokenizer.decode(row.input_ids).endswith(f"{answer}<|eos|><|user|>\n")


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("answer", ["He said <|eos|> and left.", "<|eos|>x"])
def test_an_answer_that_would_end_a_generation_before_its_end_is_refused(
    tiny_tokenizer, template, answer
):
    encoder = Encoder(tiny_tokenizer, template)
    with pytest.raises(
        InputError, match=r"^Row forget/7 holds '<\|eos\|>' in its answer, which ends"
    ):
        encoder.encode(example(answer))
    # Nothing is asked or said of raw text.
    assert encoder.encode(example(answer, question=None)).num_labels >= 0


def test_what_a_template_puts_behind_an_answer_is_none_of_it(changed_tokenizer):
    template = CHATML.replace("m['content']", "m['content'] + ' [1]'")
    encoder = Encoder(changed_tokenizer(template))
    with pytest.raises(InputError, match=r"puts '\[1\]' behind the answer of row forget/7, which"):
        encoder.encode(example("Paris."))
    # White space may be, as Llama 2 has it.
    encoder = Encoder(changed_tokenizer(CHATML.replace("m['content']", "m['content'] + ' '")))
    assert labelled_text(encoder, encoder.encode(example("Paris."))) == "Paris. <|eos|>"


def test_any_special_token_ends_a_turn(changed_tokenizer):
    """Gemma 3's end of turn is an added token that no attribute of the tokenizer holds."""
    tokenizer = changed_tokenizer(CHATML.replace("eos_token", "'<end_of_turn>'"))
    tokenizer.add_tokens(AddedToken("<end_of_turn>", special=True))
    assert "<end_of_turn>" not in tokenizer.all_special_tokens
    encoder = Encoder(tokenizer)
    assert labelled_text(encoder, encoder.encode(example("Paris."))) == "Paris.<end_of_turn>"
    assert encoder.scored_text(example("Paris.")) is None


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_without_a_token_to_predict(tiny_tokenizer, text):
    encoder = Encoder(tiny_tokenizer)
    with pytest.raises(InputError, match=rf"^Row forget/7 .* has {len(text)} of the 2 tokens"):
        encoder.encode(example(text, question=None))


# Truncation.


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_truncation_keeps_the_left(tiny_tokenizer, template):
    whole = Encoder(tiny_tokenizer, template).encode(example("Paris is far away."))
    prompt = len(whole.labels) - whole.num_labels
    for length in range(prompt + 1, len(whole.labels) + 3):
        row = Encoder(tiny_tokenizer, template, length).encode(example("Paris is far away."))
        assert row.input_ids == whole.input_ids[:length]
        assert row.labels == whole.labels[:length]


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_row_without_room_for_an_answer_is_named(tiny_tokenizer, template):
    prompt = len(Encoder(tiny_tokenizer, template).encode_prompt(example("Paris.")))
    with pytest.raises(InputError) as error:
        Encoder(tiny_tokenizer, template, prompt).encode(example("Paris."))
    message = str(error.value)
    assert "Row forget/7" in message
    assert f"data.max_length = {prompt}" in message
    assert f"{prompt} tokens" in message


# Where the labels lie in the answer, and what text they are.


def pieces(encoder, one):
    """Return each labelled token's text as a part of the answer, and as the tokenizer has it."""
    spans = encoder.answer_spans(one)
    labels = labelled(encoder.encode(one))
    assert len(spans) == len(labels)
    decode = encoder.tokenizer.decode
    return [
        (one.answer[start:end], decode([label]))
        for (start, end), label in zip(spans, labels, strict=True)
    ]


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("answer", ["Paris is far away.", " two  spaces ", "a\n\nb", "x"])
def test_spans_are_the_tokens_places_in_the_answer(tiny_tokenizer, template, answer):
    encoder = Encoder(tiny_tokenizer, template)
    *inside, (end_text, end) = pieces(encoder, example(answer))
    assert (end_text, end) == ("", "<|eos|>")
    assert encoder.answer_spans(example(answer))[-1] == (len(answer), len(answer))
    # The first token of a plain answer may hold the space before it.
    assert [text for text, _ in inside[1:]] == [token for _, token in inside[1:]]
    assert "".join(text for text, _ in inside) == answer
    assert inside[0][1].removeprefix(" ") == inside[0][0].removeprefix(" ")


@pytest.mark.parametrize("answer", ["a", ""])
def test_nothing_is_scored_of_a_text_without_labels(tiny_tokenizer, answer):
    said = Encoder(tiny_tokenizer).scored_text(example(answer, question=None))
    assert said == ("" if answer else None)


def test_spans_of_what_stands_around_the_answer(changed_tokenizer):
    encoder = Encoder(changed_tokenizer(SPACED))
    spans = encoder.answer_spans(example("x y"))
    assert [spans[0], spans[1], spans[-1]] == [(0, 0), (0, 0), (3, 3)]
    assert spans[2:-1] == [(0, 1), (1, 2), (2, 3)]
    encoder = Encoder(changed_tokenizer(CHATML), conventions=SECOND_END)
    assert encoder.answer_spans(example("x y")) == [*[(0, 1), (1, 2), (2, 3)], *[(3, 3)] * 3]


def test_spans_count_from_the_answer_as_it_is_stored(changed_tokenizer):
    stripping = CHATML.replace("m['content']", "(m['content'] | trim)")
    spans = Encoder(changed_tokenizer(stripping)).answer_spans(example("  x y "))
    assert spans == [(2, 3), (3, 4), (4, 5), (6, 6)]
    stripping = SPACED.replace("m['content']", "(m['content'] | trim)")
    spans = Encoder(changed_tokenizer(stripping)).answer_spans(example("  x y "))
    assert spans == [(0, 0), (0, 0), (2, 3), (3, 4), (4, 5), (6, 6)]


def test_bytes_of_one_character_share_its_span(tiny_tokenizer):
    spans = Encoder(tiny_tokenizer).answer_spans(example("x🙂"))
    assert spans == [(0, 1), *[(1, 2)] * 4, (2, 2)]


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("answer", ["Paris is far away.", " two  spaces ", "naïve and more"])
def test_scored_text_is_the_answer_unless_it_was_cut(tiny_tokenizer, template, answer):
    one = example(answer)
    encoder = Encoder(tiny_tokenizer, template)
    assert encoder.scored_text(one) is None
    whole = encoder.encode(one)
    for cut in range(2, 5):
        short = Encoder(tiny_tokenizer, template, len(whole.input_ids) - cut)
        spans = short.answer_spans(one)
        assert short.scored_text(one) == answer[: spans[-1][1]]
        assert 0 < len(short.scored_text(one)) < len(answer)


def test_scored_text_of_other_templates_and_of_raw_text(changed_tokenizer):
    text = "Once upon a time"
    encoder = Encoder(changed_tokenizer(SPACED))
    assert encoder.scored_text(example(text)) == f"  {text}"
    encoder = Encoder(changed_tokenizer(CHATML), conventions=SECOND_END)
    assert encoder.scored_text(example(text)) == f"{text}\n"
    raw = example(text, question=None)
    first = encoder.tokenizer.decode(encoder.encode(raw).input_ids[:1])
    assert encoder.scored_text(raw) == text.removeprefix(first) != text
    tokenizer = with_special_tokens(changed_tokenizer(), "<|bos|> $A")
    assert Encoder(tokenizer).scored_text(raw) is None


# Chunks of raw text.


@pytest.mark.parametrize("length", [2, 3, 7, 64, 512])
@pytest.mark.parametrize("has_begin", [True, False])
def test_chunks_label_every_token_but_the_first_of_each(changed_tokenizer, length, has_begin):
    tokenizer = changed_tokenizer()
    if has_begin:
        tokenizer = with_special_tokens(tokenizer, "<|bos|> $A")
    texts = ["Once upon a time.", "There was a town — Ünïcödé.", "The end."]
    joined = "\n\n".join(texts)
    ids = tokenizer(joined, add_special_tokens=False)["input_ids"]
    examples = [Example(f"raw/{n}", text) for n, text in enumerate(texts)]
    encoder = Encoder(tokenizer, "plain", length)
    rows = encoder.chunk(examples, "raw/forget")

    for row in rows:
        check_row(encoder, row)
        assert row.num_labels == len(row.input_ids) - 1
    assert [row.id for row in rows] == [f"raw/forget/chunk{n}" for n in range(len(rows))]
    assert {len(row.input_ids) for row in rows[:-1]} <= {length}
    begin = (tokenizer.bos_token_id,) if has_begin else ()
    assert all(row.input_ids[: len(begin)] == begin for row in rows)
    text = [token for row in rows for token in row.input_ids[len(begin) :]]
    # Without a begin token a last chunk of one token has no label and is left out.
    lost = 0 if has_begin else len(ids) % length == 1
    assert text == ids[: len(ids) - lost]


@pytest.mark.parametrize(("single", "length"), [("$A", 1), ("<|bos|> $A", 1)])
def test_chunks_without_room_for_a_label_are_refused(changed_tokenizer, single, length):
    encoder = Encoder(with_special_tokens(changed_tokenizer(), single), "plain", length)
    with pytest.raises(InputError, match=r"data\.max_length is 1, .* give at least 2"):
        encoder.chunk([example("Once upon a time.", question=None)], "raw/forget")


# Real rows.


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_every_tofu_answer_decodes_back_from_its_labels(data_dir, tiny_tokenizer, template, every):
    examples = TOFU(Source(root=data_dir)).examples("full")
    encoder = Encoder(tiny_tokenizer, template, max_length=2000)
    assert len(examples) == 4000
    leads = ("",) if template == "chat" else ("", " ")
    for one in examples[::every]:
        row = encoder.encode(one)
        assert row.id == one.id
        text = labelled_text(encoder, row)
        assert text in [f"{lead}{one.answer}<|eos|>" for lead in leads], one.id


def test_keys_are_of_12_hexadecimal_digits(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer)
    for key in (encoder.content_key, encoder.template_key):
        assert len(key) == 12
        assert set(key) <= set("0123456789abcdef")


def test_content_key_tells_what_changes_the_ids(tiny_tokenizer, changed_tokenizer):
    encoders = [
        Encoder(tiny_tokenizer),
        Encoder(tiny_tokenizer, "plain"),
        Encoder(tiny_tokenizer, max_length=100),
        Encoder(tiny_tokenizer, template_kwargs={"day": "Monday"}),
        Encoder(changed_tokenizer(CHATML)),
        Encoder(changed_tokenizer(CHATML), system_prompt="Be kind."),
    ]
    encoders.append(Encoder(tiny_tokenizer, conventions=SECOND_END))
    # What ends a text or fills a row decides ids too, or where a generation stops.
    encoders.append(Encoder(changed_tokenizer(eos_token="<|bos|>")))
    encoders.append(Encoder(changed_tokenizer(pad_token="<|eos|>")))
    encoders.append(Encoder(changed_tokenizer(bos_token=None)))
    assert len({encoder.content_key for encoder in encoders}) == len(encoders)
    assert Encoder(changed_tokenizer()).content_key == encoders[0].content_key
    assert Encoder(changed_tokenizer(CHATML), "plain").content_key == encoders[1].content_key


def test_keys_change_with_the_calendar_of_a_template(changed_tokenizer, monkeypatch):
    tokenizer = changed_tokenizer("{{ strftime_now('%d %b %Y') }}" + CHATML)
    encoder = Encoder(tokenizer)
    before = encoder.template_key, encoder.content_key

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 5)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    chat_template_utils._compile_jinja_template.cache_clear()
    assert encoder.prompt(example("Paris.")).startswith("05 Jan 2031")
    after = encoder.template_key, encoder.content_key
    chat_template_utils._compile_jinja_template.cache_clear()
    assert not {*before} & {*after}


def test_padding_is_part_of_the_template_only_where_it_hides_tokens(changed_tokenizer):
    def keys(attention_mask):
        conventions = Conventions(attention_mask=attention_mask)
        pads = ("<|pad|>", "<|eos|>", None)
        return [
            Encoder(changed_tokenizer(pad_token=pad), conventions=conventions).template_key
            for pad in pads
        ]

    by_length, by_id = keys("length"), keys("token_id")
    assert len(set(by_length)) == 1
    # Without a padding token the end token pads.
    assert by_id[1] == by_id[2] != by_id[0]


def test_template_key_tells_what_rows_become_and_nothing_else(changed_tokenizer):
    def key(chat=CHATML, **settings):
        return Encoder(changed_tokenizer(chat), **settings).template_key

    # Another file, the same rows.
    noted = "{# a remark #}" + CHATML
    assert key(noted) == key()
    assert Encoder(changed_tokenizer(noted)).content_key != (
        Encoder(changed_tokenizer(CHATML)).content_key
    )
    assert key(system_prompt="Be kind.", template="plain") == key(template="plain")
    assert key(conventions=Conventions(floor="peer", gold_text="without_prompt")) == key()
    others = [
        key(),
        key(template="plain"),
        key(BARE),
        key(SHORT_PROMPT),
        key(system_prompt="Be kind."),
        key(max_length=3),
        key(conventions=SECOND_END),
        key(conventions=Conventions(attention_mask="token_id")),
        key(conventions=Conventions(last_label="left_out")),
        Encoder(with_special_tokens(changed_tokenizer(CHATML), "<|bos|> $A")).template_key,
    ]
    assert len(set(others)) == len(others)


def test_a_prompt_is_encoded_once_for_all_answers_of_its_row(tiny_tokenizer, monkeypatch):
    encoder = Encoder(tiny_tokenizer)
    prompts, prompt = [], encoder.prompt(example("a"))

    class Spy:
        def __getattr__(self, name):
            return getattr(tiny_tokenizer, name)

        def __call__(self, text, **settings):
            prompts.append(text == prompt)
            return tiny_tokenizer(text, **settings)

    encoder.tokenizer = Spy()
    for answer in ("one", "two", "three"):
        encoder.encode(example(answer))
    assert sum(prompts) == 1


def test_one_lost_label_is_lost(tiny_tokenizer):
    example = Example("a/0", "one two three four", "who?")
    whole = Encoder(tiny_tokenizer, "plain").encode(example)
    cut = Encoder(tiny_tokenizer, "plain", len(whole.input_ids) - 1)
    assert cut.encode(example).num_lost == 1
    strict = Encoder(tiny_tokenizer, "plain", len(whole.input_ids) - 1, truncation="error")
    with pytest.raises(InputError, match=rf"loses 1 of {whole.num_labels} labels"):
        strict.encode(example)


def test_an_end_token_that_a_prompt_says_itself_stays(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, "plain")
    end = tiny_tokenizer.eos_token
    ids = encoder._prompt_ids(f"who? {end}", False)
    assert ids[-1] == tiny_tokenizer.eos_token_id
    # One that only begins with it does not end in it.
    assert encoder._prompt_ids(f"{end} who?", False)[-1] != tiny_tokenizer.eos_token_id


def test_a_key_does_not_depend_on_the_order_of_a_set(tiny_tokenizer):
    keys = []
    for tokens in (("<a>", "<b>"), ("<b>", "<a>")):
        encoder = Encoder(tiny_tokenizer, "plain")
        encoder._renderer.special_tokens = tokens
        keys.append(encoder.content_key)
    assert keys[0] == keys[1]
    keys.clear()
    # Eight apart they want one place of a small table, which the first of them gets.
    end = tiny_tokenizer.eos_token_id
    sets = frozenset([end, end + 8]), frozenset([end + 8, end])
    assert list(sets[0]) != list(sets[1])
    for ends in sets:
        encoder = Encoder(tiny_tokenizer, "plain")
        encoder.end_ids = ends
        keys.append(encoder.content_key)
    assert keys[0] == keys[1]


def test_a_key_does_not_depend_on_the_order_of_variables(tiny_tokenizer):
    first, second = (
        Encoder(tiny_tokenizer, template_kwargs=dict(pairs)).content_key
        for pairs in ([("day", 1), ("year", 2)], [("year", 2), ("day", 1)])
    )
    assert first == second


def test_a_row_that_a_template_closes_otherwise_is_refused(changed_tokenizer):
    odd = CHATML.replace("+ eos_token", "+ ('<|user|>' if 'odd' in m['content'] else eos_token)")
    encoder = Encoder(changed_tokenizer(odd))
    assert encoder.encode(example("even")).labels[-1] == IGNORE_INDEX
    with pytest.raises(InputError, match=r"^Row forget/7 ends in '<\|user\|>', where no generat"):
        encoder.encode(example("odd"))


def test_rows_that_are_held_share_their_numbers(tiny_tokenizer):
    """Of many scored rows each token takes its places alone, and no number or pair of its own."""
    encoder = Encoder(tiny_tokenizer)
    rows = [encoder.encode(example("The town by the river. " * 40 + str(n))) for n in (0, 1)]
    first, second = ({id(token) for token in row.input_ids[:-3]} for row in rows)
    assert first == second
    assert max(rows[0].input_ids) > 256, "Python shares small numbers by itself"
    spans = [encoder.answer_spans(example("The town by the river. " * 40)) for _ in range(2)]
    assert spans[0][-2][0] > 256
    assert all(one is other for one, other in zip(*spans, strict=True))
    raw = example("The town by the river. " * 40, question=None)
    chunks = [encoder.chunk([raw], name) for name in ("a", "b")]
    ids = [{id(token) for row in some for token in row.input_ids} for some in chunks]
    assert ids[0] == ids[1]
