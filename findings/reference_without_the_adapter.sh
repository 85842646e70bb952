#!/usr/bin/env bash
# peft 0.21.2: with init_lora_weights "pissa" or "olora", disable_adapter() shows another model than
# the one the adapter was put on; nothing says so.
#
# Both take what the adapter begins with out of the model's own weights, so that the two together
# say what the model said. With the adapter off (disable_adapter, disable_adapter_layers, unload) the
# rest is left: a model that nobody trained. It is the common way to have the reference model of a
# preference loss, of NPO or of a KL term without a second copy of the weights: with these two the
# reference is noise from the first step, losses fall, and what is kept is near to nothing that was.
# "orthogonal", which resembles olora in all else, leaves the weights alone.
#
# Seen with peft 0.21.2, torch 2.13.0 (CPU), transformers 5.23.0, Python 3.11, random Llama of 2 layers,
# LoRA of rank 4 on three of its matrices; largest difference of a log-probability to the model before,
# with the adapter on and off, nats:
#   true       0.00  0.00        pissa         0.00  4.55
#   gaussian   0.00  0.00        pissa_niter_4 0.00  5.35
#   orthogonal 0.00  0.00        olora         0.00  5.18
# and no warning that names the weights, the reference or an adapter that is off.
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
import warnings
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TARGETS = ["q_proj", "v_proj", "down_proj"]
TOKENS = torch.arange(20)[None]


def logps(model):
    with torch.no_grad():
        return model(TOKENS).logits.log_softmax(-1)


def differences(init):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, initializer_range=0.2, **SIZE)).eval()
    before = logps(model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        config = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=init)
        adapted = get_peft_model(model, config).eval()
        on = (logps(adapted) - before).abs().max().item()
        with adapted.disable_adapter():
            off = (logps(adapted) - before).abs().max().item()
    words = ("pissa", "olora", "disab", "base weight", "base model", "reference")
    told = [str(one.message) for one in said if any(w in str(one.message).lower() for w in words)]
    return on, off, told


print(*(f"{name} {version(name)}" for name in ("peft", "torch", "transformers")))
same = True
for init in (True, "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora"):
    on, off, told = differences(init)
    print(f"{init!s:14} {on:.2f} {off:.2f}", *told)
    same &= on < 1e-3 and not told
    same &= off > 1 if init in ("pissa", "pissa_niter_4", "olora") else off < 1e-3
sys.exit(not same)
PY
