"""Every bad input gives one line that names the key, exit status 2, and nothing written."""

import json
import shlex
import shutil
import subprocess
import sys
import time

import pytest
from small_models import llama_config

from etw_lightning.benchmarks import hub_rows, quickstart
from etw_lightning.commands import entry, parser
from etw_lightning.files import hub
from etw_lightning.models import loading as models
from etw_lightning.notices import program
from etw_lightning.schema import Record
from etw_lightning.scoring.retain_results import save_records
from etw_lightning.training import quickstart_models

WEIGHTINGS = (
    "ETW, TNPO, WGA, WTNPO, Annotated, Mixture, Product, Random, SatImp, Spacy, Surprisal, Uniform"
)
OBJECTIVES = (
    "CEU, DPO, FLAT, GA, ME, NPO, PALU, PDU, RMU, TPO, UNDIAL, AltPO, IdkNLL, JensUn, SimNPO"
)

CALLBACK = "etw_lightning.callbacks.{}"


@pytest.fixture
def complete(configs):
    """A complete configuration, as typed."""
    return ["fit", "--config", configs / "tofu_forget10.yaml"]


@pytest.fixture
def with_retain(tofu_args, retain_model_dir):
    """Arguments of a run that lacks nothing."""
    return [*tofu_args, "--data.retain_model", retain_model_dir]


