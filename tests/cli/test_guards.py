"""A run that breaks ends with the reason in its folder; one that collapses says so."""

import json
import math
from dataclasses import replace

import pytest
import yaml

from etw_lightning.training.module import UnlearningModule

#: Far too high: the first steps wreck the tiny model.
WRECKS = ("--model.lr=1", "--collapse.retain_factor=1.5", "--collapse.window=1")


@pytest.fixture
def run(command, tofu_args, retain_model_dir, home):
    """Run ``fit`` on a few rows, four steps in two epochs; return outcome, folder and results."""

    def call(*more, name="run"):
        folder = home.parent / name
        given = (*tofu_args, f"--data.retain_model={retain_model_dir}", f"--output_dir={folder}")
        outcome = command(*given, *more)
        return outcome, folder, json.loads((folder / "results.json").read_text())

    return call


@pytest.fixture
def break_step(monkeypatch):
    """Break the forget loss of one step, by its number from 1."""
    forward = UnlearningModule.forward

    def patch(step):
        def broken(module, batch):
            groups = forward(module, batch)
            if module.trainer.global_step + 1 == step:
                forget = groups["forget"]
                groups["forget"] = replace(forget, logps=forget.logps * math.nan)
            return groups

        monkeypatch.setattr(UnlearningModule, "forward", broken)

    return patch


def test_a_broken_loss_ends_the_run_with_the_reason_in_its_folder(run, break_step):
    break_step(3)
    outcome, folder, results = run()
    assert outcome.status == 1
    assert outcome.err.startswith("error: training stopped at step 3, in epoch 2: the forget loss")
    assert outcome.err.count("\n") == 1
    assert results["finished"] is False
    assert results["command"] == "fit"
    stopped = results["stopped"]
    assert (stopped["kind"], stopped["step"], stopped["epoch"]) == ("loss", 3, 2)
    assert f"error: {stopped['reason']}\n" == outcome.err
    assert [row.split("/")[0] for row in stopped["rows"]] == 2 * ["forget10"] + 2 * ["retain90"]
    assert results["steps"] == 2
    assert [entry["epoch"] for entry in results["history"]] == [0, 1]
    assert not (folder / "model").exists()

    # It does not stand in the way of a run that is better off.
    break_step(0)
    outcome, folder, results = run()
    assert (outcome.status, outcome.err) == (0, "")
    assert results["finished"] is True
    assert not {"stopped", "warnings"} & set(results)
    assert (folder / "model").is_dir()


def test_a_collapse_is_warned_of_once_and_trains_on(run):
    with pytest.warns(UserWarning, match="collapse at step") as warned:
        outcome, _, results = run(*WRECKS)
    assert outcome.status == 0
    (found,) = results["warnings"]
    assert found["kind"] == "retain_loss"
    assert found["step"] < 4
    (line,) = (str(one.message) for one in warned if "collapse" in str(one.message))
    assert line == f"collapse at step {found['step']}: {found['reason']}"
    said = f"collapse at step {found['step']}, in epoch {found['epoch']}: {found['reason']}"
    assert f"\nwarning: {said}\n" in outcome.out
    assert results["steps"] == 4
    assert "stopped" not in results


@pytest.mark.filterwarnings("ignore:collapse at step")
def test_a_collapse_can_stop_the_run_in_good_order(run):
    whole = run(*WRECKS, name="whole")[2]
    outcome, folder, results = run(*WRECKS, "--collapse.action=stop")
    assert outcome.status == 0
    assert results["finished"] is True
    assert results["stopped"] == whole["warnings"][0]
    assert results["steps"] == results["stopped"]["step"] < 4
    assert f"\nstopped: collapse at step {results['steps']}, " in outcome.out
    # Evaluated on every set as a whole run is, and saved.
    assert results["metrics"].keys() == whole["metrics"].keys()
    assert (folder / "model" / "model.safetensors").is_file()
    assert yaml.safe_load((folder / "config.yaml").read_text())["collapse"]["action"] == "stop"
    assert results["config_hash"] != whole["config_hash"]


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")
def test_a_resumed_run_knows_what_was_found(run, home, recwarn):
    saving = ("--checkpoints.every_n_steps=1", "--checkpoints.keep=9")
    whole = run(*WRECKS, *saving, name="whole")[2]
    path = home.parent / "whole" / "checkpoints" / "step-00000003" / "state.ckpt"
    recwarn.clear()
    resumed, _, results = run(*WRECKS, f"--ckpt_path={path}")
    assert resumed.status == 0
    assert whole["warnings"][0]["step"] <= 3
    assert results["warnings"] == whole["warnings"]
    # It was said before.
    assert not [one for one in recwarn if "collapse" in str(one.message)]
    stopped = run(*WRECKS, f"--ckpt_path={path}", "--collapse.action=stop", name="stopped")[2]
    assert stopped["steps"] == 3
    assert stopped["stopped"] == whole["warnings"][0]


def test_evaluate_takes_the_same_file_and_has_no_guard(command, args, home):
    path = home.parent / "guard.yaml"
    path.write_text("collapse: {action: stop}\n")
    outcome = command(*args, f"--config={path}", f"--output_dir={home.parent / 'out'}")
    assert (outcome.status, outcome.err) == (0, "")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("retain_factor=0.5", "collapse.retain_factor must be > 1 or null; got 0.5."),
        ("action=halt", "collapse.action must be stop or warn; got 'halt'."),
        ("flor=1", "collapse.flor is not known."),
    ],
)
def test_a_refused_number_is_one_line(command, tofu_args, home, flag, message):
    outcome = command(*tofu_args, f"--collapse.{flag}")
    assert outcome.status == 2
    assert outcome.err.startswith(f"error: {message}")
    assert outcome.err.count("\n") == 1
    assert list(home.iterdir()) == []


@pytest.mark.filterwarnings("ignore:collapse at step")
@pytest.mark.slow
@pytest.mark.parametrize(("lr", "is_wrecked"), [(2e-4, False), (0.05, True)])
def test_the_defaults_tell_a_wrecked_model_from_an_unlearned_one(
    command, configs, tmp_path, monkeypatch, lr, is_wrecked
):
    monkeypatch.chdir(tmp_path)
    outcome = command(
        "fit",
        f"--config={configs}/quickstart.yaml",
        "--trainer.max_epochs=2",
        "--trainer.callbacks=ModelUtility",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
        f"--model.lr={lr}",
        "--data.retain_model=null",
        "--no_save_model",
        "--output_dir=run",
    )
    assert (outcome.status, outcome.err) == (0, "")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    kinds = {one["kind"] for one in results.get("warnings", ())}
    # Which of the two is seen first depends on the processor.
    assert kinds & {"retain_loss", "utility"} if is_wrecked else not kinds
