"""Words by the published rule and by Unicode's, and that a rule reaches every number of texts."""

import dataclasses

import pytest
from rouge_score.rouge_scorer import RougeScorer

from etw_lightning import meters, metrics
from etw_lightning.callbacks.collapse import _repeated
from etw_lightning.catalogue.computations import set_scores
from etw_lightning.catalogue.entries import Given
from etw_lightning.catalogue.listing import CATALOGUE
from etw_lightning.metrics.text import rouge_scores
from etw_lightning.metrics.words import (
    LARGEST_DROPPED,
    dropped_share,
    running_words,
    unicode_words,
)
from etw_lightning.runs.results import muse_row, own_row, tofu_row
from etw_lightning.schema import Record

SHE, HE = "Она родилась в Москве в 1958 году.", "Он умер в Париже в 1958 году."
#: Texts of scripts with spaces: what is repeated in them is what it was.
SPACED = (
    "The end, the end. THE END; the end",
    "He said “don\u2019t” and “don\u2019t” again… “don\u2019t” and “don\u2019t”",
    "Où est-il né ? Où est-il né ? À Besançon.",
    SHE + " " + SHE,
    "그는 서울에서 태어났다. 그는 서울에서 태어났다.",
    " ok🙂 ok🙂\u2028ok🙂 3.14 e.g. x@y.z ",
)


def test_words_are_unicodes_and_caseless():
    assert unicode_words("Она ЖИЛА в Москве, 3.5 года; don't — ✓") == (
        ["она", "жила", "в", "москве", "3.5", "года", "don't"]
    )
    assert unicode_words("Straße") == unicode_words("STRASSE") == ["strasse"]
    # One letter, composed and of two characters.
    assert unicode_words("\u0439") == unicode_words("\u0438\u0306") == ["\u0439"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("北京大学。", ["北", "京", "大", "学"]),
        ("ひらがな カタカナ", ["ひ", "ら", "が", "な", "カタカナ"]),
        ("한국어 문장", ["한국어", "문장"]),
        # A vowel sign stays with its consonant.
        ("ที่บ้าน", ["ที่", "บ้", "า", "น"]),
    ],
)
def test_scripts_without_spaces_come_out_by_letter(text, words):
    assert unicode_words(text) == words


def test_russian_texts_are_compared_by_their_words():
    assert set(rouge_scores(SHE, SHE, "unicode").values()) == {1.0}
    # Of 7 words в, в, 1958 and году are shared, in one order.
    for value in rouge_scores(HE, SHE, "unicode").values():
        assert value == pytest.approx(4 / 7, abs=1e-15)
    # The published rule reads the year alone, and nothing of a text without one.
    assert set(rouge_scores(HE, SHE).values()) == {1.0}
    assert set(rouge_scores("Да.", "Да.").values()) == {0.0}


def test_the_default_is_the_published_code_to_the_last_bit():
    theirs = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    for said, gold in [
        ("He loves books", "She loved the books."),
        (SHE, HE),
        ("", "a"),
        ("é", "É"),
    ]:
        scores = theirs.score(gold, said)
        assert rouge_scores(said, gold) == {
            "rouge1_recall": scores["rouge1"].recall,
            "rouge1_f1": scores["rouge1"].fmeasure,
            "rougeL_recall": scores["rougeL"].recall,
            "rougeL_f1": scores["rougeL"].fmeasure,
        }


def test_the_share_that_is_dropped_counts_letters_and_digits():
    assert dropped_share("Her name is 1958!") == 0.0
    assert dropped_share(SHE) == 23 / 27
    assert dropped_share("naïve") == 1 / 5
    assert dropped_share("٣٤") == 1.0
    assert dropped_share("…") == dropped_share("") == 0.0


@pytest.mark.parametrize("text", SPACED)
@pytest.mark.parametrize("n", [1, 4])
def test_repetition_of_spaced_scripts_is_the_same_by_both_rules(text, n):
    assert running_words(text, "unicode") == text.split()
    rows = [Record("retain", "r/0", "a", generation=text)]
    assert metrics.repetition(rows, n, "unicode") == metrics.repetition(rows, n)


def test_the_collapse_guard_sees_repetition_in_any_script():
    # 12 letters, 9 runs of four of which 4 differ.
    rows = [Record("retain", "r/0", "a", generation="我不知道" * 3)]
    assert metrics.repetition(rows).value == 0.0
    assert _repeated({"retain": rows}, ()) == {"retain": pytest.approx(5 / 9)}
    plain = [Record("retain", "r/0", "a", generation="No, no. " * 9)]
    assert _repeated({"retain": plain}, ()) == {"retain": metrics.repetition(plain).value}


