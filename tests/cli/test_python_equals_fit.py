"""``unlearn`` from Python trains what ``fit`` trains, number for number."""

import json

import pytest
import torch
from safetensors.torch import load_file
from toy import text
from transformers import AutoModelForCausalLM, AutoTokenizer

from etw_lightning import load_records, load_results, unlearn
from etw_lightning.schema import InputError

FORGET = [{"question": f"What of {n}?", "answer": text(n, 3 + n)} for n in range(6)]
RETAIN = [{"question": f"And of {n}?", "answer": text(n + 5, 4)} for n in range(9)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model_dir, command, configs, write_rows):
    """A finished run of ``fit`` on files of the same rows: its folder."""
    here = tmp_path_factory.mktemp("fit")
    write_rows(here / "forget.jsonl", FORGET)
    write_rows(here / "retain.jsonl", RETAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETW_CACHE", str(here / "cache"))
        patch.chdir(here)
        outcome = command(
            "fit",
            *("--config", configs / "method" / "npo.yaml"),
            *("--model.pretrained", tiny_model_dir),
            *("--model.lr", "1e-3", "--model.lambda", "0.3", "--seed_everything", "7"),
            *("--data.benchmark", "jsonl", "--data.forget_split", "forget"),
            *("--data.retain_split", "retain", "--data.batch_size", "2"),
            *("--data.max_new_tokens", "3", "--trainer.max_epochs", "2"),
            *("--trainer.accelerator", "cpu", "--trainer.accumulate_grad_batches", "2"),
            *("--trainer.callbacks+", "etw_lightning.callbacks.SetScores"),
            *("--output_dir", here / "run"),
        )
    assert outcome.status == 0, outcome.err
    return here / "run"


def test_the_same_rows_and_seed_give_the_same_weights(run, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("ETW_CACHE", str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model, results = unlearn(
        *(model, tokenizer, FORGET, RETAIN, "npo"),
        epochs=2,
        lr=1e-3,
        batch_size=2,
        seed=7,
        forget_weight=0.3,
        trainer={"accumulate_grad_batches": 2},
        progress=False,
    )
    saved = load_file(run / "model" / "model.safetensors")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, saved[name]), name
    history = json.loads((run / "results.json").read_text())["history"]
    for numbers, at in ((results.before, history[0]), (results.after, history[-1])):
        for name, metric in numbers.items():
            assert metric.value == pytest.approx(at["metrics"][name]["value"], abs=1e-12)
    assert len(results.losses) == history[-1]["step"] == 4


def test_results_are_a_frame(run):
    frame = load_results(run)
    held = json.loads((run / "results.json").read_text())
    assert list(frame.index) == list(held["metrics"])
    for name, metric in held["metrics"].items():
        assert frame.loc[name, "value"] == metric["value"]
        assert frame.loc[name, "direction"] == metric["direction"]
        assert frame.loc[name, "n"] == metric["n"]
    assert load_results(run / "results.json").equals(frame)


def test_a_history_is_a_frame(run):
    frame = load_results(run, history=True)
    one = frame.loc["forget_probability"]
    assert list(one["epoch"]) == [0, 1, 2]
    assert list(one["step"]) == [0, 2, 4]
    assert one["value"].iloc[-1] == load_results(run).loc["forget_probability", "value"]


def test_records_are_a_frame(run):
    frame = load_records(run)
    assert list(frame.columns[:2]) == ["dataset", "id"]
    assert sorted(frame["dataset"].unique()) == ["forget", "retain"]
    assert list(load_records(run, "forget")["answer"]) == [row["answer"] for row in FORGET]
    assert list(load_records(run, ["retain"])["question"]) == [row["question"] for row in RETAIN]
    forget = load_records(run, "forget")
    # The mean of the loss's exponentials is the number the run reports.
    mean = forget["answer_loss"].rsub(0).map(torch.tensor).map(torch.exp).map(float).mean()
    assert mean == pytest.approx(load_results(run).loc["forget_probability", "value"], abs=1e-6)
    assert len(forget["token_logps"].iloc[0]) >= 3


def test_what_holds_no_results_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"there is no .*results\.json"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text('{"finished": false, "stopped": {"reason": "nan"}}')
    with pytest.raises(InputError, match="holds no finished results: nan"):
        load_results(tmp_path)
    with pytest.raises(InputError, match=r"run: .*holds no records"):
        load_records(tmp_path)
    with pytest.raises(InputError, match="sets must be some of forget, retain; got 'holdout'"):
        load_records(run, "holdout")
    evaluation = {"metrics": {}, "others": {"retain": {}}}
    (tmp_path / "results.json").write_text(json.dumps(evaluation))
    with pytest.raises(InputError, match="no history"):
        load_results(tmp_path, history=True)


def test_other_models_stand_beside_the_model(tmp_path):
    found = {
        "metrics": {
            "a": {"value": 0.5, "direction": "up", "n": 4, "interval": [0.25, 0.75]},
            "b": {"value": 2.0, "direction": "down", "n": 3, "interval": None},
        },
        "others": {"retain": {"a": {"value": 0.75, "direction": "up", "n": 4, "interval": None}}},
    }
    (tmp_path / "results.json").write_text(json.dumps(found))
    frame = load_results(tmp_path)
    assert frame.loc["a", "retain"] == 0.75
    assert frame["retain"].isna().tolist() == [False, True]
    assert (frame.loc["a", "low"], frame.loc["a", "high"]) == (0.25, 0.75)
