"""A report of finished runs: numbers equal results.json, rows are text, broken runs are told."""

import csv
import gzip
import io
import json
import math
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from finished import HOSTILE, is_near, make_run

from etw_lightning.commands.report import report
from etw_lightning.metrics import forget_quality
from etw_lightning.reports import page
from etw_lightning.reports.charts import make_charts
from etw_lightning.reports.contents import changes, columns, medians
from etw_lightning.reports.finished_runs import read_run, read_runs
from etw_lightning.reports.token_rows import token_rows, weighting_of
from etw_lightning.reports.worlds import spread, worlds
from etw_lightning.schema import InputError
from etw_lightning.weighting import ETW, Random


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    return [make_run(home / "one"), make_run(home / "two", 2.5, 1, "WGA", "It was Rome.")]


@pytest.fixture(scope="module")
def runs(folders):
    return read_runs([str(one) for one in folders])[0]


#: What an attack leaves: the retain model, which never knew the rows, learns half as much anew.
ATTACK = {
    "attack": "<b>relearn</b>",
    "numbers": {
        "forget_probability": {
            "direction": "down", "n": 6, "target": 0.9, "before": 0.1, "after": 0.5,
            "retain_before": 0.2, "retain_after": 0.4, "recovered": 0.5,
            "recovered_by_retain": 2 / 7,
        },
        "model_utility": {
            "direction": "up", "n": 6, "target": 0.6, "before": 0.5, "after": 0.45,
            "retain_before": 0.6, "retain_after": 0.6, "recovered": None,
            "recovered_by_retain": None,
        },
        # Nobody reads this one first.
        "forget_rouge1_f1": {
            "direction": "down", "n": 6, "target": 1.0, "before": 0.2, "after": 0.6,
            "retain_before": 0.3, "retain_after": 0.3, "recovered": 0.5,
            "recovered_by_retain": 0.0, "interval_after": [0.5, 0.7],
        },
        # A number of the attack's own, which there is none of without it.
        "leak_at_4": {"direction": "down", "n": 6, "target": None, "before": None, "after": 0.5,
                      "retain_before": None, "retain_after": 0.25, "recovered": None},
    },
}  # fmt: skip


def leave_attack(folder, text):
    (folder / "attacks").mkdir()
    (folder / "attacks" / "relearn.json").write_text(text)


@pytest.fixture(scope="module")
def attacked_runs(tmp_path_factory):
    """Two seeds of one method with models of their own, one of them attacked."""
    home = tmp_path_factory.mktemp("attacked")
    folders = [make_run(home / f"run{seed}", 1.5 + seed, seed) for seed in (0, 1)]
    for path in (folders[1] / "retain_model" / "records").glob("forget*"):
        rows = gzip.decompress(path.read_bytes()).replace(b"Oslo", b"Bern")
        path.write_bytes(gzip.compress(rows))
    leave_attack(folders[0], json.dumps(ATTACK))
    return read_runs([str(home)])[0]


@pytest.fixture(scope="module")
def html(runs):
    return page.as_html(runs, ["report: <i>x</i> is no run."])


class Cells(HTMLParser):
    """Collects the cells of the table of numbers, by row and key."""

    def __init__(self):
        super().__init__()
        self.row, self.found = "", {}

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "tr":
            self.row = values.get("data-name", "")
        if tag == "td" and "data-value" in values:
            self.found[self.row, values["data-key"]] = values["data-value"]


def test_every_number_of_the_table_is_that_of_results_json(html, folders):
    cells = Cells()
    cells.feed(html)
    checked = 0
    for folder in folders:
        models = json.loads((folder / "results.json").read_text())["judgement"]["models"]
        for label, row in (("unlearned", folder.name), ("target", "target"), ("retain", "retain")):
            for key, value in models[label].items():
                if (row, key) in cells.found:
                    assert is_near(cells.found[row, key], value)
                    checked += 1
    assert checked > 60


def test_rows_are_text_and_nothing_is_asked_of_anybody(html):
    body = html[: html.index("<script>")]
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body
    assert "\\x1b[31m" in body
    assert "\x1b" not in html
    assert "{{ 7*7 }}" in body
    assert "<i>x</i>" not in body
    assert not re.findall(r'(?:src|href)="(?!data:)', body)
    assert "default-src 'none'" in html
    assert len(html) < 3 * 2**20


@pytest.mark.slow
def test_a_name_may_break_behind_a_stroke_and_stays_text(tmp_path):
    html = page.as_html(read_runs([str(make_run(tmp_path / "etw_<b>_seed0"))])[0])
    assert html.startswith("<!doctype html>")
    assert html.count("etw_<wbr>&lt;b&gt;_<wbr>seed0</th>") == 2  # of the numbers and the texts
    assert "<b>_" not in html
    assert "<summary>verdict" not in html


