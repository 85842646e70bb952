"""Ranges, what a search draws, how it goes on, and what it refuses, without training."""

import json
import math
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml

from etw_lightning.commands.sweep import sweep
from etw_lightning.schema import InputError
from etw_lightning.sweeps.grid import load_sweep
from etw_lightning.sweeps.ranges import Range, read_range
from etw_lightning.sweeps.runs import expand
from etw_lightning.sweeps.search import Searches
from etw_lightning.sweeps.study import JOURNAL, open_journal

BASE = {
    "config": ["run.yaml"],
    "output_dir": "out",
    "methods": {"etw": {"model.lambda": "log:0.01..1"}},
    "grid": {"seed_everything": [0, 1]},
    "select": {
        "maximise": "forget_quality",
        "subject_to": {"model_utility": {"at_least_of_target": 0.95}},
    },
    "search": {"trials": 12},
}


def parse(words):
    """Read options as a parser would; refuse what is no option."""
    pairs = list(zip(words[1::2], words[2::2], strict=True))
    known = ("model.forget_weight", "model.lr", "model.steps", "model.kind")
    for name in (key.removeprefix("--") for key, _ in pairs if "." in key):
        if name not in known:
            raise InputError(f"{name} is not known.")
    return {
        "methods": [value for key, value in pairs if key == "--config"],
        **{key[2:]: yaml.safe_load(value) for key, value in pairs if "." in key},
        "seed_everything": dict(pairs).get("--seed_everything"),
    }


class Runs:
    """Leaves what runs would leave: more lambda forgets more and costs more utility."""

    def __init__(self):
        self.started = []
        self.stops_at = None
        self.fails = ()

    def __call__(self, todo, jobs):
        failed = 0
        for run in todo:
            if self.stops_at == len(self.started):
                self.stops_at = None
                raise KeyboardInterrupt
            self.started.append(run.name)
            if any(part in run.name for part in self.fails):
                failed += 1
                continue
            weight = float(dict((*run.point, *run.fixed)).get("lambda", 0.1))
            # .95 of the target's .6 is left at a lambda of .1.
            quality, utility = 10 ** (math.log10(weight) - 2 - int(run.seed)), 0.6 - 0.3 * weight
            found = {"forget_quality": quality, "model_utility": utility}
            run.folder.mkdir(parents=True)
            results = {
                "finished": True,
                "command": "fit",
                "config_hash": run.key,
                "git_commit": "abc",
                "metrics": {name: {"value": value} for name, value in found.items()},
                "history": [{"epoch": 0, "metrics": {"model_utility": {"value": 0.6}}}],
            }
            (run.folder / "results.json").write_text(json.dumps(results))
        return failed


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Write a search's file where its runs can be found, and count what is run."""
    monkeypatch.chdir(tmp_path)
    methods = Path("configs/method")
    methods.mkdir(parents=True)
    for path in (Path("run.yaml"), *(methods / f"{name}.yaml" for name in ("etw", "ga", "npo"))):
        path.write_text("model: {}\n")
    made = Runs()
    monkeypatch.setattr("etw_lightning.sweeps.search.run_all", made)
    write()
    return made


def write(**changes):
    Path("sweep.yaml").write_text(yaml.safe_dump({**BASE, **changes}, sort_keys=False))


def command(sub, *words):
    return sweep([sub, "--config", "sweep.yaml", *map(str, words)], lambda: parse)


def points(folder="out"):
    """Return the names of the runs of seed 0 in the order of their making."""
    return [
        path.name
        for path in sorted(Path(folder).glob("*seed0"), key=lambda p: p.stat().st_mtime_ns)
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("log:0.01..1", Range(0.01, 1.0, True)),
        ("log:1e-5..1e-3", Range(1e-5, 1e-3, True)),
        ("-1.5..2", Range(-1.5, 2.0)),
        ("3..10", Range(3, 10, is_whole=True)),
        ({"low": 1, "high": 64, "log": True}, Range(1, 64, True, True)),
        ({"low": "1e-4", "high": 1}, Range(1e-4, 1.0)),
        ("etw", None),
        ([1, 2], None),
        (0.5, None),
    ],
)
def test_ranges_are_read(given, expected):
    assert read_range("grid.model.lr", given) == expected


