import gzip
import json

import pytest

from etw_lightning.schema import InputError, Record
from etw_lightning.scoring.retain_results import (
    RetainResults,
    differing,
    load_provenance,
    load_records,
    load_retain_results,
    made_of,
    save_provenance,
    save_records,
    write_atomically,
)

FULL = Record(
    "forget", "forget10/0", "line\u2028 two\n\u00e9", question="q?", answer_loss=0.1 + 0.2,
    paraphrase_loss=1e-17, perturbed_losses=(1.0, 2.5), token_logps=(-0.5, -1e-9),
    generation="", min_k=3.0,
)  # fmt: skip
SETS = {
    "forget": [FULL, Record("forget", "forget10/1", "b")],
    "retain": [Record("retain", "r", "")],
}

TOFU_LOG = {
    "forget_Q_A_Prob": {"value_by_index": {"1": {"avg_loss": 2.0}, "0": {"avg_loss": 1.0}}},
    "forget_Q_A_PARA_Prob": {"value_by_index": {"0": {"avg_loss": 3.0}, "1": {"avg_loss": 4.0}}},
    "forget_Q_A_PERT_Prob": {
        "value_by_index": {"0": {"avg_loss": [5.0, 6.0]}, "1": {"avg_loss": [7.0]}}
    },
    "forget_Q_A_ROUGE": {
        "value_by_index": {
            index: {"input": "q", "ground_truth": "a" + index, "generation": "g"} for index in "01"
        }
    },
    "ra_Q_A_Prob": {"value_by_index": {"0": {"avg_loss": 8.0}}},
}
MUSE_LOG = {
    "forget_verbmem_ROUGE": {
        "value_by_index": {"0": {"input": "i", "ground_truth": "a", "generation": "g"}}
    },
    "mia_min_k": {
        "forget": {"value_by_index": {"0": {"score": 1.5}}},
        "holdout": {"value_by_index": {"0": {"score": 2.5}}},
    },
}


def test_records_survive_a_round_trip_bit_by_bit(tmp_path):
    save_records(tmp_path, SETS)
    assert load_records(tmp_path) == SETS


def test_sets_come_in_alphabetical_order(tmp_path):
    names = [f"set_{letter}" for letter in "gbhadfce"]
    save_records(tmp_path, {name: [Record(name, f"{name}/0", "a")] for name in names})
    assert list(load_records(tmp_path)) == sorted(names)


def test_equal_records_give_equal_bytes_and_leave_nothing_else(tmp_path):
    for name in ("a", "b"):
        save_records(tmp_path / name, SETS)
    assert sorted(path.name for path in (tmp_path / "a" / "records").iterdir()) == [
        "forget.jsonl.gz",
        "retain.jsonl.gz",
    ]
    written = [(tmp_path / name / "records" / "forget.jsonl.gz").read_bytes() for name in "ab"]
    assert written[0] == written[1]
    assert written[0][4:8] == bytes(4), "the header holds a time"


def test_what_is_saved_can_be_read_by_people(tmp_path):
    save_records(tmp_path, {"forget": [Record("forget", "f/0", "Ünï 東京")]})
    save_provenance(tmp_path, {"template": {"system_prompt": "Sei ähnlich."}})
    folder = tmp_path / "records"
    assert "Ünï 東京" in gzip.decompress((folder / "forget.jsonl.gz").read_bytes()).decode()
    assert (folder / "provenance.json").read_text("utf-8") == (
        '{\n  "template": {\n    "system_prompt": "Sei ähnlich."\n  }\n}\n'
    )
    with pytest.raises(ValueError, match="Out of range float"):
        save_provenance(tmp_path, {"loss": float("nan")})


def test_saving_refuses_nan_and_names_that_leave_the_folder(tmp_path):
    with pytest.raises(InputError, match=r"'forget', row f/3: holds NaN"):
        save_records(tmp_path, {"forget": [Record("forget", "f/3", "a", answer_loss=float("nan"))]})
    with pytest.raises(InputError, match="set name"):
        save_records(tmp_path, {"../forget": []})
    assert list(tmp_path.rglob("*.gz")) == []


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "file"
    write_atomically(target, b"old")

    def fail(self, other):
        raise OSError("disk")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(InputError, match=r"output_dir: .*file can't be written \(disk\)"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("as_file", [False, True])
def test_results_folder_or_its_file(tmp_path, as_file):
    save_records(tmp_path, SETS)
    (tmp_path / "results.json").write_text('{"model_utility": 0.5}')
    path = tmp_path / "results.json" if as_file else tmp_path
    results = load_retain_results(path)
    assert results == RetainResults(str(path), SETS)


@pytest.mark.parametrize("zipped", [False, True])
def test_published_tofu_log(tmp_path, zipped):
    path = tmp_path / ("TOFU_EVAL.json" + ".gz" * zipped)
    content = json.dumps(TOFU_LOG).encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
    records = load_retain_results(str(path)).records
    assert sorted(records) == ["forget", "real_authors"]
    assert records["forget"] == [
        Record("forget", "forget/0", "a0", "q", 1.0, 3.0, (5.0, 6.0), generation="g"),
        Record("forget", "forget/1", "a1", "q", 2.0, 4.0, (7.0,), generation="g"),
    ]
    assert records["real_authors"] == [Record("real_authors", "real_authors/0", "", None, 8.0)]


def test_published_muse_log(tmp_path):
    path = tmp_path / "MUSE_EVAL.json"
    path.write_text(json.dumps(MUSE_LOG))
    assert load_retain_results(path).records == {
        "verbmem": [Record("verbmem", "verbmem/0", "a", "i", generation="g")],
        "privleak_forget": [Record("privleak_forget", "privleak_forget/0", "", min_k=1.5)],
        "privleak_holdout": [Record("privleak_holdout", "privleak_holdout/0", "", min_k=2.5)],
    }


def test_rows_are_ordered_by_number_not_by_text(tmp_path):
    by_index = {str(row): {"avg_loss": float(row)} for row in sorted(range(12), key=str)}
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"retain_Q_A_Prob": {"value_by_index": by_index}}))
    rows = load_retain_results(path).records["retain"]
    assert [record.answer_loss for record in rows] == list(range(12))