def test_twenty_runs_stay_below_three_megabytes(runs):
    assert len(page.as_html(list(runs) * 10).encode()) < 3 * 2**20


def test_tokens_carry_what_is_known_before_and_after(runs):
    [row] = token_rows(runs, [0])
    found = {
        (line["quantity"], line["model"]): [float(c["value"]) for c in line["cells"]]
        for line in row["lines"]
    }
    models = ["before", "retain model", "one", "two"]
    assert list(found) == [
        *(("probability", name) for name in models),
        *(("entropy, nats", name) for name in models),
        *(("weight", f"{n}, {w}") for n in ("one", "two") for w in ("first step", "after")),
    ]
    entropies = found["entropy, nats", "before"]
    assert entropies == [0.5, 2.0, 0.1]
    expected = [3 * one / sum(entropies) for one in entropies]
    assert found["weight", "one, first step"] == pytest.approx(expected, abs=1e-4)
    # WGA weighs by p, of the model as it is.
    assert found["weight", "two, first step"] == found["probability", "before"]
    assert found["weight", "two, after"] == found["probability", "two"]
    after = runs[1].after["forget"][0].token_logps
    assert found["probability", "two"] == pytest.approx([math.exp(p) for p in after], abs=1e-4)
    assert [c["text"] for c in row["lines"][0]["cells"]] == ["It was", " Rome", "\u00b6"]
    assert token_rows(runs, [6]) == []


@pytest.fixture
def weighed_by(tmp_path):
    """Make a run whose configuration names this weighting."""

    def call(weighting):
        folder = make_run(tmp_path / "run")
        config = json.loads((folder / "config.yaml").read_text())
        config["model"]["weighting"] = weighting
        (folder / "config.yaml").write_text(json.dumps(config))
        return read_runs([str(folder)])[0][0]

    return call


@pytest.mark.parametrize("inside", [False, True])
def test_only_our_own_weightings_are_built(weighed_by, inside):
    foreign = {"class_path": "os.system", "init_args": {}}
    shuffled = {"class_path": "etw_lightning.weighting.Random", "init_args": {"of": foreign}}
    assert weighting_of(weighed_by(shuffled if inside else foreign)) is None


def test_a_weighting_within_another_is_built_and_one_of_labels_has_no_line(weighed_by):
    etw = {"class_path": "etw_lightning.weighting.ETW", "init_args": {"temperature": 2.0}}
    given = {"of": etw, "seed": 3}
    run = weighed_by({"class_path": "etw_lightning.weighting.Random", "init_args": given})
    assert weighting_of(run) == Random(of=ETW(temperature=2.0), seed=3)
    [row] = token_rows([run], [0])
    assert {line["quantity"] for line in row["lines"]} == {"probability", "entropy, nats"}


def test_the_ks_distance_is_that_of_forget_quality(runs):
    charts = {one["id"]: one for one in make_charts(runs)}
    assert set(charts) == {"trade-off", "curves", "truth-ratios"}
    for run, row in zip(runs, charts["truth-ratios"]["rows"], strict=True):
        expected = forget_quality(run.after["forget"], run.retain["forget"])
        assert row["KS distance"] == pytest.approx(expected.d_times_n / expected.n)
    points = {row["model"]: row for row in charts["trade-off"]["rows"]}
    assert set(points) == {"one", "two", "target", "retain"}
    for run in runs:
        assert points[run.name]["model utility"] == run.number("model_utility")


def test_what_each_run_has_once_is_no_curve_and_many_methods_share_colours(tmp_path, monkeypatch):
    def at(epoch, **values):
        numbers = {name: {"value": value} for name, value in values.items()}
        return {"epoch": epoch, "step": epoch, "metrics": numbers}

    for weight, last in ((0.1, 7), (0.2, 8)):
        history = [at(0, forget_quality=0.1), at(last, forget_quality=0.2, retain_probability=0.9)]
        folder = make_run(tmp_path / f"run{last}", history=history)
        config = json.loads((folder / "config.yaml").read_text())
        config["model"]["forget_weight"] = weight
        (folder / "config.yaml").write_text(json.dumps(config))
    runs = read_runs([str(tmp_path)])[0]

    def curves():
        return {one["id"]: one for one in make_charts(runs)}["curves"]

    assert list(curves()["specs"]) == ["curves-forget_quality"]
    assert len({row["method"] for row in curves()["rows"]}) == 2
    monkeypatch.setattr("etw_lightning.reports.charts._MOST_COLOURS", 1)
    assert {row["method"] for row in curves()["rows"]} == {"ETW-GA"}