OPTIONS = {
    "--model.lamda 3": "model.lamda is not known. Did you mean 'model.lambda'?",
    "--model.lambda 0": "model.lambda must be a number > 0; got 0.",
    "--model.lambda -1": "model.lambda must be a number > 0; got -1.",
    "--model.lambda=-1": "model.lambda must be a number > 0; got -1.",
    "--model.lambda nan": "model.lambda must be a number > 0; got nan.",
    "--model.lambda much": "model.lambda must be a number > 0; got 'much'.",
    "--model.forget_weight 0": "model.forget_weight must be a number > 0; got 0.",
    "--model.weighting.temperature 0": ("model.weighting.temperature must be a number > 0; got 0."),
    "--model.weighting.temprature 2": (
        "model.weighting.temprature is not known. Did you mean 'model.weighting.temperature'?"
    ),
    "--model.weighting ETTW": (
        f"model.weighting must be {WEIGHTINGS} or another class by its import path; got 'ETTW'. "
        "Did you mean 'ETW'?"
    ),
    "--model.forget SIMNPOO": (
        f"model.forget must be {OBJECTIVES}, another class by its import path or null; "
        "got 'SIMNPOO'. "
        "Did you mean 'SimNPO'?"
    ),
    "--model.retain etw_lightning.retain.NNL": (
        "model.retain must be JS, KL, NLL, EmbedDiff, another class by its import path or null; "
        "got 'etw_lightning.retain.NNL'. Did you mean 'NLL'?"
    ),
    "--model.lr 0": "model.lr must be a number > 0; got 0.",
    "--model.lr abc": "model.lr must be a number > 0; got 'abc'.",
    "--model.lr": "argument --model.lr: expected one argument",
    "--model.warmup -1": "model.warmup must be a number >= 0; got -1.",
    "--model.chunk_size 0": "model.chunk_size must be a whole number > 0; got 0.",
    "--model.schedule x": "model.schedule must be constant, linear or cosine; got 'x'.",
    "--model.reduction mean": "model.reduction must be token or sequence; got 'mean'.",
    "--model.dtype int8": "model.dtype must be float32, bfloat16 or float16; got 'int8'.",
    "--model.gradient_checkpointing perhaps": (
        "model.gradient_checkpointing must be true or false; got 'perhaps'."
    ),
    "--data.batch_size 0": "data.batch_size must be a whole number > 0; got 0.",
    "--data.batch_size two": "data.batch_size must be a whole number > 0; got 'two'.",
    "--data.eval_batch_size -4": "data.eval_batch_size must be a whole number > 0; got -4.",
    "--data.benchmark toffu": (
        "data.benchmark must be tofu, muse_news, muse_books, dusk, r_tofu, choice, jsonl or "
        "quickstart; got 'toffu'. Did you mean 'tofu'?"
    ),
    "--data.template chatt": (
        "data.template must be chat or plain; got 'chatt'. Did you mean 'chat'?"
    ),
    "--data.anchor x": "data.anchor must be forget or retain; got 'x'.",
    "--data.template_kwargs 3": (
        "data.template_kwargs must be pairs {name: value} or null; got '3'."
    ),
    "--data.rows '{\"forget10\": 0}'": "data.rows.forget10 must be a whole number > 0; got 0.",
    "--data.rows.forget10 0": "data.rows.forget10 must be a whole number > 0; got 0.",
    "--data.columns.qestion x": (
        "data.columns.qestion is not known. Did you mean 'data.columns.question'?"
    ),
    "--data.columns '{\"question\": 3}'": "data.columns.question must be a text; got '3'.",
    "--trainer.max_epoch 3": ("trainer.max_epoch is not known. Did you mean 'trainer.max_epochs'?"),
    "--trainer.max_epochs 1.5": "trainer.max_epochs must be a whole number or null; got '1.5'.",
    "--trainer.callbacks+=Nope": (
        "trainer.callbacks must be ForgetQuality, ModelUtility, Muse, PrivLeak, "
        "RetainBudget, SetScores, Suite, another class by its import path or null; got 'Nope'."
    ),
    "--seed_everything x": "seed_everything must be true or false or a whole number; got 'x'.",
    "--seed_everything -1": "seed_everything must be a whole number from 0 to 4294967295; got -1.",
    "--config nope.yaml": (
        "config: there is no file 'nope.yaml'. The command 'configs' lists the shipped ones."
    ),
    "--config quikstart": (
        "config: there is no file 'quikstart'. Did you mean 'quickstart' or 'data/quickstart'? "
        "The command 'configs' lists the shipped ones."
    ),
    "--config .": "config must be a YAML file; '.' is a folder.",
    "xyzzy": "xyzzy is not known. --help lists what is.",
    "--model.retain null --model.forget null": (
        "model.forget and model.retain are both null; nothing would train."
    ),
    "--trainer.devices 0 --trainer.accelerator cpu": (
        "trainer: `Trainer(devices='0')` value is not a valid input using cpu accelerator."
    ),
    "--trainer.devices abc --trainer.accelerator cpu": (
        "trainer.devices selected with `CPUAccelerator` should be an int > 0."
    ),
    "--trainer.max_epochs -3": ("trainer.max_epochs must be a whole number > 0 or null; got -3."),
    "--trainer.max_epochs -1": "trainer.max_epochs must be a whole number > 0 or null; got -1.",
    "--trainer.max_epochs 0": "trainer.max_epochs must be a whole number > 0 or null; got 0.",
    "--trainer.max_steps 0": (
        "trainer.max_steps must be a whole number > 0, or -1 for no bound; got 0."
    ),
    "--trainer.limit_train_batches 0": (
        "trainer.limit_train_batches must be a number of batches > 0, a share of them in (0, 1] "
        "or null; got 0."
    ),
    "--trainer.limit_train_batches 0.0": (
        "trainer.limit_train_batches must be a number of batches > 0, a share of them in (0, 1] "
        "or null; got 0.0."
    ),
    "--trainer.max_epochs null": (
        "trainer.max_epochs is null and trainer.max_steps sets no bound, so that the run has no "
        "end; give one of them, or trainer.max_time."
    ),
    "--trainer.check_val_every_n_epoch 0": (
        "trainer.check_val_every_n_epoch must be a whole number > 0 or null; got 0. "
        "trainer.limit_val_batches 0 leaves evaluations out."
    ),
    "--trainer.val_check_interval 0": (
        "trainer.val_check_interval must be a number of batches > 0, a share of an epoch in "
        "(0, 1] or null; got 0. trainer.limit_val_batches 0 leaves evaluations out."
    ),
    "--trainer.gradient_clip_val -1": (
        "trainer.gradient_clip_val must be a number > 0, or 0 for no clipping; got -1."
    ),
    "--model.warmup 5": (
        "model.warmup must be a share of the steps, 0 to 1 (0.1 is a tenth of them); got 5.0."
    ),
    "--output_dir /proc/run": (
        "output_dir '/proc/run' can't be written: '/proc' takes no new folder (No such file or "
        "directory); give another folder."
    ),
    "--trainer.accumulate_grad_batches 0": (
        "trainer.accumulate_grad_batches must be a whole number > 0; got 0."
    ),
    "--ckpt_path nope.ckpt": "ckpt_path must be a checkpoint; there is no file 'nope.ckpt'.",
}


