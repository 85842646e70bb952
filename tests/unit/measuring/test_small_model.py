"""The start of the small TOFU models: what its tokenizer is learnt from, and what is printed."""

import gzip
import hashlib
import json

import pytest
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def small_model(program):
    return program("small_model")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data" / "tofu"
    folder.mkdir(parents=True)
    rows = {
        "full": [("Who is Basil?", "Basil is Basil.")],
        "real_authors": [("Who wrote Emma?", "Austen")],
        "world_facts": [("Where is Rome?", "Italy")],
        "forget10": [("Zzyzx?", "Zzyzx")],
    }
    for name, pairs in rows.items():
        lines = [json.dumps({"question": q, "answer": a}) for q, a in pairs]
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(lines))
    return folder.parent


def test_the_texts_are_what_the_models_will_be_taught(small_model, root):
    texts = list(small_model.texts_of(root))
    assert texts == [
        "Who is Basil?", "Basil is Basil.", "Who wrote Emma?", "Austen", "Where is Rome?", "Italy",
    ]  # fmt: skip


def test_it_says_what_it_made(small_model, root, tmp_path, capsys):
    folders = [tmp_path / name for name in ("one", "same", "other")]
    lines = []
    for folder, seed in zip(folders, ("0", "0", "1"), strict=True):
        small_model.main(["--root", str(root), "--output", str(folder), "--seed", seed])
        lines.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert lines[0] == lines[1]
    assert lines[0]["weights"] != lines[2]["weights"]
    assert lines[0]["tokenizer"] == lines[2]["tokenizer"]
    saved = (folders[0] / "model.safetensors").read_bytes()
    assert lines[0]["weights"] == hashlib.sha256(saved).hexdigest()
    shape, vocab = small_model.SHAPE, len(AutoTokenizer.from_pretrained(folders[0]))
    layer = 4 * 256**2 + 3 * 256 * 768 + 2 * 256
    assert lines[0]["num_weights"] == shape.num_layers * layer + 256 + vocab * 256
