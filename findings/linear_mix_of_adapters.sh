#!/usr/bin/env bash
# peft 0.21.2: add_weighted_adapter(..., combination_type="linear") of two LoRA adapters is no linear
# combination of what they change: half of an adapter and half of the same one are twice the adapter.
#
# The factors are combined, not their products: with weights w and v the update is
# (sqrt(w) B1 + sqrt(v) B2) (sqrt(w) A1 + sqrt(v) A2), which holds the products of one adapter's B with
# the other's A beside w B1 A1 + v B2 A2. They are as large as what was asked for. So are those of
# "dare_linear" and "magnitude_prune" with a density of 1. The default "svd" cuts the sum to the
# larger rank; "cat" is the exact sum. Of one adapter alone all are exact, negative weights too. Task
# arithmetic (take the forget adapter off another one, average the adapters of several requests)
# gets another model than its formula.
# Adapters of use_rslora are mixed longer still, by the root of the mix's rank, "cat" among them: the
# mix holds their scales, and is scaled as one of use_rslora once more (open as peft issue 3761).
#
# Seen with peft 0.21.2, torch 2.13.0 (CPU), transformers 5.23.0, Python 3.11, two random adapters of
# rank 4; the cosine of the update with the one asked for, and how many times as long it is:
#   weights        linear        svd           cat
#   a - b          .80  1.40     .94  .94      1.00  1.00
#   a/2 + b/2      .78  1.38     .95  .95      1.00  1.00
#   a/2 + a/2     1.00  2.00    1.00 1.00      1.00  1.00
#   a - b, both of use_rslora                  1.00  2.83
# Exits with another status than 0 if that changes. Installs torch: where no GPU is needed, have pip
# find its CPU wheel, which is a tenth of the size.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$here/../constraints.txt" torch==2.13.0 peft==0.21.2 transformers==5.23.0
cd "$folder"
env -u PYTHONPATH CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}


def model(scale):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_attention_heads=4, **SIZE))
    lora = {"r": 4, "target_modules": ["q_proj"], "use_rslora": scale == "root of the rank"}
    mixed = get_peft_model(base, LoraConfig(lora_alpha=8, **lora), adapter_name="one")
    for name, alpha in (("two", 16), ("twin", 8)):
        mixed.add_adapter(name, LoraConfig(lora_alpha=alpha, **lora))
    layer = mixed.base_model.model.model.layers[0].self_attn.q_proj
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factors in (layer.lora_A, layer.lora_B):
            for name in ("one", "two"):
                factors[name].weight.normal_(0, 0.1, generator=generator)
            factors["twin"].weight.copy_(factors["one"].weight)
    return mixed, layer


def compared(kind, names, weights, scale="rank"):
    mixed, layer = model(scale)
    asked = sum(w * layer.get_delta_weight(name) for w, name in zip(weights, names))
    mixed.add_weighted_adapter(list(names), list(weights), "mix", combination_type=kind)
    found = layer.get_delta_weight("mix")
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), asked.flatten(), dim=0)
    return cosine.item(), (found.norm() / asked.norm()).item()


SEEN = {
    ("linear", ("one", "two"), (1.0, -1.0)): (0.804, 1.399),
    ("linear", ("one", "two"), (0.5, 0.5)): (0.779, 1.381),
    ("linear", ("one", "twin"), (0.5, 0.5)): (1.0, 2.0),
    ("svd", ("one", "two"), (1.0, -1.0)): (0.943, 0.943),
    ("svd", ("one", "two"), (0.5, 0.5)): (0.951, 0.951),
    ("svd", ("one", "twin"), (0.5, 0.5)): (1.0, 1.0),
    ("cat", ("one", "two"), (1.0, -1.0)): (1.0, 1.0),
    ("cat", ("one", "two"), (0.5, 0.5)): (1.0, 1.0),
    ("cat", ("one", "twin"), (0.5, 0.5)): (1.0, 1.0),
    ("cat", ("one", "two"), (1.0, -1.0), "root of the rank"): (1.0, 8**0.5),
}
print(*(f"{name} {version(name)}" for name in ("peft", "torch", "transformers")))
same = True
for asked, seen in SEEN.items():
    found = compared(*asked)
    print(f"{found[0]:.3f} {found[1]:.3f}", *asked)
    same &= all(abs(one - other) < 0.02 for one, other in zip(found, seen))
sys.exit(not same)
PY
