"""``unlearn`` and ``evaluate`` on a model in memory."""

import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from toy import text, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

import etw_lightning
from etw_lightning import Method, evaluate, unlearn
from etw_lightning.api.scores import Scores
from etw_lightning.api.unlearning import UnlearningResults
from etw_lightning.forget import GA
from etw_lightning.metrics import Metric, probabilities
from etw_lightning.schema import InputError
from etw_lightning.training.named_methods import method_names, method_settings
from etw_lightning.weighting import Uniform

FORGET = [{"question": f"What of {n}?", "answer": text(n, 3 + n)} for n in range(4)]
RETAIN = [{"question": f"And of {n}?", "answer": text(n + 5, 4)} for n in range(6)]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty current folder, and a cache beside it."""
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "cache"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def loaded(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    return model, AutoTokenizer.from_pretrained(tiny_model_dir)


def quick(*args, **settings):
    return unlearn(*args, **{"epochs": 1, "batch_size": 2, "progress": False, **settings})


def weights_of(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_the_model_itself_is_trained_and_given_back_as_it_was(loaded, place):
    model, tokenizer = loaded
    model.eval()
    model.model.norm.train()
    model.lm_head.weight.requires_grad_(False)
    before = weights_of(model).clone()
    found, results = quick(model, tokenizer, FORGET, RETAIN, lr=1e-2)
    assert found is model
    assert [name for name, module in model.named_modules() if module.training] == ["model.norm"]
    assert not model.lm_head.weight.requires_grad
    assert model.model.norm.weight.requires_grad
    assert not torch.equal(weights_of(model), before)
    assert len(results.losses) == 2
    assert set(results.losses[0]) == {"forget", "retain", "total"}
    assert list(place.iterdir()) == [], "nothing is written"


def test_it_forgets_more_than_it_loses(loaded):
    _, results = quick(*loaded, FORGET, RETAIN, lr=3e-3, epochs=8, forget_weight=0.5)
    drop = {
        name: results.before[f"{name}_probability"].value
        - results.after[f"{name}_probability"].value
        for name in ("forget", "retain")
    }
    assert drop["forget"] > 0 > drop["retain"]


def test_the_numbers_before_are_those_of_the_model_that_was_given(loaded):
    model, tokenizer = loaded
    scores = evaluate(model, tokenizer, FORGET, RETAIN, metrics="probability", progress=False)
    _, results = quick(model, tokenizer, FORGET, RETAIN)
    for name in ("forget_probability", "retain_probability"):
        assert results.before[name] == scores[name]
        assert results.after[name] != scores[name]


@pytest.mark.parametrize(
    "form",
    ["dataset", "frame", "path", "tuples"],
)
def test_rows_in_any_form_are_the_same_rows(form, loaded, tiny_model_dir, tmp_path):
    expected = evaluate(*loaded, FORGET, metrics="exact_memorisation", progress=False)

    def shaped(rows):
        if form == "dataset":
            from datasets import Dataset

            return Dataset.from_list(rows)
        if form == "frame":
            from pandas import DataFrame

            return DataFrame(rows)
        if form == "path":
            write_rows(tmp_path / "rows.jsonl", rows)
            return tmp_path / "rows.jsonl"
        return tuple(rows)

    found = evaluate(*loaded, shaped(FORGET), metrics="exact_memorisation", progress=False)
    assert found == expected
    record = found.records["forget"][1]
    assert record.answer == FORGET[1]["answer"]


def test_texts_are_raw_text(loaded):
    texts = [text(n, 12) for n in range(3)]
    scores = evaluate(*loaded, texts, progress=False)
    assert [record.answer for record in scores.records["forget"]] == texts
    assert scores.records["forget"][0].question is None
    mean = float(np.mean(probabilities(scores.records["forget"])))
    assert 0 < mean < 1
    _, results = quick(*loaded, texts, [text(n, 9) for n in range(3)])
    assert results.before["forget_probability"] == Metric(mean, "down", 3)


def test_rows_left_out_are_not_read_from_a_file_of_that_name(loaded, place):
    write_rows(place / "retain.jsonl", RETAIN)
    scores = evaluate(*loaded, FORGET, progress=False)
    assert set(scores.records) == {"forget"}
    assert "retain" in scores.left_out["probability"]


def test_membership_compares_with_rows_held_out(loaded):
    # Of two equal sets, half of all pairs are in the right order.
    scores = evaluate(*loaded, FORGET, holdout=FORGET, metrics="mia_loss", progress=False)
    assert scores["mia_loss"].value == 0.5
    with pytest.raises(InputError, match="holdout"):
        evaluate(*loaded, FORGET, metrics="mia_loss", progress=False)
    for given in ({}, {"benchmark": "quickstart", "holdout": FORGET}):
        with pytest.raises(InputError, match=r"must be given rows .* or else a benchmark"):
            evaluate(*loaded, **given)


def test_a_model_by_name_is_loaded_with_its_tokenizer(tiny_model_dir, loaded):
    named, _ = quick(tiny_model_dir, None, FORGET, RETAIN, lr=1e-3)
    given, _ = quick(*loaded, FORGET, RETAIN, lr=1e-3)
    assert torch.equal(weights_of(named), weights_of(given))


def test_parts_of_ones_own_are_a_method(loaded, tiny_model_dir):
    settings, _ = method_settings("ga")
    assert settings["weighting"] == Uniform()
    parts = Method(Uniform(), GA(), settings["retain"])
    _, one = quick(str(tiny_model_dir), None, FORGET, RETAIN, parts, forget_weight=0.5)
    _, two = quick(*loaded, FORGET, RETAIN, "ga", forget_weight=0.5)
    assert one.losses == two.losses


def test_an_adapter_is_trained_merged_and_gone(loaded):
    model, tokenizer = loaded
    names = [name for name, _ in model.named_parameters()]
    before = weights_of(model).clone()
    lora = {"peft_type": "LORA", "r": 2, "target_modules": "all-linear"}
    found, _ = quick(model, tokenizer, FORGET, RETAIN, peft=lora, lr=1e-2)
    assert found is model
    assert [name for name, _ in model.named_parameters()] == names
    assert all(weight.requires_grad for weight in model.parameters())
    assert not torch.equal(weights_of(model), before)
    quick(model, tokenizer, FORGET, RETAIN, peft=lora)  # as often as one likes


def test_random_generators_are_left_as_they_were(loaded):
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    quick(*loaded, FORGET, RETAIN)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_an_interrupt_stays_one(loaded):
    class Stop(Callback):
        def on_train_batch_end(self, *_):
            raise KeyboardInterrupt

    model, tokenizer = loaded
    model.eval()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        quick(model, tokenizer, FORGET, RETAIN, callbacks=[Stop()])
    assert signal.getsignal(signal.SIGINT) is handler
    assert not model.training


def test_no_numbers_where_none_are_wanted(loaded):
    run = quick(*loaded, FORGET, RETAIN, metrics=[])
    assert (run.results.before, run.results.after) == ({}, {})
    assert len(run.results.losses) == 2
    assert repr(run) == "LlamaForCausalLM, unlearned in 2 steps"


def test_every_method_file_can_be_named():
    assert len(method_names()) >= 25
    for name in method_names():
        settings, _ = method_settings(name)
        Method(settings["weighting"], settings["forget"], settings["retain"]).check(
            settings["reference"], has_adapter=False
        )


def test_second_answers_of_a_method_reach_the_data(loaded):
    rows = [{**row, "alternative_answer": "Nobody knows."} for row in FORGET]
    _, results = quick(*loaded, rows, RETAIN, "altpo")
    assert len(results.losses) == 2
    with pytest.raises(InputError, match="second answer"):
        quick(*loaded, FORGET, RETAIN, "altpo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forget": None}, "forget must be given"),
        ({"forget": []}, "forget holds no rows"),
        ({"forget": {"question": "a", "answer": "b"}}, "forget must be a list"),
        ({"forget": [1]}, r"forget\[0\] must be a text"),
        ({"forget": [{"question": "Who?"}]}, "answer"),
        ({"forget": "absent.jsonl"}, "absent.jsonl"),
        ({"retain": None}, "retain must be given: method etw"),
        ({"method": "etv"}, "method must be .*Did you mean 'etw'"),
        ({"method": GA()}, "name of a method or a Method"),
        ({"lr": float("inf")}, "^lr must be a finite number"),
        ({"lr": 0.0}, "^lr must be a number > 0"),
        ({"lr": "fast"}, "^lr must be a number > 0; got 'fast'"),
        ({"forget_weight": -1.0}, "^forget_weight must be a number > 0"),
        ({"schedule": "steep"}, "^schedule must be constant, linear or cosine; got 'steep'"),
        ({"reference": "lve"}, "^reference must be cache, live, adapter or None; .*'live'"),
        ({"data": {"max_length": 0}}, r"^data\['max_length'\] must be a whole number > 0; got 0"),
        ({"data": {"max_lenght": 9}}, "^unlearn: data takes no 'max_lenght'.* 'max_length'"),
        ({"trainer": {"max_epoch": 9}}, "^unlearn: trainer takes no 'max_epoch'.* 'max_epochs'"),
        ({"epochs": 0}, "epochs must be a whole number >= 1; got 0"),
        ({"batch_size": 2.5}, "batch_size must be"),
        ({"tokenizer": None}, "tokenizer must be given"),
        ({"template": "chatty"}, "template"),
    ],
)
def test_what_is_refused_is_refused_by_name(arguments, message, loaded):
    model, tokenizer = loaded
    given = {"tokenizer": tokenizer, "forget": FORGET, "retain": RETAIN, **arguments}
    with pytest.raises(InputError, match=message):
        quick(model, **given)


def test_a_mistyped_argument_is_told_what_is_near(loaded):
    with pytest.raises(TypeError) as caught:
        quick(*loaded, FORGET, RETAIN, epoch=2)
    said = "got an unexpected keyword argument"
    assert str(caught.value) == f"unlearn() {said} 'epoch'. Did you mean 'epochs'?"
    with pytest.raises(TypeError) as caught:
        evaluate(*loaded, FORGET, retain_modle="x")
    assert str(caught.value) == f"evaluate() {said} 'retain_modle'. Did you mean 'retain_model'?"
    with pytest.raises(InputError, match=r"^batch_size must be a whole number > 0; got 0"):
        evaluate(*loaded, FORGET, batch_size=0)


def test_reasons_are_said_in_words_of_python(loaded):
    scores = evaluate(*loaded, [text(1, 9)], progress=False)
    assert scores.left_out["mia_loss"] == "needs holdout"
    assert scores.left_out["token_auc"] == "needs annotations"
    reasons = " ".join(scores.left_out.values())
    assert not any(word in reasons for word in ("data.", "model.", "--", "null"))
    with pytest.raises(InputError, match="leave mia_loss out of metrics"):
        evaluate(*loaded, FORGET, metrics="mia_loss", progress=False)


def test_numbers_print_themselves_as_a_table():
    found = {
        "accuracy": Metric(0.5, "up", 8, (0.2152, 0.7848)),
        "repetition": Metric(0.123456, "none", 4),
    }
    assert repr(Scores(found, {}, {"mia_loss": "needs holdout"})).splitlines() == [
        "metric      value   n  interval of 95 %",
        "accuracy ↑  0.5     8  0.2152 to 0.7848",
        "repetition  0.1235  4",
        "left out (.left_out says why): mia_loss",
    ]
    before = {"accuracy": Metric(0.75, "up", 8)}
    results = UnlearningResults(before, {"accuracy": Metric(0.5, "up", 8)}, [{}], ["it drops"])
    assert repr(results).splitlines() == [
        "1 step",
        "warning: it drops",
        "metric      before  after  n",
        "accuracy ↑  0.75    0.5    8",
    ]


def test_a_tokenizer_of_another_model_is_refused(loaded):
    model, tokenizer = loaded
    tokenizer.add_tokens(["<|more|>"])
    with pytest.raises(InputError, match="the tokenizer has"):
        quick(model, tokenizer, FORGET, RETAIN)


def test_results_show_themselves_as_tables(loaded):
    run = quick(*loaded, FORGET, RETAIN)
    frame = run.results.frame()
    assert list(frame.columns[:2]) == ["before", "after"]
    assert (
        frame.loc["forget_probability", "before"] == run.results.before["forget_probability"].value
    )
    assert "<td>forget_probability ↓</td>" in run.results._repr_html_()


def test_the_root_shows_what_it_has_and_imports_nothing_for_it():
    wanted = {"unlearn", "evaluate", "weights", "etw_weights", "load_results", "load_records"}
    assert wanted <= set(dir(etw_lightning))
    code = "import sys, etw_lightning; dir(etw_lightning); print(sorted(sys.modules))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    heavy = {"torch", "lightning", "transformers", "numpy", "pandas", "jsonargparse", "yaml"}
    loaded = {name.strip("'") for name in out.stdout.strip("[]\n").split(", ")}
    assert "etw_lightning" in loaded
    assert not heavy & loaded
    for name in etw_lightning.__all__:
        assert getattr(etw_lightning, name) is not None
    with pytest.raises(AttributeError, match="unlern"):
        _ = etw_lightning.unlern
