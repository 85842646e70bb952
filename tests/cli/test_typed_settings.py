"""What is typed takes effect or is refused: no command takes a setting that it does not read."""

import pytest

from etw_lightning.commands.stored_help import load
from etw_lightning.files.setting_names import is_unread

#: What each command reads of the rows' and the model's settings; all others it refuses if typed.
READ = {
    "evaluate": {
        *("model.pretrained", "model.dtype", "model.attention", "model.chunk_size"),
        *("data.benchmark", "data.root", "data.hub", "data.forget_split", "data.retain_split"),
        *("data.forget_part", "data.holdout_split", "data.rows", "data.which_turns"),
        *("data.template", "data.system_prompt", "data.template_kwargs", "data.max_length"),
        *("data.eval_max_length", "data.truncation", "data.eval_batch_size"),
        *("data.max_new_tokens", "data.seed", "data.retain_results", "data.retain_model"),
        *("data.target_results", "data.target_model", "data.annotations", "data.tokenizer"),
        *("data.rouge_tokenizer", "data.columns", "data.choice_prompt"),
    },
    "weights": {
        *("model.pretrained", "model.weighting", "model.forget", "model.entropy_model"),
        *("model.dtype", "model.attention", "model.chunk_size"),
        *("data.benchmark", "data.root", "data.hub", "data.forget_split", "data.forget_part"),
        *("data.rows", "data.which_turns", "data.template", "data.system_prompt"),
        *("data.template_kwargs", "data.max_length", "data.truncation", "data.seed"),
        *("data.target_model", "data.annotations", "data.tokenizer", "data.columns"),
    },
}
#: Further settings that commands take with the files of ``fit``, and do not read.
UNREAD = {
    "evaluate": [
        *("--trainer.max_epochs=30", "--trainer.logger=true", "--checkpoints.keep=3"),
        *("--collapse.action=stop", "--model.weighting.temperature=2", "--model.lambda=3"),
        *("--trainer.callbacks=SetScores", "--data.batch_size=4", "--trainer.max_steps=7"),
    ],
    "weights": [
        *("--output_dir=x", "--overwrite", "--ckpt_path=x", "--trainer.max_epochs=30"),
        *("--trainer.limit_val_batches=3", "--model.retain=KL", "--checkpoints.keep=3"),
    ],
    "fit": ["--trainer.default_root_dir=x", "--trainer.limit_test_batches=3"],
    "check": ["--trainer.default_root_dir=x", "--trainer.limit_predict_batches=3"],
}


@pytest.mark.parametrize("name", READ)
def test_every_setting_is_read_or_refused(name):
    stored = load()
    assert stored is not None, "python -m etw_lightning.commands.stored_help writes it anew"
    flags = [one for group in stored[name]["groups"] for one in group["options"]]
    names = {flag.lstrip("-").rstrip("+") for one in flags for flag in one["flags"]}
    own = {one for one in names if one.startswith(("model.", "data.")) and one[-5:] != ".help"}
    read = {one for one in own if not is_unread(name, one)}
    assert {".".join(one.split(".")[:2]) for one in read} == READ[name]


@pytest.mark.parametrize(
    ("name", "word"), [(name, word) for name, words in UNREAD.items() for word in words]
)
def test_what_is_not_read_is_refused(refused, name, word):
    key, _, value = word.removeprefix("--").partition("=")
    said = refused(name, "--config=quickstart", word)
    assert said.startswith(f"{key} is not read by {name}, which "), said
    assert f"; got {value!r}. " in said
    assert said.endswith(("Leave it out.", "Give --output_dir.", "size.", "Give --metrics."))


def test_what_says_that_something_is_off_is_so_anyway():
    for word in ("trainer.logger", "trainer.enable_checkpointing", "trainer.model_registry"):
        assert is_unread("evaluate", word, "true")
        assert not is_unread("evaluate", word, "false")
    assert is_unread("evaluate", "data.split", "null"), "a file's own would be left out anyway"


def test_files_may_hold_what_a_command_does_not_read(command, home):
    for name in ("evaluate", "weights"):
        words = ("--config=quickstart", "--print_config", "--model.lr=1")
        assert command(name, *words).status == 0, "what is printed is not ignored"


def test_weightings_to_show_and_a_weighting_of_the_run_exclude_each_other(refused):
    words = ("--config=quickstart", "--weightings=etw", "--model.weighting=WGA")
    assert refused("weights", *words) == (
        "model.weighting is not read beside --weightings, which says which are shown; got 'WGA'. "
        "Leave one of them out."
    )


@pytest.mark.parametrize("role", ["retain", "target"])
def test_a_typed_model_is_not_left_for_the_records_of_a_file(refused, tofu_args, home, role):
    path = home.parent / "records.yaml"
    path.write_text(f"data:\n  {role}_results: kept\n")
    typed = [word for word in tofu_args if "retain_model" not in word]
    said = refused(*typed, f"--config={path}", f"--data.{role}_model=mine")
    assert said == (
        f"data.{role}_model 'mine' would not be scored: data.{role}_results 'kept' of the "
        f"configuration comes first; give --data.{role}_results null as well."
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "--jobs", "2"], "--jobs is not read by sweep plan: run and search read it; got "
         "2. Leave it out."),
        (["report", "--jobs", "2"], "--jobs is not read by sweep report: "),
        (["run", "--trials", "2"], "--trials is not read by sweep run: search reads it; got 2. "),
        (["plan", "--frontier"], "--frontier is not read by sweep plan: run, search and report "
         "read it. "),
        (["run", "--seed", "2"], "--seed is not read by sweep run: search reads it; got 2. "),
    ],
)  # fmt: skip
def test_an_option_that_a_sweeps_command_does_not_read(refused, words, said):
    assert refused("sweep", *words, "--config=sweep/quickstart_lambda").startswith(f"sweep: {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep", "plan", "--config=sweep/quickstart_lambda", "--set", "model.lr=1",
          "model.lr=2"], "--set must be given model.lr once; got 1 and 2."),
        (["sweep", "search", "--config=sweep/quickstart_lambda", "--set=model.lambda=1",
          "--over=model.lambda=1..2"], "--set and --over are both given model.lambda; "),
        (["sequence", "plan", "--config=sequence/quickstart", "--set=model.lr=1",
          "--set=model.lr=2"], "--set must be given model.lr once; got 1 and 2."),
    ],
)  # fmt: skip
def test_one_setting_twice(refused, words, said):
    assert refused(*words).startswith(said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--title", "Mine", "--format", "md"], "report: --title belongs to the html page, and "
         "this makes md; got 'Mine'. "),
        (["--row", "3", "-o", "x.csv"], "report: --row belongs to the html page, and this makes "
         "csv; got [3]. "),
    ],
)  # fmt: skip
def test_a_setting_of_another_form_of_report(refused, words, said):
    assert refused("report", "runs", *words).startswith(said)
