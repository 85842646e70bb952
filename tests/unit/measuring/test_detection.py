"""What is printed of the words that weights find, against pairs counted from bare logits."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = (
    ("Who is Basil?", "Basil Al-Kuwaiti is a writer of Quillmere.", [[0, 16], [32, 41]]),
    ("Where is the mill?", "The old mill stands by a river.", [[4, 12]]),
)


@pytest.fixture(scope="module")
def detection(program):
    return program("detection")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "tofu").mkdir()
    rows = [json.dumps({"question": asked, "answer": said}) for asked, said, _ in ROWS]
    (tmp_path / "tofu" / "forget10.jsonl").write_text("\n".join([*rows, rows[0]]))
    marks = [json.dumps({"answer": said, "spans": spans}) for _, said, spans in ROWS]
    (tmp_path / "marks.jsonl").write_text("\n".join(marks))
    return tmp_path


def tokens_of(folder):
    """Entropy, probability, word and mark of each answer token, row by row."""
    lm, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    found = []
    for asked, said, spans in ROWS:
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        first = text.index(said)
        coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        with torch.no_grad():
            logps = lm(torch.tensor([coded["input_ids"]])).logits[0].double().log_softmax(-1)
        words = [found.span() for found in re.finditer(r"[\w-]+", said)]
        row = []
        for place, (token, (left, right)) in enumerate(
            zip(coded["input_ids"], coded["offset_mapping"], strict=True)
        ):
            if right <= first:
                continue
            left, right = left - first, min(right - first, len(said))
            own = [i for i, (a, b) in enumerate(words) if left < b and right > a]
            at = logps[place - 1]
            row.append(
                {
                    "entropy": -(at.exp() * at).sum().item(),
                    "p": at[token].exp().item(),
                    "word": own[0] if own else -1 - place,
                    "mark": any(left < b and right > a for a, b in spans) if left < right else None,
                }
            )
        found.append(row)
    return found


def area(pairs):
    good = [one for one, mark in pairs if mark]
    others = [one for one, mark in pairs if mark is False]
    wins = sum((a > b) + (a == b) / 2 for a in good for b in others)
    return wins / (len(good) * len(others))


def test_the_table_is_that_of_the_formulas(detection, root, tiny_model_dir, capsys):
    files = ["--root", str(root), "--annotations", str(root / "marks.jsonl")]
    detection.main(["--model", str(tiny_model_dir), "--rows", "2", "--no_system_prompt", *files])
    out = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()]
    cells = {line[0]: line[1:] for line in lines if len(line) == 4}
    assert cells.pop("weights") == ["marks", "Gini", "largest"]
    rows = tokens_of(tiny_model_dir)
    tokens = [token for row in rows for token in row]
    weights = {"Imp": [1 - one["p"] for one in tokens], "WGA": [one["p"] for one in tokens]}
    weights["ETW"] = [
        len(row) * one["entropy"] / sum(token["entropy"] for token in row)
        for row in rows for one in row
    ]  # fmt: skip
    by_word = []
    for row in rows:
        sums = [sum(b["entropy"] for b in row if b["word"] == a["word"]) for a in row]
        by_word += [len(row) * one / sum(sums) for one in sums]
    weights["ETW by word, sum"] = by_word
    for name, values in weights.items():
        pairs = [(value, one["mark"]) for value, one in zip(values, tokens, strict=True)]
        assert float(cells[name][0]) == pytest.approx(area(pairs), abs=6e-4), name
        assert float(cells[name][2]) == pytest.approx(max(values), abs=6e-3), name
    assert f"2 rows, {len(tokens)} tokens" in out
    assert not any("untouched" in name for name in cells)


def test_the_untouched_model_weighs_by_its_own_entropies(detection, root, tiny_model_dir, capsys):
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        lm.lm_head.weight *= torch.linspace(1.0, 3.0, len(lm.lm_head.weight))[:, None]
    lm.save_pretrained(root / "learnt")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(root / "learnt")
    files = ["--root", str(root), "--annotations", str(root / "marks.jsonl"), "--rows", "2"]
    files.append("--no_system_prompt")
    models = ["--model", str(root / "learnt"), "--untouched", str(tiny_model_dir)]
    detection.main([*models, *files])
    other = capsys.readouterr().out.splitlines()
    detection.main(["--model", str(tiny_model_dir), *files])
    own = capsys.readouterr().out.splitlines()
    line = next(one for one in own if one.startswith("| ETW |"))
    assert line.replace("ETW", "ETW, untouched model's") in other
    assert line not in other