def test_seeds_have_their_models_medians_and_texts(attacked_runs):
    assert [one.name for one in worlds(attacked_runs)] == ["seed 0", "seed 1"]
    html = page.as_html(attacked_runs)
    assert html.count('<option value="2">seed 1</option>') == 2
    # Texts of a seed stand beside what its own retain model says.
    first, second = html.split('<table class="texts">')[1:]
    assert ("Oslo" in first, "Bern" in first) == (True, False)
    assert ("It was Bern." in second) is True
    [row] = medians(attacked_runs, columns(attacked_runs))
    own = [run.own["forget_probability"] for run in attacked_runs]
    cell = next(one for one in row["cells"] if one["key"] == "forget_probability")
    assert row["n"] == 2
    assert float(cell["text"]) == pytest.approx(sum(own) / 2, abs=1e-4)
    assert cell["range"] == f"{min(own):.4f} to {max(own):.4f}"


def test_runs_that_are_shown_are_of_as_many_methods_as_there_are(runs, attacked_runs):
    assert [run.name for run in spread([*attacked_runs, *runs], 2)] == ["run0", "two"]
    assert spread(runs, 20) == list(runs)


def test_attacks_stand_in_a_tab_of_their_own(attacked_runs, html):
    assert 'id="tab-attacks"' not in html
    found = page.as_html(attacked_runs)
    body = found.split('id="table-attacks"')[1].split("</table>")[0]
    assert "&lt;b&gt;relearn&lt;/b&gt;" in body
    assert re.findall(r'data-number="(\w+)"( hidden)?', body.replace(" data-first", "")) == [
        ("forget_probability", ""),
        ("model_utility", ""),
        ("leak_at_4", ""),
        ("forget_rouge1_f1", " hidden"),
    ]
    assert json.loads(page.as_json(attacked_runs))["runs"]["run0"]["attacks"] == [ATTACK]


def test_many_runs_are_drawn_by_method_with_bounds(runs, attacked_runs):
    charts = {one["id"]: one for one in make_charts([*runs, *attacked_runs])}
    [spec] = charts["trade-off"]["specs"].values()
    drawn = [layer["data"]["values"] for layer in spec["layer"]]
    assert [{"y": 0.05}] in drawn
    target = runs[0].of("target", "model_utility")
    assert any(rows == [{"x": pytest.approx(target - 0.05)}] for rows in drawn)
    means = max((rows for rows in drawn if "label" in rows[0]), key=len)
    # One, run0 and run1 have equal settings but for the seed.
    etw = [runs[0], *attacked_runs]
    mean = 10 ** statistics.fmean(math.log10(run.number("forget_quality")) for run in etw)
    assert [(row["method"], row["label"]) for row in means] == [
        ("ETW-GA", "0.1"),
        ("WGA-GA", "0.1"),
    ]
    assert means[0]["y"] == pytest.approx(mean)
    assert means[0]["x"] == pytest.approx(
        statistics.fmean(run.number("model_utility") for run in etw)
    )


def test_changes_are_by_words():
    assert changes(None, "a b") == [("same", "a b")]
    assert changes("a b", "") == [("lost", "a b")]
    assert changes("", "<b>") == [("new", "<b>")]


def test_plain_forms_hold_the_same_numbers(runs, folders):
    table = list(csv.DictReader(io.StringIO(page.as_csv(runs))))
    assert [row["model"] for row in table] == ["target", "one", "two", "retain"]
    found = json.loads(page.as_json(runs))["runs"]
    for folder, row in zip(folders, table[1:3], strict=True):
        own = json.loads((folder / "results.json").read_text())["judgement"]["models"]["unlearned"]
        assert is_near(row["model_utility"], own["model_utility"])
        assert found[folder.name]["models"]["unlearned"] == own
    text = page.as_markdown(runs, ["<b>"])
    assert "| | target | one | two | retain |" in text
    assert "<b>" not in text
    assert page.as_png(runs).startswith(b"\x89PNG")


