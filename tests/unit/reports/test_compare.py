"""Leaderboards: rules by hand, seeds, bootstrap intervals, and what can't be compared."""

import json

import numpy as np
import pytest
from finished import make_run, model

from etw_lightning.commands import compare as command
from etw_lightning.reports import leaderboard
from etw_lightning.reports.finished_runs import read_runs
from etw_lightning.reports.methods import by_method
from etw_lightning.reports.page import as_json, as_markdown
from etw_lightning.reports.ranking import RULES, apart, comparable, rank
from etw_lightning.schema import InputError
from etw_lightning.scoring.retain_results import save_records


def metric(value, n=6):
    return {"value": value, "direction": "up", "n": n, "interval": None}


@pytest.fixture
def board(tmp_path):
    """Make runs of given numbers: method, seed, and values of metrics; return them as read."""

    def make(*given, utility=0.6):
        folders = []
        for place, (method, seed, numbers) in enumerate(given):
            folder = make_run(tmp_path / f"{place}-{method}-{seed}", seed=seed, method=method)
            results = json.loads((folder / "results.json").read_text())
            results["metrics"] = {name: metric(value) for name, value in numbers.items()}
            results["judgement"]["models"]["target"]["model_utility"] = utility
            (folder / "results.json").write_text(json.dumps(results))
            folders.append(str(folder))
        return read_runs(folders)[0]

    return make


def names(places):
    return [place.name.split()[0].split("-")[0] for place in places]


def test_forget_quality_counts_above_the_floor_of_utility_alone(board):
    def run(method, seed, log, utility):
        return method, seed, {"neg_log10_forget_quality": log, "model_utility": utility}

    places = rank(
        board(
            run("ETW", 0, 2.0, 0.56), run("ETW", 1, 4.0, 0.60),
            run("WGA", 0, 1.0, 0.58), run("WGA", 1, 2.0, 0.58),
            run("Uniform", 0, 0.1, 0.54), run("Uniform", 1, 0.1, 0.60),
        ),
        "fq_at_utility_floor",
    )  # fmt: skip
    assert names(places) == ["WGA", "ETW", "GA"]
    assert [place.passes for place in places] == [True, True, False]
    first, second, _ = places
    assert first.mean == pytest.approx(-1.5)
    assert first.deviation == pytest.approx(np.std([1, 2], ddof=1))
    assert first.difference is None
    assert first.interval is None
    # Seed by seed the differences are -1 and -2: resampled means lie between.
    assert second.difference == pytest.approx(-1.5)
    assert second.interval == pytest.approx((-2.0, -1.0))


def test_other_seeds_are_resampled_apart_and_one_seed_has_no_interval(board):
    def run(method, seed, value):
        return method, seed, {"paper_aggregate_target": value}

    places = rank(
        board(run("ETW", 0, 1.0), run("ETW", 1, 1.0), run("WGA", 2, 3.0), run("WGA", 3, 5.0),
              run("Uniform", 0, 9.0)),
        "agg_paper",
    )  # fmt: skip
    assert names(places) == ["ETW", "WGA", "GA"]
    assert places[1].interval == pytest.approx((2.0, 4.0))
    assert places[2].interval is None
    assert places[2].deviation is None


def test_harmonic_means_are_of_shares_of_the_target_s_utility(board):
    runs = board(
        ("ETW", 0, {"memorisation_score": 0.5, "privacy_score": 0.25, "model_utility": 0.3}),
        ("WGA", 0, {"memorisation_score": 0.5, "privacy_score": 0.5, "model_utility": 0.9}),
    )
    places = rank(runs, "hm_mem_util")
    assert names(places) == ["WGA", "ETW"]
    assert places[0].mean == pytest.approx(2 / (1 / 0.5 + 1 / 1.0)), "at most 1"
    assert places[1].mean == pytest.approx(0.5)
    places = rank(runs, "hm_mem_priv_util")
    assert places[1].mean == pytest.approx(3 / (2 + 4 + 2))


def test_extraction_strength_comes_first_and_utility_breaks_ties(board):
    def run(method, strength, utility):
        return method, 0, {"extraction_strength": strength, "model_utility": utility}

    runs = board(run("ETW", 0.101, 0.5), run("WGA", 0.104, 0.6), run("Uniform", 0.09, 0.1))
    assert names(rank(runs, "es_then_utility")) == ["GA", "WGA", "ETW"]


