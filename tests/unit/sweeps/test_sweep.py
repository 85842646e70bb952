"""Expansion, keys, names, the rule of selection and the report's numbers, without a parser."""

import json
import math
import shlex
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from etw_lightning.commands.sweep import _ranges, plan, sweep
from etw_lightning.runs.key import run_key, that_count
from etw_lightning.schema import InputError
from etw_lightning.sweeps.choice import average, choose, gather, rule
from etw_lightning.sweeps.grid import load_sweep
from etw_lightning.sweeps.processes import FIT, _start
from etw_lightning.sweeps.reading import with_keys
from etw_lightning.sweeps.report import check_metrics, report
from etw_lightning.sweeps.rules import Bound, Select
from etw_lightning.sweeps.runs import (
    Finished,
    expand,
    find_finished,
    is_finished,
    option_words,
    strangers,
)

BASE = {
    "config": ["run.yaml"],
    "output_dir": "out",
    "methods": {"etw": {"model.lambda": [0.1, 0.2]}, "ga": {}},
    "grid": {"seed_everything": [0, 1]},
    "select": {
        "maximise": "forget_quality",
        "subject_to": {"model_utility": {"at_least_of_target": 0.95}},
    },
}


MISSING = "\u2013"
LISTED = "The command 'configs' lists the shipped ones."


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a sweep's file, changed in some keys, where its runs and methods can be found."""
    monkeypatch.chdir(tmp_path)
    methods = Path("configs/method")
    methods.mkdir(parents=True)
    for path in (Path("run.yaml"), *(methods / f"{name}.yaml" for name in ("etw", "ga", "npo"))):
        path.write_text("model: {}\n")

    def call(**changes):
        Path("sweep.yaml").write_text(yaml.safe_dump({**BASE, **changes}, sort_keys=False))
        return "sweep.yaml"

    return call


def parse(words):
    """Read options as a parser would, numbers by their value; files and folder are left out."""
    pairs = [word for word in words[1:] if word != "--no_save_model"]
    options = list(zip(pairs[::2], pairs[1::2], strict=True))
    return {
        "methods": [value for key, value in options if key == "--config"],
        **{key: yaml.safe_load(value) for key, value in options if key.count(".")},
        "seed_everything": dict(options).get("--seed_everything"),
    }


def runs_of(path, **given):
    return with_keys(expand(load_sweep(path, **given)), parse)


def finish(run, quality, utility, *, target=0.6, key=None, **more):
    """Leave what a finished run leaves."""
    run.folder.mkdir(parents=True)
    found = {"forget_quality": quality, "model_utility": utility, **more}
    results = {
        "finished": True,
        "command": "fit",
        "config_hash": key or run.key,
        "git_commit": "abc",
        "metrics": {name: {"value": value} for name, value in found.items()},
        "history": [{"epoch": 0, "metrics": {"model_utility": {"value": target}}}],
    }
    (run.folder / "results.json").write_text(json.dumps(results))


def test_every_combination_comes_once_seeds_side_by_side(write):
    runs = expand(load_sweep(write()))
    assert [run.name for run in runs] == [
        "etw_lambda0.1_seed0",
        "etw_lambda0.1_seed1",
        "etw_lambda0.2_seed0",
        "etw_lambda0.2_seed1",
        "ga_seed0",
        "ga_seed1",
    ]
    assert [run.point for run in runs][::2] == [(("lambda", "0.1"),), (("lambda", "0.2"),), ()]
    assert [run.seed for run in runs] == ["0", "1"] * 3


def test_a_command_lays_method_settings_and_grid_over_the_run(write):
    first = expand(load_sweep(write(settings={"save_model": False, "data.rows": {"a": 1}})))[0]
    assert shlex.join(first.words) == (
        "fit --config run.yaml --config configs/method/etw.yaml --no_save_model "
        "--data.rows '{\"a\": 1}' --model.forget_weight 0.1 --seed_everything 0 "
        "--output_dir out/etw_lambda0.1_seed0"
    )


def test_a_methods_own_grid_takes_the_place_of_the_common_one(write):
    grid = {"model.forget_weight": [1, 2, 3], "seed_everything": [0]}
    runs = expand(load_sweep(write(grid=grid)))
    assert [run.name for run in runs] == [
        *(f"etw_lambda{value}_seed0" for value in (0.1, 0.2)),
        *(f"ga_lambda{value}_seed0" for value in (1, 2, 3)),
    ]


