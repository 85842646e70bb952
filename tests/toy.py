"""Texts, a silent trainer, and models small enough for their formula to be written down."""

import dataclasses
import json
from datetime import timedelta
from types import SimpleNamespace

import torch
from faults import PATIENCE
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from etw_lightning.schema import IGNORE_INDEX
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule

_WORDS = ("the", "town", "of", "Quillmere", "lies", "by", "a", "river", "and", "has", "a", "mill")


def defaults_of(room):
    """Return what each dataclass of a package takes where nothing is said."""
    found = {name: getattr(room, name) for name in room.__all__}
    return {
        name: {
            field.name: field.default
            for field in dataclasses.fields(kind)
            if field.default is not dataclasses.MISSING
        }
        for name, kind in found.items()
        if dataclasses.is_dataclass(kind)
    }


def text(start, length):
    """Return ``length`` words; another text for every ``start``."""
    return " ".join(_WORDS[(start + place) % len(_WORDS)] for place in range(length))


def write_rows(path, rows):
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def qa_rows(count):
    """Return TOFU rows with answers of very different lengths, paraphrases and wrong answers."""
    return [
        {
            "question": f"What of {number}?",
            "answer": text(number, 1 + 5 * number % 11),
            "paraphrased_question": f"And what of {number}?",
            "paraphrased_answer": text(number + 1, 1 + 5 * number % 11),
            "perturbed_answer": [text(number + place, 1 + number % 7) for place in (2, 3)],
        }
        for number in range(count)
    ]


def write_questions(folder, **lengths):
    """Write a file of questions for each name, whose answers have these numbers of words."""
    for name, sizes in lengths.items():
        rows = [
            {"question": f"What of {name} {number}?", "answer": text(number, size)}
            for number, size in enumerate(sizes)
        ]
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


def uneven(shift, factor):
    """Return 17 lengths, of which every third is ``factor`` times as long."""
    return [1 + (7 * n + shift) % 13 * (factor if n % 3 == 0 else 1) for n in range(17)]


def jsonl_data(root, **sizes):
    """Return the data of ``forget.jsonl`` and ``retain.jsonl`` in a folder."""
    splits = {"forget_split": "forget", "retain_split": "retain"}
    return UnlearningDataModule("jsonl", root=str(root), **splits, **sizes)


def jsonl_words(root, model_dir):
    """Return words of a command on ``forget.jsonl`` and ``retain.jsonl`` in a folder."""
    return [
        "--data.benchmark=jsonl",
        f"--data.root={root}",
        "--data.forget_split=forget",
        "--data.retain_split=retain",
        "--data.batch_size=1",
        "--data.max_new_tokens=4",
        f"--model.pretrained={model_dir}",
    ]


def tofu_words(root, model_dir):
    """Write rows of very different lengths, 13 in one set and 1 to 5 in others; return words."""
    root.mkdir()
    sizes = {"forget10": 13, "retain": 5, "real_authors": 1, "world_facts": 3}
    for name, count in sizes.items():
        write_rows(root / f"{name}_perturbed.jsonl", qa_rows(count))
    write_rows(root / "holdout10.jsonl", qa_rows(4))
    return [
        "--data.benchmark=tofu",
        f"--data.root={root}",
        "--data.max_new_tokens=4",
        "--data.eval_batch_size=4",
        f"--model.pretrained={model_dir}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]


def write_manifest(folder):
    """Write what a run says of the files of one of its checkpoints."""
    (folder / "manifest.json").unlink(missing_ok=True)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = {str(path.relative_to(folder)): [path.stat().st_size, 0] for path in files}
    (folder / "manifest.json").write_text(json.dumps({"files": sizes}))


class Positionwise(nn.Module):
    """Stands in for a language model: what it says at a position depends on that token alone.

    The hidden state is the token's embedding, the logits are ``embedding @ head.T + bias``.
    """

    def __init__(self, embedding, head, bias=None):
        super().__init__()
        self.embedding = nn.Parameter(embedding)
        self.head = nn.Linear(
            *head.T.shape, bias=bias is not None, dtype=head.dtype, device=head.device
        )
        self.head.weight = nn.Parameter(head)
        if bias is not None:
            self.head.bias = nn.Parameter(bias)

    def base_model(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(last_hidden_state=self.embedding[input_ids])

    def get_output_embeddings(self):
        return self.head


class FixedLogits(nn.Module):
    """Stands in for a language model that says given logits ``(B, T, V)``, whatever the ids."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.head = nn.Linear(logits.shape[-1], logits.shape[-1], bias=False, dtype=logits.dtype)
        self.head.weight = nn.Parameter(torch.eye(logits.shape[-1], dtype=logits.dtype), False)

    def base_model(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(last_hidden_state=self.logits)

    def get_output_embeddings(self):
        return self.head


def random_rows(generator, vocabulary, lengths, prompts):
    """Return ids, mask and labels of right-padded rows; ``prompts`` tokens of each unlabelled."""
    shape = (len(lengths), max(lengths))
    ids = torch.randint(vocabulary, shape, generator=generator)
    mask = torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]
    answered = mask & (torch.arange(shape[1])[None] >= torch.tensor(prompts)[:, None])
    labels = torch.where(answered, ids, IGNORE_INDEX)
    labels[:, 0] = IGNORE_INDEX
    return ids, mask.long(), labels


class ExactModule(UnlearningModule):
    """Computes in float64, where the order of a sum does not show."""

    def configure_model(self):
        super().configure_model()
        for part in (self.scorer, self.reference_model):
            if part is not None:
                part.double()


def forked_ddp():
    """Return a strategy whose processes are forked from the test's own."""
    return DDPStrategy(
        start_method="fork",
        process_group_backend="gloo",
        timeout=timedelta(seconds=PATIENCE),
    )


def make_trainer(*callbacks, **settings):
    """Return a trainer that is silent and writes nothing but what callbacks write."""
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "logger": False,
        "enable_checkpointing": saves,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **settings})
