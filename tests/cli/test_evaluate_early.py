"""``evaluate``: what is refused before a row is scored, and what says whose fault it is."""

import json
import re
import sys

import pytest

from etw_lightning.scoring import record_cache
from etw_lightning.training import scoring_module


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--metrics=forget_qualty", "got 'forget_qualty'. Did you mean 'forget_quality'?"),
        ("--metrics=verbmem", "metrics: verbmem is not defined for data.benchmark tofu"),
        ("--metrics=mia_loss", "metrics: mia_loss needs rows of holdout"),
        ("--conventions=peers", "conventions must be definition or peer; got 'peers'."),
        ("--conventions.flor=peer", "Did you mean 'conventions.floor'?"),
        (
            "--conventions.last_label=peer",
            "conventions.last_label must be kept or left_out; got 'peer'.",
        ),
        ("--ckpt_path=x.ckpt", "to evaluate a checkpoint: --model.pretrained x.ckpt"),
        ("--data.retain_model=null", "metrics: forget_quality needs data.retain_results or"),
        ('--data.template_kwargs={"a": 1}', None),
    ],
)
def test_a_refused_option(command, refused, args, typed, message):
    given = [*args, "--metrics=forget_quality", typed]
    if message is None:
        assert command(*given).status == 0
        return
    assert message in refused(*given)


@pytest.fixture
def no_scoring(monkeypatch):
    """Fail where a row is scored."""

    def score(*_):
        raise AssertionError("a row was scored")

    monkeypatch.setattr(scoring_module, "score_in_turn", score)
    monkeypatch.setattr(record_cache, "score_in_turn", score)


def refusal(result):
    assert result.status == 2, result
    assert re.fullmatch(r"error: [^\n]+\n", result.err)
    return result.err.removeprefix("error: ")


def test_annotations_are_read_before_anything_is_scored(command, args, home, no_scoring):
    wrong = home / "marks.txt"
    wrong.write_text("")
    said = refusal(command(*args, "--metrics=token_auc", f"--data.annotations={wrong}"))
    assert said.startswith("data.annotations must be a file of marked answers (.jsonl")
    assert "exist" not in said
    rows = home / "marks.jsonl"
    rows.write_text(json.dumps({"answer": "another", "spans": []}) + "\n")
    said = refusal(command(*args, "--metrics=token_auc", f"--data.annotations={rows}"))
    assert said.startswith("data.annotations: 1 rows for 4 answers")


def test_a_classifier_is_looked_at_before_anything_is_scored(
    command, args, tiny_model_dir, no_scoring
):
    more = ("--metrics=gibberish", f"--gibberish_classifier={tiny_model_dir}")
    said = refusal(command(*args, *more, f"--data.target_model={tiny_model_dir}"))
    assert "has no label 'clean'" in said


def test_lm_eval_is_looked_for_before_anything_is_scored(command, args, monkeypatch, no_scoring):
    assert refusal(command(*args, "--lm_eval={}")) == "lm_eval.tasks must be given.\n"
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.models.huggingface", raising=False)
    said = refusal(command(*args, '--lm_eval={"tasks": ["wmdp"]}'))
    assert said.startswith("lm_eval.tasks needs lm-evaluation-harness")


def test_a_number_of_the_retain_model_that_is_none_names_that_model(
    command, args, retain_model_dir, monkeypatch
):
    original = scoring_module.score_in_turn

    def spoil(*given):
        for scores in original(*given):
            yield [
                one._replace(value=float("nan")) if one.field == "answer_loss" else one
                for one in scores
            ]

    monkeypatch.setattr(record_cache, "score_in_turn", spoil)
    said = refusal(command(*args, "--metrics=forget_quality"))
    assert said.startswith(f"data.retain_model {str(retain_model_dir)!r}: Row ")


@pytest.mark.parametrize("which", ["output_dir", "ETW_CACHE"])
def test_a_folder_that_takes_no_files_is_named(command, args, home, monkeypatch, which):
    file = home / "file"
    file.write_text("")
    folder = home / "out"
    if which == "ETW_CACHE":
        monkeypatch.setenv("ETW_CACHE", str(file / "cache"))
    else:
        folder.mkdir()
        (folder / "records").write_text("")
    said = refusal(command(*args, "--metrics=forget_quality", f"--output_dir={folder}"))
    assert said.startswith(f"{which}: {file / 'cache' if which == 'ETW_CACHE' else folder}")


def test_a_suite_while_training_refuses_what_only_evaluate_computes(
    command, tofu_args, retain_model_dir
):
    suite = {"class_path": "etw_lightning.callbacks.Suite"}
    suite["init_args"] = {"metrics": "forget_quality, gibberish"}
    more = (f"--trainer.callbacks={json.dumps([suite])}", f"--data.retain_model={retain_model_dir}")
    said = refusal(command(*tofu_args, *more))
    assert "gibberish can't be computed while training, only evaluate can compute it" in said
