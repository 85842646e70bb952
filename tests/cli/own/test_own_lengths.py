"""Own rows that are longer than what is trained on or scored, or that repeat others."""

import json

import numpy as np
import pytest
from by_hand import ByHand


@pytest.fixture
def long(own, home, rows, write_rows):
    """Own rows of which the second to forget has an answer of 4,000 words."""
    answer = " ".join(f"word{n}" for n in range(4000))
    asked = rows["forget"][:3]
    mine = [{key: row[key] for key in ("question", "answer")} for row in asked]
    mine[1]["answer"] = answer
    write_rows(home / "forget.jsonl", mine)
    return [*own, "--data.max_length=128", "--trainer.callbacks=[]"]


def test_labels_that_are_lost_are_told_and_refused_if_wanted(command, long, home, tiny_model_dir):
    folder = home / "out"
    with pytest.warns(UserWarning, match="lose") as told:
        result = command("fit", *long, f"--output_dir={folder}")
    assert result.status == 0, result.err
    rows = [json.loads(line) for line in (home / "forget.jsonl").read_text().splitlines()]
    by_hand = ByHand(tiny_model_dir)
    lengths, starts = [], []
    for row in rows:
        turns = [{"role": "user", "content": row["question"]}]
        prompt = by_hand.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        text = prompt + row["answer"] + by_hand.tokenizer.eos_token
        starts.append(len(by_hand.tokenizer(prompt, add_special_tokens=False)["input_ids"]))
        lengths.append(len(by_hand.tokenizer(text, add_special_tokens=False)["input_ids"]))
    lost = [max(length - 128, 0) for length in lengths]
    labels = sum(lengths) - sum(starts)
    found = json.loads((folder / "results.json").read_text())["lost_labels"]["forget"]
    assert found == {
        "labels": sum(lost),
        "share": pytest.approx(sum(lost) / labels),
        "rows": sum(one > 0 for one in lost),
        "of_rows": 3,
        "first": [f"forget/{n}" for n, one in enumerate(lost) if one],
    }
    assert lost[1] > 4000
    said = next(str(one.message) for one in told if "forget rows lose" in str(one.message))
    assert said.startswith(f"{found['rows']} of 3 forget rows lose {found['labels']} labels (")
    assert "forget/1" in said

    result = command("fit", *long, "--data.truncation=error", f"--output_dir={home / 'no'}")
    assert result.status == 2
    assert "data.max_length = 128, and data.truncation is 'error'" in result.err
    assert result.err.count("\n") == 1


def test_forget_rows_that_repeat_others_are_told(command, own, home, rows, write_rows):
    write_rows(home / "forget.jsonl", [rows["forget"][n] for n in (0, 1, 0, 2, 1)])
    with pytest.warns(UserWarning, match="say the same") as told:
        result = command("check", *own)
    assert result.status == 0, result.err
    (said,) = {str(one.message) for one in told if "say the same" in str(one.message)}
    assert said.startswith(
        "2 rows of data.forget_split say the same as an earlier one: forget/2 as forget/0, "
        "forget/4 as forget/1."
    )


def test_evaluation_has_a_length_of_its_own(command, run, own, home, rows, tiny_model_dir):
    """A short training length leaves no answer of these prompts; scoring need not share it."""
    by_hand = ByHand(tiny_model_dir)
    turns = [{"role": "user", "content": rows["forget"][0]["question"]}]
    prompt = by_hand.tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )
    length = len(by_hand.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    words = ("evaluate", *own, "--metrics=probability", f"--data.max_length={length}")
    wanted = np.mean(np.exp(-np.array(by_hand.losses(rows["forget"]))))
    with pytest.warns(UserWarning, match=f"prompts of up to .* data.max_length = {length} leaves"):
        found = [run(*words), run(*words, "--data.eval_max_length=400", into="given")]
    used = []
    for _, results, _ in found:
        assert results["metrics"]["forget_probability"]["value"] == pytest.approx(wanted, rel=1e-4)
        assert "lost_labels" not in results
        used.append(results["provenance"]["template"]["max_length"])
    assert used[0] in (length * 2**n for n in range(1, 5))
    assert used[1] == 400
    result = command(*words, f"--data.eval_max_length={length}", f"--output_dir={home / 'no'}")
    assert f"no answer token left within data.eval_max_length = {length}" in result.err


def test_training_keeps_its_length_beside(run, own, rows):
    words = ["--trainer.callbacks=[]", "--data.max_length=60", "--data.eval_max_length=400"]
    with pytest.warns(UserWarning, match="lose"):
        _, results, records = run("fit", *own, *words)
    assert results["lost_labels"]["forget"]["rows"] > 0
    assert all(record.scored_text is None for record in records["forget"])
