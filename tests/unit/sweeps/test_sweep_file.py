"""A sweep's file: the runs it stands for, and what is refused in it, without a parser."""

import shlex
from pathlib import Path

import pytest
import yaml
from swept import BASE, parse

from etw_lightning.commands.sweep import sweep
from etw_lightning.schema import InputError
from etw_lightning.sweeps.grid import load_sweep
from etw_lightning.sweeps.report import check_metrics
from etw_lightning.sweeps.runs import (
    expand,
    option_words,
)

LISTED = "The command 'configs' lists the shipped ones."


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
