"""Rows, models and folders that a run can't use give one line each, and nothing is lost."""

import json
import shutil
import time

import pytest
from small_models import llama_config

from etw_lightning.benchmarks import hub_rows, quickstart
from etw_lightning.files import hub
from etw_lightning.models import loading as models
from etw_lightning.schema import Record
from etw_lightning.scoring.retain_results import save_records
from etw_lightning.training import quickstart_models

CALLBACK = "etw_lightning.callbacks.{}"


@pytest.fixture
def with_retain(tofu_args, retain_model_dir):
    """Arguments of a run that lacks nothing."""
    return [*tofu_args, "--data.retain_model", retain_model_dir]


def test_an_unknown_split_is_refused_with_those_there_are(refused, with_retain):
    for key in ("data.forget_split", "data.retain_split"):
        message = refused(*with_retain, f"--{key}", "forget11")
        assert message.startswith(f"{key} must be forget01, forget05")
        assert message.endswith("; got 'forget11'. Did you mean 'forget10'?")
    message = refused(*with_retain, "--model.forget=null", "--data.split", "forget11")
    assert message.startswith("data.split must be ")
    message = refused(*with_retain, "--data.rows", '{"forget11": 3}')
    assert message.startswith("each name in data.rows must be ")
    message = refused(*with_retain, "--data.rows", '{"forget10": 9}')
    assert message.startswith("data.rows.forget10 is 9, but forget10_perturbed has 4 rows; ")


def test_names_are_refused_before_a_model_is_trained_for_them(refused, configs, monkeypatch):
    def train(name):
        raise AssertionError("a typo should not have to wait for this")

    monkeypatch.setattr(quickstart_models, "resolve", train)
    quick = ["fit", "--config", configs / "quickstart.yaml"]
    assert refused(*quick, "--data.forget_split", "forgt") == (
        "data.forget_split must be forget, request1, request2 or request3; got 'forgt'. Did you "
        "mean 'forget'?"
    )


def test_one_split_has_nothing_to_forget(refused, with_retain):
    assert refused(*with_retain, "--data.split", "retain90") == (
        "data.split is 'retain90': fine-tuning on one split needs model.forget null and "
        "model.retain a class; leave data.split out to unlearn data.forget_split."
    )


def test_an_evaluation_set_that_the_benchmark_lacks(refused, with_retain):
    callback = {"class_path": CALLBACK.format("SetScores"), "init_args": {"sets": ["forgt"]}}
    assert refused(*with_retain, "--trainer.callbacks", json.dumps([callback])) == (
        "each set that trainer.callbacks score must be forget, retain, real_authors, "
        "world_facts, forget_paraphrased, retain_paraphrased or holdout; got 'forgt'. "
        "Did you mean 'forget'?"
    )


@pytest.mark.parametrize("key", ["trainer.limit_val_batches", "trainer.num_sanity_val_steps"])
def test_a_part_of_an_evaluation_set_is_no_evaluation(refused, with_retain, key):
    message = refused(*with_retain, f"--{key}", "1")
    assert message.startswith(f"{key} must be ")
    assert "; got 1" in message


def test_an_evaluation_that_would_score_nothing_is_refused(refused, with_retain):
    words = ["evaluate", *with_retain[1:], "--trainer.limit_val_batches=0"]
    assert refused(*words) == (
        "trainer.limit_val_batches must be 1.0 or null; got 0, which would score nothing."
    )


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "--trainer.limit_train_batches=0.1",
            "trainer.limit_train_batches does not fit the rows: You requested to check 0.1 of the",
        ),
        (
            "--trainer.val_check_interval=50",
            "trainer.val_check_interval does not fit the rows: `val_check_interval` (50) must be",
        ),
        (
            "--trainer.max_time=00:00:00:00",
            "trainer.max_time 00:00:00:00 ended the run before its first step, so that nothing was",
        ),
    ],
)
def test_what_shows_once_there_are_batches_is_one_line_too(
    command, with_retain, tmp_path, typed, message
):
    callback = json.dumps([{"class_path": "SetScores", "init_args": {"sets": ["forget"]}}])
    folder = tmp_path / "run"
    words = [*with_retain, f"--trainer.callbacks={callback}", f"--output_dir={folder}", typed]
    result = command(*words)
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith(f"error: {message}")
    assert not (folder / "results.json").exists()
    assert not (folder / "model").exists()


