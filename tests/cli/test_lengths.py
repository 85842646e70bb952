"""Lengths on the command line: scored rows have one of their own, and what is cut is told."""

import json

import pytest
from transformers import AutoTokenizer


@pytest.fixture
def results_of(command, home):
    """Run a command to its end and return its results."""

    def call(name, *args):
        folder = home / "out"
        result = command(name, *args, f"--output_dir={folder}", "--overwrite")
        assert result.status == 0, result.err
        return json.loads((folder / "results.json").read_text())

    return call


def test_muse_trains_at_a_length_that_its_prompts_do_not_have(results_of, muse_args):
    words = [*muse_args, "--trainer.max_epochs=1"]
    with pytest.warns(UserWarning, match="prompts of up to .* leaves no answer: they are scored"):
        found = results_of(*words, "--data.max_length=20")
    assert {"verbmem", "knowmem_forget", "knowmem_retain"} <= set(found["metrics"])
    length = found["provenance"]["template"]["max_length"]
    assert length in (40, 80, 160, 320)
    # The same numbers of the model before training as where the length is given.
    given = results_of(*words, "--data.max_length=20", f"--data.eval_max_length={length}")
    assert given["history"] == found["history"]
    assert "lost_labels_scored" not in found or "knowmem_forget" not in found["lost_labels_scored"]


def test_evaluate_tells_what_answers_lose(results_of, own_args, home, corpus, write_rows):
    rows = [dict(row) for row in corpus["forget"][:4]]
    rows[2]["answer"] = " ".join(f"word{number}" for number in range(900))
    write_rows(home / "forget.jsonl", rows)
    write_rows(home / "retain.jsonl", corpus["retain"][:4])
    words = [*own_args, "--metrics=probability", "--data.max_length=128"]
    with pytest.warns(UserWarning, match="are cut by") as told:
        found = results_of("evaluate", *words)
    model = next(word for word in own_args if "model.pretrained" in str(word)).partition("=")[2]
    tokenizer = AutoTokenizer.from_pretrained(model)
    lengths, labels = [], 0
    for row in rows:
        turns = [{"role": "user", "content": row["question"]}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        sizes = [
            len(tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in (prompt, prompt + row["answer"] + tokenizer.eos_token)
        ]
        lengths.append(sizes[1])
        labels += sizes[1] - sizes[0]
    lost = [max(length - 128, 0) for length in lengths]
    assert lost[2] > 1000
    assert found["lost_labels"] == {
        "forget": {
            "labels": sum(lost),
            "share": pytest.approx(sum(lost) / labels),
            "rows": sum(one > 0 for one in lost),
            "of_rows": 4,
            "first": [f"forget/{n}" for n, one in enumerate(lost) if one],
        }
    }
    said = {str(one.message) for one in told}
    (line,) = [one for one in said if "are cut by" in one]
    assert f"{sum(lost)} labels (" in line
    # Also where all scores are known already, and nothing is laid out.
    assert results_of("evaluate", *words)["lost_labels"] == found["lost_labels"]


def test_repeated_forget_rows_stand_in_the_results(results_of, own_args, home, corpus, write_rows):
    write_rows(home / "forget.jsonl", [corpus["forget"][n] for n in (0, 1, 0, 2, 1)])
    write_rows(home / "retain.jsonl", corpus["retain"][:4])
    with pytest.warns(UserWarning, match="say the same"):
        found = results_of("fit", *own_args, "--trainer.callbacks=[]", "--trainer.max_epochs=1")
    assert found["repeated_forget_rows"] == {
        "rows": 2,
        "of_rows": 5,
        "first": ["forget/2 as forget/0", "forget/4 as forget/1"],
    }
    write_rows(home / "forget.jsonl", corpus["forget"][:4])
    found = results_of("fit", *own_args, "--trainer.callbacks=[]", "--trainer.max_epochs=1")
    assert "repeated_forget_rows" not in found