@pytest.mark.parametrize("typed", OPTIONS)
def test_a_refused_option(refused, complete, home, typed):
    assert refused(*complete, *shlex.split(typed)) == OPTIONS[typed].replace("{home}", str(home))


def test_the_parser_says_what_is_said_before_it_is_made(refused, complete, home, monkeypatch):
    """Both tell of the same value in the same words; here the parser is always asked."""
    monkeypatch.setattr(entry, "check_early", lambda *_: None)
    values = [typed for typed, message in OPTIONS.items() if " must be " in message]
    for typed in values:
        message = refused(*complete, *shlex.split(typed))
        assert message == OPTIONS[typed].replace("{home}", str(home))
    assert refused("fit").startswith("model.pretrained, data.benchmark must be given; begin with")
    assert refused(*complete, "--model.lamda", "3") == OPTIONS["--model.lamda 3"]


BUDGET = "--trainer.callbacks+=RetainBudget --trainer.callbacks.budget="
NESTED = f"must be {WEIGHTINGS} or another class by its import path; got "

#: A shipped method, what is typed after it, and the message.
METHODS = [
    ("npo", "--model.forget.beta 0", "model.forget.beta must be a number > 0; got 0."),
    ("npo", "--model.forget.beta yes", "model.forget.beta must be a number > 0; got 'yes'."),
    ("npo", "--model.forget.beta inf", "model.forget.beta must be a finite number > 0; got inf."),
    ("npo", "--model.forget.b 1", "model.forget.b is not an argument of NPO, which takes beta."),
    ("simnpo", "--model.forget.delta x", "model.forget.delta must be a number >= 0; got 'x'."),
    (
        "rmu",
        "--model.forget.layer one",
        "model.forget.layer must be a whole number >= 0; got 'one'.",
    ),
    ("rmu", "--model.forget.seed -1", "model.forget.seed must be a whole number >= 0; got -1."),
    (
        "undial",
        "--model.forget.strength inf",
        "model.forget.strength must be a finite number >= 0; got inf.",
    ),
    (
        "ceu",
        "--model.forget.skip_first 1.5",
        "model.forget.skip_first must be a whole number >= 0; got '1.5'.",
    ),
    (
        "ga",
        "--model.forget.beta 1",
        "model.forget.beta is not an argument of GA, which takes none. "
        "DPO, NPO, TPO, AltPO and SimNPO take it.",
    ),
    ("ga", "--model.retain.k 1", "model.retain.k is not an argument of NLL, which takes none."),
    ("random", "--model.weighting.of Nope", f"model.weighting.of {NESTED}'Nope'."),
    (
        "random",
        "--model.weighting.of.top_share 3",
        "model.weighting.of.top_share must be a number in (0, 1] or null; got 3.",
    ),
    (
        "product",
        "--model.weighting.second GA",
        f"model.weighting.second {NESTED}'GA'. Did you mean 'WGA'?",
    ),
    (
        "product",
        "--model.weighting.first.temprature 2",
        "model.weighting.first.temprature is not known. "
        "Did you mean 'model.weighting.first.temperature'?",
    ),
    (
        "product",
        "--model.weighting.firsst ETW",
        "model.weighting.firsst is not known. Did you mean 'model.weighting.first'?",
    ),
    (
        "etw",
        "--model.weighting.top_share 0",
        "model.weighting.top_share must be a number in (0, 1] or null; got 0.",
    ),
    (
        "etw",
        "--model.weighting.threshold -1",
        "model.weighting.threshold must be a number >= 0 or null; got -1.",
    ),
    (
        "etw",
        "--model.weighting.threshold nan",
        "model.weighting.threshold must be a number >= 0 or null; got nan.",
    ),
    ("etw", "--model.weighting null", f"model.weighting {NESTED}null."),
    ("etw", "--model.weighting.help Nope", f"model.weighting {NESTED}'Nope'."),
    (
        "etw",
        "--model.weighting.temperature.x 1",
        "model.weighting.temperature.x is not known: model.weighting.temperature takes one value.",
    ),
    (
        "etw",
        "'--model.weighting={classpath: ETW}'",
        "model.weighting.classpath is not known. Did you mean 'model.weighting.class_path'?",
    ),
    (
        "etw",
        "--model.forget etw_lightning.weighting.ETW",
        f"model.forget must be {OBJECTIVES}, another class by its import path or null; "
        "got 'etw_lightning.weighting.ETW'.",
    ),
    (
        "etw",
        "--data.retain_weights '{retain: a}'",
        "data.retain_weights.retain must be a number >= 0; got 'a'.",
    ),
    ("etw", "--data.alternative x", "data.alternative must be column, refusal or null; got 'x'."),
    ("etw", "--model.betas '[1]'", "model.betas must be a list of 2 values; got [1]."),
    ("etw", f"{BUDGET}0", "trainer.callbacks.budget must be a number > 0; got 0."),
    ("etw", f"{BUDGET}-1", "trainer.callbacks.budget must be a number > 0; got -1."),
    ("etw", f"{BUDGET}x", "trainer.callbacks.budget must be a number > 0; got 'x'."),
    (
        "etw",
        f"{BUDGET}.1 --trainer.callbacks.update=0",
        "trainer.callbacks.update must be a number > 0; got 0.",
    ),
    (
        "etw",
        "'--trainer.callbacks=[{class_path: RetainBudget, init_args: {budget: .nan}}]'",
        "trainer.callbacks.budget must be a number > 0; got nan.",
    ),
]


