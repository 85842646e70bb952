"""The folder of ``evaluate``: what it holds already stays, is replaced, or refuses the command."""

import json
import shutil


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
