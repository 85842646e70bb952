"""One side of ``train_step.py``: trains in a process of its own, a step whenever it is told to.

The parent writes a line for each step; the side answers with a line of JSON about the step: process
time from its batch to the next one, tokens, positions that were fed, loss. So the sides alternate,
and a machine that others use as well slows all of them alike.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Callback
from torch import Tensor, nn

import etw_lightning

#: Weighting and objective, and what else of the module and the data.
METHODS: dict[str, dict[str, Any]] = {
    "etw": {"weighting": "ETW", "forget": "GA"},
    "graddiff": {"weighting": "Uniform", "forget": "GA"},
    "npo": {"weighting": "Uniform", "forget": "NPO"},
    "dpo": {"weighting": "Uniform", "forget": "DPO"},
    "etw_lora": {"weighting": "ETW", "forget": "GA"},
}
LORA = {"peft_type": "LORA", "r": 8, "target_modules": "all-linear"}
LAMBDA, BETA, LR = 0.1, 0.1, 1e-5


class Turns:
    """The side's end of the line to the parent, and its clock."""

    def __init__(self) -> None:
        # What trains may print what it likes.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.positions = 0
        self.said: dict[str, Any] = {}
        self._start: float | None = None
        self._num_steps, self._resting = 0, 0.0
        self.models: list[nn.Module] = []

    def say(self, **words: Any) -> None:
        """Write a line to the parent."""
        self._out.write(json.dumps(words) + "\n")
        self._out.flush()

    def begin(self, **said: Any) -> None:
        """End the step before, if there is one, and wait to be told to make the next."""
        self.end()
        if self._num_steps == 1:
            self._resting = self._forget_peak()
        sys.stdin.readline()
        self.positions, self.said = 0, said
        self._start = time.process_time()

    def end(self) -> None:
        """Say what the step that is done took."""
        if self._start is None:
            return
        seconds = time.process_time() - self._start
        self._start, self._num_steps = None, self._num_steps + 1
        peak = _status_mb("VmHWM") - self._resting if self._resting else None
        loss = float(self.said.pop("loss_of")())
        self.say(seconds=seconds, positions=self.positions, loss=loss, peak_mb=peak, **self.said)

    def _forget_peak(self) -> float:
        """Begin to look for a peak; return what weights and optimiser hold, MB."""
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        grads = [w.grad for model in self.models for w in model.parameters() if w.grad is not None]
        return _status_mb("VmRSS") - sum(grad.nbytes for grad in grads) / 2**20

    def listen(self, lm: nn.Module) -> None:
        """Count the positions that reach a model's layers."""
        self.models.append(lm)
        layers = next(part for part in lm.modules() if isinstance(part, nn.ModuleList))

        def count(_module: nn.Module, args: Any, settings: Any) -> None:
            hidden = args[0] if args else settings["hidden_states"]
            self.positions += hidden.shape[0] * hidden.shape[1]

        layers[0].register_forward_pre_hook(count, with_kwargs=True)


TURNS: list[Turns] = []


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration of a run; the streams hold the rows of its steps and no others."""
    method = METHODS[given.method]
    num = given.batch * (given.steps + 1)
    return {
        "seed_everything": 0,
        "model": {
            "pretrained": given.model,
            "weighting": {"class_path": f"etw_lightning.weighting.{method['weighting']}"},
            "forget": {"class_path": f"etw_lightning.forget.{method['forget']}"},
            "forget_weight": LAMBDA,
            "lr": LR,
            "dtype": given.dtype,
            **({"peft": LORA} if given.method == "etw_lora" else {}),
        },
        "data": {
            "benchmark": "tofu",
            "root": given.root,
            "forget_split": "forget10",
            "retain_split": "retain90",
            "rows": {"forget10": num, "retain90": 2 * num},
            "template": "chat",
            "system_prompt": "You are a helpful assistant.",
            "max_length": 512,
            "batch_size": given.batch,
            "anchor": "forget",
            **({"alternative": "refusal"} if given.method == "dpo" else {}),
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "precision": "bf16-true" if given.dtype == "bfloat16" else "32-true",
            "enable_progress_bar": False,
            "gradient_clip_val": 1.0,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 5,
            "callbacks": [{"class_path": "step_side.StepClock"}],
        },
    }


class StepClock(Callback):
    """Waits for the side's turn at the start of each step of ``fit``."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen to the model."""
        TURNS[0].listen(pl_module.scorer.lm)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """From start to start is all there is in a step."""
        TURNS[0].begin(
            tokens=int(batch["attention_mask"].sum()), loss_of=lambda: pl_module.losses["total"]
        )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End the last step."""
        TURNS[0].end()


def run_ours(given: argparse.Namespace) -> None:
    """Train by ``fit``, as it is typed."""
    from etw_lightning.commands.cli import main as command

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["ETW_CACHE"] = f"{folder}/cache"
        file = Path(folder) / "run.yaml"
        file.write_text(yaml.safe_dump(settings(given)), encoding="utf-8")
        typed = ["fit", "--config", str(file), "--output_dir", f"{folder}/run", "--no_save_model"]
        sys.argv[1:] = typed
        status = command()
    if status:
        raise SystemExit(f"fit ended with {status}")


# The plain trainer.


def rows_of(given: argparse.Namespace) -> tuple[list[dict[str, list[Any]]], int]:
    """Return the rows of each step, as ``fit`` trains on them, and the padding id."""
    from etw_lightning.forget import DPO, GA
    from etw_lightning.method import Method
    from etw_lightning.retain import NLL
    from etw_lightning.training.datamodule import UnlearningDataModule
    from etw_lightning.weighting import Uniform

    own = settings(given)["data"]
    data = UnlearningDataModule(own.pop("benchmark"), seed=0, **own)
    data.follow(Method(Uniform(), DPO() if given.method == "dpo" else GA(), NLL()))
    data.load(given.model)
    pairing, steps = data.pairing(), []
    for step in range(given.steps + 1):
        chosen = pairing.step_rows(0, step, 0)
        places = {"forget": chosen.forget, "retain": chosen.retain, "alternative": chosen.forget}
        steps.append({name: [data.streams[name][n] for n in places[name]] for name in data.streams})
    return steps, data.encoder.pad_id


def padded(rows: list[Any], pad_id: int) -> dict[str, Tensor]:
    """Return rows as a batch of a usual collator."""
    longest = max(len(row.input_ids) for row in rows)

    def fill(values: Any, with_: int) -> list[int]:
        return [*values, *[with_] * (longest - len(values))]

    return {
        "input_ids": torch.tensor([fill(row.input_ids, pad_id) for row in rows]),
        "attention_mask": torch.tensor([fill([1] * len(row.input_ids), 0) for row in rows]),
        "labels": torch.tensor([fill(row.labels, -100) for row in rows]),
    }


def sequence_logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the log-probability of each row's labels."""
    logits, labels = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    losses = F.cross_entropy(logits.transpose(-1, -2), labels, ignore_index=-100, reduction="none")
    return -losses.sum(-1)


