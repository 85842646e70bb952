"""The report of a sweep: its numbers, its marks and its notes."""

import json
import statistics
from pathlib import Path

import pytest
from swept import cells, finish, parse, runs_of

from etw_lightning.commands.sweep import sweep
from etw_lightning.schema import InputError
from etw_lightning.sweeps.choice import rule
from etw_lightning.sweeps.grid import load_sweep
from etw_lightning.sweeps.reading import with_keys
from etw_lightning.sweeps.report import report
from etw_lightning.sweeps.runs import (
    expand,
)

MISSING = "\u2013"


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


def test_nothing_to_report_is_said_with_the_way_to_run_it(write, capsys):
    path = write()
    assert sweep(["report", "--config", path, "--set", "model.lr=1"], lambda: parse) == 1
    assert capsys.readouterr().out == (
        "nothing is finished in 'out'; python -m etw_lightning sweep run --config sweep.yaml "
        "--set model.lr=1 runs what there is\n"
    )
    assert not Path("out").exists()


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