def test_a_run_without_evaluations_or_logs_ends_well(command, with_retain, tmp_path):
    callback = json.dumps([{"class_path": "SetScores", "init_args": {"sets": ["forget"]}}])
    words = [*with_retain, f"--trainer.callbacks={callback}", f"--output_dir={tmp_path / 'run'}"]
    words += ["--trainer.limit_val_batches=0", "--trainer.log_every_n_steps=0"]
    result = command(*words)
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (found["finished"], found["metrics"]) == (True, {})
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


QUESTION, ANSWER = {"question": "Who?"}, {"answer": "Nobody."}
ROWS = {
    "no rows in forget set": ("forget10", "", ["forget10.jsonl has no rows"]),
    "no rows in retain set": ("retain90", "\n\n", ["retain90.jsonl has no rows"]),
    "missing file": (
        "forget10",
        None,
        ["data.root: no file ", "forget10.jsonl or another ending", "(there: "],
    ),
    "broken line": (
        "retain90",
        json.dumps(QUESTION | ANSWER) + '\n\n{"question": \n',
        ["retain90.jsonl line 3 is not JSON: "],
    ),
    "no object": ("retain90", "[1]\n", ["retain90.jsonl line 1 must be a JSON object", "got [1]"]),
    "no field": (
        "forget10",
        json.dumps(QUESTION),
        ["forget10/0: no column 'answer'; its columns are question."],
    ),
    "no text": (
        "forget10",
        json.dumps(QUESTION | {"answer": 3}),
        ["forget10/0: column 'answer' must hold a text; got 3."],
    ),
    "empty answer": (
        "retain90",
        json.dumps(QUESTION | ANSWER) + "\n" + json.dumps(QUESTION | {"answer": " "}),
        ["retain90/1: column 'answer' is empty"],
    ),
    "no perturbed answers": (
        "forget10_perturbed",
        json.dumps(QUESTION | ANSWER),
        ["forget10_perturbed/0: no column 'paraphrased_answer'"],
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_refused_rows(refused, with_retain, tofu_dir, tmp_path, case):
    name, content, parts = ROWS[case]
    root = shutil.copytree(tofu_dir, tmp_path / "rows")
    path = root / f"{name}.jsonl"
    path.unlink() if content is None else path.write_text(content)
    message = refused(*with_retain, "--data.root", root)
    assert all(part in message for part in parts), message


def test_an_answer_without_a_label_left(refused, with_retain):
    message = refused(*with_retain, "--data.max_length", "5")
    assert message.startswith(
        "Row forget10/0 has no answer token left within data.max_length = 5: "
    )


def test_raw_text_needs_room_for_a_label(refused, muse_args):
    assert refused(*muse_args, "--data.max_length", "1") == (
        "data.max_length is 1, which leaves no label in a row of raw text; give at least 2."
    )


def test_raw_text_that_gives_no_row(refused, muse_args, muse_dir, write_rows, tmp_path):
    root = shutil.copytree(muse_dir, tmp_path / "texts")
    write_rows(root / "raw" / "forget.jsonl", [{"text": "a"}])
    assert refused(*muse_args, "--data.root", root) == (
        "data.forget_split is 'raw/forget', which has no rows to train on."
    )


def test_a_folder_or_file_that_is_not_there(refused, tofu_args, tmp_path):
    gone = tmp_path / "gone"
    assert f"data.root must be a folder; '{gone}' is not one." == refused(
        *tofu_args, "--data.root", gone
    )
    for key in ("model.pretrained", "data.tokenizer", "data.retain_model"):
        message = refused(*tofu_args, f"--{key}", gone)
        assert message.startswith(f"{key}: there is no folder '{gone}'; give a folder ")
        message = refused(*tofu_args, f"--{key}", tmp_path / "gone.gguf")
        assert message.startswith(f"{key}: there is no file '{gone}.gguf'")
        message = refused(*tofu_args, f"--{key}", tmp_path)
        assert message.startswith(f"{key}: folder '{tmp_path}' holds no ")
    message = refused(*tofu_args, "--data.retain_results", gone)
    assert message.startswith(f"data.retain_results: {gone} does not exist; give the folder of")


@pytest.fixture
def spoiled_model(tiny_model_dir, tmp_path):
    """Copy the tiny model with one file replaced, or left out for None."""

    def make(name, content):
        folder = shutil.copytree(tiny_model_dir, tmp_path / "spoiled")
        path = folder / name
        path.unlink() if content is None else path.write_text(content)
        return folder

    return make


@pytest.mark.parametrize("content", [None, "nonsense"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_model_with_a_file_missing_or_broken(refused, with_retain, spoiled_model, name, content):
    folder = spoiled_model(name, content)
    message = refused(*with_retain, "--model.pretrained", folder)
    assert message.startswith("model.pretrained")
    assert f"'{folder}'" in message
    if name != "tokenizer.json":
        message = refused(*with_retain, "--data.retain_model", folder)
        assert message.startswith("data.retain_model")


def test_a_tokenizer_without_chat_template(refused, with_retain, spoiled_model):
    folder = spoiled_model("chat_template.jinja", None)
    assert refused(*with_retain, "--model.pretrained", folder) == (
        f"data.template is 'chat', but the tokenizer of '{folder}' has no chat template; "
        "set data.template to 'plain'."
    )


def test_a_chat_template_that_refuses_a_system_turn(refused, with_retain, tiny_model_dir):
    assert refused(*with_retain, "--data.system_prompt", "Be brief.") == (
        f"The chat template of '{tiny_model_dir}' fails (quickstart knows the roles user and "
        "assistant only); data.system_prompt is 'Be brief.', data.template_kwargs is {}: set "
        "what it does not take to null, or data.template to 'plain'."
    )


def test_a_vocabulary_larger_than_the_models(refused, with_retain, spoiled_model, tmp_path):
    corpus = quickstart.corpus_texts(quickstart.build_corpus())
    quickstart.save_tokenizer(quickstart.train_tokenizer(corpus, 600), tmp_path / "large")
    large = (tmp_path / "large" / "tokenizer.json").read_text()
    reason = "the tokenizer has 600 tokens, the model only 320"
    message = refused(*with_retain, "--data.tokenizer", tmp_path / "large")
    assert message.startswith(f"data.tokenizer '{tmp_path}/large': {reason}")
    folder = spoiled_model("tokenizer.json", large)
    message = refused(*with_retain, "--model.pretrained", folder)
    assert message.startswith(f"model.pretrained '{folder}': {reason}")


def test_a_retain_model_with_a_smaller_vocabulary(refused, tofu_args, tmp_path):
    from transformers import LlamaForCausalLM

    config = llama_config(300, 8, 1, inner=8, heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "small")
    message = refused(*tofu_args, "--data.retain_model", tmp_path / "small")
    assert message.startswith(
        f"data.retain_model '{tmp_path}/small': the tokenizer has 320 tokens, the model only 300"
    )


def test_no_retain_results_is_an_error_that_says_how_to_make_them(refused, tofu_args):
    message = refused(*tofu_args)
    assert message.startswith("data.retain_results is missing: ")
    assert "--config tofu_finetune --data.split retain90" in message


def test_retain_results_that_do_not_fit(refused, tofu_args, tmp_path):
    rows = [Record("forget", f"forget10/{row}", "a", answer_loss=1.0) for row in range(3)]
    save_records(tmp_path / "other", {"forget": rows})
    # They do not say how they were made, of which a run warns.
    message = refused(*tofu_args, "--data.retain_results", tmp_path / "other", is_warned=True)
    assert "holds 3 rows of 'forget', this run scores 4" in message
    save_records(tmp_path / "muse", {"verbmem": rows})
    message = refused(*tofu_args, "--data.retain_results", tmp_path / "muse", is_warned=True)
    assert "holds no rows of 'forget', only verbmem" in message
    (tmp_path / "half.json").write_text("{")
    message = refused(*tofu_args, "--data.retain_results", tmp_path / "half.json")
    assert message.startswith(f"data.retain_results: {tmp_path}/half.json is not JSON (")


@pytest.fixture
def finished(home):
    """Folder of a finished run, as it looks to the next one."""
    folder = home.parent / "finished"
    (folder / "model").mkdir(parents=True)
    (folder / "results.json").write_text('{"finished": true}')
    return folder


def test_a_finished_run_is_kept(refused, with_retain, finished):
    assert refused(*with_retain, "--output_dir", finished) == (
        f"output_dir {finished} holds a finished run; give another folder, or --overwrite to "
        "run again."
    )
    assert (finished / "results.json").is_file()


def test_results_of_others_are_kept(refused, with_retain, finished):
    (finished / "results.json").write_text("[]")
    assert refused(*with_retain, "--output_dir", finished, "--overwrite") == (
        f"output_dir '{finished}' holds a results.json that no run has written; give another "
        "folder."
    )
    assert (finished / "results.json").read_text() == "[]"
    (finished / "results.json").write_text("{")
    assert refused(*with_retain, "--output_dir", finished).endswith("or --overwrite to run again.")
    assert (finished / "results.json").read_text() == "{"


def test_bad_input_loses_no_finished_run(refused, with_retain, finished, spoiled_model):
    again = [*with_retain, "--output_dir", finished, "--overwrite"]
    refused(*again, "--data.forget_split", "forget11")
    refused(*again, "--model.pretrained", spoiled_model("model.safetensors", None))
    assert sorted(path.name for path in finished.iterdir()) == ["model", "results.json"]


def test_a_file_in_the_place_of_the_folder(refused, with_retain, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    for folder in (path, path / "run"):
        assert refused(*with_retain, "--output_dir", folder) == (
            f"output_dir must be a folder; '{path}' is a file."
        )
    assert path.read_text() == "mine"


def test_a_hub_out_of_reach_is_told_at_once(refused, tofu_args, monkeypatch):
    for module in (hub, models, hub_rows):
        monkeypatch.setattr(module, "hub_answers", lambda: False)
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert refused(*tofu_args, "--model.pretrained", "nobody/nothing") == (
        "model.pretrained 'nobody/nothing' could not be loaded: the hub can't be reached and "
        "there is no local copy. Give a folder in Hugging Face layout or a .gguf file: "
        "--model.pretrained DIR"
    )
    message = refused(*tofu_args, "--data.retain_model", "nobody/nothing")
    assert message.startswith("data.retain_model 'nobody/nothing' could not be loaded: ")
    assert message.endswith("--data.retain_model DIR")
    message = refused(*tofu_args, "--data.root=null", "--data.hub", "nobody/rows")
    assert message == (
        "nobody/rows (configuration 'forget10_perturbed', split 'train') can't be read from the "
        "hub (no connection, no stored copy). Give a folder that holds forget10_perturbed.jsonl "
        "or forget10_perturbed.jsonl.gz: --data.root DIR"
    )
    assert sum(slept) < 2


def test_the_users_own_files_need_names(refused, with_retain):
    message = refused(
        *with_retain,
        "--data.benchmark=jsonl",
        "--data.forget_split=null",
        "--data.retain_split=null",
    )
    assert message.startswith("data.forget_split must name a file (.jsonl or .jsonl.gz, .json, ")
    assert message.endswith("); got ''.")