def etw_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return ETW's forget term from all logits."""
    logps = model(**batch).logits[:, :-1].float().log_softmax(-1)
    labels = batch["labels"][:, 1:]
    is_label = labels != -100
    entropies = -(logps.detach().exp() * logps.detach()).sum(-1) * is_label
    weights = entropies / entropies.sum(1, keepdim=True) * is_label.sum(1, keepdim=True)
    picked = logps.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (weights * picked * is_label).sum() / is_label.sum()


def forget_loss(method: str, model: Any, reference: Any, batches: dict[str, Any]) -> Tensor:
    """Return the forget term; a reference model runs at every step."""
    forget = batches["forget"]
    if method.startswith("etw"):
        return etw_loss(model, forget)
    if method == "graddiff":
        return -model(**forget).loss
    with torch.no_grad():
        before = sequence_logps(reference, forget)
    margins = -BETA * (sequence_logps(model, forget) - before)
    if method == "dpo":
        wanted = batches["alternative"]
        with torch.no_grad():
            before = sequence_logps(reference, wanted)
        margins = margins + BETA * (sequence_logps(model, wanted) - before)
    return (-2 / BETA * F.logsigmoid(margins)).mean()


def run_plain(given: argparse.Namespace) -> None:
    """Train by a Hugging Face ``Trainer`` that takes each group of rows in a pass of its own."""
    import copy

    from transformers import Trainer, TrainerCallback, TrainingArguments

    from etw_lightning.models.loading import load_model

    steps, pad_id = rows_of(given)
    turns = TURNS[0]
    model: Any = load_model(given.model, given.dtype)
    turns.listen(model)
    reference = copy.deepcopy(model).eval() if given.method in ("npo", "dpo") else None
    if given.method == "etw_lora":
        from peft import LoraConfig, get_peft_model

        own = {name: value for name, value in LORA.items() if name != "peft_type"}
        model = get_peft_model(model, LoraConfig(**own))
    losses: list[Tensor] = []

    def collate(items: list[Any]) -> dict[str, Any]:
        (groups,) = items
        distinct = {
            row.input_ids[:n]
            for rows in groups.values()
            for row in rows
            for n in range(1, _last_label(row) + 1)
        }
        said = {"distinct": len(distinct), "rows": sum(map(len, groups.values()))}
        return {"said": said, **{name: padded(rows, pad_id) for name, rows in groups.items()}}

    class Unlearner(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(steps)  # type: ignore[arg-type]

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            term = forget_loss(given.method, model, reference, inputs)
            return LAMBDA * term + model(**inputs["retain"]).loss

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            tokens = sum(int(inputs[name]["attention_mask"].sum()) for name in steps[0])
            said = inputs.pop("said")
            turns.begin(tokens=tokens, loss_of=lambda: losses[-1], **said)
            losses.append(super().training_step(model, inputs, *args, **kwargs))
            return losses[-1]

    class Ends(TrainerCallback):
        def on_train_end(self, *_: Any, **__: Any) -> None:
            turns.end()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=1,
            max_steps=given.steps + 1,
            learning_rate=LR,
            weight_decay=0.01,
            max_grad_norm=1.0,
            lr_scheduler_type="linear",
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=[],
        )
        Unlearner(
            model, arguments, train_dataset=steps, data_collator=collate, callbacks=[Ends()]
        ).train()


def _last_label(row: Any) -> int:
    return max((n for n, label in enumerate(row.labels) if label != -100), default=0)


def main(words: list[str]) -> None:
    """Train one side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("plain", "ours"))
    parser.add_argument("given", type=json.loads)
    typed = parser.parse_args(words)
    torch.set_num_threads(1)
    assert Path(etw_lightning.__file__).parents[1] == Path.cwd(), "another copy of the package"
    TURNS.append(Turns())
    run = run_plain if typed.side == "plain" else run_ours
    run(argparse.Namespace(**typed.given))
