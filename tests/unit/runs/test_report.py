import io
import json
import math
import re

import pytest
from rich.console import Console

from etw_lightning.metrics import Metric
from etw_lightning.runs.results import muse_row, print_metrics, tofu_row, write_results
from etw_lightning.schema import InputError, Record


def tofu_sets(wrong_loss=2.0):
    fields = {
        "answer_loss": 1.0,
        "perturbed_losses": (wrong_loss,),
        "generation": "Rome",
    }
    sets = {
        name: [Record(name, f"{name}10/0", "Rome", paraphrase_loss=1.0, **fields)]
        for name in ("forget", "retain")
    }
    return sets | {
        name: [Record(name, f"{name}/0", "Rome", **fields)]
        for name in ("real_authors", "world_facts")
    }


def muse_sets(shift=0.0):
    text = {"generation": "the end"}
    return {
        "verbmem": [Record("verbmem", "v/0", "the end", **text)],
        "knowmem_forget": [Record("knowmem_forget", "k/0", "the", **text)],
        "knowmem_retain": [Record("knowmem_retain", "k/0", "no", **text)],
        "privleak_forget": [
            Record("privleak_forget", f"f/{row}", "", token_logps=(-row - shift,))
            for row in range(2)
        ],
        "privleak_holdout": [
            Record("privleak_holdout", f"h/{row}", "", min_k=row + 0.5) for row in range(2)
        ],
    }


def test_tofu_row_by_hand():
    row = tofu_row(tofu_sets(), tofu_sets(3.0)["forget"])
    expected = {
        "forget_quality": 1.0,
        "neg_log10_forget_quality": 0.0,
        "d_times_n": 1,
        "n": 1,
        "forget_quality_floor": 1.0,
        "forget_rouge": 1.0,
        "forget_probability": math.exp(-1),
        "forget_truth_ratio": math.exp(-1),
    }
    utility = row.pop("model_utility")
    assert row == pytest.approx(expected, rel=1e-9)
    ratio, choice = 1 - math.exp(-1), 1 / (1 + math.exp(-1))
    assert utility == pytest.approx(9 / (3 + 3 / ratio + math.e + 2 / choice), rel=1e-9)


def test_rouge_of_the_table_is_recall():
    """Half of the right words are there among four: recall 1/2, precision 1/4, F1 1/3."""
    sets = tofu_sets()
    fields = {"answer_loss": 1.0, "perturbed_losses": (2.0,), "paraphrase_loss": 1.0}
    for name, rows in sets.items():
        given = {**fields, "generation": "a town named Rome"}
        rows[0] = Record(name, f"{name}10/0", "Rome Italy", **given)
    row = tofu_row(sets)
    assert row["forget_rouge"] == pytest.approx(0.5)
    ratio, choice = 1 - math.exp(-1), 1 / (1 + math.exp(-1))
    expected = 9 / (3 / 0.5 + 3 / ratio + math.e + 2 / choice)
    assert row["model_utility"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("dropped", "missing"),
    [
        ("forget", {"forget_quality", "neg_log10_forget_quality", "d_times_n", "n",
                    "forget_quality_floor",
                    "forget_rouge", "forget_probability", "forget_truth_ratio"}),
        ("retain", {"model_utility"}),
        ("world_facts", {"model_utility"}),
    ],
)  # fmt: skip
def test_tofu_row_without_a_set(dropped, missing):
    sets = tofu_sets()
    del sets[dropped]
    row = tofu_row(sets, tofu_sets()["forget"])
    assert {name for name, value in row.items() if value is None} == missing


def test_tofu_row_without_retain_results_or_generations():
    quality = {"forget_quality", "neg_log10_forget_quality", "d_times_n", "n"}
    quality |= {"forget_quality_floor"}
    row = tofu_row(tofu_sets())
    assert {name for name, value in row.items() if value is None} == quality
    sets = {
        name: [Record(name, "r", "Rome", None, 1.0, 1.0, (2.0,)) for _ in rows]
        for name, rows in tofu_sets().items()
    }
    row = tofu_row(sets)
    absent = quality | {"model_utility", "forget_rouge"}
    assert {name for name, value in row.items() if value is None} == absent


def test_a_field_in_some_rows_only_is_an_error_not_a_dash():
    sets = tofu_sets()
    sets["forget"].append(Record("forget", "forget10/1", "b", answer_loss=1.0))
    with pytest.raises(InputError, match=r"row 1 .*forget10/1"):
        tofu_row(sets)


def test_muse_row_by_hand():
    row = muse_row(muse_sets(), muse_sets(shift=1.0))
    assert row["verbmem"] == 100.0
    assert row["knowmem_forget"] == pytest.approx(100 * 2 / 3)
    assert row["knowmem_retain"] == 0.0
    # AUC 3/4 now (0, 1 below .5, 1.5 in three of four pairs), 1/4 for the retain model (1, 2).
    assert row["privleak"] == pytest.approx((1 / 4 - 3 / 4) / (3 / 4) * 100)
    assert muse_row(muse_sets())["privleak"] is None
    assert set(muse_row({}).values()) == {None}


