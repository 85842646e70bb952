#!/usr/bin/env bash
# minicons 0.3.39: conditional_score of an answer counts tokens of the prompt as the answer's, as many as
# the prompt has end marks; word_score_tokenized gives each word the score of the next one.
#
# Where a tokenizer has no pad token, minicons makes the end mark its pad token, and prime_text leaves pad
# tokens out when it measures how long the prompt is. A chat prompt has an end mark after every message, so
# that the answer seems to begin that many tokens early, chat=True or not. What it takes in is the head of
# the answer's message, which chat models are sure of: the answer's mean log-probability, which is the
# default, rises with each turn of the prompt. A forgotten answer looks as if it were still known.
# word_score_tokenized counts words from the first token, scores from the second. That fits where the
# tokenizer begins each text with a token of its own. GPT-2's and Pythia's don't, for which bos_token=True
# is documented; others do "by default", it says. Those that don't, and have no such token at all, can't be
# scored otherwise: the first word has the second one's score, and the last word 0.0.
#
# Seen with minicons 0.3.39, torch 2.13.0 (CPU), transformers 5.23.0, Python 3.11, a small random model and
# a tokenizer of whole words without a first token; pad token: none, or one of its own.
# Tokens that count of an answer of 2, and their mean log-probability:
#   messages before it    none          own           by hand
#   1                     3  -7.43      2  -8.51      -8.51
#   3                     5  -4.35      2  -4.91      -4.91
# Log-probability of each word of "ann lee wrote the book":
#                          ann     lee    wrote    the    book
#   by word               -5.75   -4.56   -6.44   -9.18    0
#   by hand                       -5.75   -4.56   -6.44   -9.18
# Exits with another status than 0 if that changes. Installs torch: where no GPU is needed, have pip
# find its CPU wheel, which is a tenth of the size.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" torch==2.13.0 transformers==5.23.0 pillow==13.0.0
"$folder/env/bin/pip" install -q --no-deps minicons==0.3.39 wonderwords==3.0.1
cd "$folder"
env -u PYTHONPATH CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import sys
import warnings
from importlib.metadata import version

import torch
from minicons.scorer import IncrementalLMScorer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

warnings.simplefilter("ignore")  # it says that it sets a pad token
WORDS = "<end> <start> <pad> <unk> user assistant who wrote the book it was ann lee and when in may".split()
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def tokenizer(**pad):
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>", **pad)
    made.chat_template = "{{ messages }}"  # chat=True wants one
    return made


def by_hand(text):
    """The log-probability of each word but the first."""
    ids = torch.tensor([[WORDS.index(word) for word in text.split()]])
    with torch.no_grad():
        logs = model(ids).logits[0, :-1].double().log_softmax(-1)
    return logs.gather(1, ids[0, 1:, None])[:, 0].tolist()


print(*(f"{name} {version(name)}" for name in ("minicons", "torch", "transformers")))
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), initializer_range=0.5, **SIZE)).eval()
scorers = {"none": IncrementalLMScorer(model, "cpu", tokenizer=tokenizer())}
scorers["own"] = IncrementalLMScorer(model, "cpu", tokenizer=tokenizer(pad_token="<pad>"))
ASKED, ANSWER = "<start> user who wrote the book <end> <start> assistant", "ann lee"
MORE = f"{ASKED} it was ann <end> <start> user when was it <end> <start> assistant"
same = True
for messages, prompt, answer in ((1, ASKED, ANSWER), (3, MORE, "in may")):
    whole = by_hand(f"{prompt} {answer}")
    right = sum(whole[-2:]) / 2
    for pad, scorer in scorers.items():
        asked = {"prefix": [prompt], "stimuli": [answer], "chat": True}
        [mean] = scorer.conditional_score(**asked)
        [count] = scorer.conditional_score(**asked, reduction=len)
        print(f"{messages} before it, pad {pad}: {count} tokens, {mean:.3f}, by hand {right:.3f}")
        early = messages if pad == "none" else 0
        same &= count == 2 + early and abs(mean - sum(whole[-count:]) / count) < 1e-4
        same &= (abs(mean - right) < 1e-4) == (pad == "own")

text = "ann lee wrote the book"
[found] = scorers["own"].word_score_tokenized([text], str.split)
right = by_hand(text)
print("by word", [(word, round(score, 3)) for word, score in found])
print("by hand", [(word, round(score, 3)) for word, score in zip(text.split()[1:], right)])
same &= [word for word, _ in found] == text.split() and found[-1][1] == 0
same &= all(abs(score - of_next) < 1e-4 for (_, score), of_next in zip(found, right))
sys.exit(not same)
PY
