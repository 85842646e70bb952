"""Records of other models that ``evaluate`` is given: how they were made is told or refused."""

import gzip
import json
import shutil
import warnings

import pytest

from etw_lightning.scoring import provenance


@pytest.fixture
def retained(evaluate, args, retain_model_dir):
    """Makes retain results with ``evaluate`` itself; returns their folder."""

    def make(*more, name="retained"):
        evaluate(
            "--metrics=rouge,probability",
            f"--model.pretrained={retain_model_dir}",
            *more,
            name=name,
        )

    return make


def test_retain_results_made_in_another_way(
    refused, evaluate, retained, args, home, tofu_dir, tmp_path
):
    folder = home.parent / "retained"
    using = [*args[:-1], f"--data.retain_results={folder}", "--metrics=forget_quality"]
    retained()
    _, results, _ = evaluate(using=using)
    assert results["retain_results"] == str(folder)
    out = (home.parent / "out" / "records" / "forget.jsonl.gz").read_bytes()

    def refusal(*more):
        return refused(*using, *more, f"--output_dir={home.parent / 'out'}")

    start = f"data.retain_results: {folder} "
    assert refusal("--conventions.attention_mask=token_id").startswith(
        f"{start}was made with conventions.attention_mask 'length', this run has 'token_id'; "
    )
    assert refusal("--data.template=plain").startswith(
        f"{start}was made with data.template 'chat', this run has 'plain'; "
    )
    assert refusal("--data.rows.forget10=3").startswith(
        f"{start}holds 4 rows of 'forget', this run scores 3: it was made for another forget split"
    )
    path = folder / "records" / "forget.jsonl.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert refusal().startswith(f"data.retain_results: {path} is a broken gzip file (")
    path.write_bytes(gzip.compress(gzip.decompress(whole).split(b"\n", 1)[1]))
    assert refusal().startswith(f"{start}holds 3 of the 4 rows of 'forget' that were written")
    path.write_bytes(whole)

    root = shutil.copytree(tofu_dir, tmp_path / "rows")
    rows = (root / "forget10_perturbed.jsonl").read_text().splitlines(keepends=True)
    (root / "forget10_perturbed.jsonl").write_text("".join(rows[::-1]))
    assert "holds another answer in row forget10_perturbed/0" in refusal(f"--data.root={root}")
    assert (home.parent / "out" / "records" / "forget.jsonl.gz").read_bytes() == out


def provenance_of(folder):
    return json.loads((folder / "records" / "provenance.json").read_text())


def test_each_part_says_what_it_was_made_with(evaluate, home, monkeypatch):
    commits = iter(["first", "second", "third"])
    monkeypatch.setattr(provenance, "git_commit", lambda: next(commits))
    folder = home.parent / "out"
    evaluate("--metrics=rouge")
    evaluate("--metrics=probability")
    both = provenance_of(folder)["sets"]["forget"]
    assert both["parts"] == ["answers", "generation"]
    assert {part: made["git_commit"] for part, made in both["made"].items()} == {
        "answers": "second",
        "generation": "first",
    }
    assert both["made"]["generation"]["max_new_tokens"] == 4
    assert "max_new_tokens" not in both["made"]["answers"]

    out, _, records = evaluate("--metrics=forget_quality", "--data.max_new_tokens=3")
    assert (
        f"forget: generations in {folder} were made with max_new_tokens 4, this run has 3; they "
        "are dropped\n"
    ) in out
    assert records["forget"][0].generation is None
    assert records["retain"][0].generation is not None, "a set that is not scored stays"
    sets = provenance_of(folder)["sets"]
    assert sets["forget"]["made"].keys() == {"answers"}
    assert sets["forget"]["made"]["answers"]["git_commit"] == "third"
    assert sets["retain"]["made"]["generation"]["git_commit"] == "first"


def test_retain_results_that_were_generated_in_another_way(
    command, refused, evaluate, args, tofu_args, home, retain_model_dir
):
    folder = home.parent / "retained"
    evaluate(
        "--metrics=rouge,probability", f"--model.pretrained={retain_model_dir}", name="retained"
    )
    target = [f"--data.target_results={folder}", "--data.max_new_tokens=3"]
    said = refused(*args, *target, "--metrics=utility_drop_target")
    assert said.startswith(f"data.target_results: {folder} generated '")
    assert "' with max_new_tokens 4, this run has 3; evaluate that model" in said

    results = f"--data.retain_results={folder}"
    retain = [*args[:-1], results, "--metrics=forget_quality,rouge"]

    def warned(*more, using=retain, name="out"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = command(*using, *more, f"--output_dir={home.parent / name}")
        assert result.status == 0, result.err
        said = [str(one.message) for one in caught]
        return [one for one in said if one.startswith(f"data.retain_results: {folder} ")]

    def retained(name="out"):
        judgement = json.loads((home.parent / name / "results.json").read_text())["judgement"]
        return judgement["models"]["retain"]

    assert warned() == []
    assert retained()["forget_rouge"] is not None
    (told,) = warned("--data.max_new_tokens=3")
    assert "and are left out of the table" in told, "forget quality reads no generations"
    assert retained()["forget_rouge"] is None
    assert retained()["forget_probability"] is not None
    callbacks = '--trainer.callbacks=["ForgetQuality"]'
    fit = [*tofu_args, results, callbacks, "--trainer.max_epochs=1", "--no_save_model"]
    (shorter,) = warned("--data.max_new_tokens=3", using=fit, name="run")
    assert "max_new_tokens 4, this run has 3: that model's generations end elsewhere" in shorter
    assert retained("run")["forget_rouge"] is None
    (rounded,) = warned("--model.dtype=bfloat16", "--overwrite")
    assert "was made with dtype 'float32', this run has 'bfloat16'" in rounded
    (folder / "records" / "provenance.json").unlink()
    (older,) = warned("--overwrite")
    assert "with what template, conventions, dtype, precision, max_new_tokens, stop_st" in older