def test_short_names_grow_until_they_differ(write):
    methods = {
        "npo": {"model.forget.init_args.beta": [0.5, 1]},
        "etw": {"model.weighting.beta": [1, 2], "model.lr": ["1e-4", "1e-3"]},
    }
    names = [run.name for run in expand(load_sweep(write(methods=methods, grid={})))]
    assert names[:3] == ["npo_forget.beta0.5", "npo_forget.beta1", "etw_weighting.beta1_lr0.0001"]


def test_what_has_one_value_is_set_but_names_nothing(write):
    methods = {"etw": {"model.lr": [0.5], "model.weighting.beta": [1, 2]}}
    runs = expand(load_sweep(write(methods=methods, grid={"seed_everything": [3]})))
    assert [run.name for run in runs] == ["etw_beta1_seed3", "etw_beta2_seed3"]
    assert all("--model.lr 0.5" in " ".join(run.words) for run in runs)
    assert [run.point for run in runs] == [(("beta", "1"),), (("beta", "2"),)]


def test_words_and_signs_in_names(write):
    methods = {"etw": {"model.weighting": ["a/b", None, True], "data.seed": [-1, 0]}}
    runs = expand(load_sweep(write(methods=methods, grid={})))
    assert [run.name for run in runs[::2]] == [
        "etw_weighting-a-b_seed--1",
        "etw_weighting-null_seed--1",
        "etw_weighting-true_seed--1",
    ]
    assert "--data.seed=-1" in runs[0].words


def test_two_runs_of_one_folder_are_refused(write):
    methods = {"etw": {"model.weighting": ["a/b", "a-b"]}}
    with pytest.raises(InputError, match="two runs would write to the folder 'etw_weighting-a-b_s"):
        expand(load_sweep(write(methods=methods)))


def test_methods_as_a_list_and_as_files(write):
    Path("mine.yaml").write_text("model: {}\n")
    runs = expand(load_sweep(write(methods=["npo", "./mine.yaml"], grid={})))
    assert [run.name for run in runs] == ["npo", "mine"]
    assert runs[1].words[3:5] == ("--config", "mine.yaml")


def test_one_method_under_several_names(write):
    soft = {"method": "etw", "model.weighting.temperature": [2, 4]}
    given = load_sweep(write(methods={"etw": None, "soft": soft}, grid={}))
    names = [run.name for run in expand(given)]
    assert names == ["etw", "soft_temperature2", "soft_temperature4"]
    files = [run.words[4] for run in expand(given)]
    assert files == ["configs/method/etw.yaml"] * 3