def test_a_run_without_a_number_is_named(board):
    with pytest.raises(InputError, match=r"needs extraction_strength .*; run '0-ETW-0' lacks one"):
        rank(board(("ETW", 0, {"model_utility": 0.5})), "es_then_utility")


def test_the_same_run_twice_is_refused(board):
    numbers = {"paper_aggregate_target": 1.0}
    with pytest.raises(InputError, match="are the same run"):
        rank(board(("ETW", 0, numbers), ("ETW", 0, numbers)), "agg_paper")


def test_methods_are_called_by_what_they_differ_in(board):
    runs = board(("ETW", 0, {"paper_aggregate_target": 1.0}),
                 ("WGA", 0, {"paper_aggregate_target": 2.0}))  # fmt: skip
    assert [place.name for place in rank(runs, "agg_paper")] == ["ETW-GA", "WGA-GA"]
    runs[1].settings.update(weighting="ETW", **{"lambda": 0.5})
    places = rank(runs, "agg_paper")
    assert [place.name for place in places] == ["ETW-GA lambda=0.1", "ETW-GA lambda=0.5"]
    assert {place.method for place in places} == {"ETW-GA"}


@pytest.mark.parametrize(
    ("group", "name", "one", "other"),
    [
        ("model", "dropout", "off", "as_configured"),
        ("model", "pretrained", "here/a", "here/b"),
        ("trainer", "max_steps", 10, 20),
        ("data", "max_length", 128, 256),
    ],
)
def test_runs_that_differ_in_any_setting_are_no_seeds_of_one_method(board, group, name, one, other):
    """Their median would be of two methods, or they would be called one run."""
    runs = board(("ETW", 0, {"paper_aggregate_target": 1.0}),
                 ("ETW", 1, {"paper_aggregate_target": 2.0}))  # fmt: skip
    assert [len(method.runs) for method in by_method(runs)] == [2]
    for run, value in zip(runs, (one, other), strict=True):
        run.config.setdefault(group, {})[name] = value
    methods = by_method(runs)
    assert [method.runs for method in methods] == [(runs[0],), (runs[1],)]
    assert [method.name for method in methods] == [
        f"ETW-GA {group}.{name}={value}" for value in (one, other)
    ]
    runs[1].settings.update(seed=0)
    assert len(rank(runs, "agg_paper")) == 2, "not called the same run"


@pytest.mark.parametrize(
    ("name", "value"), [("output_dir", "b"), ("trainer", {"devices": 2}), ("data", {"root": "b"})]
)
def test_where_and_how_runs_were_made_is_nothing_that_they_differ_in(board, name, value):
    runs = board(("ETW", 0, {"model_utility": 1.0}), ("ETW", 1, {"model_utility": 1.0}))
    held = runs[1].config.get(name)
    runs[1].config[name] = {**held, **value} if isinstance(held, dict) else value
    assert [method.name for method in by_method(runs)] == ["ETW-GA"]


def test_even_weights_have_no_name_beside_a_forget_objective(tmp_path):
    make_run(tmp_path / "one", method="Uniform")
    make_run(tmp_path / "two", method="Random")
    runs = read_runs([str(tmp_path)])[0]
    assert [method.line for method in by_method(runs)] == ["GA", "Random-GA"]


def change(folder, name, *keys, value):
    path = folder / name
    found = json.loads(path.read_text())
    place = found
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(found))


def sets(wrong="c", tokens=200):
    made = {"generation": {"max_new_tokens": tokens}}
    texts = {"answers": "b", "questions": "a", "wrong answers": wrong}
    return {"forget": {"parts": ["answers", "generation"], "texts": texts, "made": made}}