def test_results_are_whole_json_without_nan(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {"target": {"privleak": -99.8, "list": [1, None, "é"]}})
    before = path.read_bytes()
    assert json.loads(before) == {"target": {"privleak": -99.8, "list": [1, None, "é"]}}
    for bad in (math.nan, -math.inf):
        with pytest.raises(InputError, match=r"target\.list\.1 is NaN or infinite"):
            write_results(path, {"target": {"list": [1.0, bad]}})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def printed_metrics(models, sets=()):
    stream = io.StringIO()
    print_metrics(models, sets, Console(file=stream, width=100))
    return stream.getvalue()


def test_p_values_of_different_n_never_share_a_line():
    text = printed_metrics(
        {
            "a": {"forget_quality": Metric(0.5, "up", 40)},
            "b": {"forget_quality": Metric(0.25, "up", 400)},
        }
    )
    rows = [line.split()[2:] for line in text.splitlines() if "forget_quality" in line]
    assert rows == [["40", "0.5000", "\u2013"], ["400", "\u2013", "0.2500"]]


def test_a_model_without_any_of_the_numbers_has_no_column():
    text = printed_metrics({"model": {"privleak": Metric(5.0, "zero", 4)}, "retain": {}})
    assert "model" in text
    assert "retain" not in text


def test_each_metric_is_a_line_with_its_n_direction_and_interval():
    text = printed_metrics(
        {
            "model": {
                "forget_d_times_n": Metric(27.0, "down", 400),
                "mia_min_k": Metric(0.9, "retain", 800, (0.875, 0.925)),
                "privleak": Metric(-66.7, "zero", 800),
                "forget_quality_floor": Metric(0.25, "none", 5),
                "tiny": Metric(3.9e-22, "up", 5),
            }
        }
    )
    assert "27/400" in text
    assert "0.9000 [0.8750, 0.9250]" in text
    assert "3.90e-22" in text
    words = " ".join(text.split())
    assert "forget_d_times_n ↓ 400" in words
    assert "mia_min_k → retain 800" in words
    assert "privleak → 0 800" in words
    assert "forget_quality_floor 5 0.2500" in words
    assert "→ 0 nearest to zero, → retain nearest to the retain model's" in words
    assert "→ retain" not in printed_metrics({"model": {"tiny": Metric(0.5, "up", 5)}})


def test_scores_of_several_sets_stand_side_by_side():
    up, down = Metric(0.25, "up", 60), Metric(0.5, "down", 40)
    text = printed_metrics(
        {"m": {"forget_probability": down, "retain_probability": up, "forget_paraphrased_x": down,
               "retain_only": up}},
        ["forget", "retain", "forget_paraphrased"],
    )  # fmt: skip
    lines = [line.split() for line in text.splitlines() if line.split()]
    assert ["probability", "0.5000", "\u2193", "0.2500", "\u2191"] in lines
    assert ["rows", "40", "60"] in lines
    assert ["retain_only", "\u2191", "60", "0.2500"] in lines
    assert ["forget_paraphrased_x", "\u2193", "40", "0.5000"] in lines


def test_a_log_shows_whole_names_though_it_has_no_width(capsys):
    name = "forget_paraphrased_truth_ratio_mean_probability"
    print_metrics({"model": {name: Metric(0.5, "up", 4)}})
    assert [name, "\u2191", "4", "0.5000"] in [
        x.split() for x in capsys.readouterr().out.splitlines()
    ]


@pytest.mark.parametrize("width", [80, 100])
def test_no_number_is_cut_however_narrow_the_terminal(width):
    sets = ["forget", "retain", "real_authors", "world_facts", "forget_paraphrased"]
    found = {
        f"{one}_truth_ratio_mean_probability": Metric(0.123456 + i, "up", 117, (0.1114, 0.2224))
        for i, one in enumerate(sets)
    }
    long = {"model_utility_retain_paraphrased_probability": Metric(-63.125, "zero", 4000, (-71, 9))}
    stream = io.StringIO()
    models = {"model": found | long, "target": long, "retain": long}
    print_metrics(models, sets, Console(file=stream, width=width, force_terminal=True))
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    for i in range(len(sets)):
        assert f"{i}.1235 \u2191" in text
    assert text.count("[0.1114, 0.2224]") == len(sets)
    assert "-63.12 [-71.00, 9.0000]" in text
    assert text.count("-63.12") == 3
    assert "4000" in text
    assert "\u2026" not in text
    assert max(map(len, text.splitlines())) <= width
