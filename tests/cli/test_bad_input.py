"""Every bad input gives one line that names the key, exit status 2, and nothing written."""

import json
import shlex
import subprocess
import sys

import pytest
from lightning.pytorch import Trainer

from etw_lightning.commands import cli, entry, parser
from etw_lightning.notices import program

WEIGHTINGS = (
    "ATWU, ETW, TNPO, WGA, WTNPO, Annotated, Mixture, Product, Random, SatImp, Spacy, Surprisal, "
    "Uniform"
)
OBJECTIVES = (
    "CEU, DPO, FLAT, GA, ME, NPO, PALU, PDU, RMU, TPO, UNDIAL, AltPO, IdkNLL, JensUn, SimNPO"
)

CALLBACK = "etw_lightning.callbacks.{}"


@pytest.fixture
def complete(configs):
    """A complete configuration, as typed."""
    return ["fit", "--config", configs / "tofu_forget10.yaml"]


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


def test_a_whole_number_stays_one_whatever_was_imported_before(complete, monkeypatch, capsys):
    """1 batch is not the whole of them, 1.0: of two equal unions Python keeps the earlier one."""
    hints = Trainer.__init__.__annotations__
    monkeypatch.setitem(hints, "limit_train_batches", float | int | None)
    with pytest.raises(SystemExit):
        cli.main([*map(str, complete), "--trainer.limit_train_batches", "1", "--print_config"])
    assert "\n  limit_train_batches: 1\n" in capsys.readouterr().out


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
