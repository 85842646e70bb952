"""Words marked by entropy, by chance and by least entropy, against counts from bare logits."""

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ANSWERS = ("Basil Al-Kuwaiti is a writer of Quillmere.", "The old mill stands by a river.")
#: Four words of the first answer (two of them joined by a hyphen), one of the second.
LIKE = ([[0, 16], [32, 41]], [[4, 7]])
QUESTION = "Who?"


@pytest.fixture(scope="module")
def marks(program):
    return program("marks")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "tofu").mkdir()
    rows = [json.dumps({"question": QUESTION, "answer": said}) for said in ANSWERS]
    (tmp_path / "tofu" / "forget10.jsonl").write_text("\n".join(rows))
    like = [
        json.dumps({"answer": said, "spans": spans})
        for said, spans in zip(ANSWERS, LIKE, strict=True)
    ]
    (tmp_path / "like.jsonl").write_text("\n".join(like))
    return tmp_path


def word_entropies(folder, said, words):
    """Sum of the entropies of the tokens that share a character with each word."""
    lm, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": said}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    with torch.no_grad():
        logps = lm(torch.tensor([coded["input_ids"]])).logits[0].double().log_softmax(-1)
    entropies = -(logps.exp() * logps).sum(-1)
    found, first = [], text.index(said)
    for word in words:
        left = first + said.index(word)
        right = left + len(word)
        found.append(
            sum(
                entropies[place - 1].item()
                for place, (start, end) in enumerate(coded["offset_mapping"])
                if start < right and end > left
            )
        )
    return dict(zip(words, found, strict=True))


def test_as_many_words_as_another_marking_by_each_way(marks, root, tiny_model_dir, capsys):
    arguments = ["--model", str(tiny_model_dir), "--root", str(root), "--out", str(root / "out")]
    arguments.append("--no_system_prompt")
    assert marks.main([*arguments, "--like", str(root / "like.jsonl")]) == 0
    printed = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    found = {
        way: [json.loads(line) for line in (root / "out" / f"{way}.jsonl").open()]
        for way in ("entropy", "random", "least")
    }
    for rows in found.values():
        assert [row["answer"] for row in rows] == list(ANSWERS)
        assert [len(row["spans"]) for row in rows] == [4, 1]
    own = ["The", "old", "mill", "stands", "by", "a", "river"]
    entropies = word_entropies(tiny_model_dir, ANSWERS[1], own)
    ((left, right),) = found["entropy"][1]["spans"]
    assert ANSWERS[1][left:right] == max(entropies, key=entropies.get)
    ((left, right),) = found["least"][1]["spans"]
    assert ANSWERS[1][left:right] == min(entropies, key=entropies.get)
    assert set(printed) == set(found)
    assert all(line.endswith(" of 5 words") for line in printed.values())


def test_words_without_their_spaces_and_signs(marks):
    words = marks.words_of(
        "Ann lives.", [(0, 1), (1, 3), (3, 9), (9, 10), (10, 10)], [0, 0, 1, 2, 3], [5.0] * 5
    )
    assert [(word.start, word.end) for word in words] == [(0, 3), (4, 9)]


def test_most_least_and_drawn(marks):
    words = [marks.Word(place, place + 1, entropy) for place, entropy in enumerate((1, 3, 2, 3))]
    chosen = marks.choose(words, 2, random.Random(0))
    assert [word.start for word in chosen["entropy"]] == [1, 3]
    assert [word.start for word in chosen["least"]] == [2, 0]
    assert len(set(chosen["random"])) == 2
    drawn = {
        word.start
        for seed in range(20)
        for word in marks.choose(words, 2, random.Random(seed))["random"]
    }
    assert drawn == {0, 1, 2, 3}
