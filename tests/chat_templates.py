"""Chat templates of known families, each the layout its documentation gives, in our own words.

``FAMILIES`` maps a name to the template, the special tokens (first the one that ends a text) and
what of the layout matters here. Only what a question and an answer need is there. The page
``docs/templates.md`` shows what becomes of each:

    PYTHONPATH=. python tests/chat_templates.py > docs/templates.md
"""

import re
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from small_tokenizers import make_tokenizer

from etw_lightning.data.encode import Encoder
from etw_lightning.models.loading import load_tokenizer
from etw_lightning.schema import IGNORE_INDEX, Example, InputError


class Family(NamedTuple):
    """A template and the tokenizer it is written for.

    Args:
        template: In Jinja.
        special: Special tokens; the first is the tokenizer's end token. Those that swallow the
            white space behind them end in two spaces.
        begin: The begin token that templates name ``bos_token``.
        kwargs: Variables that are given.
    """

    template: str
    special: tuple[str, ...]
    begin: str | None = None
    kwargs: dict[str, object] | None = None


def _turns(open_turn, close_turn, ask, begin="", answer="{{ m.content | trim }}"):
    """Return a template of equal turns; ``ask`` is what the prompt for an answer ends in."""
    return (
        begin
        + "{% for m in messages %}"
        + open_turn
        + "{% if m.role == 'assistant' %}"
        + answer
        + "{% else %}{{ m.content | trim }}{% endif %}"
        + close_turn
        + "{% endfor %}{% if add_generation_prompt %}"
        + ask
        + "{% endif %}"
    )


_CHATML = ("<|im_start|>{{ m.role }}\n", "<|im_end|>\n", "<|im_start|>assistant\n")
_CHATML_TOKENS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
_LLAMA_3 = (
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n",
    "<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}",
)
_LLAMA_3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>")
_GEMMA = (
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n",
    "<end_of_turn>\n",
    "<start_of_turn>model\n",
)
_GEMMA_TOKENS = ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")


def _mistral(before, after, close="{{ eos_token }}"):
    return (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
        + f"[INST]{before}{{{{ m.content }}}}{after}[/INST]"
        + "{% elif m.role == 'assistant' %}"
        + f"{before}{{{{ m.content | trim }}}}{close}"
        + "{% endif %}{% endfor %}"
    )


