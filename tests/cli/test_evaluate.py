"""``evaluate``: what is scored and what is read, and what is refused."""

import json
import re
import shutil

import torch

from etw_lightning.models import generation
from etw_lightning.scoring.retain_results import load_records

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


def test_generations_of_lm_eval_end_where_the_run_s_do(evaluate, tiny_tokenizer, monkeypatch):
    """At the end of a turn too, which the tokenizer does not call its end."""
    module, handed = "etw_lightning.commands.run.evaluate", {}
    monkeypatch.setattr(f"{module}.check_tasks", lambda *_: None)
    monkeypatch.setattr(f"{module}.lm_eval_scores", lambda *_, **how: handed.update(how) or {})
    monkeypatch.setattr("etw_lightning.data.rendering.Renderer.turn_ends", lambda _: ("!",))
    evaluate("--metrics=probability", '--lm_eval={"tasks": ["some"]}')
    ids = tiny_tokenizer.convert_tokens_to_ids
    assert handed["further_ends"] == {ids("!"), tiny_tokenizer.eos_token_id}