def test_what_is_drawn_is_run_with_four_digits_within_the_ends():
    one = Range(0.0123444, 1.0, True)
    assert one.rounded(0.0123444) == 0.0123444
    assert one.rounded(0.123456) == 0.1235
    assert Range(1, 64, is_whole=True).rounded(7) == 7


def test_a_search_draws_its_number_of_points_each_a_run_a_seed(runs, capsys):
    assert command("search") == 0
    assert len(runs.started) == 24
    values = [float(name.split("lambda")[1].split("_")[0]) for name in points()]
    assert len(set(values)) == 12
    assert all(0.01 <= value <= 1 for value in values)
    # Drawn by equal factors: about half of them below the middle one.
    assert 3 <= sum(value < 0.1 for value in values) <= 10
    out = capsys.readouterr().out
    assert "point 1 of 12, etw: lambda " in out
    assert "misses the floor by " in out


def test_it_comes_near_the_best_that_keeps_to_the_floor(runs, capsys):
    """The best is at lambda = .1, where the floor is."""
    command("search", "--trials", 40)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "| etw | lambda" in line]
    best = float(row.split("lambda ")[1].split(" ")[0])
    values = sorted(float(n.split("lambda")[1].split("_")[0]) for n in points())
    assert best == max(value for value in values if value <= 0.1)
    assert best > 0.09
    # Drawn by chance alone, a quarter would lie so near.
    assert sum(0.05 <= value <= 0.15 for value in values) > 14


def test_the_seed_decides_what_is_drawn(runs):
    for folder, seed in (("one", 0), ("two", 0), ("other", 1)):
        command("search", "--output_dir", folder, "--seed", seed)
    assert points("one") == points("two")
    assert not set(points("one")) & set(points("other"))


@pytest.mark.parametrize("at", [0, 1, 7, 22])
def test_a_search_that_was_broken_off_goes_on_as_if_it_had_not_been(runs, at):
    command("search", "--output_dir", "whole")
    first = list(runs.started)
    runs.started.clear()
    runs.stops_at = at
    with pytest.raises(KeyboardInterrupt):
        command("search")
    assert len(runs.started) == at
    assert command("search") == 0
    assert runs.started == first


def test_the_same_command_has_nothing_left_to_do_and_more_points_go_on(runs, capsys):
    command("search", "--trials", 5)
    known = list(runs.started)
    capsys.readouterr()
    assert command("search", "--trials", 5) == 0
    assert runs.started == known
    assert "etw: 5 points are known from before\n" in capsys.readouterr().out
    command("search", "--trials", 12)
    in_parts = list(runs.started)
    assert in_parts[:10] == known
    runs.started.clear()
    command("search", "--output_dir", "whole")
    assert runs.started == in_parts


def test_a_line_that_was_cut_off_in_writing_is_written_again(runs):
    command("search", "--trials", 4)
    journal = Path("out") / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])
    journal.with_name(f"{JOURNAL}.lock").write_text("")
    known = list(runs.started)
    assert command("search", "--trials", 4) == 0
    assert runs.started == known
    assert journal.read_bytes().endswith(b"\n")
    (study,) = open_journal(Path("out"), mends=False).get_all_studies()
    trials = open_journal(Path("out"), mends=False).get_all_trials(study._study_id)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4


def test_without_its_journal_a_search_finds_what_was_run(runs):
    command("search")
    known = list(runs.started)
    (Path("out") / JOURNAL).unlink()
    assert command("search") == 0
    assert runs.started == known


def test_a_journal_that_is_none_is_one_line(runs):
    Path("out").mkdir()
    (Path("out") / JOURNAL).write_text("[1\n{}\n")
    with pytest.raises(InputError, match=r"out/search\.journal can't be read \(.*; remove it: "):
        command("search")


