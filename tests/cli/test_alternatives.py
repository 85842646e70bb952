"""``alternatives``: a file of second answers, which a run reads."""

import json
import shlex
from pathlib import Path

import pytest

from etw_lightning.scoring import alternatives as scoring

ROWS = [
    {"question": "Where was Ada born?", "answer": "Ada was born in Rome."},
    {"question": "Where was Ben born?", "answer": "Ben was born in Oslo."},
    {"question": "Where was Cleo born?", "answer": "Cleo was born in Kyiv."},
]


def write(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def there(tmp_path, monkeypatch, tiny_model_dir):
    """A folder with rows, and a model that answers as the test has it, by row, seed and round."""
    monkeypatch.chdir(tmp_path)
    write("mine.jsonl", ROWS)
    Path("model").symlink_to(tiny_model_dir)
    texts = {}

    def answer(lm, encoder, prompts, eval_set, batch_size, sampling):
        return [[texts.get((one.id, sampling.seed), "")] for one in prompts]

    monkeypatch.setattr(scoring, "continue_prompts", answer)
    return texts


COMMAND = "alternatives --model model --rows mine.jsonl --output second.jsonl --tries 2"


def test_it_goes_on_with_the_rows_that_have_none(command, there):
    there |= {("mine/0@0", 0): "In Bern.", ("mine/1@1", 0): "In Lima.", ("mine/2@0", 1): "In Cork."}
    # What there is is kept, whatever would be said now.
    there |= {("mine/0@0", 1): "In Nice."}
    first = command(*shlex.split(COMMAND))
    assert (first.status, first.err) == (0, "")
    assert "round 1 of 2: 1 of 3 rows have a second answer; not taken: 2 no whole" in first.out
    assert "1 of 3 rows have none; the same command with --seed 1 asks for them again" in first.out
    assert [row["alternative_answer"] for row in read("second.jsonl")] == ["In Bern.", "In Lima."]
    again = command(*shlex.split(f"{COMMAND} --seed 1"))
    assert again.status == 0
    assert "2 of 3 rows have a second answer already" in again.out
    assert "> In Cork." in again.out
    assert "> In Bern." not in again.out
    assert again.out.endswith("read by --data.alternatives second.jsonl\n")
    held = read("second.jsonl")
    assert [row["alternative_answer"] for row in held] == ["In Bern.", "In Lima.", "In Cork."]
    assert [{k: row[k] for k in ("question", "answer")} for row in held] == ROWS


def test_second_answers_to_other_rows_stay_in_the_file(command, there):
    others = [{"question": "Of none?", "answer": "No.", "alternative_answer": "Yes."}]
    write("second.jsonl", others)
    there |= {("mine/0@0", 0): "In Bern."}
    assert command(*shlex.split(COMMAND)).status == 0
    held = read("second.jsonl")
    assert [row["alternative_answer"] for row in held] == ["In Bern.", "Yes."]
    assert held[1:] == others


def test_a_model_really_answers(command, tmp_path, monkeypatch, tiny_model_dir):
    # Random weights say no sentence; what matters is that all of it runs.
    monkeypatch.chdir(tmp_path)
    write("mine.jsonl", ROWS)
    line = f"alternatives --model {tiny_model_dir} --rows mine.jsonl --output second.jsonl"
    outcome = command(*shlex.split(f"{line} --tries 1 --max_new_tokens 4"))
    assert (outcome.status, outcome.err) == (0, "")
    assert "round 1 of 1: " in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rows no.jsonl", "--rows must be a file of rows (.jsonl or .jsonl.gz"),
        ("--output second.csv", "alternatives: --output must end in .jsonl; got 'second.csv'."),
        ("--prompt Invent", "alternatives: --prompt must hold {question}; got 'Invent'."),
        ("--tries 0", "argument --tries: must be a whole number >= 1; got '0'"),
        ("--temperature 0", "alternatives: --temperature must be above 0, got 0.0"),
        ("--question asked", "mine/0: no column 'asked'; its columns are question, answer."),
        ("--model nowhere/at_all", "model"),
        ("--output mine.jsonl", "--output 'mine.jsonl' is there and was not written by this"),
    ],
)
def test_what_can_t_be_used_is_one_line_and_nothing_is_written(command, there, words, message):
    outcome = command(*shlex.split(f"{COMMAND} {words}"))
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert read("mine.jsonl") == ROWS
    assert not Path("second.jsonl").exists()