BROKEN = {
    "missing": (None, "does not exist"),
    "not JSON": (b"<html>", "is not JSON"),
    "truncated": (gzip.compress(json.dumps(TOFU_LOG).encode())[:-20], "broken gzip"),
    "damaged": (gzip.compress(b"{}")[:10] + b"\xff" * 20, "broken gzip"),
    "bad checksum": (gzip.compress(b"{}")[:-8] + bytes(8), "broken gzip"),
    "binary": (b"\xff\xfe\x00", "not UTF-8"),
    "a list": (b"[1]", "unknown shape"),
    "a summary": (b'{"forget_quality": 0.5, "model_utility": 0.6}', "averages only"),
    "a null row": (b'{"forget_Q_A_Prob": {"value_by_index": {"0": null}}}', "can't be read"),
    "no first row": (b'{"ra_Q_A_Prob": {"value_by_index": {"1": {"avg_loss": 1}}}}', "same rows"),
    "a gap": (
        b'{"ra_Q_A_Prob": {"value_by_index": {"0": {"avg_loss": 1}, "2": {"avg_loss": 1}}}}',
        "same rows",
    ),
    "fewer rows": (
        json.dumps({**TOFU_LOG, "forget_Q_A_PARA_Prob": {"value_by_index": {}}}
                   | {"forget_Q_A_Prob": {"value_by_index": {"0": {"avg_loss": 1}}}}).encode(),
        "same rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_give_one_line_with_the_key(tmp_path, name):
    content, message = BROKEN[name]
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_retain_results(path)
    assert str(caught.value).startswith(f"data.retain_results: {path}")
    assert "\n" not in str(caught.value)


def test_a_folder_without_records_and_a_file_of_something_else(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    for path in (tmp_path, tmp_path / "results.json"):
        with pytest.raises(InputError, match=r"holds no records.*fine-tuned or evaluated"):
            load_retain_results(path)
    write_atomically(tmp_path / "records" / "x.jsonl.gz", b'{"unknown_field": 1}\n')
    with pytest.raises(InputError, match=r"x\.jsonl\.gz is not a file of records"):
        load_retain_results(tmp_path)


def test_require_checks_set_and_number_of_rows():
    results = RetainResults("logs/retain95", SETS)
    assert results.require("forget", 2) is SETS["forget"]
    with pytest.raises(InputError) as caught:
        results.require("forget", 400)
    assert str(caught.value).startswith(
        "data.retain_results: logs/retain95 holds 2 rows of 'forget', this run scores 400: it was "
        "made for another forget split"
    )
    with pytest.raises(InputError, match=r"no rows of 'verbmem', only forget, retain; give"):
        results.require("verbmem", 2)


def test_membership_scores_of_a_published_tofu_log(tmp_path):
    """Of the forget set the losses are there already; of the holdout set they come with them."""
    scores = {"mia_loss": 10.0, "mia_min_k": 20.0, "mia_gradnorm": 30.0, "mia_zlib": 40.0}
    attacks = {
        name: {
            "forget": {"value_by_index": {str(row): {"score": value + row} for row in range(2)}},
            "holdout": {"value_by_index": {"0": {"score": value / 2}}},
        }
        for name, value in scores.items()
    }
    path = tmp_path / "TOFU_EVAL.json"
    path.write_text(json.dumps({**TOFU_LOG, **attacks}))
    found = load_retain_results(path)
    assert found.is_published
    (held,) = found.records["holdout"]
    assert (held.answer_loss, held.min_k, held.gradient_norm) == (5.0, 10.0, 15.0)
    forget = found.records["forget"]
    assert [row.answer_loss for row in forget] == [1.0, 2.0]
    assert [row.min_k for row in forget] == [20.0, 21.0]
    assert [row.gradient_norm for row in forget] == [30.0, 31.0]
    assert [row.min_k for row in found.records["privleak_forget"]] == [20.0, 21.0]


PROVENANCE = {
    "template": {"key": "a", "template": "chat", "max_length": 512},
    "conventions": {"last_label": "kept"},
    "sets": {"forget": {"rows": 2}},
}


def test_what_records_were_made_with_is_kept_beside_them(tmp_path):
    assert load_provenance(tmp_path) == {}
    save_records(tmp_path, SETS)
    save_provenance(tmp_path, PROVENANCE)
    results = load_retain_results(tmp_path, "data.target_results")
    assert results.provenance == PROVENANCE
    assert set(load_records(tmp_path)) == set(SETS)
    results.check_made_like(PROVENANCE)
    with pytest.raises(InputError, match=r"^data\.target_results: .* 2 rows of .forget., this"):
        results.require("forget", 3)
    save_records(tmp_path, {"forget": SETS["forget"][:1]})
    with pytest.raises(InputError, match="holds 1 of the 2 rows of 'forget' that were written"):
        load_retain_results(tmp_path).require("forget", 1)
    (tmp_path / "records" / "provenance.json").write_text('{"template": ')
    with pytest.raises(InputError, match=r"provenance\.json is not JSON"):
        load_retain_results(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"template": {"key": "b", "template": "chat", "max_length": 64}}, "data.max_length 512"),
        ({"template": {"key": "b", "template": "chat", "max_length": 512}}, "another tokenizer"),
        ({"conventions": {"last_label": "left_out"}}, "conventions.last_label 'kept'"),
    ],
)
def test_records_made_in_another_way_are_refused(change, said):
    results = RetainResults("folder", {}, PROVENANCE)
    with pytest.raises(InputError, match=f"^data.retain_results: folder was made with {said}"):
        results.check_made_like({**PROVENANCE, **change})
    RetainResults("of unknown origin", {}).check_made_like({**PROVENANCE, **change})


