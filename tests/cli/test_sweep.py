"""``sweep`` from end to end, on a few rows of TOFU's shape and tiny models."""

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from faults import ForkedProgram, run_until

ROOT = Path(__file__).resolve().parents[2]
#: One draws from ranges, the others are grids.
SEARCH = ROOT / "configs" / "sweep" / "quickstart_search.yaml"
SHIPPED = sorted({*(ROOT / "configs" / "sweep").glob("*.yaml")} - {SEARCH})
#: A sweep of each method over a grid of its own.
MANY = ROOT / "configs" / "sweep" / "quickstart_methods.yaml"
#: It, and a grid of methods and lambdas as others are.
LONG = (MANY, *(MANY.parent / f"quickstart_{name}.yaml" for name in ("frontier", "words")))
SWEEP = {
    "config": ["configs/tofu_forget10.yaml", "small.yaml"],
    "output_dir": "out",
    "methods": {"etw": {"model.lambda": [0.1]}, "./broken.yaml": None},
    "grid": {"seed_everything": [0]},
    "settings": {"save_model": False},
    "select": {
        "maximise": "forget_quality",
        "subject_to": {"model_utility": {"at_least_of_target": 0.95}},
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tofu_dir, small_tofu):
    """A folder with a sweep of two runs, one of which fails once it has been started."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "small.yaml").write_text(yaml.safe_dump(small_tofu(tofu_dir)))
    (folder / "broken.yaml").write_text("data: {forget_split: forget77}\n")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETW_CACHE", str(folder / "cache"))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def run_sweep(command):
    """Run a sweep whose runs are forked; what stops them starts them as a user's sweep does."""

    def call(*words, sub="run"):
        forking = SimpleNamespace(**{**vars(subprocess), "Popen": ForkedProgram})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("etw_lightning.sweeps.processes.subprocess", forking)
            return command("sweep", sub, *words)

    return call


@pytest.fixture(scope="module")
def swept(place, run_sweep):
    """What ``sweep run`` gives back, before anything is finished."""
    return run_sweep("--config", "sweep.yaml", "--jobs", "2")


@pytest.fixture(scope="module")
def read():
    from etw_lightning.commands.run_reader import RunReader

    return RunReader().read


def key_of(read, *words, configs=("configs/quickstart.yaml", "configs/method/etw.yaml")):
    from etw_lightning.runs.key import run_key

    files = [word for config in configs for word in ("--config", str(ROOT / config))]
    return run_key(read(["fit", *files, *words]))


@pytest.mark.parametrize(
    "words",
    [
        ["--model.lambda", "0.1"],
        ["--model.forget_weight", "1e-1"],
        ["--model.weight_decay", "0"],
        ["--model.lr=2e-4", "--output_dir", "x", "--no_save_model"],
        ["--model.weighting", "ETW"],
        ["--model.chunk_size", "256"],
        ["--seed_everything", "0", "--data.seed", "0"],
        ["--conventions.floor", "definition"],
        ["--data.num_workers", "2", "--trainer.enable_progress_bar", "false"],
    ],
    ids=" ".join,
)
def test_equal_runs_have_equal_keys(read, words):
    assert key_of(read, *words) == key_of(read)


def test_the_order_of_files_that_do_not_meet_leaves_the_key(read, tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("model: {lr: 0.001}\n")
    two.write_text("data: {batch_size: 2}\n")
    base = "configs/quickstart.yaml"
    assert key_of(read, configs=(base, one, two)) == key_of(read, configs=(base, two, one))


@pytest.mark.parametrize(
    "words",
    [
        ["--model.lambda", "0.2"],
        ["--seed_everything", "1"],
        ["--data.seed", "1"],
        ["--model.weighting", "Uniform"],
        ["--model.weighting.temperature", "2"],
        ["--conventions", "peer"],
        ["--trainer.max_epochs", "1"],
    ],
    ids=" ".join,
)
def test_other_runs_have_other_keys(read, words):
    assert key_of(read, *words) != key_of(read)


@pytest.mark.slow
def test_a_shipped_sweep_of_many_methods_can_be_planned(command, monkeypatch, tmp_path):
    """Of those that set more than a weight, each at the first value of its grid."""
    sweep = yaml.safe_load(MANY.read_text())
    assert {f"{name}.yaml" for name in sweep["methods"]} <= set(os.listdir(ROOT / "configs/method"))
    sweep["methods"] = {
        name: {key: values[:1] for key, values in grid.items()}
        for name, grid in sweep["methods"].items()
        if set(grid) != {"model.forget_weight"} and name != "sce"
    }
    assert {"rmu", "scn", "tpo", "undial", "annotated"} <= set(sweep["methods"])
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    check_plan(command, monkeypatch, tmp_path, path)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(one, marks=pytest.mark.slow if one in LONG else (), id=one.stem)
        for one in SHIPPED
    ],
)
def test_every_shipped_sweep_can_be_planned(command, monkeypatch, tmp_path, path):
    check_plan(command, monkeypatch, tmp_path, path)


