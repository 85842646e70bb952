"""What only training can have wrong: found before anything is scored or written."""

import json

import pytest

BUDGET = {"class_path": "RetainBudget", "init_args": {"budget": 0.05}}
CHECKPOINTS = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"save_last": True},
}


@pytest.fixture
def untrained(command, tofu_args, retain_model_dir, home, configs):
    """Run ``fit``, see it refused in one line with nothing written, and return the line."""

    def call(*flags, method=None):
        folder = home.parent / "run"
        files = [] if method is None else [f"--config={configs}/method/{method}.yaml"]
        args = [tofu_args[0], tofu_args[1], *files, *tofu_args[2:], *flags]
        retain = f"--data.retain_model={retain_model_dir}"
        outcome = command(*args, retain, f"--output_dir={folder}")
        assert outcome.status == 2
        assert outcome.err.startswith("error: ")
        assert outcome.err.count("\n") == 1
        assert "Scoring" not in outcome.out, "said before other models are scored"
        assert not folder.exists()
        return outcome.err.removeprefix("error: ").strip()

    return call


@pytest.mark.parametrize(
    ("method", "flags", "said"),
    [
        ("annotated", [], "data.annotations is missing: model.weighting Annotated reads the words"),
        ("tpo", [], "data.annotations is missing: model.forget TPO reads the words"),
        ("scn", ["--model.weighting.model=no_such"], "model.weighting: Spacy.model must be"),
        ("npo", ["--model.reference=null"], "model.forget NPO compares with the target model"),
        ("tnpo", ["--model.reference=null"], "model.weighting TNPO compares with the target model"),
        ("dpo", [], "has no second answer"),
        ("npo", ["--model.reference=adapter"], "model.reference adapter needs an adapter"),
        (
            "npo",
            ["--model.surgery=conflict", "--model.retain=null"],
            "model.surgery compares two terms, but model.retain is null",
        ),
        (
            "npo",
            ["--model.lambda", "auto", "--trainer.precision=16-true"],
            "model.lambda auto can't be had with trainer.precision 16-true",
        ),
        ("rmu", ["--model.reference=cache"], "model.retain EmbedDiff reads what no cache holds"),
        ("rmu", [], "model.forget.layer must be 0 to 1, for the model has 2 layers; got 7."),
        (
            "rmu",
            ["--model.forget.layer=0", "--model.retain.layer=0"],
            "model.train_only must match",
        ),
        (
            "rmu",
            [
                "--model.forget.layer=0",
                "--model.retain.layer=0",
                "--model.train_only=['model.layers.1.*']",
            ],
            "trains nothing at or below layer 0",
        ),
        (
            "ceu",
            ["--model.forget.skip_first=1000"],
            "model.forget.skip_first is 1000, but",
        ),
        ("idk_nll", ["--model.weighting=ETW"], "model.weighting must be Uniform"),
        (None, ["--model.train_only=['nothing']"], "model.train_only must match"),
        (
            None,
            ["--model.peft={peft_type: LORA, target_modules: [zz]}"],
            "model.peft",
        ),
        (None, ["--model.optimizer=torch.optim.AdamX"], "model.optimizer must be an optimiser"),
        (None, ["--model.betas=[2, 3]"], "model.betas must each be"),
        (None, ["--model.forget_weight=inf"], "model.forget_weight must be a finite number"),
        (
            None,
            [f"--trainer.callbacks+={json.dumps(BUDGET)}", "--model.retain=null"],
            "RetainBudget",
        ),
        (None, ["--ckpt_path=README"], "ckpt_path must be a checkpoint"),
    ],
)
def test_it_is_refused_in_a_line(untrained, method, flags, said):
    if flags and "peft" in flags[0]:
        pytest.importorskip("peft")
    if method == "scn":
        pytest.importorskip("spacy")
    assert said in untrained(*flags, method=method)


def test_one_run_takes_one_method_file(untrained, configs):
    said = untrained(f"--config={configs}/method/npo.yaml", method="dpo")
    assert said.startswith("config must hold one method file (method/...); got ")
    assert "dpo.yaml and " in said


@pytest.mark.parametrize("name", ["fit", "evaluate", "check"])
def test_one_run_takes_one_complete_file(refused, name):
    files = ("--config", "tofu_forget10", "--config", "model/smollm2_135m", "--config=muse_news")
    line = refused(name, *files)
    assert line.startswith("config must hold one complete run; got ")
    assert "tofu_forget10.yaml and " in line
    assert "muse_news.yaml: " in line
    assert "smollm2" not in line


def test_own_files_go_alone_and_over_a_complete_run(command, configs, tmp_path, home):
    """A changed copy is a run; a file of some keys may name a model and data, and all it likes."""
    copy = tmp_path / "mine.yaml"
    whole = (configs / "quickstart.yaml").read_text()
    copy.write_text(whole.replace("max_epochs: 7", "max_epochs: 3"))
    over = tmp_path / "over.yaml"
    over.write_text("{model: {pretrained: /models/mine}, data: {benchmark: jsonl, max_length: 9}}")
    alone = command("fit", "--config", copy, "--print_config")
    assert (alone.status, alone.err) == (0, "")
    assert "max_epochs: 3" in alone.out
    both = command("fit", "--config", "quickstart", "--config", over, "--print_config")
    assert (both.status, both.err) == (0, "")
    assert "pretrained: /models/mine" in both.out
    assert "max_epochs: 7" in both.out