def test_a_summary_is_no_log_and_the_message_names_the_log(tmp_path):
    path = tmp_path / "TOFU_SUMMARY.json"
    path.write_text('{"forget_Q_A_Prob": 0.5, "model_utility": 1}')
    with pytest.raises(InputError, match=r"holds averages only; give TOFU_EVAL\.json"):
        load_retain_results(path)


def test_results_of_more_rows_say_that_the_run_may_score_all_of_them():
    results = RetainResults("there", {"forget": [Record("forget", "forget/0", "a")] * 2})
    with pytest.raises(InputError, match=r"or leave out data\.rows"):
        results.require("forget", 1)


def test_settings_that_differ_are_named_and_unknown_ones_pass():
    then = {"dtype": "float32", "precision": None, "max_new_tokens": 3}
    now = {"dtype": "float32", "precision": "32-true", "max_new_tokens": 4, "stop_strings": []}
    assert differing(then, now) == "max_new_tokens 3, this run has 4"
    assert differing(then, {"dtype": "bfloat16", "max_new_tokens": 4}) == (
        "dtype 'float32', this run has 'bfloat16', max_new_tokens 3, this run has 4"
    )
    assert differing(then, then) == differing({}, now) == ""


MADE = {
    "dtype": "float32",
    "precision": "32-true",
    "git_commit": "abc",
    "other": 1,
    "sets": {
        "forget": {
            "parts": ["answers", "generation"],
            "made": {"generation": {"dtype": "bfloat16", "max_new_tokens": 3}},
        },
        "retain": {"rows": 2},
    },
}


def test_each_part_says_what_it_was_made_with():
    alike = {"dtype": "float32", "precision": "32-true", "git_commit": "abc"}
    assert made_of(MADE, "forget") == {
        "answers": alike,
        "generation": {"dtype": "bfloat16", "max_new_tokens": 3},
    }
    assert made_of(MADE, "retain") == made_of(MADE, "holdout") == made_of({}, "forget") == {}
    results = RetainResults("there", {}, MADE)
    said = results.made_another_way("forget", "generation", {"dtype": "float32"})
    assert said == "dtype 'bfloat16', this run has 'float32'"
    assert results.made_another_way("forget", "answers", {"dtype": "float32"}) == ""
    assert results.made_another_way("forget", "gradient_norm", {"dtype": "bfloat16"}) == ""


def test_what_nothing_says_is_unknown():
    said = {"forget": [Record("forget", "f/0", "a", generation="g")], "none": []}
    whole = {**MADE, "template": {}, "conventions": {}}
    assert RetainResults("there", {}).unknown() == [
        "template", "conventions", "dtype", "precision"
    ]  # fmt: skip
    assert RetainResults("there", {}, whole).unknown() == []
    assert RetainResults("there", said, whole).unknown() == ["stop_strings"]
    assert RetainResults("there", {"none": []}, whole).unknown() == []


def test_a_log_may_hold_averages_beside_its_rows(tmp_path):
    path = tmp_path / "TOFU_EVAL.json"
    path.write_text(json.dumps({"model_utility": 0.6, "forget_quality": 1, **TOFU_LOG}))
    assert sorted(load_retain_results(path).records) == ["forget", "real_authors"]
