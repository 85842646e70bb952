#!/usr/bin/env bash
# torch 2.13.0: prune.remove changes what a model computes if the pruned matrix is tied to another
# place, and before it only one of the two places is pruned.
#
# torch.nn.utils.prune puts a mask beside a matrix: the layer gets the product, the matrix itself stays
# whole. prune.remove writes the product into the matrix and takes the mask away; its documentation
# says that nothing is undone, not that something is done elsewhere. Where the output layer shares its
# matrix with the embedding (GPT-2, Gemma, SmolLM2, the smaller Llama 3.2 and Qwen models) the embedding
# is whole until then and pruned after it. So an attack by pruning that is scored before remove, and
# the model that is saved after it, are two models. A loop over all Linear layers reaches the output
# layer, and names no embedding.
#
# Seen with torch 2.13.0 (CPU), Python 3.11: an embedding of 64 tokens and an output layer, tied and
# not, with half of the output layer's numbers pruned; zeros among the embedding's numbers, and the
# largest change of a logit by remove:
#                 zeros before remove   after    change of a logit
#   tied                   0 %           50 %     6.5
#   not tied               0 %            0 %     0
# Exits with another status than 0 if that changes. Installs torch: where no GPU is needed, have pip
# find its CPU wheel, which is a tenth of the size.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" torch==2.13.0 numpy==2.4.6
cd "$folder"
env -u PYTHONPATH CUDA_VISIBLE_DEVICES= "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import torch
from torch.nn.utils import prune


def compared(tied):
    torch.manual_seed(0)
    embedding, output = torch.nn.Embedding(64, 32), torch.nn.Linear(32, 64, bias=False)
    if tied:
        output.weight = embedding.weight

    def zeros():
        return (embedding.weight == 0).float().mean().item()

    prune.l1_unstructured(output, "weight", amount=0.5)
    tokens = torch.arange(64)
    before, zeros_before = output(embedding(tokens)), zeros()
    prune.remove(output, "weight")
    change = (output(embedding(tokens)) - before).abs().max().item()
    return zeros_before, zeros(), change, (output.weight is embedding.weight) == tied


print("torch", version("torch"))
same = True
for tied, seen in ((True, (0.0, 0.5)), (False, (0.0, 0.0))):
    *zeros, change, still = compared(tied)
    print(f"tied {tied}: zeros {zeros[0]:.0%}, then {zeros[1]:.0%}; change of a logit {change:.2f}")
    same &= all(abs(one - other) < 0.01 for one, other in zip(zeros, seen))
    same &= still and (change > 1 if tied else change == 0)
sys.exit(not same)
PY