def test_runs_held_against_other_retain_models_are_left_out(tmp_path):
    """Forget quality is a distance to it; the quickstart has one of each seed."""
    folders = [
        make_run(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    for folder in folders[1:]:
        save_records(folder / "retain_model", model(3.0, "It was Bonn."))
    runs, _ = read_runs([str(folder) for folder in folders])
    kept, lines = comparable(runs)
    assert [run.name for run in kept] == ["a"]
    assert [line.partition(" can't be compared: ")[2] for line in lines] == [
        "its retain model says something else than that of 'a'."
    ] * 2
    for run in runs:
        run.config["data"]["retain_model"] = "quickstart:retain"
    kept, _ = comparable(runs)
    assert [run.name for run in kept] == ["a", "c"]


def test_what_differs_in_rows_split_template_or_model_is_left_out(tmp_path):
    base = make_run(tmp_path / "base")
    others = {
        "split": ("config.yaml", "data", "forget_split", "forget05"),
        "model": ("config.yaml", "model", "pretrained", "other"),
        "template": ("results.json", "provenance", "template", {"hash": "other"}),
        "rows": ("results.json", "metrics", "forget_quality", metric(0.5, 400)),
        "texts": ("results.json", "provenance", "sets", sets(wrong="d")),
        "length": ("results.json", "provenance", "sets", sets(tokens=4)),
        "precision": ("results.json", "provenance", "dtype", "bfloat16"),
        "command": ("results.json", "command", "evaluate"),
    }
    for made in (base, *(make_run(tmp_path / name) for name in others)):
        change(made, "results.json", "provenance", "dtype", value="float32")
        change(made, "results.json", "provenance", "sets", value=sets())
    for name, (file, *keys, value) in others.items():
        change(tmp_path / name, file, *keys, value=value)
    runs, _ = read_runs([str(base), *(str(tmp_path / name) for name in others)])
    kept, lines = comparable(runs)
    assert [run.name for run in kept] == ["base"]
    said = ("data.forget_split is forget05, that of 'base' is forget", "model.pretrained is other",
            "template is", "n of forget numbers is 400",
            "hash of the wrong answers of 'forget' is d, that of 'base' is c",
            "max_new_tokens of 'forget' is 4, that of 'base' is 200", 'dtype is "bfloat16"',
            "a run of evaluate")  # fmt: skip
    assert len(lines) == len(said)
    for line, part in zip(lines, said, strict=True):
        assert part in line
    # A report shows other models, and scores alone, beside runs that unlearn.
    told = apart(runs)
    assert [line.partition(" with 'base': ")[0] for line in told] == [
        f"'{name}'" for name in others if name not in ("model", "command")
    ]
    assert told[2] == "'rows' with 'base': its n of forget numbers is 400, not 6"
    assert as_markdown(runs).count("\nnot comparable: ") == len(told)
    assert json.loads(as_json(runs))["not_comparable"] == told
    assert apart(runs[:1]) == []


@pytest.fixture
def folders(tmp_path):
    return [str(make_run(tmp_path / f"{m}{s}", 1.5 + s / 9, s, m)) for m in ("ETW", "WGA")
            for s in (0, 1)]  # fmt: skip


def test_the_command_keeps_the_rule_with_the_table(folders, tmp_path, capsys):
    rule = "fq_at_utility_floor"
    broken = tmp_path / "broken"
    broken.mkdir()
    assert command.compare([*folders, str(broken), "--rank", rule]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("left out: compare: ")
    assert shown.out.startswith(f"Ranked by `{rule}`: {RULES[rule].text}.")
    assert command.compare([*folders, "--rank", rule, "-o", str(tmp_path / "board.json")]) == 0
    kept = json.loads((tmp_path / "board.json").read_text())
    assert (kept["rank"], kept["rule"]) == (rule, RULES[rule].text)
    assert [one["n"] for one in kept["places"]] == [2, 2]
    assert command.compare([*folders, "--rank", rule, "-o", str(tmp_path / "f.png")]) == 0
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    places = rank(read_runs(folders)[0], rule)
    assert leaderboard.as_csv(places, rule).splitlines()[1].startswith(f"{rule},1,")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rank", "best"], "invalid choice: 'best'"),
        ([], "--rank"),
        (["--rank", "agg_paper"], "needs paper_aggregate_target"),
        (["--rank", "agg_paper", "--format", "png"], "-o must be given for png"),
    ],
)
def test_bad_input_is_one_line(folders, words, message):
    with pytest.raises(InputError) as caught:
        command.compare([*folders, *words])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_rules_of_the_command_are_those_there_are():
    assert set(command._RULES) == set(RULES)
