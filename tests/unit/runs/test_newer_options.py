"""What was made before an option existed is what a run with the option's default makes now."""

import copy
import json
from types import SimpleNamespace

import pytest
import yaml

from etw_lightning.benchmarks.choice import ChoicePrompt
from etw_lightning.benchmarks.tofu import Columns
from etw_lightning.runs.folder import is_result_of
from etw_lightning.runs.key import run_key
from etw_lightning.runs.newer_options import is_of, unlike
from etw_lightning.runs.resume import check_same_run, is_same_run, manifest_of
from etw_lightning.schema import InputError

WEIGHTING = {
    "class_path": "etw_lightning.weighting.ETW",
    "init_args": {"temperature": 1.0, "source": "current", "top_share": None, "hard": False},
}
NOW = {
    "seed_everything": 3,
    "conventions": "definition",
    "model": {
        "pretrained": "a",
        "weighting": WEIGHTING,
        "forget": {"class_path": "etw_lightning.forget.NPO", "init_args": {"beta": 0.1}},
        "forget_weight": 0.1,
        "chunk_size": 256,
    },
    "data": {
        "benchmark": "jsonl",
        "max_length": 512,
        "rouge_tokenizer": "published",
        "eval_max_length": None,
        "columns": dict(vars(Columns())),
        "choice_prompt": dict(vars(ChoicePrompt())),
    },
    "trainer": {
        "max_epochs": 7,
        "accumulate_grad_batches": 1,
        "callbacks": [
            {"class_path": "etw_lightning.callbacks.Suite", "init_args": {"metrics": None}},
            {"class_path": "etw_lightning.callbacks.RetainBudget", "init_args": {"budget": 0.1}},
        ],
    },
}
#: Where an option stands that is at its default above, and another value of it.
OPTIONS = {
    "data.rouge_tokenizer": "unicode",
    "data.eval_max_length": 64,
    "data.columns.messages": "said",
    "trainer.accumulate_grad_batches": 2,
    "model.weighting.init_args.hard": True,
    "model.weighting.init_args.top_share": 0.5,
    "model.forget.init_args.beta": 0.2,
    "trainer.callbacks.0.init_args.metrics": ["rouge"],
}


def place_of(settings, key):
    *way, last = key.split(".")
    for part in way:
        settings = settings[int(part) if part.isdigit() else part]
    return settings, last


def without(key, settings=NOW):
    settings = copy.deepcopy(settings)
    place, last = place_of(settings, key)
    del place[last]
    return settings


def having(key, value):
    settings = copy.deepcopy(NOW)
    place, last = place_of(settings, key)
    place[last] = value
    return settings


@pytest.mark.parametrize("key", OPTIONS)
def test_an_option_at_its_default_is_no_difference(key):
    old = json.loads(json.dumps(without(key)))
    assert unlike(old, NOW) == {}
    assert is_of({"settings": old, "key": run_key(old)}, NOW)
    assert run_key(old) != run_key(NOW)


@pytest.mark.parametrize("key", OPTIONS)
def test_another_value_of_it_is_one(key):
    old, now = without(key), having(key, OPTIONS[key])
    (found,) = unlike(old, now)
    assert key.startswith(found)
    assert not is_of({"settings": old, "key": run_key(old)}, now)


def test_options_without_a_default_and_options_that_have_gone_count():
    assert list(unlike(without("data.benchmark"), NOW)) == ["data.benchmark"]
    assert list(unlike(without("model.forget_weight"), NOW)) in ([], ["model.forget_weight"])
    assert list(unlike(NOW, without("data.rouge_tokenizer"))) == ["data.rouge_tokenizer"]
    other = having("model.forget", {"class_path": "etw_lightning.forget.GA"})
    assert list(unlike(without("model.forget.init_args.beta"), other)) == [
        "model.forget.class_path"
    ]


def test_several_at_once_and_a_convention():
    old = NOW
    for key in OPTIONS:
        old = without(key, old)
    assert unlike(old, NOW) == {}
    whole = manifest_of(NOW)["settings"]
    older = copy.deepcopy(whole)
    del older["conventions"]["gold_text"]
    assert unlike(older, NOW) == {}
    assert list(unlike(older, {**NOW, "conventions": "peer"})) != []


def test_a_checkpoint_goes_on():
    old = without("data.rouge_tokenizer")
    saved = SimpleNamespace(manifest=json.loads(json.dumps(manifest_of(old))), folder="step-1")
    assert is_of(saved.manifest, NOW)
    assert is_same_run(NOW, saved)
    check_same_run(NOW, saved)
    now = having("data.rouge_tokenizer", "unicode")
    assert not is_of(saved.manifest, now)
    assert not is_same_run(now, saved)
    with pytest.raises(InputError, match=r"^data.rouge_tokenizer is \"unicode\", but .* absent"):
        check_same_run(now, saved)


def test_results_are_of_the_run_if_the_settings_beside_them_made_them(tmp_path):
    old = without("data.rouge_tokenizer")
    (tmp_path / "results.json").write_text(json.dumps({"config_hash": run_key(old)}))
    assert not is_result_of(tmp_path, NOW)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    assert is_result_of(tmp_path, NOW)
    assert not is_result_of(tmp_path, having("data.rouge_tokenizer", "unicode"))
    # Settings that somebody has changed since made no results.
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(having("data.max_length", 64)))
    assert not is_result_of(tmp_path, having("data.max_length", 64))
