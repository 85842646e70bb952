#!/usr/bin/env bash
# torchmetrics 1.9.0: MetricCollection takes two metrics for one if their states agree after the
# first batch, and gives the second the first one's number from then on.
#
# Compute groups are on by default. After the first update metrics with states of equal names and
# (nearly) equal values are merged: only the first is updated again. Metrics of one class with other
# settings agree by chance where a first batch is easy: two thresholds, two lengths of n-grams.
# A collection of extraction strength and exact memorisation, or of repetition for n = 1 to 4, would
# begin with a batch that is reproduced whole or not at all, and go on with one number for both.
#
# Seen with torchmetrics 1.9.0 (torch 2.13.0), Python 3.11: accuracy at the thresholds 0.5 and 0.9 of
# the batches (0.99, 0.01) and (0.6, 0.7), labels (1, 0) and (1, 1):
#   each alone: 1.0 and 0.5      in a collection: 1.0 and 1.0
#   with compute_groups=False, or in the other order of batches: 1.0 and 0.5
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
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy

EASY = torch.tensor([0.99, 0.01]), torch.tensor([1, 0])
HARD = torch.tensor([0.6, 0.7]), torch.tensor([1, 1])


def metrics():
    return {"at_05": BinaryAccuracy(threshold=0.5), "at_09": BinaryAccuracy(threshold=0.9)}


def of(one, batches):
    for batch in batches:
        one.update(*batch)
    found = one.compute()
    return [value.item() for value in found.values()] if isinstance(found, dict) else found.item()


print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)
alone = [of(one, (EASY, HARD)) for one in metrics().values()]
together = of(MetricCollection(metrics()), (EASY, HARD))
turned = of(MetricCollection(metrics()), (HARD, EASY))
apart = of(MetricCollection(metrics(), compute_groups=False), (EASY, HARD))
print(f"alone {alone}, in a collection {together}, easy batch last {turned}, no groups {apart}")
sys.exit((alone, together, turned, apart) != ([1.0, 0.5], [1.0, 1.0], [1.0, 0.5], [1.0, 0.5]))
PY
