"""``evaluate``: what is scored and what is read, and what is refused."""

import gzip
import json
import re
import shutil
import sys
import warnings

import pytest
import torch

from etw_lightning.models import generation
from etw_lightning.scoring import provenance, record_cache
from etw_lightning.scoring.retain_results import load_records
from etw_lightning.training import scoring_module

#: Rows of the sets that ``tofu_dir`` holds; there is no holdout.
SIZES = {"forget": 4, "retain": 3, "real_authors": 2, "world_facts": 2}


def parts(batches):
    return {(name, part) for name, part, _ in batches}


def test_only_what_a_metric_needs_is_scored_and_nothing_twice(evaluate, scored, args):
    out, results, records = evaluate("--metrics=forget_quality")
    assert parts(scored) == {("forget", "answers")}
    assert set(results["metrics"]) == {
        "forget_quality",
        "neg_log10_forget_quality",
        "forget_d_times_n",
        "forget_quality_floor",
    }
    assert [(name, len(rows)) for name, rows in records.items()] == [("forget", 4)]
    assert records["forget"][0].generation is None
    assert "read from cache" not in out
    scored.clear()

    out, full, records = evaluate()
    assert "\nforget: answers read from cache, generation scored\n" in f"\n{out}"
    assert ("forget", "answers") not in parts(scored)
    assert {name for name, part in parts(scored) if part == "generation"} >= set(SIZES)
    assert full["metrics"]["forget_quality"] == results["metrics"]["forget_quality"]
    assert {name: len(records[name]) for name in SIZES} == SIZES
    assert all(row.token_logps and row.generation is not None for row in records["forget"])
    assert full["left_out"]["mia_loss"].startswith("needs rows of holdout")
    scored.clear()

    out, again, _ = evaluate("--data.eval_batch_size=1", name="again")
    assert scored == []
    assert again["metrics"] == full["metrics"]
    [line] = [one for one in out.splitlines() if "read from cache" in one]
    said = line.removeprefix("read from cache: what the model says of ").split(", ")
    assert set(said) >= set(SIZES), "all in one line"

    evaluate("--metrics=forget_quality", "--data.max_length=64", name="other")
    assert parts(scored) == {("forget", "answers")}, "another encoding is another key"


def test_the_results_say_what_they_were_made_with(evaluate, args, tiny_model_dir):
    _, results, _ = evaluate("--metrics", "forget_quality, model_utility", "--conventions=peer")
    made = results["provenance"]
    assert made["model"]["name"] == str(tiny_model_dir)
    assert re.fullmatch("[0-9a-f]{64}", made["model"]["hash"])
    assert made["conventions"]["attention_mask"] == "token_id"
    assert (made["dtype"], made["precision"]) == ("float32", "32-true")
    assert made["template"]["template"] == "chat"
    assert made["sets"]["forget"]["rows"] == 4
    assert made["sets"]["forget"]["parts"] == ["answers"]
    assert {"torch", "transformers", "etw-lightning"} <= set(made["versions"])
    assert results["retain_results"].startswith("data.retain_model ")
    assert results["command"] == "evaluate"
    _, plain, _ = evaluate("--metrics=forget_quality", name="plain")
    assert plain["provenance"]["template"]["key"] != made["template"]["key"]


def test_evaluating_what_fit_scored_reads_it(command, evaluate, tofu_args, retain_model_dir, home):
    retain = f"--data.retain_model={retain_model_dir}"
    folder = home.parent / "run"
    assert command(*tofu_args, retain, f"--output_dir={folder}").status == 0
    out, _, records = evaluate(f"--model.pretrained={folder / 'model'}", "--metrics=forget_quality")
    assert "read from cache: what the model says of forget\n" in out
    assert [row.answer_loss for row in records["forget"]] == [
        row.answer_loss for row in load_records(folder)["forget"]
    ]
    # The run's own configuration serves as well, and its folder is not written into.
    refused = command("evaluate", f"--config={folder / 'config.yaml'}")
    assert refused.status == 2
    assert refused.err == (
        f"error: output_dir '{folder}' holds a run of fit; give another folder.\n"
    )
    saved = ["evaluate", f"--config={folder / 'config.yaml'}"]
    _, mine, _ = evaluate("--metrics=model_utility", using=saved, name="mine")
    target = json.loads((folder / "results.json").read_text())["history"][0]["metrics"]
    assert mine["metrics"]["model_utility"]["value"] == target["model_utility"]["value"]


