#!/usr/bin/env bash
# torchmetrics 1.9.0: the AUROC of membership scores depends on their size and on the batches.
#
# Binary AUROC takes any scores that are not all in 0 to 1 for logits and puts them through a
# sigmoid in float32 (its documentation says so), batch by batch. Losses, Min-K scores and gradient
# norms are no logits: above about 17 they all become 1, tie, and the AUROC is 0.5 for sets that
# are told apart without an error. And a batch whose scores happen to lie in 0 to 1 is left as it
# is while the next is squeezed, so the same rows in two batches or in one have another AUROC.
#
# Seen with torchmetrics 1.9.0 (torch 2.13.0), Python 3.11:
#   scores 20 to 23 against 30 to 33: 0.5, by ranks 1.0
#   0.2, 0.9 against 0.95, 1.5 in one batch: 1.0; the two classes in a batch each: 0.5
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
import sys

import torch
import torchmetrics
from torchmetrics.classification import BinaryAUROC


def auroc(*batches):
    metric = BinaryAUROC()
    for zeros, ones in batches:
        labels = [0] * len(zeros) + [1] * len(ones)
        metric.update(torch.tensor([*zeros, *ones]), torch.tensor(labels))
    return metric.compute().item()


print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)
large = auroc(([20.0, 21.0, 22.0, 23.0], [30.0, 31.0, 32.0, 33.0]))
at_once = auroc(([0.2, 0.9], [0.95, 1.5]))
in_two = auroc(([0.2, 0.9], []), ([], [0.95, 1.5]))
print(f"20 to 23 against 30 to 33: {large}; by ranks 1.0")
print(f"0.2, 0.9 against 0.95, 1.5 in one batch: {at_once}; in two: {in_two}; by ranks 1.0")
sys.exit((large, at_once, in_two) != (0.5, 1.0, 0.5))
PY