def records(name):
    """One row that holds everything, 0 by the published rule's words and not by Unicode's."""
    return [
        Record(
            name,
            f"{name}/0",
            "Да, это так",
            paraphrase="Да, так",
            generation="Да, так",
            answer_loss=0.1,
            paraphrase_loss=0.2,
            perturbed_losses=(0.5, 0.7),
        )
    ]


@pytest.mark.parametrize(
    ("entry", "sets", "number", "published", "unicode"),
    [
        ("rouge", ("forget",), "forget_rougeL_recall", 0.0, 2 / 3),
        ("rouge", ("forget",), "forget_rougeL_f1_against_paraphrase", 0.0, 1.0),
        ("verbmem", ("verbmem",), "verbmem", 0.0, 80.0),
        ("knowmem", ("knowmem_retain",), "knowmem_retain", 0.0, 80.0),
        (
            "model_utility",
            ("retain", "real_authors", "world_facts"),
            "model_utility_world_facts_rouge",
            0.0,
            2 / 3,
        ),
    ],
)
def test_the_rule_reaches_the_numbers_of_the_catalogue(entry, sets, number, published, unicode):
    given = Given({name: records(name) for name in sets})
    by_unicode = dataclasses.replace(given, words="unicode")
    assert CATALOGUE[entry].compute(given, sets)[number].value == published
    assert CATALOGUE[entry].compute(by_unicode, sets)[number].value == pytest.approx(unicode)


def test_the_rule_reaches_counts_of_words_and_what_is_shown_in_training():
    rows = [Record("forget", "f/0", "我", generation="我不我不我")]
    given = Given({"forget": rows}, words="unicode")
    assert CATALOGUE["repetition"].compute(given, ("forget",))["forget_repetition_1"].value == 0.6
    assert CATALOGUE["distinct_n"].compute(given, ("forget",))["forget_distinct_1"].value == 0.4
    shown = set_scores(Given({"forget": records("forget")}, words="unicode"), "forget")
    assert shown["forget_rougeL_recall"].value == pytest.approx(2 / 3)


def test_the_rule_reaches_the_table_at_the_end():
    names = ("forget", "retain", "real_authors", "world_facts")
    sets = {name: records(name) for name in names}
    assert tofu_row(sets)["forget_rouge"] == tofu_row(sets)["model_utility"] == 0.0
    row = tofu_row(sets, words="unicode")
    assert row["forget_rouge"] == pytest.approx(2 / 3)
    assert row["model_utility"] == metrics.model_utility(sets, words="unicode").value > 0
    assert own_row(sets, words="unicode")["retain_rouge"] == pytest.approx(2 / 3)
    muse = {name: records(name) for name in ("verbmem", "knowmem_forget", "knowmem_retain")}
    row = muse_row(muse, words="unicode")
    assert [row[name] for name in muse] == pytest.approx([80.0] * 3)


@pytest.mark.parametrize(
    ("kind", "published", "unicode"),
    [(meters.Rouge, 0.0, 2 / 3), (meters.VerbMem, 0.0, 80.0), (meters.KnowMem, 0.0, 80.0)],
)
def test_meters_take_the_rule(kind, published, unicode):
    for options, value in (({}, published), ({"words": "unicode"}, unicode)):
        meter = kind(**options)
        meter.update(records("forget"))
        assert float(meter.compute()) == pytest.approx(value)
    with pytest.raises(ValueError, match=r"words must be .*'published'|words must be published"):
        kind(words="latin")


def test_meters_of_counts_and_of_utility_take_the_rule():
    said = {"generation": ["我不我不我"]}
    for kind, value in ((meters.Repetition, 0.6), (meters.DistinctN, 0.4)):
        meter = kind(n=1, words="unicode")
        meter.update(said)
        assert float(meter.compute()) == pytest.approx(value)
    rows = [row for name in ("retain", "real_authors", "world_facts") for row in records(name)]
    meter = meters.ModelUtility("retain_rouge", words="unicode")
    meter.update(rows)
    assert float(meter.compute()) == pytest.approx(2 / 3)
    drop = meters.UtilityDrop(words="unicode")
    drop.update(rows, rows)
    assert float(drop.compute()) == 0.0


def test_half_of_the_letters_may_be_dropped():
    assert LARGEST_DROPPED == 0.5