@pytest.mark.parametrize("path", ["/dev/null", "/dev/null/inside"])
def test_an_output_folder_that_is_none(command, tofu_args, path):
    outcome = command(*tofu_args, f"--output_dir={path}")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith("error: output_dir must be a folder;")


@pytest.fixture
def stopped(command, tofu_args, home, configs, retain_model_dir):
    """Arguments of an NPO run, and the checkpoint it has left."""
    args = [tofu_args[0], tofu_args[1], f"--config={configs}/method/npo.yaml", *tofu_args[2:]]
    args += [
        f"--trainer.callbacks={json.dumps([CHECKPOINTS])}",
        "--no_save_model",
        "--trainer.enable_checkpointing=true",
    ]
    first = command(*args, f"--output_dir={home.parent / 'first'}", "--trainer.max_epochs=1")
    assert (first.status, first.err) == (0, "")
    return args, next((home.parent / "first").rglob("last.ckpt"))


def test_only_the_same_method_goes_on_from_a_checkpoint(command, stopped, home):
    args, checkpoint = stopped
    args = [*args, f"--ckpt_path={checkpoint}", f"--output_dir={home.parent / 'second'}"]
    for flags, said in (
        (["--model.forget.beta=0.7"], "model.forget is NPO(beta=0.7), but ckpt_path"),
        (["--model.lambda=0.9"], "model.lambda is 0.9, but ckpt_path"),
        # The optimiser would go on with its own.
        (["--model.lr=3e-3"], "model.lr is 0.003, but ckpt_path"),
        (["--model.weight_decay=0.2"], "model.weight_decay is 0.2, but ckpt_path"),
        (["--model.betas=[0.8,0.9]"], "model.betas is [0.8, 0.9], but ckpt_path"),
        (["--trainer.callbacks+", json.dumps(BUDGET)], "is of a run with no RetainBudget"),
    ):
        outcome = command(*args, *flags)
        assert outcome.status == 2
        assert said in outcome.err
        assert not (home.parent / "second").exists()
    outcome = command("check", *args[1:], "--model.lr=3e-3")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith("error: model.lr is 0.003, but ckpt_path")
    outcome = command(*args)
    assert outcome.status == 0
    results = json.loads((home.parent / "second" / "results.json").read_text())
    assert results["steps"] == 4


def test_an_adapter_is_trained_saved_merged_and_evaluated(
    command, tofu_args, args, home, configs, tiny_model_dir
):
    pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    lora = "--model.peft={peft_type: LORA, r: 2, target_modules: all-linear}"
    folder = home.parent / "lora"
    files = [tofu_args[0], tofu_args[1], f"--config={configs}/method/npo.yaml"]
    callbacks = json.dumps([{"class_path": "ModelUtility"}])
    run = [*files, *tofu_args[2:], lora, "--model.reference=adapter", "--model.lr=1e-2"]
    outcome = command(*run, f"--output_dir={folder}", f"--trainer.callbacks={callbacks}")
    assert (outcome.status, outcome.err) == (0, "")
    saved = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    before = AutoModelForCausalLM.from_pretrained(tiny_model_dir).state_dict()
    assert saved.keys() == before.keys(), "no trace of the adapter"
    moved = {name for name in before if not saved[name].equal(before[name])}
    assert moved == {name for name in before if "_proj" in name}
    # What fit said of the merged model is what evaluate says of the saved one.
    again = command(
        *args,
        f"--model.pretrained={folder / 'model'}",
        "--metrics=model_utility",
        f"--output_dir={home.parent / 'out'}",
    )
    assert (again.status, again.err) == (0, "")
    fitted, scored = (
        json.loads((home.parent / name / "results.json").read_text())["metrics"]["model_utility"]
        for name in ("lora", "out")
    )
    assert fitted == scored


def test_a_budget_says_what_it_came_to(command, tofu_args, home):
    folder = home.parent / "run"
    budget = {"class_path": "RetainBudget", "init_args": {"budget": 0.1, "every_n_steps": 1}}
    flags = [f"--trainer.callbacks={json.dumps([budget])}", "--no_save_model"]
    outcome = command(*tofu_args, *flags, f"--output_dir={folder}")
    assert (outcome.status, outcome.err) == (0, "")
    kept = json.loads((folder / "results.json").read_text())["retain_budget"]
    assert kept["budget_percent"] == 10
    assert kept["measured_at_step"] == 4
    assert kept["start_loss"] > 0
    assert kept["forget_weight"] > 0
    assert f"ends {kept['rise_percent']:+.2f} % from its start, 10 % were allowed" in outcome.out
