"""What is said of how records were made."""

import subprocess
from importlib.metadata import version
from types import SimpleNamespace

import pytest

from etw_lightning.data.encode import Encoder
from etw_lightning.schema import Conventions, EvalSet, Example
from etw_lightning.scoring import provenance
from etw_lightning.scoring.cache.keys import rows_hash
from etw_lightning.scoring.provenance import (
    describe,
    encoding,
    git_commit,
    library_versions,
    texts_hashes,
)

SET = EvalSet("forget", (Example("f/0", "a", "q"),), max_new_tokens=3, stop_strings=("END",))


def test_everything_that_decides_records_is_there(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(provenance, "git_commit", lambda: "abc")
    encoder = Encoder(tiny_tokenizer, max_length=64, template_kwargs={"date": "today"})
    found = describe("here", "1234", {"forget": SET}, encoder, "bfloat16", "bf16-true")
    made = {"dtype": "bfloat16", "precision": "bf16-true"}
    code = {"versions": library_versions(), "git_commit": "abc"}
    generated = {"max_new_tokens": 3, "stop_strings": ["END"]}
    assert found == {
        "model": {"name": "here", "hash": "1234"},
        **made,
        "template": {
            "key": encoder.template_key,
            "template": "chat",
            "system_prompt": None,
            "template_kwargs": {"date": "today"},
            "max_length": 64,
        },
        "conventions": {
            "last_label": "kept",
            "gradient_norm": "all_weights",
            "attention_mask": "length",
            "second_end_token": False,
            "gold_text": "whole",
        },
        "sets": {
            "forget": {
                "rows": 1,
                "hash": rows_hash(SET),
                "texts": texts_hashes(SET),
                "parts": ["answers", "generation"],
                "made": {"answers": {**made, **code}, "generation": {**made, **generated, **code}},
            }
        },
        **code,
    }


def test_what_a_template_was_set_right_by_is_told(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer)
    encoder._renderer.set_right = ("moved",)
    assert encoding(encoder)["template"]["set_right"] == ["moved"]


def test_conventions_but_for_the_floor_of_a_metric(tiny_tokenizer):
    peer = encoding(Encoder(tiny_tokenizer, conventions=Conventions.peer()))["conventions"]
    assert peer["last_label"] == "left_out"
    assert "floor" not in peer


def test_libraries_that_move_numbers_are_named():
    names = {"etw-lightning", "torch", "lightning", "transformers", "datasets", "torchmetrics"}
    names |= {"rouge-score", "uniseg"}
    assert library_versions() == {name: version(name) for name in names}


@pytest.mark.parametrize(
    ("found", "changed", "said"),
    [(0, 0, "abc"), (0, 1, "abc+"), (128, 0, None), (128, 1, None)],
)
def test_a_commit_that_was_changed_has_a_plus(monkeypatch, found, changed, said):
    def run(words, **settings):
        assert words[:2] == ["git", "-C"]
        assert settings["capture_output"], "git may say nothing where a run speaks"
        is_commit = "rev-parse" in words
        assert words[3:] == (
            ["rev-parse", "HEAD"] if is_commit else ["diff", "--quiet", "HEAD", "--", "."]
        )
        assert settings.get("text", False) is is_commit
        return SimpleNamespace(returncode=found if is_commit else changed, stdout="abc\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert git_commit() == said


def test_without_git_there_is_no_commit(monkeypatch):
    def run(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", run)
    assert git_commit() is None