def test_good_runs_are_reported_beside_broken_ones(folders, tmp_path, capsys):
    bad = {
        "none": None,
        "cut": "{",
        "strange": "[]",
        "stopped": json.dumps(
            {"finished": False, "command": "fit", "stopped": {"reason": "a NaN"}}
        ),
    }
    for name, text in bad.items():
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "results.json").write_text(text)
    gone = make_run(tmp_path / "records")
    (gone / "records" / "forget.jsonl.gz").write_bytes(b"no")
    words = [str(folders[0]), *(str(tmp_path / name) for name in (*bad, "records", "absent"))]
    assert report([*words, "-o", str(tmp_path / "out.html")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("left out: ") for line in lines)
    for line, said in zip(lines, ("no results.json", "can't be read", "no run of ours", "a NaN",
                                  "forget.jsonl.gz", "no folder"), strict=True):  # fmt: skip
        assert said in line
    assert (tmp_path / "out.html").read_text().count("left out:") == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent"], "report: 'absent' is no folder of a run."),
        (["RUN"], "report: -o must be given for html"),
        (["RUN", "-o", "no/such/report.html"], "is in no folder that exists"),
        (["RUN", "-o", "OUT.html", "--row", "99"], "--row must be from 0 to 5"),
        (["RUN", "--format", "pdf"], "invalid choice: 'pdf'"),
    ],
)
def test_bad_input_is_one_line(folders, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    given = [str(folders[0]) if word == "RUN" else word for word in words]
    if given == ["absent"]:
        given += ["--format", "md"]
    with pytest.raises(InputError) as caught:
        report(given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"metrics": [1]}, "metrics is [1]"),
        ({"metrics": {"forget_quality": "x"}}, "metrics.forget_quality is 'x'"),
        ({"metrics": {"forget_quality": {"n": 6}}}, "metrics.forget_quality.value is None"),
        ({"metrics": {"privleak": {"value": float("nan")}}}, "metrics.privleak.value is nan"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"seed": True}, "seed is True"),
        ({"history": {"a": 1}}, "history is {'a': 1}"),
        ({"history": ["a"]}, "history.0 is 'a'"),
        ({"history": [{"epoch": 0, "metrics": [1]}]}, "history.0.metrics is [1]"),
        ({"provenance": "a"}, "provenance is 'a'"),
        ({"stopped": "a", "finished": False}, "stopped is 'a'"),
        ({"judgement": {"models": {"target": 3}}}, "judgement.models.target is 3"),
        ({"judgement": {"models": {"target": {"a": "b"}}}}, "judgement.models.target.a is 'b'"),
        ({"judgement": {"findings": "a"}}, "judgement.findings is 'a'"),
        ({"table": {"target": {"a": True}}}, "table.target.a is True"),
    ],
)
def test_results_of_another_form_are_told_and_left_out(folders, tmp_path, changed, said):
    (tmp_path / "odd").mkdir()
    odd = make_run(tmp_path / "odd", **changed)
    with pytest.raises(InputError) as caught:
        read_run(odd, key="compare")
    assert str(caught.value) == (
        f"compare: {odd / 'results.json'} must hold numbers as a run writes them; {said}. Run it "
        "again, or give another run."
    )
    runs, left_out = read_runs([str(folders[0]), str(odd)])
    assert ([run.folder for run in runs], len(left_out)) == ([folders[0]], 1)


def test_settings_of_another_form_are_none(tmp_path):
    run = make_run(tmp_path)
    (tmp_path / "config.yaml").write_text("model: 3\n")
    assert read_run(run).config == {}


#: Runs in the page: presses keys and types, and leaves what it found in the document.
_PROBE = (Path(__file__).parent / "probe.html").read_text()


@pytest.mark.parametrize("size", ["1280,900", pytest.param("500,900", marks=pytest.mark.slow)])
def test_in_a_browser_all_works_and_nothing_is_asked(runs, attacked_runs, tmp_path, size):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser")
    path = tmp_path / "report.html"
    html = page.as_html([*runs, *attacked_runs])
    path.write_text(html.replace("<title>", f"{_PROBE}<title>", 1), encoding="utf-8")
    words = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={size}",
             "--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
             path.as_uri()]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    found = json.loads(
        re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1].replace("&amp;", "&")
    )
    assert found["errors"] == []
    assert found["requests"] == []
    assert found["first"] == ["panel-numbers"]
    assert found["right"] == [["panel-charts"], "tab-charts"]
    assert found["left"] == ["panel-cards"]
    assert found["home"] == ["panel-numbers"]
    assert found["charts"] == [1] * 5, "three curves are drawn apart"
    assert found["runs"] == 3, "the run, target and retain"
    assert found["tokens"] == ["3"]
    assert found["worlds"] == ["2", "2"], "in both tabs"
    assert (found["forget"], found["one"]) == (6, 1)
    assert (found["attacks"], found["one_number"], found["one_run"]) == (3, 1, 4)
    assert found["wide"], "the page itself does not scroll sideways"


def test_a_hostile_row_is_in_the_texts_as_written(html):
    assert HOSTILE.replace("\x1b", "\\x1b").split("|")[0].strip() not in html
    assert "&amp;amp;" in html
