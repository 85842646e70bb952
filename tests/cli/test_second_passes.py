"""``evaluate`` with what needs more models than one: the target, a classifier, patched layers."""

import gzip
import json
import math
from pathlib import Path

import pytest

from etw_lightning.runs.results import write_results
from etw_lightning.scoring.gibberish_classifier import clean_probabilities


@pytest.fixture
def annotated(home, tofu_dir):
    """File that marks the first word of every answer of the forget set."""
    rows = [json.loads(line) for line in (tofu_dir / "forget10.jsonl").read_text().splitlines()]
    marked = [{"answer": row["answer"], "spans": [[0, row["answer"].index(" ")]]} for row in rows]
    path = home / "marked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in marked))
    return path


def lines_of(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_depth_is_0_for_the_target_and_1_for_the_retain_model(
    evaluate, home, tiny_model_dir, retain_model_dir, annotated
):
    names = ["--metrics=unlearning_depth", f"--data.target_model={tiny_model_dir}"]
    _, target, _ = evaluate(*names, name="target")
    retain = [*names, f"--model.pretrained={retain_model_dir}"]
    _, whole, _ = evaluate(*retain, name="retain")
    _, some, _ = evaluate(*retain, f"--data.annotations={annotated}", name="marked")
    assert target["metrics"]["unlearning_depth"]["value"] == 0
    assert whole["metrics"]["unlearning_depth"]["value"] == 1
    assert some["metrics"]["unlearning_depth"]["value"] == 1
    rows, marked = (
        lines_of(home.parent / name / "depth.jsonl.gz") for name in ("retain", "marked")
    )
    assert [row["id"] for row in rows] == [row["id"] for row in marked]
    assert all(few["num_tokens"] < row["num_tokens"] for few, row in zip(marked, rows, strict=True))
    assert rows[0]["retain_deltas"] == pytest.approx(rows[0]["unlearned_deltas"])


def test_generations_are_read_by_the_target_model(evaluate, tiny_model_dir, retain_model_dir):
    names = "--metrics=generation_perplexity,utility_drop_target,memorisation_score"
    _, mine, _ = evaluate(names.split(",mem")[0], f"--data.target_model={tiny_model_dir}")
    other = [names.split(",")[0], f"--data.target_model={retain_model_dir}"]
    _, theirs, _ = evaluate(*other, name="other")
    found = mine["metrics"]
    assert found["utility_drop_target"]["value"] == 0
    ours = found["forget_generation_perplexity"]["value"]
    assert 1 < ours < theirs["metrics"]["forget_generation_perplexity"]["value"]


def test_generations_are_judged_by_a_classifier(evaluate, classifier_dir):
    names = ["--metrics=gibberish", f"--gibberish_classifier={classifier_dir}"]
    _, results, records = evaluate(*names)
    texts = [row.generation for row in records["forget"]]
    judged = clean_probabilities(texts, str(classifier_dir))
    value = results["metrics"]["forget_clean"]["value"]
    assert value == pytest.approx(sum(judged) / len(judged), abs=1e-9)


def test_marked_tokens_stand_next_to_the_retain_models(evaluate, home, annotated):
    given = ["--metrics=token_auc,token_gap,token_histograms", f"--data.annotations={annotated}"]
    _, results, records = evaluate(*given)
    found = results["metrics"]
    assert 0 <= found["token_auc_etw"]["value"] <= 1
    rows = lines_of(home.parent / "out" / "tokens.jsonl.gz")
    for row, record in zip(rows, records["forget"], strict=True):
        assert row["id"] == record.id
        # What stands outside the answer, such as its end token, is left out.
        inside = [p for p, (start, stop) in zip(record.token_logps, record.token_spans, strict=True)
                  if start < stop]  # fmt: skip
        assert row["probabilities"] == pytest.approx([math.exp(p) for p in inside])
        assert row["marked"][0]
        assert not row["marked"][-1]
    gaps = [
        abs(own - retain)
        for row in rows
        for own, retain, marked in zip(
            row["probabilities"], row["retain_probabilities"], row["marked"], strict=True
        )
        if marked
    ]
    assert found["token_gap_marked"] == {
        "value": pytest.approx(sum(gaps) / len(gaps)), "direction": "down", "n": len(gaps),
        "interval": None,
    }  # fmt: skip
    counts = results["histograms"]["token_entropies"]["counts"]
    assert sum(counts) == sum(len(row.token_logps) for row in records["forget"])


def test_the_retain_model_s_own_numbers_stand_beside(evaluate):
    out, results, _ = evaluate("--metrics=token_histograms,extraction_strength,forget_quality")
    assert results["others"]["retain"].keys() >= {"extraction_strength", "mean_token_entropies"}
    assert "forget_quality" not in results["others"]["retain"]
    assert "retain" in out.split("metric ")[1].splitlines()[0]


def test_suite_at_the_end_of_fit(command, home, tofu_args, retain_model_dir):
    result = command(
        *tofu_args,
        f"--data.retain_model={retain_model_dir}",
        "--trainer.callbacks+=Suite",
        "--trainer.callbacks.metrics=[extraction_strength, utility_drop_target]",
        "--output_dir=run",
    )
    assert result.status == 0, result.err
    results = json.loads((home / "run/results.json").read_text())
    assert {"extraction_strength", "utility_drop_target"} <= results["metrics"].keys()
    first, *_, last = results["history"]
    assert "extraction_strength" not in first["metrics"]
    assert "extraction_strength" in last["metrics"]


def test_fit_says_what_only_evaluate_computes(command, tofu_args, retain_model_dir):
    result = command(
        *tofu_args,
        f"--data.retain_model={retain_model_dir}",
        "--trainer.callbacks+=Suite",
        "--output_dir=run",
    )
    assert result.status == 0, result.err
    (line,) = [line for line in result.out.splitlines() if line.startswith("left out")]
    left_out = json.loads(Path("run/results.json").read_text())["left_out"]
    assert len(left_out) > 3
    assert f": {len(left_out)} metrics that need more" in line
    assert left_out["unlearning_depth"] == "only evaluate computes it"
    assert left_out["token_auc"] == "needs data.annotations"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--metrics=unlearning_depth"],
            "unlearning_depth needs data.retain_model and data.target",
        ),
        (["--metrics=gibberish"], "gibberish needs gibberish_classifier"),
        (["--metrics=token_auc"], "token_auc needs data.annotations"),
        (["--metrics=token_auc", "--data.annotations=no.jsonl"], "annotations"),
        (["--metrics=gibberish", "--gibberish_classifier=no/such/folder"], "gibberish_classifier"),
        (["--lm_eval.tasks=[]", "--metrics=probability"], "lm_eval.tasks"),
    ],
)
def test_what_is_missing_is_one_line(command, args, given, said):
    result = command(*args, *given, "--output_dir=run")
    assert result.status == 2, result.err
    assert result.err.count("\n") == 1
    assert said in result.err


def test_results_are_strict_json(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {"metrics": {"a": {"value": 1.0, "interval": None}}})
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["metrics"]["a"]["value"] == 1.0