def test_points_of_another_search_are_not_mixed_in(runs, capsys):
    command("search", "--trials", 6)
    first = set(points())
    capsys.readouterr()
    over = ("--over", "model.lambda=log:2.0..3")
    command("search", "--trials", 6, *over)
    out = capsys.readouterr().out
    assert "known from before" not in out
    second = set(points()) - first
    assert len(second) == 6
    for words, mine, others in (((), first, second), (over, second, first)):
        command("report", *words)
        table = capsys.readouterr().out.split("\n\n")[3]
        drawn = {name.split("lambda")[1].split("_")[0] for name in mine}
        assert all(f"| {value} |" in table or f"**{value}**" in table for value in drawn)
        assert not any(f"{name.split('lambda')[1].split('_')[0]} " in table for name in others)


def test_each_method_has_as_many_points_and_a_range_of_its_own(runs):
    write(
        methods={
            "etw": {"model.lambda": "log:0.01..1"},
            "npo": {"model.lambda": "log:10.0..100", "model.kind": ["a", "b"]},
        }
    )
    command("search", "--trials", 5, "--jobs", 2)
    names = [name for name in runs.started if name.endswith("seed0")]
    assert [name.split("_")[0] for name in names] == ["etw", "npo"] * 5
    assert {name.split("kind-")[1][0] for name in names if "npo" in name} == {"a", "b"}


def test_jobs_at_once_leave_what_is_drawn_of_one_method_with_many_seeds(runs):
    command("search", "--output_dir", "one")
    command("search", "--output_dir", "two", "--jobs", 2)
    assert points("one") == points("two")


def test_whole_numbers_and_values_are_drawn(runs):
    over = ("--over", "model.lambda=[0.1]", "model.steps=3..10", "model.kind=[a, b]")
    command("search", *over)
    parts = [name.split("_") for name in points()]
    assert {part[-2] for part in parts} == {"kind-a", "kind-b"}
    steps = {part[-3] for part in parts}
    assert steps <= {f"steps{number}" for number in range(3, 11)}
    assert len(steps) > 2


def test_a_point_whose_run_fails_is_counted_and_not_chosen(runs, capsys):
    runs.fails = ("seed1",)
    assert command("search", "--trials", 3) == 1
    assert "| etw | missing |" in capsys.readouterr().out
    runs.fails = ()
    assert command("search", "--trials", 4) == 0
    assert len(runs.started) == 8


def test_the_rule_may_ask_for_the_lowest(runs, capsys):
    write(select={"minimise": "model_utility"})
    command("search", "--trials", 30)
    values = [float(name.split("lambda")[1].split("_")[0]) for name in points()]
    assert f"| etw | lambda {max(values):g} " in capsys.readouterr().out
    assert sum(value > 0.5 for value in values) > 12


