"""The methods of a sweep compared: areas and intervals by another way, the table, the figure."""

import json
import statistics
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import ks_2samp

from etw_lightning.reports.comparison import compare_methods
from etw_lightning.reports.comparison_table import as_markdown
from etw_lightning.schema import InputError
from etw_lightning.sweeps.grid import load_sweep
from etw_lightning.sweeps.runs import expand

#: Twelve rows in three blocks of four, the last of which is validation.
N = 12
RETAIN = [0.1 * row for row in range(N)]
SWEEP = {
    "config": ["run.yaml"],
    "output_dir": "out",
    "methods": {name: {"model.lambda": [0.1, 0.2]} for name in ("etw", "ga", "twin")},
    "grid": {"seed_everything": [0, 1]},
    "select": {"maximise": "forget_quality", "validation": {"block": 4, "every": 3}},
    "frontier": {"baseline": "ga", "floor": 0.5, "draws": 300},
}


def moved(by, rows=N):
    """Return log truth ratios of which the first rows of each block are moved up."""
    return [0.1 * row + 0.003 + (by if row % 4 < rows else 0.0) for row in range(N)]


@pytest.fixture
def swept(tmp_path, monkeypatch, leave_run):
    """A sweep of three methods, two of which are the same; what is left is given by run."""
    monkeypatch.chdir(tmp_path)
    Path("configs/method").mkdir(parents=True)
    for path in ("run.yaml", *(f"configs/method/{name}.yaml" for name in SWEEP["methods"])):
        Path(path).write_text("model: {}\n")

    def call(**changes):
        Path("sweep.yaml").write_text(yaml.safe_dump({**SWEEP, **changes}, sort_keys=False))
        given = load_sweep("sweep.yaml")
        runs = [_keyed(run) for run in expand(given)]
        for run in runs:
            strong = "0.2" in run.name
            if run.method == "etw":
                leave_run(run, moved(3, 1 if strong else 3), loss=0.6 if strong else 0.35)
            else:
                leave_run(run, moved(3, 2 if strong else 3), loss=0.9 if strong else 0.4)
        return given, runs

    return call


def _keyed(run):
    object.__setattr__(run, "key", run.name)
    return run


def plain_place(run):
    """Return utility and KS distance of a run's test rows, from its files alone."""
    from etw_lightning.scoring.retain_results import load_set

    def ratios(who):
        rows = load_set(run.folder / who / "records/forget.jsonl.gz")[:8]
        return [np.exp(row.paraphrase_loss - np.mean(row.perturbed_losses)) for row in rows]

    results = json.loads((run.folder / "results.json").read_text())
    start = results["history"][0]["metrics"]["model_utility"]["value"]
    utility = results["metrics"]["model_utility"]["value"] / start
    return utility, ks_2samp(ratios(""), ratios("retain_model")).statistic


def test_areas_are_those_of_the_files(swept):
    given, runs = swept()
    found = compare_methods(given, runs)
    assert found.frontiers.base == 0.0
    assert found.frontiers.num_rows == 8
    for method in ("etw", "ga"):
        weak, strong = (plain_place(run) for run in runs if run.name.startswith(method)
                        and run.name.endswith("seed0"))  # fmt: skip
        assert 1 > weak[0] > strong[0] > 0.5
        assert 1 - strong[1] > 1 - weak[1] > 0
        area = ((weak[0] - strong[0]) * (1 - weak[1]) + (strong[0] - 0.5) * (1 - strong[1])) / 0.5
        places = found.frontiers.methods[method]
        assert [(one.kept, one.distance) for one in places] == [
            pytest.approx(weak), pytest.approx(strong)
        ]  # fmt: skip
        assert found.frontiers.area(method, "ga").value == pytest.approx(area, abs=1e-12)


def test_differences_are_of_the_same_draws(swept):
    given, runs = swept()
    found = compare_methods(given, runs)
    twin = found.frontiers.area("twin", "ga")
    assert (twin.difference, twin.difference_interval) == (0.0, (0.0, 0.0))
    etw, ga = found.frontiers.area("etw", "ga"), found.frontiers.area("ga", "ga")
    assert etw.difference == pytest.approx(etw.value - ga.value)
    low, high = etw.difference_interval
    assert low < etw.difference < high
    for one in (etw, ga):
        assert one.interval[0] <= one.value <= one.interval[1]
    assert ga.difference is None
    again = compare_methods(given, runs).frontiers.area("etw", "ga")
    assert again == etw


def test_whole_blocks_are_drawn(swept):
    given, runs = swept(select={**SWEEP["select"], "validation": {"block": 6, "every": 2}})
    counts = compare_methods(given, runs).frontiers._counts["forget"]
    # One block is left, so that every draw is the rows themselves.
    assert counts.shape == (301, 6)
    assert (counts == 1).all()
    given, runs = swept()
    counts = compare_methods(given, runs).frontiers._counts["forget"][1:]
    assert (counts.reshape(300, 2, 4).min(-1) == counts.reshape(300, 2, 4).max(-1)).all()
    assert set(counts.sum(-1)) == {8}
    assert set(counts[:, 0]) == {0, 1, 2}


