"""Loggers by class path with no further key, offline; what is not installed is one line."""

import csv
from importlib.util import find_spec

import pytest

LOGGERS = "lightning.pytorch.loggers."


@pytest.fixture
def logged(command, own_args, home, write_rows):
    """Fit on two own rows with a logger; return the run's folder."""
    for name in ("forget", "retain"):
        rows = [{"question": f"{name} {i}?", "answer": f"It is {name} {i}."} for i in range(2)]
        write_rows(home / f"{name}.jsonl", rows)
    folder = home / "out"

    def call(name):
        splits = [f"--data.{one}_split={home / one}.jsonl" for one in ("forget", "retain")]
        words = [*own_args, *splits, "--trainer.callbacks=[]", "--no_save_model"]
        words += [f"--trainer.logger={LOGGERS}{name}", f"--output_dir={folder}"]
        return command("fit", *words), folder

    return call


def test_csv(logged, home):
    result, folder = logged("CSVLogger")
    assert (result.status, result.err) == (0, "")
    [path] = folder.rglob("metrics.csv")
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    assert {"loss/total", "eval/forget_probability"} <= set(rows[0])
    assert any(row["loss/total"] for row in rows)
    assert {one.name for one in home.iterdir()} == {"forget.jsonl", "retain.jsonl", "out"}


@pytest.mark.parametrize(
    ("name", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")]
)
def test_others_write_offline_or_say_what_is_missing(logged, home, name, package, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    result, folder = logged(name)
    if find_spec(package) is None and find_spec(f"{package}_skinny") is None:
        assert result.status == 2
        assert result.err.startswith(f"error: trainer.logger is {LOGGERS}{name}, which needs")
        assert result.err.count("\n") == 1
        return
    assert result.status == 0
    assert {one.name for one in home.iterdir()} == {"forget.jsonl", "retain.jsonl", "out"}
    assert any(one.name in ("wandb", "mlruns") for one in folder.iterdir())