def check_plan(command, monkeypatch, tmp_path, path):
    """Plan a sweep; its last run, the command that is printed, is a run."""
    monkeypatch.chdir(ROOT)
    # One seed: of others every run is read alike.
    words = ("--set", "seed_everything=0", "--output_dir", tmp_path)
    out = command("sweep", "plan", "--config", path, *words)
    assert (out.status, out.err) == (0, "")
    lines = (tmp_path / "plan.txt").read_text().splitlines()
    assert lines == [line for line in out.out.splitlines() if not line.startswith("#")]
    assert out.out.endswith(
        f"# sbatch --array=0-{len(lines) - 1} slurm/array.sh {tmp_path}/plan.txt\n"
    )
    parsed = command(*shlex.split(lines[-1])[3:], "--print_config")
    assert parsed.status == 0, parsed.err


def test_a_failing_run_stops_no_other_and_is_told(swept, place):
    assert (swept.status, swept.err) == (1, "")
    done, failed = sorted(
        line for line in swept.out.splitlines() if line.startswith(("done ", "failed "))
    )
    assert done.startswith("done etw_seed0: ")
    assert done.endswith(" s")
    assert failed.startswith("failed broken_seed0: error: data.forget_split must be ")
    assert failed.endswith("(exit status 2; out/broken_seed0/log.txt)")
    assert not (place / "out/broken_seed0/results.json").exists()
    assert "results: out/etw_seed0/results.json" in (place / "out/etw_seed0/log.txt").read_text()


def test_the_report_is_printed_and_written(swept, command, place):
    text = (place / "out/report.md").read_text()
    assert swept.out.endswith(f"{text}\n")
    again = command("sweep", "report", "--config", "sweep.yaml")
    assert (again.status, again.out) == (0, f"{text}\n")
    metrics = json.loads((place / "out/etw_seed0/results.json").read_text())["metrics"]
    row = next(line for line in text.splitlines() if line.startswith("| etw"))
    assert f" {metrics['model_utility']['value']:.4f} " in row
    assert "| broken | missing | " in text


def test_a_finished_run_is_skipped_and_named(swept, run_sweep, place):
    before = (place / "out/etw_seed0/results.json").stat().st_mtime_ns
    again = run_sweep("--config", "sweep.yaml")
    assert again.status == 1
    assert "skipped etw_seed0: finished, out/etw_seed0\n" in again.out
    assert "failed broken_seed0: " in again.out
    assert (place / "out/etw_seed0/results.json").stat().st_mtime_ns == before


def test_a_plan_names_what_is_finished(swept, command, place):
    out = command("sweep", "plan", "--config", "sweep.yaml").out.splitlines()
    first, second = (place / "out/plan.txt").read_text().splitlines()
    assert out == [
        f"# finished, out/etw_seed0: {first}",
        second,
        "# 1 of 2 runs to do",
        "# sbatch --array=1 slurm/array.sh out/plan.txt",
    ]