#: Qwen 3 puts an empty block before the last answer, and before a prompt that is told not to think.
_EMPTY = "<think>\\n\\n</think>\\n\\n"
_QWEN_3 = _turns(
    *_CHATML[:2],
    "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    + f"{{{{ '{_EMPTY}' }}}}"
    + "{% endif %}",
    answer=f"{{% if loop.last %}}{{{{ '{_EMPTY}' }}}}{{% endif %}}{{{{ m.content | trim }}}}",
)
_QWEN_3_THINKING = _turns(
    *_CHATML[:2],
    "<|im_start|>assistant\n{{ '<think>\\n' }}",
    answer=f"{{% if loop.last %}}{{{{ '{_EMPTY}' }}}}{{% endif %}}{{{{ m.content | trim }}}}",
)
_SMOLLM_3 = _turns(
    *_CHATML[:2],
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\\n\\n</think>\\n' }}{% endif %}",
    answer="{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\\n\\n</think>\\n' }}{% endif %}{{ m.content | trim }}",
)
_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}<|end_of_sentence|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|>{{ '<think>\\n' }}{% endif %}"
)
_GPT_OSS = (
    "<|start|>system<|message|>You are ChatGPT.<|end|>{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
_PHI_3_TOKENS = ("<|endoftext|>", "<|user|>  ", "<|assistant|>  ", "<|system|>  ", "<|end|>  ")
_COMMAND_R = _turns(
    "<|START_OF_TURN_TOKEN|>"
    "{{ '<|CHATBOT_TOKEN|>' if m.role == 'assistant' else '<|USER_TOKEN|>' }}",
    "<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    begin="{{ bos_token }}",
)

FAMILIES = {
    "Llama 2": Family(_mistral(" ", " ", " {{ eos_token }}"), ("</s>", "<s>"), "<s>"),
    "Llama 3": Family(
        _turns(*_LLAMA_3, begin="{{ bos_token }}"),
        ("<|eot_id|>", "<|end_of_text|>", *_LLAMA_3_TOKENS),
        "<|begin_of_text|>",
    ),
    "Llama 3, base model's end token": Family(
        _turns(*_LLAMA_3, begin="{{ bos_token }}"),
        ("<|end_of_text|>", "<|eot_id|>", *_LLAMA_3_TOKENS),
        "<|begin_of_text|>",
    ),
    "Llama 3.1": Family(
        _turns(
            *_LLAMA_3,
            begin="{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
            "Cutting Knowledge Date: December 2023\nToday Date: {{ date_string or '26 Jul 2024' }}"
            "\n\n<|eot_id|>",
        ),
        ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", *_LLAMA_3_TOKENS),
        "<|begin_of_text|>",
    ),
    "Llama 4": Family(
        _turns(
            "<|header_start|>{{ m.role }}<|header_end|>\n\n",
            "<|eot|>",
            "<|header_start|>assistant<|header_end|>{{ '\n\n' }}",
            begin="{{ bos_token }}",
        ),
        ("<|eot|>", "<|begin_of_text|>", "<|header_start|>", "<|header_end|>"),
        "<|begin_of_text|>",
    ),
    "Mistral v1": Family(_mistral(" ", " "), ("</s>", "<s>"), "<s>"),
    "Mistral v3": Family(_mistral(" ", ""), ("</s>", "<s>", "[INST]", "[/INST]"), "<s>"),
    "Mistral Tekken": Family(_mistral("", ""), ("</s>", "<s>", "[INST]", "[/INST]"), "<s>"),
    "Qwen 2.5": Family(_turns(*_CHATML), _CHATML_TOKENS),
    "Qwen 3": Family(_QWEN_3, _CHATML_TOKENS),
    "Qwen 3, told not to think": Family(_QWEN_3, _CHATML_TOKENS, kwargs={"enable_thinking": False}),
    "Qwen 3, told to think": Family(_QWEN_3, _CHATML_TOKENS, kwargs={"enable_thinking": True}),
    "Qwen 3, thinking only": Family(_QWEN_3_THINKING, _CHATML_TOKENS),
    "Gemma 2": Family(_turns(*_GEMMA, begin="{{ bos_token }}"), _GEMMA_TOKENS, "<bos>"),
    "Gemma 3": Family(
        _turns(*_GEMMA, begin="{{ bos_token }}"), ("<end_of_turn>", *_GEMMA_TOKENS[:3]), "<bos>"
    ),
    "Phi-3": Family(
        _turns("<|{{ m.role }}|>\n", "<|end|>\n", "<|assistant|>\n")
        + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
        _PHI_3_TOKENS,
    ),
    "Phi-4": Family(
        _turns(
            "<|im_start|>{{ m.role }}<|im_sep|>", "<|im_end|>", "<|im_start|>assistant<|im_sep|>"
        ),
        ("<|im_end|>", "<|im_start|>", "<|im_sep|>"),
    ),
    "SmolLM2": Family(_turns(*_CHATML), _CHATML_TOKENS),
    "SmolLM3": Family(_SMOLLM_3, _CHATML_TOKENS),
    "SmolLM3, told not to think": Family(
        _SMOLLM_3, _CHATML_TOKENS, kwargs={"enable_thinking": False}
    ),
    "OLMo 2": Family(
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' if not loop.last }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}",
        ("<|endoftext|>",),
        "<|endoftext|>",
    ),
    "OLMo 3": Family(_turns(*_CHATML), ("<|im_end|>", "<|im_start|>", "<|endoftext|>")),
    "OLMo 3, thinking": Family(
        _turns(*_CHATML[:2], "<|im_start|>assistant\n<think>"), _CHATML_TOKENS
    ),
    "GPT-OSS": Family(
        _GPT_OSS,
        ("<|return|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>"),
    ),
    "DeepSeek-R1 distilled": Family(
        _R1, ("<|end_of_sentence|>", "<|bos|>", "<|User|>", "<|Assistant|>"), "<|bos|>"
    ),
    "Zephyr": Family(
        _turns("<|{{ m.role }}|>\n", "{{ eos_token }}\n", "<|assistant|>\n"), ("</s>", "<s>"), "<s>"
    ),
    "Command-R": Family(
        _COMMAND_R,
        (
            "<|END_OF_TURN_TOKEN|>",
            "<|START_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<BOS_TOKEN>",
        ),
        "<BOS_TOKEN>",
    ),
    "Granite": Family(
        _turns(
            "<|start_of_role|>{{ m.role }}<|end_of_role|>",
            "<|end_of_text|>\n",
            "<|start_of_role|>assistant<|end_of_role|>",
        ),
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
    ),
    "A space that ends the prompt": Family(
        "{% for m in messages %}{{ 'ASSISTANT' if m.role == 'assistant' else 'USER' }}: "
        "{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "{{ ' ' if not loop.last }}"
        "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT: ' }}{% endif %}",
        ("</s>",),
    ),
    "A line end that the prompt lacks": Family(
        _turns(_CHATML[0], _CHATML[1], "<|im_start|>assistant"), _CHATML_TOKENS
    ),
    "A line end and a space that the prompt lacks": Family(
        _turns("<|im_start|>{{ m.role }}\n{{ ' ' }}", _CHATML[1], "<|im_start|>assistant"),
        _CHATML_TOKENS,
    ),
    "A thinking block without a way round it": Family(
        _turns(
            *_CHATML, answer="{{ '<think>\\n' ~ m.content[:2] ~ '</think>\\n' }}{{ m.content }}"
        ),
        _CHATML_TOKENS,
    ),
}

#: The row that the page shows.
ROW = Example("row/0", "1975", "In which year was she born?")

PAGE = """# Chat templates: what is labelled, asked and stopped at

What a model is taught, what it is scored on, what it is asked to continue and where it is stopped
are one text. A row begins with the tokens of its prompt, its labels are the answer and the token
that ends it, and a generation stops at that token, at the tokenizer's end token and at those of
`generation_config.json`. Where a template's prompt for an answer does not end where the text of an
answer begins, it is set right if it can be (`template.set_right` in `results.json` and the template
line of `check` say how), and refused if not.

Three ways of setting right, tried in this order:

1. `enable_thinking: false` (or `thinking: false`), where the template knows it and it is not given
   in `data.template_kwargs`: an empty block of thoughts then stands in the prompt.
2. What the template puts before every answer, always the same, ends the prompt; of white space
   only line ends, where no token holds them and the answer's first word: a space is the answer's.
3. A space that ends the prompt is left to the answer, where a tokenizer makes it one token with the
   answer's first word.

The last token of a prompt and the first of an answer are never one token: an answer that would
share one with its prompt is encoded behind it by itself. The space of `data.template plain` is the
answer's, and is labelled where it is a token by itself.

The layouts below were written down from the documentation of each family and run through a small
byte-level tokenizer with the family's special tokens, for the question "In which year was she
born?" and the answer "1975". The table is made by `python tests/chat_templates.py`, and a test
compares it.

| template | the prompt ends in | labelled | ends a generation | set right, or why refused |
| --- | --- | --- | --- | --- |
"""


def encoder_of(family, folder, **changes):
    """Return an encoder with a family's template and a small tokenizer of its special tokens."""
    names = {"bos_token": family.begin} if family.begin else {}
    make_tokenizer(folder, family.special, chat_template=family.template, **names)
    return Encoder(load_tokenizer(str(folder)), template_kwargs=family.kwargs, **changes)


def _code(text):
    """Return a text as code in a table: line ends and bars must not end it."""
    return "`" + text.replace("\n", "\\n").replace("|", "\\|") + "`"


def _line(name, family, folder):
    try:
        encoder = encoder_of(family, folder)
        row, prompt = encoder.encode(ROW), encoder.prompt(ROW)
    except InputError as error:
        reason = re.sub(r"The chat template of '[^']*' ", "", str(error)).partition(". ")[0]
        return f"| {name} | | | | refused: {reason} |".replace("<|", "<\\|").replace("|>", "\\|>")
    labels = [label for label in row.labels if label != IGNORE_INDEX]
    ends = encoder.tokenizer.convert_ids_to_tokens(sorted(encoder.end_ids))
    cells = [
        name,
        _code(prompt.partition(ROW.question)[2][-40:]),
        _code(encoder.tokenizer.decode(labels)),
        ", ".join(map(_code, ends)),
        _code("; ".join(encoder.set_right)) if encoder.set_right else "",
    ]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def page():
    """Return the page."""
    with tempfile.TemporaryDirectory() as place:
        lines = [
            _line(name, family, Path(place) / str(number))
            for number, (name, family) in enumerate(FAMILIES.items())
        ]
    return PAGE + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
