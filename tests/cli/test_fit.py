"""Whole runs on a few rows and tiny models: what they leave behind, and that they repeat."""

import json
import re
import shutil
from collections import Counter
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
import yaml
from curves import curves
from huggingface_hub import ModelCard

from etw_lightning.boards.groups import card
from etw_lightning.metrics import Direction
from etw_lightning.models.loading import load_model
from etw_lightning.scoring import record_cache
from etw_lightning.scoring.retain_results import load_records
from etw_lightning.training import scoring_module

NUMBERS = (
    "forget_quality",
    "neg_log10_forget_quality",
    "forget_d_times_n",
    "forget_probability",
    "forget_rougeL_recall",
    "forget_truth_ratio_closer_to_one",
    "model_utility",
)


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def logged(folder):
    """Return the scalars by tag, and the tags of texts, that TensorBoard would show."""
    scalars, texts = curves(folder)
    return {tag: [value for _, value in points] for tag, points in scalars.items()}, list(texts)


@pytest.fixture
def fit(command, home):
    """Run to the end in a folder of its own; return the folder and what was printed."""

    def call(*args, name="run"):
        folder = home.parent / name
        result = command(*args, f"--output_dir={folder}")
        assert (result.status, result.err) == (0, "")
        assert list(home.iterdir()) == []
        return SimpleNamespace(folder=folder, out=result.out, results=results_of(folder))

    return call


def test_a_run_leaves_everything_behind_and_can_be_repeated(
    fit, tofu_args, retain_model_dir, tiny_model_dir, monkeypatch
):
    retain = f"--data.retain_model={retain_model_dir}"
    run = fit(*tofu_args, retain, "--model.lambda", "0.3", "--seed_everything=5")
    check_results(run.results)
    check_records(run.folder)
    check_curves(run.folder, run.results)
    check_model(run.folder / "model", tiny_model_dir)
    check_card(run.folder / "model", run.results)
    assert re.search(r"^ +target +unlearned +retain *$", run.out, re.MULTILINE)
    assert re.search(r"^verdict: ", run.out, re.MULTILINE)
    check_judgement(run)
    assert f"results: {run.folder / 'results.json'}" in run.out

    def refuse(*args):
        raise AssertionError("the cache holds these records")

    monkeypatch.setattr(record_cache, "score_in_turn", refuse)
    config = run.folder / "config.yaml"
    assert yaml.safe_load(config.read_text())["model"]["forget_weight"] == 0.3
    again = fit("fit", f"--config={config}", name="again")
    for key in ("metrics", "history", "table", "config_hash", "seed"):
        assert again.results[key] == run.results[key], key

    # A run's own records serve a run that starts from its model, or compares with it.
    model = run.folder / "model"
    onward = [*tofu_args, f"--model.pretrained={model}", f"--data.retain_model={model}"]
    onward = fit(*onward, "--trainer.max_epochs=1", name="onward")
    before = onward.results["history"][0]["metrics"]
    assert before["forget_quality"] == {
        "value": 1.0,
        "direction": "up",
        "n": 4,
        "interval": None,
    }
    for name in ("forget_probability", "forget_rougeL_recall", "model_utility"):
        assert before[name] == run.results["metrics"][name]


def state_of(lm):
    """Return a number that tells one state of a model's weights from another."""
    return sum(weight.double().sum().item() for weight in lm.parameters())


def test_no_row_of_a_model_is_scored_twice(
    fit, tofu_args, retain_model_dir, tiny_model_dir, monkeypatch
):
    """Target and retain model once for all runs, the trained one once in each evaluation."""
    seen = Counter()
    for module in (scoring_module, record_cache):
        original = module.score_in_turn

        def note(scorer, batch, *more, original=original):
            state = state_of(scorer.lm)
            for scores in original(scorer, batch, *more):
                seen.update((state, batch.dataset, *score[:3]) for score in scores)
                yield scores

        monkeypatch.setattr(module, "score_in_turn", note)
    given = [*tofu_args, f"--data.retain_model={retain_model_dir}"]
    fit(*given)
    others = {state_of(load_model(str(path))) for path in (tiny_model_dir, retain_model_dir)}
    first = {state for state, *_ in seen}
    assert others <= first
    assert len(first) == 4, "and after each of two epochs"
    assert set(seen.values()) == {1}
    seen.clear()
    fit(*given, "--model.lambda=0.2", name="other")
    assert set(seen.values()) == {1}
    assert len({state for state, *_ in seen}) == 2
    assert not others & {state for state, *_ in seen}


