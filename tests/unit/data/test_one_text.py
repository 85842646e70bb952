"""What is taught, scored, asked and stopped at is one text, in the templates of known families."""

import functools
from pathlib import Path
from types import SimpleNamespace

import chat_templates
import pytest
import torch
from chat_templates import FAMILIES, encoder_of
from small_tokenizers import make_tokenizer

from etw_lightning.data.encode import Encoder
from etw_lightning.models.generation import continue_greedily, way_of
from etw_lightning.models.loading import load_model, load_tokenizer
from etw_lightning.schema import IGNORE_INDEX, EvalSet, Example, InputError, Turn
from etw_lightning.scoring.batches import build_batches
from etw_lightning.scoring.provenance import encoding

REFUSED = {
    "Qwen 3, told to think": "enable_thinking asks for what a model thinks",
    "OLMo 3, thinking": "ends the prompt for an answer in '<think>', which the text of an answer",
    "DeepSeek-R1 distilled": r"ends the prompt for an answer in '<think>\\n', which",
    "A thinking block without a way round it": "in another way once more is said",
}
MOVED = "which the template puts before answers, ends prompts"
SET_RIGHT = {
    "Qwen 3": "data.template_kwargs.enable_thinking false",
    "Qwen 3, thinking only": rf"'\n</think>\n\n', {MOVED}",
    "GPT-OSS": f"'<|channel|>final<|message|>', {MOVED}",
    "A line end that the prompt lacks": rf"'\n', {MOVED}",
    "A line end and a space that the prompt lacks": rf"'\n', {MOVED}",
    "A space that ends the prompt": "the space that ends prompts is the answer's",
}
ANSWERS = ("1975", "She was born in 1958.", "Ünïcödé — «так», 12 novels", "**x** <b>1</b>", "8")


def special(encoder):
    added = encoder.tokenizer.added_tokens_decoder
    return {number for number, token in added.items() if token.special}


def labelled(row):
    return [label for label in row.labels if label != IGNORE_INDEX]


def rows_of(encoder):
    for number, answer in enumerate(ANSWERS):
        example = Example(f"forget/{number}", answer, "Who is she, born in 12?")
        yield example, encoder.encode(example)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
def test_a_row_is_what_is_asked_and_what_is_to_be_said(name, tmp_path):
    encoder = encoder_of(FAMILIES[name], tmp_path)
    tokenizer = encoder.tokenizer
    for example, row in rows_of(encoder):
        prompt, labels = encoder.encode_prompt(example), labelled(row)
        assert list(row.input_ids[: len(prompt) + len(labels)]) == [*prompt, *labels]
        # Some tokens swallow the white space behind them.
        assert (
            tokenizer.decode(prompt).split() == encoder.prompt(example).split() or name == "Phi-3"
        )
        # The answer and its end, nothing else.
        (end,) = [label for label in labels if label in special(encoder)]
        assert end == labels[-1]
        assert end in encoder.end_ids
        assert tokenizer.decode(labels[:-1]).strip() == example.answer
    assert encoder.set_right == ((SET_RIGHT[name],) if name in SET_RIGHT else ())
    said = encoding(encoder)["template"]
    assert said.get("set_right", []) == list(encoder.set_right)


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_without_one_text_is_refused(name, tmp_path):
    with pytest.raises(InputError, match=REFUSED[name]) as error:
        encoder_of(FAMILIES[name], tmp_path).encode(chat_templates.ROW)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["Qwen 3", "GPT-OSS", "Llama 3", "Gemma 2"])
def test_a_chat_of_several_turns_ends_each_where_a_generation_stops(name, tmp_path):
    encoder = encoder_of(FAMILIES[name], tmp_path)
    turns = (Turn("user", "Who wrote it?"), Turn("assistant", "She wrote 12 novels."))
    example = Example(
        "x/0", "1975", "When?", turns=turns, labels_turns=name not in ("Qwen 3", "GPT-OSS")
    )
    row = encoder.encode(example)
    ends = [label for label in labelled(row) if label in special(encoder)]
    assert len(ends) == 1 + example.labels_turns
    assert encoder.end_ids.issuperset(ends)


def test_the_page_shows_what_happens():
    page = Path(__file__).resolve().parents[3] / "docs" / "templates.md"
    assert page.read_text() == chat_templates.page()


# The cases.


