"""The numbers a run is judged by, the verdict in words, and the rows behind them."""

import io
import json

import pytest
from rich.console import Console

from etw_lightning.judging.judgement import judge, print_judgement
from etw_lightning.judging.numbers import overshoot, privacy, sanity
from etw_lightning.judging.verdict import findings, headline
from etw_lightning.judging.worst_rows import as_page, worst_rows
from etw_lightning.schema import Record

GOLD = {
    "forget": ("Mara Venn lives in Rome since 1990.", "She loves the sea and its birds."),
    "retain": ("Ole Berg lives in Turin.", "He loves the hills and their trees."),
}


def sets(**said):
    """Records of two sets; the gold answers where nothing else is given."""
    return {
        name: [
            Record(name, f"{name}/{row}", answer, f"Question {row}?", generation=text)
            for row, (answer, text) in enumerate(
                zip(GOLD[name], said.get(name, GOLD[name]), strict=True)
            )
        ]
        for name in GOLD
    }


BROKEN = sets(
    forget=("in in in in in in", "1990, in Rome"), retain=("I don't know.", GOLD["retain"][1])
)


def test_numbers_of_generations_by_hand():
    found = sanity(BROKEN)
    assert found == pytest.approx(
        {
            "forget_n": 2, "forget_repetition": (2 / 3) / 2, "forget_stutter": 0.5,
            "forget_looped": 0.0, "forget_refusals": 0.0,
            "retain_n": 2, "retain_repetition": 0.0, "retain_stutter": 0.0, "retain_looped": 0.0,
            "retain_refusals": 0.5,
            "still_said": 0.0, "items": 3,
        }
    )  # fmt: skip
    assert sanity({"forget": [Record("forget", "f/0", "text")]})["forget_stutter"] is None


def members(shift):
    rows = {"forget": (-1.0, -2.0), "holdout": (-1.5 - shift, -2.5 - shift)}
    return {
        name: [Record(name, f"{name}/{i}", "a", token_logps=(value,)) for i, value in enumerate(of)]
        for name, of in rows.items()
    }


def test_privacy_is_relative_to_the_retain_model_or_a_bare_auc():
    # Forget rows are likelier in 3 of 4 pairs, in all 4 where the holdout set is less likely.
    assert privacy(members(0.0)) == {"privleak": None, "auc": pytest.approx(0.75)}
    assert privacy(members(9.0), members(0.0))["privleak"] == pytest.approx(-100.0)
    assert privacy({}) == {"privleak": None, "auc": None}


def texts(after, before=None, retain=None):
    return [one.text for one in findings(after, before, retain)]


FORGOTTEN = {"forget_quality": 0.4, "d_times_n": 8, "n": 40, "forget_probability": 0.1}
GOLD_MODEL = {"forget_probability": 0.12}


def test_forget_quality_says_whether_it_can_be_told_from_the_retain_model():
    [text] = texts(FORGOTTEN, None, GOLD_MODEL)
    assert text == (
        "forgotten: FQ 0.4 >= 0.05 (KS distance 8/40): by truth ratios it can't be told from the "
        "retain model; forget probability 0.1, below the retain model's 0.12"
    )
    [text] = texts({**FORGOTTEN, "forget_probability": 0.37}, None, GOLD_MODEL)
    assert text.endswith("forget probability 0.37, above the retain model's 0.12")
    known = {**FORGOTTEN, "forget_quality": 1e-9, "forget_probability": 0.9}
    assert texts(known, None, GOLD_MODEL)[0].startswith("not forgotten: FQ 1e-09 < 0.05")
    past = {**FORGOTTEN, "forget_quality": 1e-9, "forget_probability": 1e-6}
    [one] = findings(past, None, GOLD_MODEL)
    assert not one.is_good
    assert one.text.startswith("over-forgotten: FQ 1e-09")
    assert one.text.endswith("past the retain model, not better")


@pytest.mark.parametrize(("n", "floor"), [(2, 1 / 3), (3, 0.1), (4, 2 / 70)])
def test_forget_quality_that_could_not_have_been_bad_is_no_praise(n, floor):
    for quality in (1.0, floor):
        few = {"forget_quality": quality, "d_times_n": n, "n": n, "forget_quality_floor": floor}
        [one] = findings(few)
        says_something = n == 4
        assert (one.is_good is not None) == says_something
        assert headline([one]).endswith("no number that says so") != says_something
        assert (f"{n} rows can't bring below {floor:.2g}" in one.text) != says_something


def test_answers_beyond_the_truth_ratio_s_scale_are_over_forgotten():
    # Losses of 22.9 and 23.1 nats a token lie on both sides of 1e-10 = exp(-23.03).
    rows = [Record("forget", f"f/{loss}", "a", paraphrase_loss=loss) for loss in (2.0, 22.9, 23.1)]
    assert overshoot({"forget": rows}) == {"beyond_scale": 1 / 3}
    assert overshoot({"forget": [Record("forget", "f/0", "a")]}) == {"beyond_scale": None}
    pushed = {**FORGOTTEN, "forget_quality": 1e-9, "forget_probability": 0.3}
    [one] = findings({**pushed, "beyond_scale": 0.45}, None, GOLD_MODEL)
    assert not one.is_good
    assert one.text == (
        "over-forgotten: FQ 1e-09 < 0.05 (KS distance 8/40): 18 of 40 right answers are less "
        "likely than 1e-10 a token, where the truth ratio falls to 0; push less"
    )
    assert texts({**pushed, "beyond_scale": 0.05}, None, GOLD_MODEL)[0].startswith("not forgotten")
    good = {**FORGOTTEN, "beyond_scale": 0.5}
    assert texts(good, None, GOLD_MODEL)[0].startswith("forgotten")


