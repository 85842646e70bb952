#!/usr/bin/env bash
# torchmetrics 1.9.0: Perplexity is infinite as soon as one label's loss is above some 104 nats,
# where the loss itself is finite; in bfloat16 it is off by per cents.
#
# The logits go through softmax and then log: a probability below the smallest float32 is 0, and one
# such label makes the number of a whole corpus infinite. A model whose forget set was pushed down
# by gradient ascent gives such labels (losses of a hundred nats and more are common there), so the
# metric can't tell "ten times worse" from "destroyed". Logits of 16 bits stay 16 bits: probabilities
# have 3 digits, and the sum of their logarithms grows in steps of its own rounding.
#
# Seen with torchmetrics 1.9.0, torch 2.13.0 (CPU), Python 3.11:
#   999 labels of loss 0.69 and one of 110 nats: inf; exp of the mean loss 2.2
#   256 labels of 1,000 random logits in bfloat16: 1,592; of the same logits as float32: 1,620
# Exits with another status than 0 if that changes. Installs torch: where no GPU is needed, have pip
# find its CPU wheel, which is a tenth of the size.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" torch==2.13.0 torchmetrics==1.9.0
cd "$folder"
env -u PYTHONPATH "$folder/env/bin/python" - <<'PY'
import math
import sys

import torch
import torchmetrics
from torch.nn.functional import cross_entropy
from torchmetrics.functional.text import perplexity


def expected(logits, labels):
    return cross_entropy(logits.double().flatten(0, 1), labels.flatten()).exp().item()


print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)
logits, labels = torch.zeros(1, 1000, 2), torch.zeros(1, 1000, dtype=torch.long)
logits[0, 0, 1] = 110.0
whole, right = perplexity(logits, labels).item(), expected(logits, labels)
print(f"one label of 110 nats among 1000: {whole}, exp of the mean loss {right:.3f}")
generator = torch.Generator().manual_seed(0)
logits = torch.randn(4, 64, 1000, generator=generator).bfloat16()
labels = torch.randint(0, 1000, (4, 64), generator=generator)
low, same = perplexity(logits, labels).item(), expected(logits, labels)
print(f"bfloat16 logits: {low:.0f}, of the same logits in float64: {same:.0f}")
sys.exit(not (math.isinf(whole) and right < 3 and abs(low / same - 1) > 0.005))
PY
