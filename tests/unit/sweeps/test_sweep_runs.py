"""Runs of a sweep: their keys, the plan of them, and what is found of them in its folder."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from swept import cells, finish, parse, points_of, runs_of

from etw_lightning.commands.sweep import _ranges, plan
from etw_lightning.runs.key import run_key, that_count
from etw_lightning.schema import InputError
from etw_lightning.sweeps.choice import choose, gather
from etw_lightning.sweeps.grid import load_sweep
from etw_lightning.sweeps.processes import FIT, _start
from etw_lightning.sweeps.reading import with_keys
from etw_lightning.sweeps.report import report
from etw_lightning.sweeps.rules import Select
from etw_lightning.sweeps.runs import (
    Finished,
    expand,
    find_finished,
    is_finished,
    strangers,
)

KEYED = {
    "seed_everything": 1,
    "output_dir": "a",
    "conventions": "definition",
    "data": {"seed": None, "num_workers": 0, "root": "x"},
    "trainer": {"logger": None, "max_epochs": 1},
    "model": {"lr": 1e-4, "forget": {"class_path": "GA"}},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"output_dir": "b", "overwrite": True, "save_model": False, "config": ["x"]},
        {"data": {"seed": 1, "num_workers": 4, "root": "x"}},
        {"trainer": {"logger": False, "max_epochs": 1, "enable_progress_bar": False}},
        {"model": {"forget": {"init_args": {}, "class_path": "GA"}, "lr": 0.0001}},
    ],
)
def test_what_changes_no_result_changes_no_key(changes):
    assert run_key({**KEYED, **changes}) == run_key(KEYED)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed_everything": 2},
        {"conventions": "peer"},
        {"data": {**KEYED["data"], "seed": 2}},
        {"data": {**KEYED["data"], "root": "y"}},
        {"trainer": {"logger": None, "max_epochs": 2}},
        {"model": {"lr": 1e-4, "forget": {"class_path": "GA", "init_args": {"config": 1}}}},
    ],
)
def test_what_changes_results_changes_the_key(changes):
    assert run_key({**KEYED, **changes}) != run_key(KEYED)


def test_no_torch_is_imported():
    code = "import sys, etw_lightning.commands.sweep; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_equal_runs_are_run_once(write, capsys):
    # One text for each value, but the parser makes one number of both.
    methods = {"etw": {"model.lr": ["0x10", 16]}}
    given = load_sweep(write(methods=methods))
    runs = with_keys(expand(given), parse)
    assert [run.equal_to for run in runs] == [None, None, "etw_lr0x10_seed0", "etw_lr0x10_seed1"]
    plan(given, runs, {})
    out = capsys.readouterr().out
    assert "# etw_lr16_seed0 equals etw_lr0x10_seed0, which is run once\n" in out
    assert len(Path("out/plan.txt").read_text().splitlines()) == 2
    finish(runs[0], 0.5, 0.6)
    finish(runs[1], 0.5, 0.6)
    text = report(given, runs)
    assert "etw_lr16_seed0 equals etw_lr0x10_seed0." in text
    assert "4 of 4 runs finished" in text


def test_a_plan_keeps_its_lines_when_runs_finish(write, capsys):
    given = load_sweep(write())
    runs = with_keys(expand(given), parse)
    plan(given, runs, {})
    before = Path("out/plan.txt").read_text()
    assert capsys.readouterr().out.endswith(
        "# 6 of 6 runs to do\n# sbatch --array=0-5 slurm/array.sh out/plan.txt\n"
    )
    finish(runs[1], 0.5, 0.6)
    finish(runs[5], 0.5, 0.6)
    plan(given, runs, find_finished(runs))
    assert Path("out/plan.txt").read_text() == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"# finished, {runs[1].folder}: python -m etw_lightning fit ")
    assert lines[-2:] == [
        "# 4 of 6 runs to do",
        "# sbatch --array=0,2-4 slurm/array.sh out/plan.txt",
    ]
    assert [shlex.split(line) for line in before.splitlines()] == [
        ["python", "-m", "etw_lightning", *run.words] for run in runs
    ]


def test_ranges():
    assert _ranges([3]) == "3"
    assert _ranges([0, 2, 3, 4, 9, 11, 12]) == "0,2-4,9,11-12"


def test_a_run_is_finished_by_its_own_results_only(write):
    first, second, third, fourth, fifth, sixth = runs_of(write())
    assert not is_finished(first)
    finish(first, 0.5, 0.6)
    sixth.folder.write_text("")
    with pytest.raises(InputError, match="is a file in the place of a run's folder; remove it"):
        is_finished(sixth)
    assert is_finished(first)
    finish(second, 0.5, 0.6, key="0123456789ab")
    with pytest.raises(InputError) as caught:
        is_finished(second)
    assert str(caught.value) == (
        f"'out/etw_lambda0.1_seed1' holds a finished run of other settings (config_hash "
        f"0123456789ab, this one's is {second.key}); remove the folder, or give another "
        "--output_dir."
    )
    third.folder.mkdir()
    (third.folder / "results.json").write_text('{"finished": true')
    with pytest.raises(InputError, match=r"holds a results\.json that can't be read; remove"):
        is_finished(third)
    fourth.folder.mkdir()
    (fourth.folder / "results.json").write_text('{"finished": true, "command": "evaluate"}')
    with pytest.raises(InputError, match="holds a run of evaluate; remove the folder"):
        is_finished(fourth)
    fifth.folder.mkdir()
    (fifth.folder / "results.json").write_text('{"finished": false}')
    assert not is_finished(fifth)


@pytest.mark.parametrize("other", ["a_copy", "zz_copy"])
def test_of_several_folders_that_hold_a_run_its_own_counts(write, other):
    first = runs_of(write())[0]
    finish(first, 0.5, 0.6)
    finish(replace(first, folder=Path("out") / other), 0.9, 0.6)
    assert find_finished([first])[first.key].folder == first.folder


def test_what_was_scored_stands_for_no_run(write):
    first = runs_of(write())[0]
    scored = Path("out/scored")
    finish(replace(first, folder=scored), 0.5, 0.6)
    assert find_finished([first])[first.key].folder == scored
    text = (scored / "results.json").read_text().replace('"fit"', '"evaluate"')
    (scored / "results.json").write_text(text)
    assert find_finished([first]) == {}


def test_a_run_that_the_parser_refuses_is_named(write):
    def refuse(words):
        raise InputError("model.ls is not known.")

    with pytest.raises(InputError, match=r"^model.ls is not known. \(run etw_lambda0.1_seed0\)$"):
        with_keys(expand(load_sweep(write())), refuse)


def set_results(run, change):
    """Change what a finished run has left."""
    path = run.folder / "results.json"
    results = json.loads(path.read_text())
    change(results)
    path.write_text(json.dumps(results))


def test_a_finished_run_is_found_when_its_grid_grows(write, capsys):
    one = {"etw": {"model.lambda": [0.1]}}
    for run in runs_of(write(methods=one)):
        finish(run, 0.5, 0.6)
    Path("out/mine").mkdir()
    given = load_sweep(write(methods={"etw": {"model.lambda": [0.1, 0.3]}}))
    runs = with_keys(expand(given), parse)
    found = find_finished(runs)
    assert {run.name: found[run.key].folder.name for run in runs[:2]} == {
        "etw_lambda0.1_seed0": "etw_seed0",
        "etw_lambda0.1_seed1": "etw_seed1",
    }
    assert len(found) == 2
    plan(given, runs, found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# finished, out/etw_seed0: python -m etw_lightning fit ")
    assert lines[-3:] == [
        "# in 'out', of no run of this sweep: mine",
        "# 2 of 4 runs to do",
        "# sbatch --array=2-3 slurm/array.sh out/plan.txt",
    ]
    text = report(given, runs)
    assert "2 of 4 runs finished" in text
    assert cells(text, "| etw")[0][1] == "lambda 0.1 (of 1 of 2 points)"
    assert text.endswith("In 'out', of no run of this sweep: mine.")


def test_the_runs_own_folder_counts_where_two_hold_it(write):
    first, *rest = runs_of(write())
    finish(rest[-1], 0.1, 0.6, key=first.key)
    finish(first, 0.5, 0.6)
    found = {first.key: find_finished([first])[first.key]}
    assert found[first.key].folder == first.folder
    assert strangers([first], found) == "in 'out', of no run of this sweep: ga_seed1"


def test_many_folders_of_no_run_are_counted(write):
    runs = runs_of(write())
    for number in range(7):
        Path(f"out/x{number}").mkdir(parents=True)
    Path("out/.hidden").mkdir()
    assert strangers(runs, {}).endswith("sweep: x0, x1, x2, x3, x4 and 2 more")


@pytest.mark.parametrize("value", ["0.5", None, True, float("nan")])
def test_what_is_no_number_is_named_with_its_file(write, value):
    points = points_of(write, *[(0.5, 0.6)] * 4)
    set_results(
        points[0].runs[0], lambda all_: all_["metrics"]["forget_quality"].update(value=value)
    )
    points = gather([run for point in points for run in point.runs])
    with pytest.raises(InputError) as caught:
        choose(points, Select("forget_quality", True, ()))
    assert str(caught.value) == (
        "out/etw_lambda0.1_seed0/results.json: forget_quality must be a number; got "
        f"{value!r}. Remove the folder to run it again."
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda results: results.pop("metrics"),
        lambda results: results.update(metrics=[]),
        lambda results: results["metrics"].update(forget_quality=0.5),
        lambda results: results.update(history=[1]),
    ],
)
def test_results_of_another_shape_are_one_line(write, change):
    given = load_sweep(write())
    runs = with_keys(expand(given), parse)
    for run in runs:
        finish(run, 0.5, 0.6)
    set_results(runs[0], change)
    with pytest.raises(InputError, match=r"^out/etw_lambda0.1_seed0/results.json must hold what"):
        report(given, runs)


def test_results_without_a_hash_are_told(write):
    run, *_ = runs_of(write())
    run.folder.mkdir(parents=True)
    (run.folder / "results.json").write_text('{"finished": true}')
    with pytest.raises(InputError, match=r"holds a results.json without config_hash, which tells"):
        find_finished([run])


def test_other_settings_are_named(write):
    run, *_ = runs_of(write())
    finish(run, 0.5, 0.6, key="0123456789ab")
    there = {**run.settings, "--model.forget_weight": 0.5, "a": 1, "b": "x" * 60, "c": None}
    (run.folder / "config.yaml").write_text(yaml.safe_dump(there, sort_keys=False))
    with pytest.raises(InputError) as caught:
        find_finished([run])
    assert str(caught.value) == (
        "'out/etw_lambda0.1_seed0' holds a finished run of other settings (--model.forget_weight "
        f"0.5, this one's 0.1; a 1, this one's absent; b \"{'x' * 36}..., this one's absent; and "
        "1 more); remove the folder, or give another --output_dir."
    )


@pytest.mark.parametrize(("key", "is_kept"), [("its own", True), ("of other settings", False)])
def test_a_run_that_was_broken_off_keeps_the_checkpoints_it_goes_on_from(
    write, monkeypatch, key, is_kept
):
    run = replace(runs_of(write())[0], key="its own")
    saved = run.folder / "checkpoints" / "step-00000003"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text(json.dumps({"key": key}))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: None)
    _start(run, {}, FIT)
    assert saved.exists() == is_kept


def test_a_run_from_before_an_option_existed_is_the_run_with_its_default(write, monkeypatch):
    run = runs_of(write())[0]
    settings = {"data": {"max_length": 64}, "model": {}, **run.settings}
    now = {**settings, "data": {"max_length": 64, "rouge_tokenizer": "published"}}
    run = replace(run, key=run_key(now), settings=that_count(now))
    finish(run, 0.5, 0.6, key=run_key(settings))
    with pytest.raises(InputError, match="holds a finished run of other settings"):
        find_finished([run])
    (run.folder / "config.yaml").write_text(yaml.safe_dump(settings))
    assert find_finished([run])[run.key].results["config_hash"] == run_key(settings)
    other = {**now, "data": {"max_length": 64, "rouge_tokenizer": "unicode"}}
    run = replace(run, key=run_key(other), settings=that_count(other))
    with pytest.raises(InputError, match=r'data.rouge_tokenizer absent, this one\'s "unicode"'):
        find_finished([run])


def test_what_records_were_made_with_is_pairs_or_nothing(tmp_path):
    assert Finished(tmp_path, {}).provenance == {}
    assert Finished(tmp_path, {"provenance": {"dtype": "float32"}}).provenance["dtype"] == "float32"
    with pytest.raises(
        InputError, match=r"results\.json must hold what a run writes as pairs; got"
    ):
        _ = Finished(tmp_path, {"provenance": "a"}).provenance