def test_set_takes_the_place_of_grids_and_settings(write):
    path = write(settings={"model.lr": 1})
    changes = ["model.lambda=0.5", "seed_everything=7", "model.lr=2", "data.root=x"]
    given = load_sweep(path, "elsewhere", changes)
    assert [run.name for run in expand(given)] == ["etw_seed7", "ga_seed7"]
    assert dict(given.settings) == {"model.lr": 2, "data.root": "x"}
    assert expand(given)[0].folder == Path("elsewhere/etw_seed7")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": []}, "metods is not known. Did you mean methods?"),
        ({"config": []}, "config must be a list of names, at least one; got []."),
        ({"config": ["zzz.yaml"]}, f"config: there is no file 'zzz.yaml'. {LISTED}"),
        ({"output_dir": " "}, "output_dir must be a folder; got ' '."),
        ({"methods": {}}, "methods must hold at least one method; got none."),
        (
            {"methods": None},
            "methods is missing from the sweep's file; it holds names of method files, as "
            "[etw, ga], or names with grids of their own.",
        ),
        (
            {"select": None},
            "select is missing from the sweep's file; it holds the rule by which a grid point is "
            "chosen, as {maximise: forget_quality}.",
        ),
        # A rule that is missing hides nothing else.
        (
            {"select": None, "columns": "x"},
            "columns must be a list of names, at least one; got 'x'.",
        ),
        ({"output_dir": "run.yaml/a"}, "output_dir must be a folder; 'run.yaml' is none."),
        (
            {"methods": ["ewt"]},
            "methods.ewt must be a method file; 'configs/method/ewt.yaml' is "
            "none. Did you mean 'etw'?",
        ),
        (
            {"methods": ["etw", "configs/method/etw.yaml"]},
            "methods must hold each name once; got two named 'etw'.",
        ),
        (
            {"methods": {"etw": {}, "soft": {"method": "ewt"}}},
            "methods.soft.method must be a method file; 'configs/method/ewt.yaml' is "
            "none. Did you mean 'etw'?",
        ),
        (
            {"methods": {"soft": {"method": ["etw"]}}},
            "methods.soft.method must be the name of a method file, as etw; got ['etw'].",
        ),
        (
            {"methods": {"a/b": {"method": "etw"}}},
            "methods.a/b.method needs a name of letters, digits and _.- above it; got 'a/b'.",
        ),
        (
            {"methods": {"etw": {"model.lr": 1}}},
            "methods.etw.model.lr must be a list of values, at least one, or for sweep search a "
            "range as log:0.01..1; got 1.",
        ),
        (
            {"grid": {"model.lr": []}},
            "grid.model.lr must be a list of values, at least one, or for sweep search a range "
            "as log:0.01..1; got [].",
        ),
        (
            {"grid": {"model.lr": [[1]]}},
            "grid.model.lr must hold numbers, texts, true, false or null; got [1].",
        ),
        (
            {"grid": {"model.lambda": [1, float("inf")]}},
            "grid.model.lambda must be a finite number; got inf.",
        ),
        (
            {"methods": {"etw": {"model.lr": ["nan"]}}},
            "methods.etw.model.lr must be a finite number; got nan.",
        ),
        (
            {"settings": {"trainer.default_root_dir": "x"}},
            "settings can't hold trainer.default_root_dir: no run reads it. Leave it out.",
        ),
        (
            {"settings": {"model.lr": float("nan")}},
            "settings.model.lr must be a finite number; got nan.",
        ),
        (
            {"grid": {"model.lr": ["1e-4", 0.0001]}},
            "grid.model.lr must hold each value once; got 0.0001 more often.",
        ),
        (
            {"grid": {"model.lambda": [1], "model.forget_weight": [1]}},
            "grid must hold model.forget_weight once; "
            "model.lambda and model.forget_weight are the same setting.",
        ),
        (
            {"grid": {"output_dir": ["a"]}},
            "grid can't hold output_dir: each run of a sweep has its own.",
        ),
        (
            {"settings": {"seed_everything": 1}},
            "seed_everything must stand in settings or in a grid; etw has it in both.",
        ),
        ({"select": {}}, "select must hold either maximise or minimise, with a number's name."),
        (
            {"select": {"maximize": "x"}},
            "select.maximize is not known. Did you mean select.maximise?",
        ),
        ({"select": {"maximise": 1}}, "select.maximise must be the name of a number; got 1."),
        (
            {"select": {"maximise": "x", "subject_to": {"y": {"above": 1}}}},
            "select.subject_to.y.above is not known. "
            "There are at_least, at_most, at_least_of_target.",
        ),
        (
            {"select": {"maximise": "x", "subject_to": {"y": {"at_least": "1"}}}},
            "select.subject_to.y.at_least must be a finite number; got '1'.",
        ),
        ({"columns": "x"}, "columns must be a list of names, at least one; got 'x'."),
    ],
)
def test_a_bad_file_is_one_line(write, changes, message):
    with pytest.raises(InputError) as caught:
        load_sweep(write(**changes))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "sweep: the following arguments are required: command, --config; sweep --help"),
        (["pan", "--config", "sweep.yaml"], "sweep: argument command: invalid choice: 'pan'"),
        (["plan", "--config", "zzz.yaml"], f"--config: there is no file 'zzz.yaml'. {LISTED}"),
        (
            ["run", "--config", "sweep.yaml", "--jobs", "0"],
            "sweep: argument --jobs: must be a whole number > 0; got '0'",
        ),
        (
            ["plan", "--config", "sweep.yaml", "--set", "model.lr"],
            "--set must be given as key=value; got 'model.lr'.",
        ),
        (
            ["plan", "--config", "sweep.yaml", "--set", "overwrite=true"],
            "--set can't hold overwrite: each run of a sweep has its own.",
        ),
    ],
)
def test_bad_words_are_one_line(write, args, message):
    write()
    with pytest.raises(InputError) as caught:
        sweep(args, lambda: parse)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


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