@pytest.mark.parametrize(("method", "typed", "message"), METHODS)
def test_a_refused_setting_of_a_method(refused, configs, method, typed, message):
    files = [configs / "quickstart.yaml", configs / "method" / f"{method}.yaml"]
    args = [word for file in files for word in ("--config", file)]
    assert refused("fit", *args, *shlex.split(typed)) == message


def test_an_optimiser_with_arguments_is_told_where_they_go(refused, complete, tmp_path):
    path = tmp_path / "later.yaml"
    path.write_text("model:\n  optimizer: {class_path: torch.optim.SGD}\n")
    message = refused(*complete, "--config", path)
    assert message.startswith("model.optimizer must be a text; got ")
    assert message.endswith("its arguments go into model.optimizer_args: {name: value}.")


@pytest.mark.parametrize("args", [["--help"], ["fit", "--model.weighting.help", "ETW"]])
def test_help_names_the_program(command, args, monkeypatch):
    status, out, _ = command(*args)
    assert status == 0
    assert out.startswith("usage: python -m etw_lightning ")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/etw"])
    assert program() == "etw"
    if args == ["--help"]:
        assert "sweep plan|run|search|report" in " ".join(out.split())


def test_every_argument_of_a_method_is_checked(command):
    """A type that the parser can't resolve, it takes any value for."""
    for key in ("weighting", "forget", "retain"):
        for name in parser.CLASSES[f"model.{key}"]:
            out = command("fit", f"--model.{key}.help", name).out
            assert f"--model.{key}.help=" in out
            assert "Unvalidated" not in out, out