def check_results(results):
    assert results["finished"] is True
    assert results["seed"] == 5
    assert set(NUMBERS) <= set(results["metrics"])
    for name, metric in results["metrics"].items():
        assert set(metric) == {"value", "direction", "n", "interval"}, name
        assert metric["direction"] in get_args(Direction)
        assert metric["n"] > 0
    assert results["metrics"]["forget_quality"]["n"] == 4
    assert set(results["table"]) == {"target", "unlearned", "retain"}
    assert [entry["epoch"] for entry in results["history"]] == [0, 1, 2]
    assert [entry["step"] for entry in results["history"]] == [0, 2, 4]
    assert results["steps"] == 4
    first, last = results["history"][0], results["history"][-1]
    assert last["metrics"] == results["metrics"]
    assert first["metrics"]["forget_probability"] != last["metrics"]["forget_probability"]
    # Not due after the first epoch (every fifth), but before training and at the end.
    assert "model_utility" in first["metrics"]
    assert "model_utility" not in results["history"][1]["metrics"]
    assert re.fullmatch("[0-9a-f]{12}", results["config_hash"])
    assert results["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", results["git_commit"])
    assert {"etw-lightning", "torch", "lightning", "transformers"} <= set(results["versions"])


def check_judgement(run):
    found, table = run.results["judgement"], run.results["table"]
    assert list(found["models"]) == ["target", "unlearned", "retain"]
    for name, row in table.items():
        assert row.items() <= found["models"][name].items()
    assert f"\n{found['verdict']}\n" in run.out
    # Not in the records of before: what is scored at the end alone.
    before, after = load_records(run.folder / "before"), load_records(run.folder)
    for name in ("forget", "retain", "real_authors", "world_facts"):
        assert [row.id for row in before[name]] == [row.id for row in after[name]]
    worst = found["worst_rows"]["retain"]
    assert {row["row"] for row in worst} == {0, 1, 2}
    for row in worst:
        assert row["before"] == before["retain"][row["row"]].generation
        assert row["after"] == after["retain"][row["row"]].generation
        assert row["truth"] == after["retain"][row["row"]].answer
    page = (run.folder / "worst_rows.md").read_text()
    assert page.startswith(f"{found['verdict']}\n\n")
    _, texts = logged(run.folder)
    assert "samples/worst rows/text_summary" in texts


def check_records(folder):
    records = load_records(folder)
    sizes = {"forget": 4, "retain": 3, "real_authors": 2, "world_facts": 2}
    assert sizes.items() <= {name: len(rows) for name, rows in records.items()}.items()
    row = records["forget"][0]
    assert row.id == "forget10_perturbed/0"
    assert row.answer_loss > 0
    assert row.generation is not None
    assert len(row.perturbed_losses) == 5


def check_curves(folder, results):
    scalars, texts = logged(folder)
    losses = {"losses/forget", "losses/retain", "losses/total"}
    weights = {"weights/mean_entropy", "weights/top_decile_share", "weights/max"}
    shown = {card(f"eval/{name}") for name in NUMBERS}
    assert {tag.split("/")[0] for tag in shown} == {"forgetting", "keeping"}
    assert losses | weights | shown <= set(scalars)
    groups = {"forgetting", "keeping", "losses", "weights", "learning rate", "sanity", "privacy"}
    assert {tag.split("/")[0] for tag in scalars} <= groups
    assert "numbers/all/text_summary" in texts
    assert all(len(scalars[tag]) == 4 for tag in losses)
    parts = (scalars[f"losses/{name}"] for name in ("total", "retain", "forget"))
    for total, keep, push in zip(*parts, strict=True):
        assert total == pytest.approx(keep + 0.3 * push, rel=1e-5)
    assert len(scalars["forgetting/forget_probability"]) == 3
    for value, entry in zip(
        scalars["forgetting/forget_probability"], results["history"], strict=True
    ):
        assert value == pytest.approx(entry["metrics"]["forget_probability"]["value"], rel=1e-6)
    assert "samples/forget/text_summary" in texts
    # The target model's numbers and answers stand before the first step, the last behind all.
    evaluated = [entry["step"] for entry in results["history"]]
    assert evaluated == [0, 2, 4]
    scalars, texts = curves(folder)
    for tag in ("forgetting/forget_probability", "forgetting/forget_quality"):
        assert [step for step, _ in scalars[tag]] == evaluated
    assert [step for step, _ in scalars["keeping/model_utility"]] == [0, 4]
    assert texts["samples/forget/text_summary"] == evaluated
    assert texts["samples/retain/text_summary"] == [0, 4]
    for tag in losses | weights:
        assert [step for step, _ in scalars[tag]] == [0, 1, 2, 3]