def test_p_values_are_compared_by_the_mean_of_their_logarithms(write):
    runs = runs_of(write())
    # By the plain mean the first point wins: .45 against .2.
    for run, quality in zip(runs, (0.9, 1e-6, 0.2, 0.2), strict=False):
        finish(run, quality, 0.6)
    points = [point for point in gather(runs) if point.method == "etw"]
    point, keeps = choose(points, load_sweep("sweep.yaml").select)
    assert (dict(point.values), keeps) == ({"lambda": "0.2"}, True)
    assert points[0].mean("forget_quality") == pytest.approx(math.sqrt(0.9e-6), rel=1e-12)
    assert points[0].mean("model_utility") == 0.6


def points_of(write, *values):
    """Return the two points of ETW, each of its two runs with these numbers."""
    runs = runs_of(write())
    for run, (quality, utility) in zip(runs, values, strict=False):
        finish(run, quality, utility)
    return [point for point in gather(runs) if point.method == "etw"]


def test_a_point_must_keep_to_the_bound_in_the_mean(write):
    # .95 of the target's .6 is .57: (.55 + .60) / 2 passes, (.55 + .58) / 2 does not.
    points = points_of(write, (0.1, 0.55), (0.1, 0.60), (0.9, 0.55), (0.9, 0.58))
    point, keeps = choose(points, load_sweep("sweep.yaml").select)
    assert (dict(point.values), keeps) == ({"lambda": "0.1"}, True)
    assert point.share("model_utility") == pytest.approx(0.575 / 0.6)


def test_where_none_keeps_to_it_the_nearest_is_taken_and_marked(write):
    points = points_of(write, (0.9, 0.40), (0.9, 0.40), (0.1, 0.50), (0.1, 0.50))
    point, keeps = choose(points, load_sweep("sweep.yaml").select)
    assert (dict(point.values), keeps) == ({"lambda": "0.2"}, False)


def test_of_equal_points_the_first_is_taken(write):
    points = points_of(write, *[(0.5, 0.6)] * 4)
    assert choose(points, load_sweep("sweep.yaml").select)[0] is points[0]


def test_a_point_that_lacks_a_run_is_not_chosen(write):
    points = points_of(write, (0.1, 0.6), (0.1, 0.6), (0.9, 0.6))
    assert choose(points, load_sweep("sweep.yaml").select)[0] is points[0]
    assert choose(points[1:], load_sweep("sweep.yaml").select) == (None, False)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (Select("model_utility", False, ()), "0.1"),
        (Select("model_utility", True, ()), "0.2"),
        (Select("model_utility", True, (Bound("model_utility", "at_most", 0.55),)), "0.1"),
        (Select("model_utility", False, (Bound("model_utility", "at_least", 0.55),)), "0.2"),
        # The bound that is missed most decides: by 80 % against by 90 %.
        (
            Select(
                "model_utility",
                False,
                (
                    Bound("model_utility", "at_least", 2.5),
                    Bound("forget_quality", "at_least", 2.0),
                ),
            ),
            "0.1",
        ),
    ],
)
def test_directions_and_bounds(write, select, expected):
    points = points_of(write, (0.4, 0.5), (0.4, 0.5), (0.2, 0.6), (0.2, 0.6))
    assert dict(choose(points, select)[0].values) == {"lambda": expected}


_HALF = (Bound("model_utility", "at_most", 0.5),)


def test_a_point_on_its_bound_keeps_to_it(write):
    points = points_of(write, *[(0.4, 0.5)] * 2, *[(0.9, 0.75)] * 2)
    assert choose(points, Select("forget_quality", True, _HALF)) == (points[0], True)


def test_of_equal_numbers_the_one_that_keeps_to_the_bounds_is_taken(write):
    points = points_of(write, *[(0.4, 0.7)] * 2, *[(0.4, 0.3)] * 2)
    assert choose(points, Select("forget_quality", True, _HALF)) == (points[1], True)


def test_a_point_has_a_number_where_all_of_its_runs_do(write):
    runs = runs_of(write())
    finish(runs[0], 0.5, 0.6, rouge=0.3)
    finish(runs[1], 0.5, 0.6)
    point = gather(runs)[0]
    assert (point.numbers("rouge"), point.mean("rouge")) == ([], None)
    assert point.mean("model_utility") == 0.6