def test_how_a_model_continues_is_found_out_at_load_if_it_is_to_generate(
    evaluate, scored, monkeypatch
):
    asked = []
    original = generation.says_anew

    def ask(lm, *given):
        asked.append((lm, len(scored)))
        return original(lm, *given)

    monkeypatch.setattr(generation, "says_anew", ask)
    evaluate("--metrics=forget_quality", name="answers")
    assert asked == []
    scored.clear()
    evaluate("--metrics=model_utility", name="both")
    # Two prompts at once, before anything is scored, and never again.
    assert [num_scored for _, num_scored in asked] == [0, 0]
    assert len(scored) > 0
    assert generation.way_of(asked[0][0]) == "padded"


# Models.


def test_a_checkpoint_is_a_model(command, evaluate, args, tofu_args, home, tiny_model_dir):
    start = shutil.copytree(tiny_model_dir, home.parent / "start")
    folder = home.parent / "run"
    saves = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"dirpath": str(folder / "kept"), "filename": "it"},
    }
    retain = args[-1]
    run = command(
        *tofu_args,
        retain,
        f"--model.pretrained={start}",
        f"--trainer.callbacks={json.dumps([saves])}",
        "--trainer.enable_checkpointing=true",
        f"--output_dir={folder}",
    )
    assert (run.status, run.err) == (0, "")
    checkpoint = folder / "kept" / "it.ckpt"
    names = "--metrics=forget_quality,rouge"
    _, _, ours = evaluate(f"--model.pretrained={checkpoint}", names, name="checkpoint")
    _, _, theirs = evaluate(f"--model.pretrained={folder / 'model'}", names, name="folder")
    assert ours == theirs

    shutil.rmtree(start)
    gone = command(*args, f"--model.pretrained={checkpoint}", names)
    assert gone.err == (
        f"error: model.pretrained {str(checkpoint)!r} was trained from {str(start)!r}, which is "
        "gone; its tokenizer is needed: give data.tokenizer.\n"
    )
    given = f"--data.tokenizer={tiny_model_dir}"
    _, _, found = evaluate(f"--model.pretrained={checkpoint}", given, names, name="given")
    assert found == theirs
    torch.save({"state_dict": {}}, home.parent / "other.ckpt")
    (home.parent / "half.ckpt").write_bytes(checkpoint.read_bytes()[:1000])
    for name, reason in {
        "other": "was not written by a run of this package",
        "half": "can't be read",
        "none": "is not there",
    }.items():
        result = command(*args, f"--model.pretrained={home.parent / name}.ckpt", names)
        assert result.status == 2
        assert re.fullmatch(
            rf"error: model\.pretrained: checkpoint [^\n]*{reason}[^\n]*\n", result.err
        )


def test_data_that_only_training_reads_may_be_missing(evaluate, args, tofu_dir, tmp_path):
    root = tmp_path / "rows"
    root.mkdir()
    shutil.copy(tofu_dir / "forget10_perturbed.jsonl", root)
    _, results, records = evaluate(f"--data.root={root}")
    assert set(records) >= {"forget"}
    assert "model_utility" not in results["metrics"]
    assert results["left_out"]["model_utility"].startswith("needs rows of retain")


def test_muse_is_evaluated_too(command, muse_args, evaluate):
    _, results, records = evaluate(using=["evaluate", *muse_args[1:]])
    assert {"verbmem", "knowmem_forget", "knowmem_retain", "privleak"} <= set(results["metrics"])
    assert records["privleak_forget"][0].token_logps
    assert records["knowmem_forget"][0].generation is not None


# What is refused.


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


def test_a_folder_with_another_models_records(refused, evaluate, args, home, retain_model_dir):
    evaluate("--metrics=probability")
    other = [*args, f"--model.pretrained={retain_model_dir}", "--metrics=probability"]
    folder = home.parent / "out"
    assert refused(*other, f"--output_dir={folder}") == (
        f"output_dir {str(folder)!r} holds records of another model; give another folder, or "
        "--overwrite to replace them."
    )
    (folder / "depth.jsonl.gz").touch()
    _, results, _ = evaluate("--overwrite", using=other)
    assert not (folder / "depth.jsonl.gz").exists(), "rows of the other model"
    assert results["provenance"]["model"]["name"] == str(retain_model_dir)


def test_explain_prints_the_page(command):
    result = command("explain", "forget_quality")
    assert result.status == 0
    assert result.out.startswith("forget_quality\n")
    assert "Formula:" in result.out
    result = command("explain", "forget_qualty")
    assert result.status == 2
    assert "Did you mean 'forget_quality'?" in result.err
    assert command("explain").err.startswith("error: explain must be given the name of a metric")


def test_explain_lists_its_names_and_takes_a_number_without_its_set(command):
    result = command("explain", "--help")
    assert (result.status, result.err) == (0, "")
    assert "forget_quality" in result.out
    assert "A number of rouge." in command("explain", "rougeL_recall").out


# What is refused before a row is scored, and what says whose fault it is.


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


