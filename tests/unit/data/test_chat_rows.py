"""Labels of chats of several turns, against the template's own account of them."""

import pytest
from transformers import AutoTokenizer

from etw_lightning.benchmarks.chat import read_chat, turn_by_turn
from etw_lightning.data.encode import Encoder
from etw_lightning.data.marks import mark_rows
from etw_lightning.data.streams import StreamSettings, second_answers
from etw_lightning.schema import IGNORE_INDEX, EvalSet, Example, InputError
from etw_lightning.scoring.cache.keys import rows_hash

WORDS = ("Who wrote it?", "Nobody.\nAt all.", "When, then?", " In 1958 ", "Where?", "Nobody.")
#: ChatML, which says itself which tokens are the assistant's.
CHATML = (
    "{% for m in messages %}{{ '<|user|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}"
    "{% endgeneration %}{% else %}{{ m['content'] + eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"
)
#: Strips texts, and has spaces for newlines.
SPACED = (
    "{{ '<|user|>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endgeneration %}{% else %}"
    "{{ '[' + m['role'] + '] ' + m['content'] | trim + ' [/]' }}{% endif %}{% endfor %}"
)
#: Puts a text behind the last turn, which is not there once another one follows.
CLOSED = CHATML + "{% if not add_generation_prompt %}(closed){% endif %}"
#: Shows an assistant's turn otherwise once another one follows, as templates that drop thoughts do.
FORGETFUL = (
    "{% for m in messages %}{{ '<|user|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<t>\n\n</t>' }}{% endif %}"
    "{{ m['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"
)
#: Has a space behind an assistant's turn until another one follows.
OPEN = CHATML.replace(
    "{% generation %}{{ m['content'] +",
    "{% generation %}{{ m['content'] + (' ' if loop.last else '') +",
)
#: Puts the number of turns in front, so that no prompt is the beginning of what follows.
COUNTING = "{{ messages | length }} " + CHATML
#: Ends no turn with a token of its own.
BARE = (
    "{% for m in messages %}{{ m['role'] + ':\n' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)


def chat(*words, which="all", system=None):
    messages = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    messages += [{"role": roles[n % 2], "content": word} for n, word in enumerate(words)]
    return read_chat({"messages": messages}, "mine/0", which=which), messages


@pytest.fixture
def encoder_of(tokenizer_dir):
    def make(chat_template, **settings):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
        tokenizer.chat_template = chat_template
        return Encoder(tokenizer, **settings)

    return make


def labelled(row):
    return [label for label in row.labels if label != IGNORE_INDEX]


@pytest.mark.parametrize("system", [None, "Be short."])
@pytest.mark.parametrize("template", [CHATML, SPACED, CLOSED])
def test_labels_are_the_tokens_that_the_template_calls_the_assistants(encoder_of, template, system):
    encoder = encoder_of(template)
    example, messages = chat(*WORDS, system=system)
    row = encoder.encode(example)
    own = encoder.tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    assert list(row.input_ids) == own["input_ids"][: len(row.input_ids)]
    mask = own["assistant_masks"]
    assert [label != IGNORE_INDEX for label in row.labels] == [bool(one) for one in mask][
        : len(row.labels)
    ]
    assert not any(mask[len(row.labels) :])
    assert sum(mask) == row.num_labels > 10
    # The last turn alone is the end of that.
    (last, _) = chat(*WORDS, which="last", system=system)
    tail = labelled(encoder.encode(last))
    assert 0 < len(tail) < row.num_labels
    assert labelled(row)[-len(tail) :] == tail


@pytest.mark.parametrize("template", [CHATML, SPACED])
def test_each_turn_is_labelled_as_if_it_were_the_last(encoder_of, template):
    encoder = encoder_of(template)
    example, _ = chat(*WORDS)
    parts = turn_by_turn(example)
    assert len(parts) == 3
    rows = [encoder.encode(part) for part in parts]
    assert labelled(encoder.encode(example)) == [one for row in rows for one in labelled(row)]
    whole = encoder.encode(example).input_ids
    for part, row in zip(parts, rows, strict=True):
        prompt = encoder.encode_prompt(part)
        # What is asked, then what is labelled, is the beginning of the whole row.
        assert whole[: len(prompt) + row.num_labels] == (*prompt, *labelled(row))


def test_system_prompt_stands_before_rows_that_have_none(encoder_of):
    encoder = encoder_of(CHATML, system_prompt="Ours.")
    for own, shown in ((None, "Ours."), ("Theirs.", "Theirs.")):
        example, _ = chat(*WORDS, system=own)
        text = encoder.tokenizer.decode(encoder.encode(example).input_ids)
        assert text.startswith(f"<|user|>system\n{shown}")
        assert text.count("system\n") == 1


@pytest.mark.parametrize(
    ("template", "which", "said"),
    [
        (FORGETFUL, "all", "shows message 1 of row mine/0, or what comes before it, in another"),
        (OPEN, "all", "shows message 1 of row mine/0"),
        (COUNTING, "last", "shows message 5 of row mine/0, or what comes before it, in another"),
        (COUNTING, "all", "shows message 1 of row mine/0"),
        (BARE, "all", "puts no special token behind an assistant's turn"),
    ],
)
@pytest.mark.parametrize("prompt", [None, "Ours."])
def test_templates_without_the_property_are_refused(encoder_of, template, which, said, prompt):
    example, _ = chat(*WORDS, which=which)
    with pytest.raises(InputError) as error:
        encoder_of(template, system_prompt=prompt).encode(example)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_turn_that_holds_an_end_is_refused_wherever_it_stands(encoder_of):
    for place in (1, 3, 5):
        words = [*WORDS]
        words[place] = "No<|eos|>body."
        with pytest.raises(InputError, match=r"^Row mine/0 holds '<\|eos\|>' in its answer"):
            encoder_of(CHATML).encode(chat(*words)[0])


def test_such_templates_serve_where_one_turn_is_labelled(encoder_of):
    for template in (FORGETFUL, BARE):
        encoder = encoder_of(template)
        (example, _) = chat(*WORDS, which="last")
        row = encoder.encode(example)
        assert encoder.tokenizer.decode(labelled(row)).endswith("Nobody.<|eos|>")
        prompt = encoder.encode_prompt(example)
        assert list(row.input_ids[: len(prompt)]) == prompt


def test_what_has_no_form_for_turns_is_refused(encoder_of):
    (example, _), (plain, _) = chat(*WORDS), chat("q", "a")
    with pytest.raises(InputError, match=r"data\.template is 'plain'.*row mine/0"):
        encoder_of(CHATML, template="plain").encode(example)
    assert encoder_of(CHATML, template="plain").encode(plain).num_labels
    encoder = encoder_of(CHATML)
    with pytest.raises(InputError, match=r"data\.which_turns is 'all', but model\.forget"):
        second_answers([example], encoder, StreamSettings(alternative="refusal"))
    with pytest.raises(InputError, match=r"data\.which_turns is 'all', but words are marked"):
        mark_rows([example], [encoder.encode(example)], encoder, annotations="none.jsonl")


def test_rows_are_told_apart_by_their_turns_and_others_keep_their_hash():
    plain = Example("a/0", "answer", "question")
    before, _ = chat("x", "y", "question", "answer")
    hashes = {
        rows_hash(EvalSet("forget", (one,))) for one in (plain, before, turn_by_turn(before)[1])
    }
    assert len(hashes) == 3
    # As earlier versions wrote it.
    assert rows_hash(EvalSet("forget", (plain,))) == "d5f29c88f4ff5b91419d1425"