def test_a_p_value_of_0_is_the_least_that_a_float_holds():
    # 2.2250738585072014e-308, whose logarithm is -307.65265...
    assert average("forget_quality", [0.0]) == pytest.approx(2.2250738585072014e-308, rel=1e-10)
    assert average("forget_quality", [0.0, 1.0]) == pytest.approx(1.4916681462400413e-154)


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


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", ["--data.template="]),
        ("-1", ["--data.template=-1"]),
        (None, ["--data.template", "null"]),
        ({"a": 1}, ["--data.template", '{"a": 1}']),
    ],
)
def test_every_value_is_read_as_one_word(value, words):
    assert option_words("data.template", value) == words


def test_a_number_that_a_run_lacks_is_an_error(write):
    points = points_of(write, *[(0.5, 0.6)] * 4)
    with pytest.raises(InputError, match=r"out/etw_lambda0.1_seed0 has no 'verbmem'\.$"):
        choose(points, Select("verbmem", True, ()))
    bound = Bound("forget_quality", "at_least_of_target", 1.0)
    with pytest.raises(InputError, match=r"forget_quality.at_least_of_target must be compared"):
        choose(points, Select("model_utility", True, (bound,)))


def test_the_rule_in_words():
    bounds = (Bound("model_utility", "at_least_of_target", 0.95), Bound("rouge", "at_most", 0.5))
    assert rule(Select("forget_quality", True, bounds)) == (
        "the highest forget_quality (geometric mean over the seeds) among the grid points whose "
        "model_utility is at least 0.95 of the target model's and rouge is at most 0.5"
    )
    assert rule(Select("rouge", False, ())) == "the lowest rouge (mean over the seeds)"


def cells(text, start):
    """Return the cells of the lines that begin so, without bold."""
    lines = [line.replace("**", "") for line in text.splitlines()]
    return [line.strip("| ").split(" | ") for line in lines if line.startswith(start)]


def test_the_numbers_of_a_report(write):
    given = load_sweep(write(columns=["forget_quality", "model_utility", "rouge"]))
    runs = with_keys(expand(given), parse)
    for run, quality, utility in zip(
        runs, (0.1, 0.001, 1e-9, 1e-9), (0.5, 0.6, 0.58, 0.58), strict=False
    ):
        finish(run, quality, utility, rouge=20.0)
    finish(runs[4], 0.5, 0.6)
    text = report(given, runs)
    # log10: -1 and -3, mean -2; utility .55 is .917 of the target's .6, .58 is .967.
    spread = statistics.stdev([0.5, 0.6])
    chosen, first, second = cells(text, "| etw")
    assert first == [
        "etw",
        "0.1",
        "2",
        "0.010 (-2.00 ± 1.41)",
        f"0.5500 ± {spread:.4f}",
        "20.00 ± 0.0000",
        "0.917",
    ]
    assert second == [
        "etw",
        "0.2",
        "2",
        "1.0e-09 (-9.00 ± 0.00)",
        "0.5800 ± 0.0000",
        "20.00 ± 0.0000",
        "0.967",
    ]
    assert chosen == ["etw", "lambda 0.2", *second[2:]]
    missing, partial = cells(text, "| ga")
    assert missing == ["ga", "missing", *[MISSING] * 5]
    assert partial[2:] == ["1 of 2, missing: seed 1", "0.500 (-0.30)", "0.6000", MISSING, "1.000"]
    assert text.splitlines()[0].startswith(f"Chosen for each method: {rule(given.select)}.")
    assert "5 of 6 runs finished" in text


def test_a_fallback_and_points_left_out_are_marked(write):
    given = load_sweep(write())
    runs = with_keys(expand(given), parse)
    finish(runs[0], 0.5, 0.3)
    finish(runs[1], 0.5, 0.3)
    assert cells(report(given, runs), "| etw")[0][1] == "lambda 0.1 * (of 1 of 2 points)"


def test_a_column_that_no_run_has_is_an_error(write):
    given = load_sweep(write(columns=["model_utilty"]))
    runs = with_keys(expand(given), parse)
    assert "0 of 6 runs finished" in report(given, runs)
    finish(runs[0], 0.5, 0.6)
    with pytest.raises(
        InputError, match=r"none has 'model_utilty'. Did you mean 'model_utility'\?"
    ):
        report(given, runs)