def test_generations_of_lm_eval_end_where_the_run_s_do(evaluate, tiny_tokenizer, monkeypatch):
    """At the end of a turn too, which the tokenizer does not call its end."""
    module, handed = "etw_lightning.commands.run.evaluate", {}
    monkeypatch.setattr(f"{module}.check_tasks", lambda *_: None)
    monkeypatch.setattr(f"{module}.lm_eval_scores", lambda *_, **how: handed.update(how) or {})
    monkeypatch.setattr("etw_lightning.data.rendering.Renderer.turn_ends", lambda _: ("!",))
    evaluate("--metrics=probability", '--lm_eval={"tasks": ["some"]}')
    ids = tiny_tokenizer.convert_tokens_to_ids
    assert handed["further_ends"] == {ids("!"), tiny_tokenizer.eos_token_id}


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


def test_overwriting_never_removes_a_model(refused, command, evaluate, args, home, tiny_model_dir):
    folder = home.parent / "out"
    mine = shutil.copytree(tiny_model_dir, folder / "model")
    for name in ("hparams.yaml", "events.out"):
        (folder / name).touch()
    here = [f"--output_dir={folder}", "--overwrite", "--metrics=probability"]
    for key in ("model.pretrained", "data.retain_model", "data.target_model"):
        said = refused(*args, f"--{key}={mine}", *here)
        assert said.startswith(f"{key} {str(mine)!r} lies in output_dir {str(folder)!r}, ")
    (folder / "records").mkdir()
    for key in ("data.retain_results", "data.target_results"):
        assert refused(*args, f"--{key}={folder}", *here).startswith(f"{key} {str(folder)!r} lies ")
    assert refused(*args, "--output_dir=").startswith("output_dir must be a folder, or null")
    assert refused(*args, "--data.retain_results=").startswith("data.retain_results must be a ")

    evaluate("--overwrite", "--metrics=probability")
    before = (folder / "results.json").read_bytes()
    broken = shutil.copytree(tiny_model_dir, home.parent / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-8])
    assert command(*args, f"--model.pretrained={broken}", *here).status != 0
    assert (folder / "results.json").read_bytes() == before, "nothing is removed for bad input"
    assert all((folder / name).exists() for name in ("model", "hparams.yaml", "events.out"))


def test_a_folder_with_records_of_other_rows(refused, evaluate, args, home):
    evaluate("--metrics=probability")
    folder = home.parent / "out"
    fewer = ("--data.rows.forget10=3", "--metrics=probability")
    assert refused(*args, *fewer, f"--output_dir={folder}") == (
        f"output_dir {str(folder)!r} holds records of other rows of 'forget'; give another folder, "
        "or --overwrite to replace them."
    )
    path = folder / "records" / "provenance.json"
    made = json.loads(path.read_text())
    path.write_text(json.dumps({**made, "data": {**made["data"], "forget_split": "forget05"}}))
    said = refused(*args, "--metrics=probability", f"--output_dir={folder}")
    assert "holds records of data.forget_split 'forget05', this run has 'forget10'; " in said
    _, results, records = evaluate("--overwrite", *fewer)
    assert (results["provenance"]["sets"]["forget"]["rows"], len(records["forget"])) == (3, 3)


def test_numbers_of_the_same_model_rows_and_settings_stay(evaluate, home):
    _, whole, _ = evaluate()
    _, both, _ = evaluate("--metrics=forget_quality")
    assert both["metrics"] == whole["metrics"]
    assert both["left_out"] == whole["left_out"]
    assert both["others"] == whole["others"]
    assert both["retain_results"] == whole["retain_results"]
    assert both["provenance"]["sets"].keys() == whole["provenance"]["sets"].keys()
    assert both["conventions"]["floor"] == "definition"
    assert both["conventions"]["gold_text"] == "whole"
    _, other, _ = evaluate("--metrics=probability", "--conventions.floor=peer")
    assert other["conventions"]["floor"] == "peer"
    assert len(other["metrics"]) < len(whole["metrics"]), "made under other conventions"


def test_a_results_file_that_was_cut(refused, evaluate, tofu_args, args, home):
    _, whole, _ = evaluate("--metrics=probability")
    folder = home.parent / "out"
    for name in ("results.json", "records/provenance.json"):
        path = folder / name
        path.write_bytes(path.read_bytes()[:100])
        out, again, _ = evaluate("--metrics=probability")
        assert f"warning: {path} was cut; it is written anew\n" in out
        assert again["metrics"] == whole["metrics"]
        assert json.loads(path.read_text())
    (folder / "results.json").write_text("{")
    said = refused(*tofu_args, args[-1], f"--output_dir={folder}")
    assert said.endswith("can't be read; give another folder, or --overwrite to run again.")
    (folder / "hparams.yaml").touch()
    assert refused(*args, f"--output_dir={folder}").endswith("a run of fit; give another folder.")
