#!/usr/bin/env bash
# dattri 0.3.0: making a second TracIn attributor changes the scores of the first one, and of all that
# are made after it; so it is with TRAK.
#
# The arguments of the random projection are written into a dictionary of the module that all share, and
# read from it with every call. A small projection for a quick look makes the large run that was set up
# before it a small one too, with the seed and the device of the quick look, and each later one that
# names no projection. Two settings that are compared in one process are one setting twice. Without
# projector_kwargs, said to be optional, gradients are projected to 512 numbers as well, and the scores
# of a model of 387 weights are off by a quarter of the largest; proj_type "identity" gives the plain
# products. In a process that makes one attributor nothing is seen.
#
# Seen with dattri 0.3.0, torch 2.13.0 (CPU), Python 3.11, 32 training and 8 test rows, gradients of a
# model of 387 weights; correlation of TracIn's scores with the products of the gradients in float64:
#   an attributor as it comes                          .97
#   the same after another was made, 8 numbers wide    .45, bit for bit the scores of that other one
#   a new one as it comes                              .45
#   proj_type "identity", the projection left out      1.00
# Exits with another status than 0 if that changes. Installs torch: where no GPU is needed, have pip
# find its CPU wheel, which is a tenth of the size.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" dattri==0.3.0 torch==2.13.0
cd "$folder"
env -u PYTHONPATH CUDA_VISIBLE_DEVICES= TQDM_DISABLE=1 "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import torch
from dattri.algorithm.tracin import TracInAttributor
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

print(*(f"{name} {version(name)}" for name in ("dattri", "torch")))
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
inputs, labels = torch.randn(40, 20), torch.randint(0, 3, (40,))
train, test = (
    DataLoader(TensorDataset(inputs[rows], labels[rows]), batch_size=8)
    for rows in (slice(0, 32), slice(32, 40))
)


def loss(weights, row):
    one, label = row
    return cross_entropy(functional_call(model, weights, (one.unsqueeze(0),)), label.unsqueeze(0))


def probability(weights, row):
    return torch.exp(-loss(weights, row))


def gradient(row):
    model.zero_grad()
    cross_entropy(model(inputs[row : row + 1]), labels[row : row + 1]).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()]).double()


gradients = torch.stack([gradient(row) for row in range(40)])
products = gradients[:32] @ gradients[32:].T
task = AttributionTask(model=model, loss_func=loss, checkpoints=[model.state_dict()])


def tracin(**projection):
    return TracInAttributor(
        task=task, weight_list=torch.ones(1), normalized_grad=False, **projection
    )


def trak(**projection):
    return TRAKAttributor(task=task, correct_probability_func=probability, **projection)


def trak_scores(attributor):
    attributor.cache(train)
    return attributor.attribute(test)


def agreement(scores):
    return float(torch.corrcoef(torch.stack([scores.double().flatten(), products.flatten()]))[0, 1])


first = tracin()
before = first.attribute(train, test)
small = tracin(projector_kwargs={"proj_dim": 8, "proj_seed": 3})
after, of_the_small, new = (
    one.attribute(train, test) for one in (first, small, tracin())
)
plain = tracin(projector_kwargs={"proj_type": "identity"}).attribute(train, test)
off = float((before - products).abs().max() / products.abs().max())
print(f"as it comes: {agreement(before):.2f}, off by {off:.2f} of the largest score")
print(f"after another was made: {agreement(after):.2f}, that other's {torch.equal(after, of_the_small)}")
print(f"a new one: {agreement(new):.2f}; identity: {agreement(plain):.2f}")
same = agreement(before) > 0.9 and off > 0.1 and torch.equal(after, of_the_small)
same &= torch.equal(new, of_the_small) and agreement(after) < 0.6 and agreement(plain) > 0.9999

one = trak()
first_scores = trak_scores(one)
repeated = trak_scores(one)
trak(projector_kwargs={"proj_dim": 8, "proj_seed": 3})
second_scores = trak_scores(one)
moved = float(torch.corrcoef(torch.stack([first_scores.flatten(), second_scores.flatten()]))[0, 1])
print(f"TRAK: repeated {torch.equal(first_scores, repeated)}, after another: correlation {moved:.2f}")
same &= torch.equal(first_scores, repeated) and moved < 0.9
sys.exit(not same)
PY
