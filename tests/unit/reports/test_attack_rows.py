"""Attacks that lie beside a run are in its report; files of anybody else's are not."""

import json

import pytest
from finished import HOSTILE, make_run

from etw_lightning.reports import page
from etw_lightning.reports.attack_rows import attack_rows, robustness_rows, unread_attacks
from etw_lightning.reports.finished_runs import read_runs


def number(recovered, robustness=None, **values):
    held = {"target": 0.9, "before": 0.1, "after": 0.5, "retain_before": 0.2, "retain_after": 0.3}
    held |= {"recovered": recovered, "recovered_by_retain": 0.125, "direction": "down", "n": 6}
    return {**held, "robustness": robustness, **values}


@pytest.fixture
def runs(tmp_path):
    folder = make_run(tmp_path / "one")
    (folder / "attacks").mkdir()
    written = {
        "relearn": ("relearning", {"forget_probability": number(0.5, 0.25),
                                   "retain_probability": number(None)}),
        "nf4": ("quantisation", {"forget_probability": number(0.1, 0.8)}),
        "int8": ("quantisation", {"forget_probability": number(-0.001, 0.5)}),
        HOSTILE[:8]: (None, {HOSTILE: number(-0.25, before=0.0001)}),
    }  # fmt: skip
    for name, (kind, numbers) in written.items():
        held = {"attack": name, "numbers": numbers, "retain_model": None if kind is None else "m"}
        held |= {} if kind is None else {"robustness": kind}
        (folder / "attacks" / f"{len(name)}{kind}.json").write_text(json.dumps(held))
    (folder / "attacks" / "theirs.json").write_text('{"numbers": 3}')
    (folder / "attacks" / "cut.json").write_text('{"attack": "x", ')
    return read_runs([str(folder)])[0]


def test_what_came_back_is_a_row_each(runs):
    rows = attack_rows(runs)
    assert {row["attack"] for row in rows} == {"relearn", "nf4", "int8", "<script>"[:8]}
    relearn, kept = (row for row in rows if row["attack"] == "relearn")
    # What the attack costs is shown too: nothing of it can come back.
    assert (kept["number"], kept["first"], kept["cells"][3]) == (
        "retain_probability",
        True,
        "\u2013",
    )
    assert relearn["number"] == "forget_probability"
    assert relearn["cells"] == ["0.9", "0.1", "0.5", "50 %", "0.2", "0.3", "12 %"]
    [rounded] = [row for row in rows if row["attack"] == "int8"]
    assert rounded["cells"][3] == "0 %", "nothing is no less than nothing"
    [other] = [row for row in rows if row["note"]]
    assert other["note"] == "no retain model"
    assert other["cells"][1] == "1.00e-04"
    assert other["cells"][3] == "-25 %"


def test_what_attacks_write_is_read(runs, tmp_path):
    """Intervals are pairs, and a number of the attack's own is read first."""
    held = {
        "forget_rouge1_f1": number(0.5, interval_after=[0.1, 0.2]),
        "forget_leak_at_4": number(0.25, is_own=True),
        "forget_refusal_stability": number(None, before=None, is_own=True),
    }
    path = tmp_path / "one" / "attacks" / "sample.json"
    path.write_text(json.dumps({"attack": "sample", "numbers": held}))
    rows = [row for row in attack_rows(runs) if row["attack"] == "sample"]
    assert [(row["number"], row["first"]) for row in rows] == [
        ("forget_leak_at_4", True),
        ("forget_refusal_stability", True),
        ("forget_rouge1_f1", False),
    ]
    for broken in ([0.1], [0.1, "x"], 0.1, [0.1, float("nan")]):
        held["forget_rouge1_f1"]["interval_after"] = broken
        path.write_text(json.dumps({"attack": "sample", "numbers": held}))
        assert any("sample.json" in line for line in unread_attacks(runs))


def test_files_that_no_attack_has_left_are_told(runs, tmp_path):
    folder = tmp_path / "one" / "attacks"
    for name, text in {
        "a": "[]",
        "b": '{"numbers": {}}',
        "c": '{"attack": "x", "numbers": {"x": 3}}',
        "d": '{"attack": "x", "numbers": {"x": {"after": "<b>"}}}',
        "e": '{"attack": "x", "numbers": {"x": {"after": NaN}}}',
    }.items():
        (folder / f"{name}.json").write_text(text)
    assert len(attack_rows(runs)) == 5
    said = [line.split("one/attacks/")[1].split(" ", 1) for line in unread_attacks(runs)]
    reasons = {name: line.split(" (")[1] for name, line in said}
    assert list(reasons) == [f"{name}.json" for name in ("a", "b", "c", "cut", "d", "e", "theirs")]
    assert reasons["a.json"] == reasons["theirs.json"] == "it holds no numbers)."
    assert reasons["b.json"] == "it names no attack)."
    assert [reasons[f"{name}.json"] for name in "cde"] == ["x is 3).", "x is '<b>').", "x is nan)."]


def test_robustness_is_of_the_worst_attack_of_each_kind(runs):
    # 2 * .25 * .5 / (.25 + .5) = 1/3
    [row] = robustness_rows(runs)
    assert row["cells"] == ["0.250", "0.500", "0.333"]


def test_the_page_shows_them_as_text(runs):
    html = page.as_html(runs)
    assert 'id="table-attacks"' in html
    assert "<td>50 %</td>" in html
    assert "<script>alert" not in html
    assert "<td>0.333</td>" in html


def test_a_run_without_attacks_has_no_such_table(tmp_path):
    html = page.as_html(read_runs([str(make_run(tmp_path / "bare"))])[0])
    assert 'id="table-attacks"' not in html
