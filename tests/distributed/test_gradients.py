"""Two CPU processes, or accumulated micro-batches, give what one large batch gives."""

import os

import pytest
import torch
from lightning.pytorch import Callback
from toy import ExactModule, forked_ddp, make_trainer, text, uneven, write_questions, write_rows

from etw_lightning.callbacks.evaluation import SetScores
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule
from etw_lightning.weighting import ETW

#: Processes, rows of a micro-batch, micro-batches of a step: eight rows a step each time.
ONE = {"devices": 1, "batch_size": 8, "accumulate": 1}
SPLITS = {
    "accumulated": {"devices": 1, "batch_size": 4, "accumulate": 2},
    "two processes": {"devices": 2, "batch_size": 4, "accumulate": 1},
    "both": {"devices": 2, "batch_size": 2, "accumulate": 2},
}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Rows of 1 to 60 words, so that token counts of any two micro-batches differ much."""
    folder = tmp_path_factory.mktemp("rows")
    write_questions(folder, forget=uneven(0, 5), retain=uneven(5, 5))
    write_rows(folder / "raw.jsonl", [{"text": text(0, length)} for length in range(3, 9)])
    return folder


class Recorder(Callback):
    """Keeps what each process sees: gradients and logged values of each step, records."""

    def __init__(self, folder):
        self.folder = folder
        self.gradients, self.logged, self.records = [], [], {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.scorer.named_parameters()
        self.gradients.append({name: parameter.grad.clone() for name, parameter in named})

    def on_train_batch_end(self, trainer, *args):
        if len(self.logged) < trainer.global_step:
            logged = trainer.callback_metrics.items()
            self.logged.append({name: float(value) for name, value in logged if "/" in name})

    def on_validation_epoch_end(self, trainer, pl_module):
        found = pl_module.gather_records()
        self.records = {
            name: [record.to_json() for record in records] for name, records in found.items()
        }

    def on_fit_end(self, trainer, pl_module):
        parts = self.gradients, self.logged, self.records
        torch.save(parts, self.folder / f"rank{trainer.global_rank}.pt")


def fit(model_dir, root, folder, split, *, kind=UnlearningModule, reduction="token", **data):
    """Run one epoch with weights that stay put; return what each process recorded."""
    forget_split, rows = data.pop("forget_split", "forget"), data.pop("rows", None)
    callbacks, settings = data.pop("callbacks", ()), data.pop("settings", {})
    folder.mkdir()
    module = kind(
        str(model_dir),
        weighting=data.pop("weighting", ETW(temperature=1.0)),
        forget_weight=0.5,
        reduction=reduction,
        lr=1e-15,
        weight_decay=0.0,
        schedule="constant",
        # A layout follows from what stands in a micro-batch, and with it the rounding.
        share_beginnings=False,
        **settings,
    )
    datamodule = UnlearningDataModule(
        "jsonl",
        root=str(root),
        forget_split=forget_split,
        retain_split="retain",
        rows=rows and {forget_split: rows},
        batch_size=split["batch_size"],
        **data,
    )
    strategy = forked_ddp()
    trainer = make_trainer(
        *callbacks,
        Recorder(folder),
        devices=split["devices"],
        strategy=strategy if split["devices"] > 1 else "auto",
        accumulate_grad_batches=split["accumulate"],
    )
    trainer.fit(module, datamodule=datamodule)
    return [
        torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(split["devices"])
    ]


#: In float32 the order of a sum shows.
PRECISIONS = {UnlearningModule: 2e-6, ExactModule: 1e-10}


@pytest.mark.parametrize(
    ("kind", "reduction", "rows"),
    [
        (ExactModule, "token", 13),
        pytest.param(ExactModule, "sequence", 13, marks=pytest.mark.slow),
        pytest.param(ExactModule, "token", 9, marks=pytest.mark.slow),
        pytest.param(ExactModule, "sequence", 9, marks=pytest.mark.slow),
        pytest.param(UnlearningModule, "token", 13, marks=pytest.mark.slow),
    ],
)
def test_gradients_do_not_depend_on_the_split(
    tiny_model_dir, root, tmp_path, kind, reduction, rows
):
    """Steps of 8, 5 and 1 rows: the last leaves the second process without any."""
    settings = {"kind": kind, "reduction": reduction, "rows": rows}
    if rows == 9:
        settings["weighting"] = ETW(unit="word", floor=2.0)
    ((expected, logged, _),) = fit(tiny_model_dir, root, tmp_path / "one", ONE, **settings)
    assert len(expected) == 2
    for name, split in SPLITS.items():
        for gradients, values, _ in fit(tiny_model_dir, root, tmp_path / name, split, **settings):
            for step, other in zip(expected, gradients, strict=True):
                assert step.keys() == other.keys()
                tolerance = PRECISIONS[kind] * max(part.abs().max() for part in step.values())
                for key in step:
                    assert (other[key] - step[key]).abs().max() <= tolerance, (name, key)
            for step, other in zip(logged, values, strict=True):
                assert step.keys() == other.keys()
                # The share of the top decile is that of each micro-batch by itself.
                for key in step.keys() - {"weights/top_decile_share"}:
                    assert other[key] == pytest.approx(step[key], rel=1e-5), key


def test_terms_apart_do_not_depend_on_the_split(tiny_model_dir, root, tmp_path):
    """What lambda counts is measured over whole steps, and surgery is done to their gradients."""
    settings = {
        "forget_unit": "gradient",
        "surgery": "orthogonal",
        "surgery_average": 0.3,
    }
    given = {"kind": ExactModule, "rows": 13, "settings": settings}
    ((expected, logged, _),) = fit(tiny_model_dir, root, tmp_path / "one", ONE, **given)
    assert all(one["surgery/removed"] > 1e-3 for one in logged[1:])
    for gradients, values, _ in fit(
        tiny_model_dir, root, tmp_path / "both", SPLITS["both"], **given
    ):
        for step, other in zip(expected, gradients, strict=True):
            tolerance = 1e-9 * max(part.abs().max() for part in step.values())
            for key in step:
                assert (other[key] - step[key]).abs().max() <= tolerance, key
        for step, other in zip(logged, values, strict=True):
            for key in step.keys() & {"loss/total", "surgery/cosine", "surgery/removed"}:
                assert other[key] == pytest.approx(step[key], rel=1e-5), key


@pytest.mark.parametrize(
    ("forget_split", "rows", "eval_batch_size"),
    [
        ("forget", 13, 4),
        pytest.param("forget", 1, 4, marks=pytest.mark.slow),
        pytest.param("raw", 6, 2, marks=pytest.mark.slow),
        ("raw", 6, 32),
    ],
)
def test_records_of_two_processes_are_those_of_one(
    tiny_model_dir, root, tmp_path, forget_split, rows, eval_batch_size
):
    """The last one has a single batch to score, which leaves the second process without any."""
    data = {
        "forget_split": forget_split,
        "rows": rows,
        "eval_batch_size": eval_batch_size,
        "max_new_tokens": 5,
        "callbacks": [SetScores(sets=["forget"])],
    }
    ((_, _, expected),) = fit(tiny_model_dir, root, tmp_path / "one", ONE, **data)
    names = [record["id"] for record in expected["forget"]]
    assert names == [f"{forget_split}/{number}" for number in range(rows)]
    assert all(record["answer_loss"] > 0 for record in expected["forget"])
    split = SPLITS["two processes"]
    for _, _, records in fit(tiny_model_dir, root, tmp_path / "two", split, **data):
        assert records == expected
