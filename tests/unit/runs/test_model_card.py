"""The card of a model says what the run was, and nothing in it is markup that was not meant."""

import struct

import pytest
from huggingface_hub import ModelCard

from etw_lightning.runs.model_card import (
    Base,
    card_text,
    find_licence,
    rows_fingerprint,
    write_card,
)
from etw_lightning.schema import EncodedRow

RESULTS = {
    "metrics": {
        "retain_distinct_1": {"value": 0.5, "direction": "up", "n": 7, "interval": None},
        "forget_quality": {"value": 0.40459, "direction": "up", "n": 40, "interval": None},
        "privleak": {"value": -12.0, "direction": "zero", "n": 80, "interval": [-20.0, 1.5]},
    },
    "steps": 35,
    "seed": 3,
    "versions": {"etw-lightning": "0.1.0", "torch": "2.13.0"},
    "git_commit": "abc123",
    "config_hash": "ba1aa12e6c3d",
    "retain_results": "somewhere",
    "provenance": {"sets": {"forget": {"rows": 40, "hash": "2eb3"}}},
}
CONFIG = {
    "model": {
        "pretrained": "org/base",
        "forget": {"class_path": "etw_lightning.forget.GA"},
        "weighting": {"class_path": "W", "init_args": {"temperature": 1.5}},
        "forget_weight": 0.1,
        "peft": None,
    },
    "data": {"benchmark": "tofu", "forget_split": "forget10", "batch_size": 8},
    "trainer": {"max_epochs": 7},
}
MARKS = {"forget": (400, "f" * 24)}


def lines_of(text, begin):
    return [line for line in text.splitlines() if line.startswith(begin)]


def test_numbers_stand_with_direction_n_and_interval_the_most_telling_first():
    text = card_text(RESULTS, CONFIG, Base("org/base"), MARKS)
    assert lines_of(text, "| forget") == ["| forget\\_quality | 0.4046 |  | higher | 40 |"]
    assert lines_of(text, "| priv") == ["| privleak | -12 | -20 to 1.5 | nearest to 0 | 80 |"]
    assert text.index("| privleak") < text.index("<details>") < text.index("| retain\\_distinct")


def test_method_data_base_and_versions_are_named():
    text = card_text(RESULTS, CONFIG, Base("org/base", "hash7", "mit"), MARKS)
    assert "From org\\/base (licence mit, weights hash7)" in text
    assert "        temperature: 1.5" in text
    assert "peft" not in text
    assert f"| trained on: forget | forget10 | 400 | {'f' * 24} |" in text
    assert "| scored: forget | | 40 | 2eb3 |" in text
    assert "torch 2\\.13\\.0" in text
    assert "commit abc123" in text
    assert "not a guarantee" in text


def test_an_unknown_licence_is_said_to_be_unknown():
    assert "its licence is not known here" in card_text(RESULTS, CONFIG, Base("x"), MARKS)


def test_fine_tuning_is_not_called_unlearning(tmp_path):
    config = {**CONFIG, "model": {**CONFIG["model"], "forget": None}}
    card = ModelCard.load(write_card(tmp_path, RESULTS, config, Base("org/base"), MARKS))
    assert card.text.strip().startswith("# A model that was fine-tuned")
    assert card.data.tags == ["etw_lightning", "fine-tuning"]


def test_the_head_names_a_base_on_the_hub_only(tmp_path):
    on_hub = ModelCard.load(
        write_card(tmp_path, RESULTS, CONFIG, Base("org/base", None, "mit"), {})
    )
    assert (on_hub.data.base_model, on_hub.data.license) == ("org/base", "mit")
    for name in ("quickstart:target", "/some/where/model", "model.gguf"):
        card = ModelCard.load(write_card(tmp_path, RESULTS, CONFIG, Base(name), {}))
        assert card.data.base_model is None


HOSTILE = "a|b\n\n# Free <img src=x onerror=y> ![p](http://z) `c` **d** ```\n---\nlicense: mit\n---"


def test_names_are_never_markup(tmp_path):
    from markdown_it import MarkdownIt

    data = {**CONFIG["data"], "benchmark": HOSTILE, "forget_split": HOSTILE, "root": HOSTILE}
    config = {**CONFIG, "data": data, "model": {**CONFIG["model"], "optimizer": HOSTILE}}
    results = {**RESULTS, "metrics": {HOSTILE: RESULTS["metrics"]["privleak"]}}
    path = write_card(tmp_path, results, config, Base(HOSTILE, HOSTILE, HOSTILE), MARKS)
    card = ModelCard.load(path)
    assert card.data.license == HOSTILE
    parser = MarkdownIt("commonmark").enable("table")
    tame = card_text(RESULTS, CONFIG, Base("x"), MARKS)
    kinds = [
        [token.type for block in parser.parse(text) for token in (block, *(block.children or ()))]
        for text in (card.text, tame)
    ]
    for kind in ("html_inline", "image", "link_open", "code_inline", "strong_open", "hr"):
        assert kinds[0].count(kind) == kinds[1].count(kind)
    assert kinds[0].count("heading_open") == kinds[1].count("heading_open")
    assert kinds[0].count("code_block") == 1


def test_the_fingerprint_is_of_tokens_and_labels():
    row = EncodedRow("a", (1, 2, 3), (-100, 2, 3))
    marks = {
        rows_fingerprint(rows)
        for rows in (
            [row],
            [row, row],
            [EncodedRow("a", (1, 2, 4), (-100, 2, 3))],
            [EncodedRow("a", (1, 2, 3), (-100, -100, 3))],
        )
    }
    assert len(marks) == 4
    assert rows_fingerprint([EncodedRow("other id", (1, 2, 3), (-100, 2, 3))]) in marks


def test_a_licence_is_read_off_the_base_s_own_card(tmp_path):
    assert find_licence(str(tmp_path)) is None
    for head, licence in (
        ("---\nlicense: apache-2.0\n---\n# Hi", "apache-2.0"),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\n: : {\n---\n", None),
        ("license: mit", None),
    ):
        (tmp_path / "README.md").write_text(head)
        assert find_licence(str(tmp_path)) == licence


def test_a_licence_is_read_off_a_gguf_file(tmp_path):
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    entries = [("general.architecture", "llama"), ("general.license", "apache-2.0")]
    body = b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in entries)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + body + bytes(64))
    assert find_licence(str(path)) == "apache-2.0"


@pytest.mark.parametrize("name", ["org/none-such", "quickstart:target"])
def test_no_licence_is_looked_for_on_the_network(monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_licence(name) is None