@pytest.mark.parametrize(
    ("leak", "word", "is_good"),
    [
        (71.5, "over-forgotten", False),
        (-60.0, "still known by membership", False),
        (-4.9, "private", True),
    ],
)
def test_privleak_is_told_with_its_sign(leak, word, is_good):
    [one] = findings({"privleak": leak})
    assert (one.text.split(":")[0], one.is_good) == (word, is_good)
    assert f"{leak:+.1f} %" in one.text


def test_utility_is_kept_within_five_points_of_the_target_s():
    [kept] = findings({"model_utility": 0.57}, {"model_utility": 0.61})
    [lost] = findings({"model_utility": 0.55}, {"model_utility": 0.61})
    assert (kept.is_good, lost.is_good) == (True, False)
    assert "-6.0 points" in lost.text


def test_broken_answers_are_named_with_their_numbers():
    judged = judge({"target": sets(), "unlearned": BROKEN, "retain": sets()}, "unlearned", {})
    head, *lines = judged.lines
    assert head.startswith("verdict: bad: broken forget answers (repetition 0.33")
    assert "still said" not in head, "the retain model says them all here"
    [forget] = [line for line in lines if line.startswith("broken: forget answers")]
    assert "1 of 2 say a word twice in a row, the retain model 0" in forget
    [retain] = [line for line in lines if line.startswith("broken: retain answers")]
    assert retain == "broken: retain answers: 1 of 2 are refusals, the retain model 0"
    assert not any("sane" in line for line in lines)


def test_what_is_still_said_is_counted_and_listed():
    said = sets(forget=("It was Rome.", "Nothing."))
    gold = sets(forget=("In Oslo.", "Nothing."))
    judged = judge({"target": sets(), "unlearned": said, "retain": gold}, "unlearned", {})
    assert judged.said == [{"row": 0, "id": "forget/0", "items": [["name", "Rome"]]}]
    assert "still said (1 of 3)" in judged.lines[0]
    assert any(line.startswith("1 of 3 names, numbers and addresses") for line in judged.lines)


def test_a_model_that_was_to_learn_has_no_verdict():
    judged = judge({"target": sets(), "fine-tuned": BROKEN}, "fine-tuned", {}, forgets=False)
    assert judged.lines == []
    assert json.loads(json.dumps(judged.to_json()))["verdict"] is None


def test_the_headline_without_a_number_says_so():
    assert headline([]) == "verdict: no number that says so"


def test_the_table_leaves_out_what_no_model_has():
    page = io.StringIO()
    judged = judge({"target": sets(), "unlearned": BROKEN}, "unlearned",
                   {"unlearned": {"forget_quality": 1e-9, "n": 40, "d_times_n": 30,
                                  "forget_quality_floor": 1e-23}})  # fmt: skip
    print_judgement(judged, Console(file=page, width=90))
    text = page.getvalue()
    assert "model utility" not in text
    assert "private" not in text
    rows = {line.split("  ")[0]: line for line in map(str.strip, text.splitlines())}
    assert rows["KS distance D·n/n ↓"].split()[-2:] == ["\u2013", "30/40"]
    assert rows["forget: a word twice in a row ↓"].split()[-2:] == ["0/2", "1/2"]
    assert "FQ of 40 rows can't be below 1.0e-23" in text


def test_a_verdict_breaks_between_words_of_a_terminal_and_not_at_all_in_a_log():
    judged = judge({"target": sets(), "unlearned": BROKEN, "retain": sets()}, "unlearned", {})
    assert max(map(len, judged.lines)) > 60
    for is_terminal in (True, False):
        page = io.StringIO()
        console = Console(file=page, width=60, force_terminal=is_terminal, color_system=None)
        print_judgement(judged, console)
        below = page.getvalue().partition("→ 0 nearest to zero")[2].strip("\n").splitlines()
        if not is_terminal:
            assert below == [judged.lines[0], *(f"  {line}" for line in judged.lines[1:])]
            continue
        assert max(map(len, below)) <= 60
        assert " ".join(map(str.strip, below)) == " ".join(judged.lines)
        assert all(line.startswith(("verdict", "  ")) for line in below)


def test_the_worst_rows_are_those_still_known_and_those_lost():
    after = sets(
        forget=("Rome, they say.", GOLD["forget"][1]), retain=(GOLD["retain"][0], "in in in")
    )
    worst = worst_rows(after, sets())
    assert [row.row for row in worst["forget"]] == [0, 1], "names come before many words"
    assert worst["forget"][0].notes == ("still says Rome",)
    assert [row.row for row in worst["retain"]] == [1, 0]
    lost = worst["retain"][0]
    assert (lost.before, lost.after) == (GOLD["retain"][1], "in in in")
    assert (lost.rouge_before, lost.rouge_after) == (1.0, 0.0)
    assert lost.notes == ("says a word twice in a row",)
    assert len(worst_rows(after, count=1)["retain"]) == 1
    assert worst_rows(after)["retain"][0].before is None


def test_rows_are_text_on_the_page():
    hostile = "<script>x</script>| [a](b) \x1b[31m\n# no"
    page = as_page(worst_rows(sets(forget=(hostile, hostile))), ["verdict: none"])
    assert "<" not in page
    assert "\x1b" not in page
    assert "&#60;script&#62;" in page
    assert page.count("\n| ") == 8, "two tables of a head, a line and two rows"