def test_the_table_holds_what_the_records_say(swept):
    given, runs = swept()
    text = as_markdown(found := compare_methods(given, runs))
    etw = found.methods[0]
    assert etw.chosen.values == (("lambda", "0.2"),)
    rows = [line for line in text.splitlines() if line.startswith("| etw |")]
    assert len(rows) == 3
    (quality,) = {one["forget_quality"] for one in etw.numbers["test"]}
    log = -np.log10(quality)
    assert (
        f"| etw | lambda 0.2 | 2 | 0.771 (0.11; 0.11 to 0.11) | {quality:.3f} ({log:.2f};" in text
    )
    lost = statistics.median(one["utility_drop_target"] for one in etw.numbers["test"])
    assert f"| {lost:.2f} ({lost:.2f} to {lost:.2f}) |" in rows[0]
    groups = etw.distances[0]
    assert set(groups) == {"forgotten", "kept", "sane", "private"}
    total = sum(groups.values()) / 4
    assert rows[1].startswith(f"| etw | {total:.3f} ({total:.3f} to {total:.3f}) |")
    area = found.frontiers.area("etw", "ga")
    assert f"| etw | 2 | 4 | {area.value:.3f} |" in rows[2]
    assert "every 3rd block of 4" in text


def test_what_can_t_be_had_is_told(swept):
    given, runs = swept()
    for run in runs:
        (run.folder / "records/holdout.jsonl.gz").unlink()
    found = compare_methods(given, runs)
    assert found.groups == ("forgotten", "kept", "sane")
    text = as_markdown(found)
    assert "privleak is left out: sweep report:" in text
    assert "holdout.jsonl.gz is missing" in text


def test_a_retain_model_that_was_asked_of_forget_rows_alone_leaves_the_distance_out(swept):
    """As a run leaves it that scored ``data.retain_model`` by itself."""
    given, runs = swept()
    whole = compare_methods(given, runs)
    for run in runs:
        for name in ("retain", "real_authors", "world_facts"):
            (run.folder / f"retain_model/records/{name}.jsonl.gz").unlink()
    found = compare_methods(given, runs)
    assert found.groups == ()
    for method in ("etw", "ga"):
        assert found.frontiers.area(method, "ga") == whole.frontiers.area(method, "ga")
    text = as_markdown(found)
    assert "the distance to the retain model is left out: sweep report: " in text
    assert "data.retain_results of one that was evaluated by itself hold all sets" in text
    assert "Remove" not in text
    (head,) = [line for line in text.splitlines() if "| repetition |" in line]
    assert head.startswith("| method | privleak | extraction strength |")
    rows = [line for line in text.splitlines() if line.startswith("| etw |")]
    assert rows[1].count("|") == head.count("|")


def test_attacks_have_a_column(swept):
    given, runs = swept()
    number = {"neg_log10_forget_quality": {"after": 1.5, "direction": "down", "n": 12}}
    for run in runs:
        folder = run.folder / "attacks"
        folder.mkdir()
        (folder / "nf4.json").write_text(json.dumps({"attack": "nf4", "numbers": number}))
    text = as_markdown(compare_methods(given, runs))
    assert "| -log10 FQ after nf4 |" in text
    assert text.count("| 1.50 (1.50 to 1.50) |") == 3
    assert "after nf4:" not in text
    for run in runs:
        if run.method == "ga" and run.seed == "0":
            (run.folder / "attacks" / "nf4.json").unlink()
    some = as_markdown(compare_methods(given, runs))
    assert "after nf4: 1 of 2 runs of ga." in some


def test_runs_of_other_rows_have_no_frontier(swept, leave_run):
    given, runs = swept()
    leave_run(runs[-1], [*moved(3), *moved(3)])
    with pytest.raises(InputError, match=r"twin_lambda0.2_seed1' has 16 rows of 'forget', an earl"):
        compare_methods(given, runs)


def test_a_baseline_without_runs_is_an_error(swept):
    given, runs = swept()
    for run in runs:
        if run.method == "ga":
            (run.folder / "results.json").unlink()
    with pytest.raises(InputError, match=r"frontier.baseline: no run of 'ga' is finished"):
        compare_methods(given, runs)


def test_the_figure_holds_every_method_on_a_card_of_its_own(swept):
    pytest.importorskip("vl_convert")
    from etw_lightning.reports.frontier_figure import as_svg

    given, runs = swept()
    root = ET.fromstring(as_svg(compare_methods(given, runs)))
    first = next(one for one in root if one.tag.endswith("rect"))
    assert first.get("fill") == "#fbfaf7"
    texts = ["".join(one.itertext()) for one in root.iter() if one.tag.endswith("text")]
    # A panel's title, and a line of the areas.
    assert all(texts.count(name) == 2 for name in SWEEP["methods"])
    assert texts.count("0.1") >= 3
    assert "area under the frontier, with 95 % bootstrap interval" in texts


def test_one_command_prints_the_table_and_leaves_it_with_the_figure(swept, monkeypatch, capsys):
    pytest.importorskip("vl_convert")
    from etw_lightning.commands import sweep as command

    given, runs = swept()
    monkeypatch.setattr(command, "with_keys", lambda expanded, _: [_keyed(run) for run in expanded])
    assert command.sweep(["report", "--config", "sweep.yaml", "--frontier"], lambda: None) == 0
    text = as_markdown(compare_methods(given, runs))
    assert text.strip() in capsys.readouterr().out
    assert Path("out/frontier.md").read_text() == text
    assert Path("out/frontier.svg").read_text().startswith("<svg")
    assert not Path("out/report.md").exists()
