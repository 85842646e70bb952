#!/usr/bin/env bash
# transformers 5.23.0: apply_chat_template's mask of the assistant's tokens is all 0 when truncation
# from the left cuts into the first of several answers; later answers that stand whole are lost too.
#
# With return_assistant_tokens_mask the marked spans of a conversation are looked up one after the
# other; at the first whose beginning has no token left, the search ends. Truncation from the right
# cuts last answers, and what stands before keeps its mask; from the left (as prompts are usually
# cut, so that the last answer stays) nothing is marked, without a word. Whoever makes labels of the
# mask trains on rows without a label.
#
# Seen with transformers 5.23.0, tokenizers 0.23.3, Python 3.11: a conversation of two answers, each
# of which ends in a mark; what the mask marks, by tokens kept of 46:
#   from the left   46: both answers   36: both answers   24: nothing (the last answer stands whole)
#   from the right  46: both answers   36: the first
# Exits with another status than 0 if that changes. Installs torch: where no GPU is needed, have pip
# find its CPU wheel, which is a tenth of the size.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" torch==2.13.0 transformers==5.23.0 jinja2
cd "$folder"
env -u PYTHONPATH HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
backend = Tokenizer(models.BPE({sign: place for place, sign in enumerate(alphabet)}, []))
backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
backend.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
tokenizer.chat_template = (
    "{% for turn in messages %}{% if turn.role == 'assistant' %}A:"
    "{% generation %}{{ turn.content }}<end>{% endgeneration %}"
    "{% else %}U:{{ turn.content }}{% endif %}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "In Paris."},
    {"role": "user", "content": "When was that?"},
    {"role": "assistant", "content": "In May."},
]


def kept(side, length):
    tokenizer.truncation_side = side
    row = tokenizer.apply_chat_template(
        TALK, return_dict=True, return_assistant_tokens_mask=True, truncation=True, max_length=length
    )
    ids, mask = row["input_ids"], row["assistant_masks"]
    marked = [one for one, is_answer in zip(ids, mask, strict=True) if is_answer]
    return len(ids), tokenizer.decode(ids), tokenizer.decode(marked)


print(*(f"{name} {version(name)}" for name in ("transformers", "tokenizers")))
BOTH, FIRST, LAST = "In Paris.<end>In May.<end>", "In Paris.<end>", "In May.<end>"
found = []
for side, lengths in (("left", (LONG := 64, 36, 24)), ("right", (LONG, 36))):
    for length in lengths:
        size, text, marked = kept(side, length)
        found.append(marked)
        print(f"{side:5} {size} tokens, {text!r}: marked {marked!r}")
        assert side == "right" or text.endswith(LAST), "the last answer stands whole"
sys.exit(found != [BOTH, BOTH, "", BOTH, FIRST])
PY
