"""What is printed of the words that runs push down, against means worked out by hand."""

import json

import pytest

from etw_lightning.schema import Record
from etw_lightning.scoring.retain_results import save_records

QUESTION = "Who wrote Quillmere?"
ANSWER = "Basil wrote Quillmere there."
# The tokens Bas|il| wrote| Quill|mere| there|.|end: their words, and what is marked of them.
SPANS = ((0, 3), (3, 5), (5, 11), (11, 17), (17, 21), (21, 27), (27, 28), (28, 28))
MARKED = [[0, 5], [12, 21]]
LOGPS = {
    "before": (0.0, 0.0, -1.0, -1.0, 0.0, -2.0, 0.0, -0.5),
    "run": (-6.0, -2.0, -3.0, -9.0, -7.0, -4.0, -1.0, -0.25),
    "retain": (-5.0, -4.0, -1.0, -2.0, -1.0, -2.0, -2.0, -0.75),
}


@pytest.fixture(scope="module")
def words_lost(program):
    return program("words_lost")


@pytest.fixture
def files(tmp_path):
    for name, logps in LOGPS.items():
        folder = tmp_path / "run" / "before" if name == "before" else tmp_path / name
        record = Record(
            "forget", "a", ANSWER, QUESTION, token_logps=logps, token_spans=SPANS, answer_loss=1.0
        )
        save_records(folder, {"forget": [record]})
    results = {"retain_results": str(tmp_path / "retain"), "metrics": {}}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    (tmp_path / "marks.jsonl").write_text(json.dumps({"answer": ANSWER, "spans": MARKED}))
    return tmp_path


def test_the_table(words_lost, files, capsys):
    words_lost.main(["--runs", str(files / "run"), "--annotations", str(files / "marks.jsonl")])
    head, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    ]
    found = {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in lines}
    # "Quillmere" is marked and asked for, "Basil" marked alone, "wrote" asked for alone.
    assert found["tokens"] == {
        "marked, in the question": "2",
        "marked, not in it": "2",
        "unmarked, in the question": "1",
        "unmarked, not in it": "2",
        "end": "1",
        "distance, marked": "4",
        "distance, others": "4",
    }
    assert list(found["run"].values()) == [
        "-8.00",
        "-4.00",
        "-3.00",
        "-2.50",
        "-0.25",
        "4.00",
        "1.38",
    ]
    assert list(found["before"].values())[:5] == ["-0.50", "0.00", "-1.00", "-1.00", "-0.50"]
    assert list(found["retain model"].values())[5:] == ["0.00", "0.00"]


def test_truth_ratios_with_and_without_their_constant(words_lost, files, capsys):
    # By losses: w / p is 1 in every row of both, but p of the run's second row is e^-30 < 1e-10,
    # so that w / (p + 1e-10) is 9e-4 there and D 1/2.
    losses = {"before": (2.0, 3.0), "run": (2.0, 30.0), "retain": (4.0, 5.0)}
    for name, of_rows in losses.items():
        folder = files / "run" / "before" if name == "before" else files / name
        rows = [
            Record(
                "forget", f"f/{place}", ANSWER, QUESTION, token_logps=LOGPS[name],
                token_spans=SPANS, paraphrase_loss=loss, perturbed_losses=(loss, loss),
            )
            for place, loss in enumerate(of_rows)
        ]  # fmt: skip
        save_records(folder, {"forget": rows})
    marks = json.dumps({"answer": ANSWER, "spans": MARKED})
    (files / "marks.jsonl").write_text(f"{marks}\n{marks}")
    words_lost.main(["--runs", str(files / "run"), "--annotations", str(files / "marks.jsonl")])
    lines = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert lines[3] == "| run | 1 | 1 | 0 |"
    assert lines[4] == "| retain model | 0 | 0 | 0 |"


def test_rows_that_one_run_lacks(words_lost, files):
    record = Record("forget", "b", ANSWER, QUESTION, token_logps=LOGPS["run"], token_spans=SPANS)
    save_records(files / "retain", {"forget": [record]})
    with pytest.raises(SystemExit, match="1 forget rows are not in all records, a first"):
        words_lost.main(["--runs", str(files / "run"), "--annotations", str(files / "marks.jsonl")])
