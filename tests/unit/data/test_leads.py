"""Rows whose answer is given to begin with something: it is shown, and never labelled."""

import pytest
from chat_templates import FAMILIES, encoder_of
from refusals import message

from etw_lightning.benchmarks.r_tofu import thinking
from etw_lightning.data.encode import Encoder
from etw_lightning.data.encode_many import encode_each
from etw_lightning.data.kept_rows import _hashed
from etw_lightning.data.streams import StreamSettings, second_answers
from etw_lightning.schema import IGNORE_INDEX, EvalSet, Example
from etw_lightning.scoring.cache.keys import rows_hash
from etw_lightning.scoring.provenance import texts_hashes

#: White space at borders, which templates take off answers that they get to see.
PLAIN = Example("f/0", " He is Basil.", "Who?")
TRACE = "Let me see.\n\nBasil. "
#: Part to what is given of it and what is labelled.
PARTS = {
    "both": ("<think>\n", "Let me see.\n\nBasil. \n</think>\n\n He is Basil."),
    "trace": ("<think>\n", "Let me see.\n\nBasil. "),
    "answer": ("<think>\nLet me see.\n\nBasil. \n</think>\n\n", " He is Basil."),
}
#: Templates of models that think: they end prompts in a thought or take thoughts out of answers.
THINKERS = ["DeepSeek-R1 distilled", "Qwen 3", "Qwen 3, told to think", "Qwen 3, thinking only",
            "SmolLM3", "OLMo 3, thinking"]  # fmt: skip
OTHERS = ["Llama 2", "Llama 3.1", "Mistral v1", "SmolLM2", "Gemma 2"]


def said(encoder, row):
    return encoder.tokenizer.decode([one for one in row.labels if one != IGNORE_INDEX])


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", THINKERS + OTHERS)
def test_a_part_is_labelled_behind_what_it_is_given(tmp_path, name, part):
    encoder = encoder_of(FAMILIES[name], tmp_path, thinks=True)
    example, (lead, labelled) = thinking(PLAIN, TRACE, part), PARTS[part]
    prompt, row = encoder.prompt(example), encoder.encode(example)
    assert prompt.endswith(lead)
    assert prompt.count("<think>") == 1
    ids = encoder.encode_prompt(example)
    assert tuple(ids) == row.input_ids[: len(ids)]
    assert set(row.labels[: len(ids)]) == {IGNORE_INDEX}
    text = said(encoder, row)
    assert text.startswith(labelled)
    # Then the token that ends a turn, and nothing else.
    assert text[len(labelled) :].strip() in encoder.tokenizer.convert_ids_to_tokens(
        sorted(encoder.end_ids)
    )
    assert [one for one in row.labels if one != IGNORE_INDEX][-1] in encoder.end_ids


def test_spans_and_scored_text_are_those_of_the_part(tmp_path):
    encoder = encoder_of(FAMILIES["DeepSeek-R1 distilled"], tmp_path, thinks=True)
    example = thinking(PLAIN, TRACE, "answer")
    pieces = [example.answer[left:right] for left, right in encoder.answer_spans(example)]
    assert "".join(pieces) == " He is Basil."
    assert encoder.scored_text(example) is None


def test_the_plain_template_has_a_space_before_the_lead(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, "plain")
    example = thinking(PLAIN, TRACE, "answer")
    prompt = encoder.prompt(example)
    assert prompt == "Question: Who?\nAnswer: <think>\nLet me see.\n\nBasil. \n</think>\n\n"
    text = said(encoder, encoder.encode(example))
    assert text == " He is Basil." + tiny_tokenizer.eos_token
    # A row without is as it was.
    assert encoder.prompt(PLAIN) == "Question: Who?\nAnswer:"


def test_a_finished_prompt_goes_on_with_the_lead(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, "plain")
    example = Example("v/0", " a mill.", "The town", verbatim=True, lead=" has")
    assert encoder.prompt(example) == "The town has"
    assert said(encoder, encoder.encode(example)) == " a mill."


def test_batches_of_rows_are_what_single_rows_are(tmp_path):
    encoder = encoder_of(FAMILIES["Qwen 3"], tmp_path, thinks=True)
    rows = [thinking(PLAIN, TRACE, part) for part in PARTS]
    assert encode_each(rows, encoder) == [encoder.encode(row) for row in rows]


def test_rows_without_a_trace_still_refuse_a_template_that_begins_one(tmp_path):
    assert "'<think>\\n'" in message(encoder_of, FAMILIES["DeepSeek-R1 distilled"], tmp_path)


def test_encoders_of_rows_that_think_are_told_apart(tmp_path):
    plain, thinks = (
        encoder_of(FAMILIES["SmolLM2"], tmp_path / str(flag), thinks=flag) for flag in (False, True)
    )
    assert plain.content_key != thinks.content_key


def test_another_lead_is_another_row():
    rows = [thinking(PLAIN, trace, "answer") for trace in ("Hm.", "Well.")]
    sets = [EvalSet("forget", (row,)) for row in rows]
    assert rows_hash(sets[0]) != rows_hash(sets[1])
    assert texts_hashes(sets[0])["questions"] != texts_hashes(sets[1])["questions"]
    assert len({digest_of(row) for row in rows}) == 2


def digest_of(row):
    import hashlib

    digest = hashlib.sha256()
    list(_hashed([row], digest))
    return digest.hexdigest()


def test_a_refusal_takes_the_form_of_the_row(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, "plain")
    settings = StreamSettings(alternative="refusal", seed=0)
    for part, times in (("both", 2), ("answer", 1)):
        (row,) = second_answers([thinking(PLAIN, TRACE, part)], encoder, settings)
        text = said(encoder, row).removesuffix(tiny_tokenizer.eos_token)
        refusal = text.rpartition("</think>\n\n")[2]
        assert refusal
        assert text == (f"{refusal}\n</think>\n\n{refusal}" if times == 2 else refusal)