def test_a_thinking_block_is_no_answer(tmp_path):
    """The empty block was labelled: rows never seen were memorised to six tenths."""
    encoder = encoder_of(FAMILIES["Qwen 3"], tmp_path)
    row = encoder.encode(chat_templates.ROW)
    assert encoder.tokenizer.decode(labelled(row)) == "1975<|im_end|>"
    assert encoder.scored_text(chat_templates.ROW) is None
    assert encoder.prompt(chat_templates.ROW).endswith("assistant\n<think>\n\n</think>\n\n")
    # As where the user says so.
    told = encoder_of(FAMILIES["Qwen 3, told not to think"], tmp_path / "told")
    assert told.encode(chat_templates.ROW) == row


@pytest.mark.parametrize("digits", ["together", "threes", "single"])
@pytest.mark.parametrize("answer", ["1975", "12 novels", "A florist.", "8", "Hina Ameen"])
def test_the_space_before_a_number_is_labelled(tmp_path, digits, answer):
    """Where digits stand apart from the space before them, it was in neither part."""
    encoder = Encoder(load_tokenizer(str(make_tokenizer(tmp_path, digits=digits))), "plain")
    example = Example("forget/0", answer, "In which year was Hina Ameen born?")
    row, prompt = encoder.encode(example), encoder.encode_prompt(example)
    assert encoder.tokenizer.decode(labelled(row)) == f" {answer}<|end|>"
    assert list(row.input_ids) == [*prompt, *labelled(row)]
    assert encoder.scored_text(example) is None
    if answer[0].isdigit():
        assert encoder.answer_spans(example)[0] == (0, 0)


@pytest.mark.parametrize("prompt", ["the to", "Answer: ", "so it was\n", "12", "x ("])
@pytest.mark.parametrize("answer", ["wn by the river", "1975", " her name", ")."])
def test_a_verbatim_prompt_keeps_its_tokens(tmp_path, prompt, answer):
    encoder = Encoder(load_tokenizer(str(make_tokenizer(tmp_path))), "plain")
    example = Example("verbmem/0", answer, prompt, verbatim=True)
    row, asked = encoder.encode(example), encoder.encode_prompt(example)
    assert list(row.input_ids) == [*asked, *labelled(row)]
    assert encoder.tokenizer.decode(row.input_ids) == prompt + answer


def test_earlier_turns_stay_labelled_where_the_last_answer_is_parted(tmp_path):
    template = (
        "{% for m in messages %}{{ 'A:' if m.role == 'assistant' else 'Q:' }}{{ m.content }}"
        "{{ eos_token if m.role == 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    tokenizer = load_tokenizer(str(make_tokenizer(tmp_path, chat_template=template)))
    encoder = Encoder(tokenizer)
    turns = (Turn("user", "Who?"), Turn("assistant", "She wrote it."))
    example = Example("x/0", ":: 1975", "When?", turns=turns, labels_turns=True)
    row = encoder.encode(example)
    said = tokenizer.decode(labelled(row))
    assert said == "She wrote it.<|end|>:: 1975<|end|>"


def test_a_generation_stops_at_the_turn_s_end_whatever_the_end_token(tmp_path, tiny_model_dir):
    """``eos_token`` is another, and so is the model's own: the text's last label ends it."""
    family = FAMILIES["Llama 3, base model's end token"]
    encoder = encoder_of(family, tmp_path)
    ids = encoder.tokenizer.convert_tokens_to_ids
    end, turn_end = ids("<|end_of_text|>"), ids("<|eot_id|>")
    assert encoder.tokenizer.eos_token_id == end
    assert encoder.end_ids == {end, turn_end}
    example = Example("forget/0", "1975", "When?")
    (batch,) = build_batches(
        EvalSet("forget", (example,), losses=False, max_new_tokens=4), encoder, 4
    )
    assert batch.end_ids == encoder.end_ids
    lm = load_model(str(tiny_model_dir))
    lm.resize_token_embeddings(len(encoder.tokenizer))
    lm.generation_config.eos_token_id = end
    # What else is found out of a model, while it says what it would.
    assert way_of(lm) == "padded"
    said = [turn_end, *encoder.tokenizer("She wrote")["input_ids"]]

    def next_tokens(*_, **__):
        token = said[min(len(given), len(said) - 1)]
        given.append(token)
        logits = torch.zeros(1, 1, len(encoder.tokenizer))
        logits[..., token] = 1
        return SimpleNamespace(logits=logits)

    for end_ids, length in ((batch.end_ids, 1), ((), 4)):
        given = []
        lm.forward = _like(lm.forward, next_tokens)
        continue_greedily(
            lm, batch.input_ids, batch.attention_mask, encoder.tokenizer, 4, (), end_ids
        )
        assert len(given) == length


def _like(forward, call):
    """Return a function with the signature of a model's forward."""
    return functools.wraps(forward)(lambda *args, **kwargs: call(*args, **kwargs))