def test_runs_of_several_commits_are_told(write):
    given = load_sweep(write())
    runs = with_keys(expand(given), parse)
    for run in runs:
        finish(run, 0.5, 0.6)
    assert "commits" not in report(given, runs)
    path = runs[0].folder / "results.json"
    path.write_text(path.read_text().replace('"abc"', '"def"'))
    assert report(given, runs).endswith("The runs are of several commits: abc, def.")


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


def test_settings_of_one_value_are_told_in_the_report(write):
    patterns = '["model[.](0|1)[.]mlp[.]down_proj[.]weight"]'
    methods = {
        "etw": {"model.lambda": [0.1, 0.2]},
        "ga": {"model.lambda": [0.3], "model.train_only": [patterns]},
        "npo": {},
    }
    given = load_sweep(write(methods=methods))
    runs = with_keys(expand(given), parse)
    for run in runs:
        finish(run, 0.5, 0.6)
    text = report(given, runs)
    shown = patterns[:37].replace("|", "\\|").replace("](", "]\\(")
    short = f"train_only {shown}..."
    assert [line[1] for line in (cells(text, f"| {name}")[0] for name in ("ga", "npo"))] == [
        f"lambda 0.3, {short}",
        "as in its file",
    ]
    assert "| method | lambda | one value only | runs |" in text
    assert cells(text, "| ga")[1][:3] == ["ga", "0.3", short]


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"select": {"maximise": "forget_qality"}},
            "select.maximise must name numbers of results.json; got 'forget_qality'. Did you mean "
            "'forget_quality'?",
        ),
        (
            {"select": {"minimise": "privleak", "subject_to": {"model_utilty": {"at_least": 1}}}},
            "select.subject_to must name numbers of results.json; got 'model_utilty'. Did you mean "
            "'model_utility'?",
        ),
        (
            {"columns": ["verbmem", "qqq"]},
            "columns must name numbers of results.json; got 'qqq'. explain lists the metrics.",
        ),
    ],
)
def test_names_of_no_number_are_found_before_anything_runs(write, changes, message):
    given = load_sweep(write(**changes))
    with pytest.raises(InputError) as caught:
        check_metrics(given, [{}, {"trainer": {"callbacks": None}}])
    assert str(caught.value) == message
    ours = {"class_path": "etw_lightning.callbacks.Suite"}
    with pytest.raises(InputError):
        check_metrics(given, [{"trainer": {"callbacks": [ours]}}])
    # A callback of the user's own may give any number.
    check_metrics(given, [{}, {"trainer": {"callbacks": [ours, {"class_path": "mine.Score"}]}}])


@pytest.mark.parametrize("text", ["grid: {a: [1], a: [2]}\n", "grid:\n  a: [1]\n  a: [1]\n"])
def test_a_key_that_stands_twice_is_refused(write, text):
    path = Path(write())
    number = path.read_text().count("\n") + text.count("\n")
    path.write_text(path.read_text().replace("grid:", "was:") + text)
    with pytest.raises(
        InputError, match=rf"^grid\.a must stand once .* and again in line {number}\.$"
    ):
        load_sweep(str(path))


def test_nothing_to_report_is_said_with_the_way_to_run_it(write, capsys):
    path = write()
    assert sweep(["report", "--config", path, "--set", "model.lr=1"], lambda: parse) == 1
    assert capsys.readouterr().out == (
        "nothing is finished in 'out'; python -m etw_lightning sweep run --config sweep.yaml "
        "--set model.lr=1 runs what there is\n"
    )
    assert not Path("out").exists()


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


def test_runs_that_were_scored_in_other_ways_are_marked(write):
    runs = runs_of(write())
    for run in runs:
        finish(run, 0.5, 0.6)

    def made_with(run, **more):
        path = run.folder / "results.json"
        results = json.loads(path.read_text())
        template = {"template": "chat", "max_length": 512, **more.pop("template", {})}
        results["provenance"] = {"dtype": "float32", "template": template, **more}
        path.write_text(json.dumps(results))

    sweep = load_sweep(write())
    for run in runs:
        made_with(run, rouge_tokenizer="published")
    made_with(runs[1])  # from before there was another
    assert "NOT COMPARABLE" not in report(sweep, runs)
    made_with(runs[2], rouge_tokenizer="unicode")
    made_with(runs[3], template={"max_length": 1024})
    said = [line for line in report(sweep, runs).split("\n") if line.startswith("NOT COMPARABLE")]
    assert said == [
        'NOT COMPARABLE: runs were scored with another data.rouge_tokenizer: "published" of 5, as '
        f'{runs[0].name}; "unicode" of 1, as {runs[2].name}.',
        "NOT COMPARABLE: runs were scored with another data.eval_max_length: 512 of 5, as "
        f"{runs[0].name}; 1024 of 1, as {runs[3].name}.",
    ]


