"""The command line in this process, on a few rows of the quickstart corpus and tiny models."""

import contextlib
import io
import json
import logging
import re
import shutil
import signal
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
from warm import keep_parsers

#: Those that a run handles, in this process to the end of the tests if nobody undid it.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Outcome(NamedTuple):
    """What a command gave back: exit status, standard output and standard error."""

    status: int
    out: str
    err: str


def _write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def write_rows():
    """Write rows as JSON lines to a path."""
    return _write_rows


@pytest.fixture(scope="session")
def configs():
    """The shipped configurations."""
    return Path(__file__).resolve().parents[2] / "configs"


#: Words of a run that fixtures give to every command; scoring and ``weights`` refuse them.
_OF_TRAINING = re.compile(
    r"--(data\.batch_size=2|model\.lr=1e-\d|trainer\.(max_epochs=\d|accumulate_grad_batches=1))"
)


def _run(*args):
    from etw_lightning.commands.entry import main

    if args[:1] in (("evaluate",), ("weights",)):
        args = [word for word in args if not _OF_TRAINING.fullmatch(str(word))]
    keep_parsers()
    quiet = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")
    levels = {name: logging.getLogger(name).level for name in quiet}
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["etw_lightning", *map(str, args)])
        # What Lightning says on a machine with Slurm.
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main()
            except SystemExit as end:
                status = int(end.code or 0)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return Outcome(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def command():
    """Run ``python -m etw_lightning`` with these arguments, without another process."""
    return _run


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Empty current folder, with the cache beside it; runs without a folder make ``stamp``."""
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ETW_RUN_STAMP", "stamp")
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def corpus():
    from etw_lightning.benchmarks.quickstart import build_corpus

    return build_corpus()


@pytest.fixture(scope="session")
def tofu_dir(tmp_path_factory, corpus):
    """Folder of a few rows in the files that TOFU's forget10 reads; copy it to change one."""
    folder = tmp_path_factory.mktemp("tofu")
    rows = {
        "forget10": corpus["forget"][:4],
        "forget10_perturbed": corpus["forget_perturbed"][:4],
        "retain90": corpus["retain"][:6],
        "retain_perturbed": corpus["retain_perturbed"][:3],
        "real_authors_perturbed": corpus["real_authors_perturbed"][:2],
        "world_facts_perturbed": corpus["world_facts_perturbed"][:2],
    }
    for name, part in rows.items():
        _write_rows(folder / f"{name}.jsonl", part)
    return folder


@pytest.fixture(scope="session")
def muse_dir(tmp_path_factory, corpus):
    """Folder of a few rows in the files that MUSE-News reads; copy it to change one."""
    folder = tmp_path_factory.mktemp("muse")
    pairs = [{key: row[key] for key in ("question", "answer")} for row in corpus["full"]]
    texts = [{"text": f"{row['question']} {row['answer']}"} for row in corpus["full"]]
    passages = [{"prompt": row["question"], "gt": row["answer"]} for row in pairs[:2]]
    rows = {
        "raw/forget": texts[:4],
        "raw/retain1": texts[4:9],
        "verbmem/forget": passages,
        "knowmem/forget_qa": pairs[:2],
        "knowmem/forget_qa_icl": pairs[2:4],
        "knowmem/retain_qa": pairs[4:6],
        "knowmem/retain_qa_icl": pairs[6:8],
        "privleak/forget": texts[:5],
        "privleak/holdout": texts[-5:],
    }
    for name, part in rows.items():
        _write_rows(folder / f"{name}.jsonl", part)
    return folder


@pytest.fixture(scope="session")
def retain_model_dir(tmp_path_factory, tiny_model_dir):
    """Folder of a model like the tiny one, with other weights."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("retain_model") / "model"
    shutil.copytree(tiny_model_dir, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: weight * 0.9 for name, weight in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


@pytest.fixture(scope="session")
def small_tofu(tiny_model_dir, retain_model_dir):
    """Return what makes a run on rows of TOFU's shape small enough for a test, as a file has it."""

    def call(root, callbacks=None):
        shown = {} if callbacks is None else {"callbacks": callbacks}
        return {
            "model": {"pretrained": str(tiny_model_dir), "lr": 1e-3},
            "data": {
                "root": str(root),
                "system_prompt": None,
                "template_kwargs": None,
                "retain_model": str(retain_model_dir),
                "max_new_tokens": 4,
                "batch_size": 2,
            },
            "trainer": {
                "accelerator": "cpu",
                "precision": "32-true",
                "max_epochs": 1,
                "accumulate_grad_batches": 1,
                "enable_progress_bar": False,
                **shown,
            },
        }

    return call


#: What makes a published configuration small enough for a test.
_SMALL = (
    "--data.batch_size=2",
    "--trainer.max_epochs=2",
    "--trainer.accumulate_grad_batches=1",
    "--trainer.enable_progress_bar=false",
    "--model.lr=1e-3",
)


@pytest.fixture
def tofu_args(home, configs, tofu_dir, tiny_model_dir):
    """``fit`` on TOFU's shape with the tiny model; only the retain model's side is missing."""
    return [
        "fit",
        f"--config={configs / 'tofu_forget10.yaml'}",
        f"--data.root={tofu_dir}",
        f"--model.pretrained={tiny_model_dir}",
        "--data.system_prompt=null",
        "--data.template_kwargs=null",
        "--data.retain_model=null",
        "--data.max_new_tokens=4",
        "--trainer.precision=32-true",
        *_SMALL,
    ]


@pytest.fixture
def muse_args(home, configs, muse_dir, tiny_model_dir, retain_model_dir):
    """``fit`` on MUSE's shape with the tiny models."""
    return [
        "fit",
        f"--config={configs / 'muse_news.yaml'}",
        f"--data.root={muse_dir}",
        f"--model.pretrained={tiny_model_dir}",
        "--data.tokenizer=null",
        f"--data.retain_model={retain_model_dir}",
        "--data.max_length=48",
        *_SMALL,
    ]


@pytest.fixture
def args(tofu_args, retain_model_dir):
    """``evaluate`` of the tiny model on TOFU's shape, that lacks nothing."""
    return ["evaluate", *tofu_args[1:], f"--data.retain_model={retain_model_dir}"]


@pytest.fixture
def own_args(home, configs, tiny_model_dir):
    """Name own rows in the current folder and the tiny model on the command line."""
    return [
        f"--config={configs / 'own_data.yaml'}",
        f"--model.pretrained={tiny_model_dir}",
        "--data.max_new_tokens=12",
        "--data.batch_size=2",
        "--trainer.max_epochs=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.accelerator=cpu",
    ]


@pytest.fixture
def evaluate(command, args, home):
    """Evaluate to the end; return what was printed, the results and the records."""
    from etw_lightning.scoring.retain_results import load_records

    def call(*more, name="out", using=args):
        folder = home.parent / name
        result = command(*using, *more, f"--output_dir={folder}")
        assert (result.status, result.err) == (0, ""), result.err
        return result.out, json.loads((folder / "results.json").read_text()), load_records(folder)

    return call


@pytest.fixture
def refused(command, home):
    """Run a command that must be refused; return its message."""

    def call(*args, is_warned=False):
        result = command(*args)
        assert result.status == 2, result.err
        *warned, line = result.err.splitlines(keepends=True)
        assert re.fullmatch(r"error: [^\n]+\n", line), result.err
        # Whoever watches warnings, as pytest does, keeps them from the standard error.
        assert all(is_warned and one.startswith("warning: ") for one in warned), result.err
        assert list(home.iterdir()) == []
        return line.removeprefix("error: ").rstrip("\n")

    return call


@pytest.fixture
def scored(monkeypatch):
    """Rows that go through the model, by set and part, in the order of the batches."""
    from etw_lightning.training import scoring_module

    batches = []
    original = scoring_module.ScoringModule.validation_step

    def note(self, work, batch_idx):
        place = (work.dataset, work.part)
        before = len(self._scores.get(place, ()))
        original(self, work, batch_idx)
        rows = {score.row for score in self._scores.get(place, ())[before:]}
        if rows:
            batches.append((*place, len(rows)))

    monkeypatch.setattr(scoring_module.ScoringModule, "validation_step", note)
    return batches
