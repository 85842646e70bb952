#!/usr/bin/env bash
# transformers 5.23.0: a GGUF file's tokenizer cuts numbers otherwise than its model was trained on
# where the file names a rule that transformers does not know; nothing says so.
#
# A byte-level tokenizer in a GGUF file is its tokens, its merges and the NAME of the rule by which
# a text is cut before merging (tokenizer.ggml.pre). transformers keeps rules for some of the names
# that llama.cpp writes (23 in this version) and uses GPT-2's for every other one, also for those
# of DeepSeek-V3, Falcon, Command-R, GLM-4, StableLM 2 and for names that do not exist. GPT-2's rule
# leaves a number in one piece; "deepseek-v3" cuts it after each three digits, "command-r" after each.
# Token ids, losses and entropies are then those of a text the model never saw in that form. Also,
# for Llama 3's rule words that are in the vocabulary but at the end of no merge are taken apart,
# where that model's own tokenizer.json has ignore_merges.
#
# Seen with transformers 5.23.0, tokenizers 0.23.3, gguf 0.19.0, Python 3.11, on a vocabulary of 260
# tokens with the merges 1+9, 9+8, 19+98: "1998" by rule becomes
#   qwen2: 1 9 9 8      llama-bpe: 19 9 8      gpt-2: 1998
#   deepseek-v3, command-r, "no such rule": 1998
# Exits with another status than 0 if that changes. Installs torch: where no GPU is needed, have pip
# find its CPU wheel, which is a tenth of the size.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" \
  torch==2.13.0 transformers==5.23.0 gguf accelerate
cd "$folder"
env -u PYTHONPATH HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import sys
import warnings
from importlib.metadata import version

import gguf
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

MERGES = ["1 9", "9 8", "19 98"]
WORDS = ["19", "98", "1998", "word"]


def tokens(rule, text):
    writer = gguf.GGUFWriter("model.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list([*bytes_to_unicode().values(), *WORDS])
    writer.add_token_merges(MERGES)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return AutoTokenizer.from_pretrained(".", gguf_file="model.gguf").tokenize(text)


print(*(f"{name} {version(name)}" for name in ("transformers", "tokenizers", "gguf")))
RULES = ("qwen2", "llama-bpe", "gpt-2", "deepseek-v3", "command-r", "no such rule")
found = {rule: tokens(rule, "1998") for rule in RULES}
for rule, pieces in found.items():
    print(f"{rule:13} 1998 -> {' '.join(pieces)}")
whole = tokens("llama-bpe", "word")
print(f"llama-bpe     word -> {' '.join(whole)}")
expected = [list("1998"), ["19", "9", "8"], *([["1998"]] * 4)]
sys.exit((list(found.values()), whole) != (expected, list("word")))
PY