def check_model(folder, start):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, before = (AutoModelForCausalLM.from_pretrained(place) for place in (folder, start))
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    assert not all(torch.equal(ours, theirs) for ours, theirs in pairs)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    assert len(tokenizer) == model.config.vocab_size
    assert (folder / "generation_config.json").is_file()
    assert (folder / "model.safetensors").is_file()


def check_card(folder, results):
    card = ModelCard.load(folder / "README.md")
    assert card.data.tags == ["etw_lightning", "unlearning"]
    assert "4 optimiser steps, seed 5" in card.text
    assert "      forget_weight: 0.3" in card.text
    rows = re.findall(
        r"^\| trained on: (\w+) \| (\w+) \| (\d+) \| [0-9a-f]{24} \|$", card.text, re.M
    )
    assert rows == [("forget", "forget10", "4"), ("retain", "retain90", "6")]
    value = results["metrics"]["model_utility"]["value"]
    assert f"| model\\_utility | {value:.4g} |" in card.text


def test_fine_tuning_makes_retain_results(fit, tofu_args, configs):
    flags = [arg for arg in tofu_args[1:] if "--config=" not in arg]
    config = f"--config={configs / 'tofu_finetune.yaml'}"
    tuned = fit("fit", config, *flags, "--data.split=retain90", name="tuned")
    assert [entry["epoch"] for entry in tuned.results["history"]] == [2]
    scalars, _ = logged(tuned.folder)
    assert "losses/retain" in scalars
    assert not {"losses/forget", "weights/max"} & set(scalars)
    assert scalars["losses/retain"][-1] < scalars["losses/retain"][0]
    assert tuned.results["retain_results"] is None

    run = fit(*tofu_args, f"--data.retain_results={tuned.folder}", "--model.forget=null")
    assert run.results["retain_results"] == str(tuned.folder)
    assert set(run.results["table"]) == {"target", "fine-tuned", "retain"}


def test_gradient_ascent_without_a_retain_term(fit, tofu_args, configs, retain_model_dir):
    run = fit(
        *tofu_args,
        f"--config={configs / 'method' / 'ga.yaml'}",
        f"--data.retain_model={retain_model_dir}",
        "--model.retain=null",
        "--trainer.max_epochs=1",
        "--no_save_model",
    )
    assert not (run.folder / "model").exists()
    scalars, _ = logged(run.folder)
    assert "losses/retain" not in scalars
    assert scalars["weights/mean_entropy"][0] > 0  # logged whatever the weighting
    assert scalars["weights/max"] == [1.0, 1.0]


def test_muse_is_raw_text_with_a_plain_template(fit, muse_args):
    run = fit(*muse_args)
    metrics = run.results["metrics"]
    assert set(metrics) >= {"verbmem", "knowmem_forget", "knowmem_retain", "privleak"}
    assert metrics["privleak"]["direction"] == "zero"
    assert set(run.results["table"]) == {"target", "unlearned", "retain"}
    records = load_records(run.folder)
    assert records["privleak_forget"][0].token_logps
    assert records["knowmem_forget"][0].generation is not None
    assert "samples/verbmem/text_summary" in logged(run.folder)[1]


def test_the_users_own_files_are_scored_without_a_retain_model(
    command, home, configs, corpus, write_rows, tiny_model_dir, tofu_args
):
    mine = [{"ask": row["question"], "say": row["answer"]} for row in corpus["forget"][:4]]
    write_rows(home / "mine.jsonl", mine)
    write_rows(home / "prose.jsonl", [{"text": row["answer"]} for row in corpus["retain"][:4]])
    score = {"class_path": "etw_lightning.callbacks.SetScores", "init_args": {"every_n_epochs": 2}}
    args = [
        *tofu_args,
        "--data.benchmark=jsonl",
        "--data.root=null",
        "--data.forget_split=mine",
        "--data.retain_split=prose.jsonl",
        "--data.columns.question=ask",
        "--data.columns.answer=say",
        f"--trainer.callbacks={json.dumps([score])}",
        "--data.retain_model=null",
    ]
    result = command(*args)
    assert (result.status, result.err) == (0, "")
    folder = home / "runs" / "tofu_forget10" / "stamp"
    metrics = results_of(folder)["metrics"]
    assert {"forget_probability", "forget_rougeL_recall", "retain_probability"} == set(metrics)
    assert metrics["forget_probability"]["direction"] == "down"
    assert [entry["epoch"] for entry in results_of(folder)["history"]] == [0, 2]

    mark = folder / "records" / "left_over.jsonl.gz"
    shutil.copy(folder / "records" / "forget.jsonl.gz", mark)
    again = command(*args)
    assert (again.status, again.out.startswith("finished: ")) == (0, True)
    assert mark.exists()
    assert command(*args, "--overwrite").status == 0
    assert not mark.exists()
    assert results_of(folder)["metrics"] == metrics