@pytest.mark.parametrize("sub", ["plan", "run", "report"])
def test_a_finished_run_of_other_settings_is_an_error(swept, command, sub):
    out = command("sweep", sub, "--config", "sweep.yaml", "--set", "model.lr=0.1")
    assert (out.status, out.out) == (2, "")
    assert out.err.startswith(
        "error: 'out/etw_seed0' holds a finished run of other settings (model.lr 0.001, "
        "this one's 0.1); remove the folder, "
    )
    assert out.err.count("\n") == 1


def test_a_finished_run_is_found_when_the_grid_grows(swept, command, place):
    sweep = {**SWEEP, "methods": {"etw": {"model.lambda": ["1e-1", 0.3]}}}
    (place / "more.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    out = command("sweep", "plan", "--config", "more.yaml").out.splitlines()
    assert out[0].startswith("# finished, out/etw_seed0: python -m etw_lightning fit ")
    assert "out/etw_lambda0.1_seed0" in out[0]
    assert out[2:4] == ["# in 'out', of no run of this sweep: broken_seed0", "# 1 of 2 runs to do"]
    (place / "out/plan.txt").unlink()


def test_a_typo_in_the_rule_is_found_before_anything_runs(place, command):
    text = (place / "sweep.yaml").read_text().replace("maximise: forget_quality", "maximise: fq")
    (place / "typo.yaml").write_text(text.replace("maximise: fq", "maximise: forget_qality"))
    out = command("sweep", "plan", "--config", "typo.yaml", "--output_dir", "typo")
    assert (out.status, out.out) == (2, "")
    assert out.err == (
        "error: select.maximise must name numbers of results.json; got 'forget_qality'. "
        "Did you mean 'forget_quality'?\n"
    )
    assert not (place / "typo").exists()


@pytest.mark.parametrize("sub", ["plan", "run", "search"])
def test_blocks_that_leave_no_row_to_choose_by_are_refused_before_anything_runs(
    place, command, sub
):
    given = {**SWEEP, "methods": ["etw"], "grid": {"model.lambda": [0.1, 0.2]}}
    given["select"] = {**SWEEP["select"], "validation": {"block": 4, "every": 2}}
    (place / "blocks.yaml").write_text(yaml.safe_dump(given))
    out = command("sweep", sub, "--config", "blocks.yaml", "--output_dir", "blocks")
    assert (out.status, out.out) == (2, "")
    assert out.err == (
        "error: select.validation.block must be at most 3 with every: 2, so that one of the 4 "
        "forget rows is in the validation part; got {block: 4, every: 2}.\n"
    )
    assert not (place / "blocks").exists()


@pytest.fixture(scope="module")
def searched(place, run_sweep):
    """What a search of two points gives back, one of a run that is there already."""
    words = ("--over", "model.lambda=log:0.05..0.5", "model.lr=[0.001]", "--trials", "2")
    sweep = {**SWEEP, "methods": ["etw"], "output_dir": "searched"}
    # What tiny models say is worth nothing; how likely answers are is a number all the same.
    sweep["select"] = {
        "maximise": "forget_quality",
        "subject_to": {"retain_probability": {"at_least_of_target": 0.95}},
    }
    (place / "searched.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    return run_sweep("--config", "searched.yaml", *words, sub="search")


def test_a_search_leaves_runs_that_other_commands_read(searched, command, place):
    assert (searched.status, searched.err) == (0, "")
    folders = sorted(path.name for path in (place / "searched").glob("etw_*"))
    assert len(folders) == 2
    assert [name for name in folders if f"done {name}: " in searched.out] == folders
    out = command("compare", "searched", "--rank", "fq_at_utility_floor", "--format", "json")
    assert (out.status, out.err) == (0, "")
    (found,) = [json.loads(out.out)]
    assert sorted(run for one in found["places"] for run in one["runs"]) == folders
    out = command("report", "searched", "--format", "json")
    assert sorted(json.loads(out.out)["runs"]) == folders


def test_the_number_that_a_search_is_told_is_the_one_of_its_run(searched, place):
    from etw_lightning.sweeps.choice import log10
    from etw_lightning.sweeps.study import open_journal

    storage = open_journal(place / "searched", mends=False)
    (study,) = storage.get_all_studies()
    for trial in storage.get_all_trials(study._study_id):
        (path,) = (place / "searched").glob(f"*lambda{trial.params['model.forget_weight']:.4g}_*")
        results = json.loads((path / "results.json").read_text())
        assert trial.value == log10(results["metrics"]["forget_quality"]["value"])
        (start,) = [one["metrics"] for one in results["history"] if one["epoch"] == 0]
        floor = 0.95 * start["retain_probability"]["value"]
        miss = (floor - results["metrics"]["retain_probability"]["value"]) / floor
        assert list(trial.constraints.values()) == [pytest.approx(miss, abs=1e-12)]


@pytest.mark.slow
def test_the_shipped_search_can_be_begun(command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = command("sweep", "report", "--config", SEARCH, "--output_dir", tmp_path / "none")
    assert (out.status, out.err) == (1, "")
    assert " sweep search --config " in out.out
    out = command("sweep", "plan", "--config", SEARCH, "--output_dir", tmp_path / "none")
    assert out.status == 2
    assert out.err.startswith("error: model.forget_weight of etw is the range log:0.02..0.5, ")


@pytest.mark.parametrize("folder", ["/dev/null", "small.yaml", "small.yaml/under"])
@pytest.mark.parametrize("sub", ["plan", "run", "report"])
def test_a_file_in_the_place_of_the_folder_is_refused_first(place, command, sub, folder):
    out = command("sweep", sub, "--config", "sweep.yaml", "--output_dir", folder)
    assert (out.status, out.out) == (2, "")
    assert out.err.startswith("error: output_dir must be a folder; '")
    assert out.err.count("\n") == 1


def test_a_report_before_any_run_is_one_line(place, command):
    out = command("sweep", "report", "--config", "sweep.yaml", "--output_dir", "none")
    assert (out.status, out.err) == (1, "")
    assert out.out == (
        "nothing is finished in 'none'; python -m etw_lightning sweep run --config sweep.yaml "
        "--output_dir none runs what there is\n"
    )
    assert not (place / "none").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.ls=1", "model.ls is not known. Did you mean 'model.lr'? (run etw_seed0)"),
        ("seed_everything=a", "seed_everything must be true or false or a whole number; got 'a'. "),
    ],
)
def test_a_setting_that_no_run_takes_is_one_line(place, command, setting, said):
    out = command("sweep", "plan", "--config", "sweep.yaml", "--set", setting)
    assert (out.status, out.out, out.err.count("\n")) == (2, "", 1)
    assert out.err.startswith(f"error: {said}")


def test_two_sweeps_do_not_share_a_folder(place, command):
    from filelock import FileLock

    (place / "held").mkdir()
    with FileLock(place / "held/.sweep.lock"):
        out = command("sweep", "run", "--config", "sweep.yaml", "--output_dir", "held")
    assert (out.status, out.out) == (2, "")
    assert out.err == "error: another command of this sweep is at work in 'held'; wait for it.\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_stops_the_runs_where_they_go_on_from(place, tmp_path, number):
    folder = place / f"stopped{number}/etw_seed0"
    words = "sweep run --config sweep.yaml --set trainer.max_epochs=100000"
    words += " --set checkpoints.every_n_steps=1 --output_dir"
    log, found = tmp_path / "log", []

    def is_time(process):
        found[:] = children(process)
        return found and list(folder.glob("checkpoints/step-*"))

    status = run_until([*words.split(), folder.parent], is_time, number, log)
    assert status == 128 + signal.SIGINT
    assert log.read_text() == (
        f"start etw_seed0 (log {folder}/log.txt)\n"
        "stopped etw_seed0: the same command goes on with it\n"
        "interrupted; the same command goes on with what is not done\n"
    )
    (child,) = found
    assert not Path(f"/proc/{child}").exists()
    saved = [path.name for path in (folder / "checkpoints").iterdir()]
    assert saved == [name for name in saved if name.startswith("step-")] != []
    assert "the same command goes on from" in (folder / "log.txt").read_text()


def children(pid):
    """Return the processes that a process has started and that still run."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    if not listed.exists():
        pytest.skip(f"{os.uname().sysname} does not list a process's children under /proc")
    return listed.read_text().split()