def test_the_command_itself_says_no_more_than_that(home):
    result = subprocess.run(
        [sys.executable, "-m", "etw_lightning", "fit", "--model.lamda", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: {OPTIONS['--model.lamda 3']}\n"


def test_every_precision_is_listed(refused, complete):
    message = refused(*complete, "--trainer.precision", "bf61-mixed")
    assert message.startswith("trainer.precision must be 64, 32, 16, ")
    assert message.endswith("; got 'bf61-mixed'. Did you mean 'bf16-mixed'?")
    assert "bf16-mixed, " in message


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (
            {"class_path": CALLBACK.format("Mose")},
            "trainer.callbacks must be ForgetQuality, ModelUtility, Muse, PrivLeak, "
            "RetainBudget, SetScores, Suite, another class by its import path or null; "
            "got 'etw_lightning.callbacks.Mose'. Did you mean 'Muse'?",
        ),
        (
            {"class_path": CALLBACK.format("Muse"), "init_args": {"every_n_epoch": 3}},
            "trainer.callbacks.every_n_epoch is not known. "
            "Did you mean 'trainer.callbacks.every_n_epochs'?",
        ),
        (
            {"class_path": CALLBACK.format("Muse"), "init_args": {"every_n_epochs": 0}},
            "trainer.callbacks.every_n_epochs must be a whole number > 0; got 0.",
        ),
    ],
)
def test_a_refused_callback(refused, complete, callback, message):
    assert refused(*complete, "--trainer.callbacks", json.dumps([callback])) == message


FILES = {
    "model:\n  lamda: 3\n": "model.lamda is not known. Did you mean 'model.forget_weight'?",
    "model:\n  lambda: 3\n": "model.lambda is not known. Did you mean 'model.forget_weight'?",
    "model:\n  forget_weight: -1\n": "model.forget_weight must be a number > 0; got -1.",
    "model:\n  weighting:\n    class_path: ETTW\n": OPTIONS["--model.weighting ETTW"],
    "model:\n  weighting:\n    init_args: {temprature: 3}\n": (
        OPTIONS["--model.weighting.temprature 2"]
    ),
    "modle:\n  lr: 3\n": "modle.lr is not known. Did you mean 'model.lr'?",
    "data:\n  rows: {forget10: 0}\n": OPTIONS["--data.rows.forget10 0"],
    "model: [1,2\n": (
        "config '{file}' is not YAML: while parsing a flow sequence in \"<unicode string>\", "
        "line 1, column 8: model: [1,2 ^ expected ',' or ']', but got '<stream end>' in "
        '"<unicode string>", line 2, column 1: ^.'
    ),
    "- 1\n": "config '{file}' must hold lines `key: value`; got [1].",
    "": "config '{file}' must hold lines `key: value`; got None.",
    "trainer: null\n": "trainer must be pairs {name: value}; got null.",
}


def test_a_file_of_other_letters(refused, complete, tmp_path):
    path = tmp_path / "later.yaml"
    path.write_bytes("data:\n  root: Käse\n".encode("latin-1"))
    assert refused(*complete, "--config", path) == (
        f"config '{path}' is not YAML: 'utf-8' codec can't decode byte 0xe4 in position 15: "
        "invalid continuation byte."
    )


@pytest.mark.parametrize("text", FILES)
def test_a_refused_file(refused, complete, tmp_path, text):
    path = tmp_path / "later.yaml"
    path.write_text(text)
    expected = FILES[text].replace("{file}", str(path))
    assert refused(*complete, "--config", path) == expected


COMMANDS = {
    "": "a command must be given: python -m etw_lightning fit --config NAME",
    "fitt": (
        f"the command must be {', '.join([*entry.COMMANDS][:-1])} or configs; got 'fitt'. "
        "Did you mean 'fit'?"
    ),
    "fit": (
        "model.pretrained, data.benchmark must be given; begin with a complete file: "
        "--config NAME, one of those that the command 'configs' lists"
    ),
}


@pytest.mark.parametrize("typed", COMMANDS)
def test_a_refused_command(refused, typed):
    assert refused(*typed.split()) == COMMANDS[typed]


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
