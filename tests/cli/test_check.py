"""``check``: says what it verified, predicts memory, refuses what ``fit`` would, writes nothing."""

import re
import shutil
from collections import namedtuple

import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture
def check_args(tofu_args, retain_model_dir, home):
    """``check`` of a run that lacks nothing."""
    folder = home.parent / "run"
    more = (f"--data.retain_model={retain_model_dir}", f"--output_dir={folder}")
    return ["check", *tofu_args[1:], *more]


@pytest.fixture
def checked(command, check_args, home):
    """Check, see that nothing is left behind, and return the outcome."""

    def call(*flags):
        before = {path: path.stat().st_mtime_ns for path in home.parent.rglob("*")}
        outcome = command(*check_args, *flags)
        assert {path: path.stat().st_mtime_ns for path in home.parent.rglob("*")} == before
        return outcome

    return call


@pytest.fixture
def bare_model_dir(tiny_model_dir, tmp_path_factory):
    """The tiny model's folder without its weights."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(tiny_model_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def test_all_is_said_and_nothing_is_written(checked):
    outcome = checked()
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].startswith("data: forget 4 rows, retain 6 rows; the longest has ")
    starts = ["data", "scored", "tokenizer", "template", "weights", "retain results", "strategy"]
    assert [line.split(":")[0] for line in lines[: len(starts) + 1]] == [*starts, "disk"]
    assert lines[4] == "weights: all that the model has, by the names and shapes in their files"
    assert lines[6] == "strategy: single on 1 CPU process"
    # It runs on a CPU, so nothing is said of GPUs.
    assert re.fullmatch(
        r"each process of this run needs about [\d.]+ GiB \(single on 1, [\d.]+ GiB of it "
        r"libraries and rows\), [\d.]+ GiB are free for it; --memory_per_gpu GIB tells what it "
        r"would need on GPUs",
        lines[-1],
    )
    # A process that has imported what a run needs is the least that a run takes.
    total, own = (float(one) for one in re.findall(r"([\d.]+) GiB", lines[-1])[:2])
    assert 0.2 < own <= total
    assert "GPU" not in outcome.out.replace(lines[-1], "")


def test_a_configuration_without_weights_is_enough(checked, bare_model_dir):
    outcome = checked(
        f"--model.pretrained={bare_model_dir}", f"--data.retain_model={bare_model_dir}"
    )
    assert (outcome.status, outcome.err) == (0, "")
    assert "weights: not verified, for they are not on this machine\n" in outcome.out


@pytest.mark.parametrize("key", ["model.pretrained", "data.retain_model", "data.target_model"])
def test_weights_that_are_not_the_model_s(
    checked, check_args, args, command, tiny_model_dir, tmp_path, key
):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    given = f"--{key}={folder}"
    outcomes = [command(*args, "--metrics=unlearning_depth", given)]
    if key != "data.target_model":
        # Nothing that fit prints compares with it.
        outcomes = [checked(given), command("fit", *check_args[1:], given), command(*args, given)]
    for outcome in outcomes:
        assert outcome.status == 2
        assert outcome.err.startswith(f"error: {key} {str(folder)!r} does not hold the weights of ")
        assert "1 weight (lm_head.weight) is missing" in outcome.err
        assert outcome.err.count("\n") == 1


@pytest.fixture
def by_reference(check_args, home):
    """``fit`` or ``check`` that weighs by the entropies of another model."""

    def call(subcommand, folder, *flags):
        weighting = "--model.weighting.source=reference"
        return [subcommand, *check_args[1:], weighting, f"--model.entropy_model={folder}", *flags]

    return call


@pytest.mark.parametrize("subcommand", ["check", "fit"])
def test_a_model_for_entropies_is_looked_at_before_anything_is_scored(
    command, by_reference, tiny_model_dir, tmp_path, monkeypatch, subcommand
):
    score = "etw_lightning.commands.run.run_checks.RunChecks._score_others"
    monkeypatch.setattr(score, lambda _: exit(7))
    lacking = shutil.copytree(tiny_model_dir, tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    said = {lacking: "does not hold the weights of ", tmp_path / "none": "there is no "}
    for folder, reason in said.items():
        outcome = command(*by_reference(subcommand, folder))
        assert outcome.status == 2
        assert outcome.err.startswith("error: model.entropy_model")
        assert reason in outcome.err
    assert command(*by_reference(subcommand, tiny_model_dir)).status == (7 * (subcommand == "fit"))


def test_entropies_may_be_those_of_a_quickstart_model(
    command, by_reference, tiny_model_dir, monkeypatch
):
    asked = []

    def resolve(name, seed, *_):
        asked.append(name)
        return str(tiny_model_dir) if name.startswith("quickstart:") else name

    monkeypatch.setattr("etw_lightning.training.quickstart_models.resolve", resolve)
    monkeypatch.setattr(
        "etw_lightning.training.module.UnlearningModule.load_ahead",
        lambda module, _: exit(8 if module.entropy_model == str(tiny_model_dir) else 9),
    )
    assert command(*by_reference("fit", "quickstart:retain")).status == 8
    assert "quickstart:retain" in asked


def test_overwriting_never_removes_a_model_for_entropies(
    command, by_reference, tiny_model_dir, home
):
    folder = home.parent / "run"
    mine = shutil.copytree(tiny_model_dir, folder / "model")
    (folder / "hparams.yaml").touch()
    outcome = command(*by_reference("fit", mine, "--overwrite"))
    assert outcome.status == 2
    assert f"model.entropy_model {str(mine)!r} lies in output_dir {str(folder)!r}, " in outcome.err
    assert (mine / "model.safetensors").is_file()


def test_memory_of_a_gpu_can_be_given(checked):
    assert "* fits 0.5 GiB of each GPU" in (out := checked("--memory_per_gpu=0.5").out)
    assert out.splitlines()[-1].startswith("no strategy fits; try --model.gradient_checkpointing")
    last = checked("--memory_per_gpu=80").out.splitlines()[-1]
    assert last == "the first that fits is --config strategy/single on one GPU"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--trainer.strategy=deepspeed_stage_2"], "deepspeed_zero2 runs on CUDA GPUs only"),
        (["--memory_per_gpu=-1"], "memory_per_gpu"),
        (["--trainer.accelerator=cuda"], "trainer.accelerator: there is no CUDA device; give "),
        (["--data.retain_model=null"], "data.retain_results"),
        (["--data.retain_model=no/such/folder"], "data.retain_model: there is no folder"),
        (["--model.optimizer_args={alpha: 1}"], "model.optimizer_args.alpha"),
        (["--model.train_only=[nothing]"], "model.train_only must match names of weights"),
        (["--model.peft={peft_type: LORA, r: 0}"], "model.peft.r"),
        (["--data.max_length=3"], "data.max_length"),
    ],
)
def test_what_fit_would_refuse_is_one_line(checked, flags, said):
    outcome = checked(*flags)
    assert outcome.status == 2
    assert said in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "model.forget.layer must be 0 to 1"),
        (
            [
                "--model.forget.layer=0",
                "--model.retain.layer=0",
                "--model.train_only=['model.layers.1.*']",
            ],
            "trains nothing at or below layer 0",
        ),
    ],
)
def test_layers_are_looked_up(command, check_args, configs, flags, said):
    method = f"--config={configs / 'method' / 'rmu.yaml'}"
    outcome = command(*check_args[:2], method, *check_args[2:], *flags)
    assert outcome.status == 2
    assert said in outcome.err


@pytest.mark.parametrize("kind", ["check", "fit"])
def test_more_tokens_than_the_cache_keeps_are_refused_before_it_is_made(
    command, check_args, configs, kind
):
    """Of 8 kept tokens one is the label, so that 7 are known to be the likeliest."""
    method = f"--config={configs / 'method' / 'etw_palu.yaml'}"
    flags = ["--model.reference_top_k=8", "--model.forget.top_k=8"]
    outcome = command(kind, check_args[1], method, *check_args[2:], *flags)
    assert outcome.status == 2
    said = "model.forget.top_k is 8, for which 9 tokens of the target model's distributions must be"
    assert said in outcome.err
    assert "give model.reference_top_k 9, or less here" in outcome.err
    if kind == "check":
        enough = command(
            kind, check_args[1], method, *check_args[2:], *flags[:1], "--model.forget.top_k=7"
        )
        assert (enough.status, enough.err) == (0, "")


def test_a_full_disk_is_refused(checked, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 1))
    outcome = checked()
    assert outcome.status == 2
    assert "output_dir" in outcome.err
    assert "0.0 MiB are free there: make room, " in outcome.err
    # Another machine may have room: what it needs to compute is told.
    assert outcome.out.splitlines()[-1].startswith("each process of this run needs about ")
    # Without a model there are still the checkpoints, until the run is finished.
    assert "the model of" not in checked("--no_save_model").err


def test_fit_refuses_a_full_disk_before_it_writes(command, check_args, home, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 1))
    outcome = command("fit", *check_args[1:])
    assert outcome.status == 2
    assert "are free there" in outcome.err
    assert not (home.parent / "run").exists()


def test_fit_warns_of_too_little_memory(command, check_args, monkeypatch):
    monkeypatch.setattr("etw_lightning.memory.check_memory.available_memory", lambda trainer: 2**20)
    monkeypatch.setattr(
        "etw_lightning.training.module.UnlearningModule.configure_model", lambda module: exit(7)
    )
    with pytest.warns(match=r"for each process \(single on 1\), 1.0 MiB are there; no strategy"):
        assert command("fit", *check_args[1:]).status == 7


def test_the_quickstart_is_checked_before_its_models_are_there(command, configs, home):
    outcome = command("check", f"--config={configs / 'quickstart.yaml'}")
    assert (outcome.status, outcome.err) == (0, "")
    assert "fit scores data.retain_model quickstart:retain" in outcome.out
    assert not (home.parent / "cache").exists()
    assert not list(home.iterdir())


def test_help_lists_it(command):
    assert re.search(r"^ +check +Verify what fit would verify", command("--help").out, re.M)


def test_what_is_missing_is_named_as_it_is_typed(command):
    outcome = command("check")
    assert outcome.status == 2
    assert outcome.err.startswith("error: model.pretrained, data.benchmark must be given; begin")