def test_a_report_reads_the_points_and_says_what_makes_them(runs, capsys):
    assert command("report") == 1
    assert "sweep search --config sweep.yaml runs what there is\n" in capsys.readouterr().out
    command("search", "--trials", 3)
    shown = capsys.readouterr().out
    assert command("report") == 0
    assert shown.endswith(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"methods": ["ga"]}, (), "sweep search needs at least one range; ga has none. Give one"),
        ({}, ("--over", "model.lambda"), "--over must be given as key=value; got 'model.lambda'."),
        (
            {},
            ("--over", "model.lambda=1..0.1"),
            "--over model.lambda must go from low to high; got '1..0.1'.",
        ),
        (
            {},
            ("--over", "model.lambda=log:0..1"),
            "--over model.lambda must begin above 0, as equal factors are drawn; got ",
        ),
        (
            {},
            ("--over", "model.lambda=0.1"),
            "--over model.lambda must be a list of values, at least one, or for sweep ",
        ),
        (
            {},
            ("--over", "model.lambda=a..b"),
            "--over model.lambda must be a range, LOW..HIGH or log:LOW..HIGH, as ",
        ),
        (
            {"grid": {"model.lr": {"low": 1, "hgh": 2}}},
            (),
            "grid.model.lr must be a range, LOW..HIGH or log:LOW..HIGH, as log:0.01..1, or {low: "
            "0.01, high: 1, log: true}; got 'hgh'.",
        ),
        ({"grid": {"model.lr": {"low": 1}}}, (), "grid.model.lr must be a range, .*; high is "),
        (
            {"grid": {"model.lr": {"low": 1, "high": 2, "log": 1}}},
            (),
            "grid.model.lr.log must be true or false; got 1.",
        ),
        ({}, ("--over", "model.ls=1..2"), r"model.ls is not known. \(run etw_lambda0.01_ls1_seed0"),
        (
            {"grid": {"seed_everything": "0..3"}},
            (),
            "seed_everything must be a list of values; got 0..3. A point's number is the mean ",
        ),
        (
            {"select": {"maximise": "forget_qality"}},
            (),
            "select.maximise must name numbers of results.json; got 'forget_qality'.",
        ),
        (
            {"select": {"maximise": "forget_quality", "subject_to": {"utility": {"at_least": 1}}}},
            (),
            "select.subject_to must name numbers of results.json; got 'utility'.",
        ),
        *(
            (
                {"select": {"maximise": "forget_quality", "subject_to": {"model_utility": bound}}},
                (),
                f"select.subject_to.model_utility.{message}",
            )
            for bound, message in (
                ({"at_least": 1.5}, "at_least can't be met: the number is at most 1; got 1.5."),
                ({"at_most": -0.1}, "at_most can't be met: the number is at least 0; got -0.1."),
                ({"at_least_of_target": 1.2}, "at_least_of_target must be a share of the target "),
                ({"at_least": 0.5, "at_most": 0.4}, "at_least can't be met: at_most is below it."),
            )
        ),
        ({"search": {"trials": 0}}, (), "search.trials must be a whole number >= 1; got 0."),
        ({"search": {"trails": 5}}, (), "search.trails is not known. Did you mean search.trials?"),
        ({}, ("--trials", "0"), "sweep: argument --trials: must be a whole number > 0; got '0'"),
        ({}, ("--seed", "x"), "sweep: argument --seed: must be a whole number >= 0; got 'x'"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_drawn(runs, changes, words, message):
    write(**changes)
    with pytest.raises(InputError, match=f"^{message}") as error:
        command("search", *words)
    assert "\n" not in str(error.value)
    assert not Path("out").exists()


def test_a_grid_can_not_be_planned_from_a_range(runs):
    with pytest.raises(
        InputError, match=r"model\.forget_weight of etw is the range log:0\.01\.\.1"
    ):
        expand(load_sweep("sweep.yaml"))


def test_two_searches_do_not_share_a_folder(runs):
    from filelock import FileLock

    Path("out").mkdir()
    with FileLock("out/.sweep.lock"), pytest.raises(InputError, match="another command of"):
        command("search")


def test_without_optuna_it_is_one_line(runs, monkeypatch):
    monkeypatch.setattr("etw_lightning.sweeps.study.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^sweep search needs optuna.*'etw-lightning\[search\]'"):
        command("search")


def test_what_a_search_needs_brings_no_other_torch():
    needed = [one for one in requires("optuna") or () if "extra ==" not in one]
    assert needed
    assert not any(one.startswith("torch") for one in needed)


def test_the_names_of_studies_say_what_points_depend_on(runs):
    def name(seed=0, **given):
        return Searches(load_sweep("sweep.yaml", **given), parse, seed).names["etw"]

    first = name()
    assert name(output_dir="elsewhere") == first
    assert name(over=["model.lambda={low: 0.01, high: 1.0, log: true}"]) == first
    assert name(seed=1) != first
    assert name(over=["model.lambda=0.01..1"]) != first
    assert name(changes=["model.lr=0.1"]) != first
    assert name(changes=["seed_everything=3"]) != first