@pytest.mark.parametrize("value", [1.5, -0.1])
def test_a_p_value_out_of_its_range_is_refused(write, value):
    runs = runs_of(write())
    for run in runs:
        finish(run, value if run is runs[3] else 0.5, 0.6)
    with pytest.raises(InputError) as caught:
        report(load_sweep(write()), runs)
    assert str(caught.value) == (
        f"{runs[3].folder}/results.json: forget_quality must be a p-value, from 0 to 1; got "
        f"{value}. Remove the folder to run it again."
    )


@pytest.mark.parametrize("name", ["model.lambda", "model.forget_weight"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1..0.1", "--over {} must go from low to high; got '1..0.1'."),
        ("[]", "--over {} must be a list of values, at least one, "),
        ("[1, 1]", "--over {} must hold each value once; got 1 more often."),
    ],
)
def test_a_setting_is_refused_under_the_name_that_was_typed(
    tmp_path, monkeypatch, name, text, said
):
    """The sweep's file has another name for it."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("seed_everything: 0\n")
    file = BASE | {"methods": {"etw": {"model.lambda": [0.1]}}}
    for own in ("model.lambda", "model.forget_weight"):
        Path("sweep.yaml").write_text(yaml.safe_dump(file).replace("model.lambda", own))
        with pytest.raises(InputError) as caught:
            sweep(["plan", "--config", "sweep.yaml", "--over", f"{name}={text}"], lambda: None)
        assert str(caught.value).startswith(said.format(name))


def test_a_setting_of_the_file_is_refused_under_the_file_s_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("seed_everything: 0\n")
    for name in ("model.lambda", "model.forget_weight"):
        both = BASE | {"methods": {"etw": {name: [0.1]}}, "settings": {name: 0.3}}
        Path("sweep.yaml").write_text(yaml.safe_dump(both))
        with pytest.raises(InputError, match=f"^{name} must stand in settings or in a grid"):
            sweep(["plan", "--config", "sweep.yaml"], lambda: None)


def test_a_file_with_both_names_is_refused_under_the_one_that_stands_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("seed_everything: 0\n")
    names = ("model.lambda", "model.forget_weight")
    for one, other in (names, names[::-1]):
        methods = {"etw": {one: [1, 1]}, "ga": {other: [1]}}
        Path("sweep.yaml").write_text(yaml.safe_dump(BASE | {"methods": methods}))
        with pytest.raises(InputError, match=rf"^methods\.etw\.{one} must hold each value once"):
            sweep(["plan", "--config", "sweep.yaml"], lambda: None)


def test_a_file_that_holds_itself_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text("methods: &all [*all]\n")
    with pytest.raises(InputError, match=r"^the sweep's file holds itself: an alias of what begi"):
        sweep(["plan", "--config", "sweep.yaml"], lambda: None)


def test_a_name_in_a_comment_or_a_value_is_none_that_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("seed_everything: 0\n")
    given = BASE | {"methods": {"etw": {"model.lambda": [1, 2]}}, "settings": {"model.lambda": 3}}
    Path("sweep.yaml").write_text(f"# not model.forget_weight\n{yaml.safe_dump(given)}")
    with pytest.raises(InputError, match=r"^model\.lambda must stand in settings or in a grid"):
        sweep(["plan", "--config", "sweep.yaml"], lambda: None)


def test_what_records_were_made_with_is_pairs_or_nothing(tmp_path):
    assert Finished(tmp_path, {}).provenance == {}
    assert Finished(tmp_path, {"provenance": {"dtype": "float32"}}).provenance["dtype"] == "float32"
    with pytest.raises(
        InputError, match=r"results\.json must hold what a run writes as pairs; got"
    ):
        _ = Finished(tmp_path, {"provenance": "a"}).provenance
