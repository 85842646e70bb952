"""Every causal architecture of transformers: right, or refused for a true reason."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import study as studies
from sweep import JOBS, make_tokenizer, page

#: A family or two of each kind: plain, tied, learned positions, ALiBi, windows and soft caps,
#: scales, a cut vocabulary, a composite prefix, experts, a state space, a state without padding, a
#: decoder that counts places, dropout, a vision tower with as many layers, a cache that forgets.
RIGHT = (
    "llama",
    "gpt2",
    "bloom",
    "gemma2",
    "cohere",
    "inkling_text/unpadded",
    "falcon_h1/scaled",
    "llama4_text",
    "qwen3_moe",
    "mamba",
    "rwkv",
    "bart",
    "gpt2/dropout",
    "longcat_flash",
    "git",
    "openai-gpt",
    "moshi",
    "gemma3n_text",
)
#: A dozen kinds that are tried by default.
TRIED = (
    "llama",
    "gpt2",
    "gemma2",
    "llama4_text",
    "cohere",
    "qwen3_moe",
    "mamba",
    "bart",
    "gpt2/dropout",
    "git",
    "openai-gpt",
    "inkling_text/unpadded",
)
REFUSED = {
    "bert": "transforms its hidden states before the output head",
    "bert-generation/both_ways": "looks ahead",
    "xlnet": "looks ahead",
    "llama/dynamic": "Set data.max_length to at most 63",
}
#: Features that are refused in one line of models that are right.
WITHOUT = {"openai-gpt": {"gradient, recomputed"}, "gemma3n_text": {"states"}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def study(tokenizer, tmp_path):
    return lambda name: studies.study(*JOBS[name], tokenizer, tmp_path)


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one in TRIED else pytest.mark.slow) for one in RIGHT]
)
def test_it_is_right(study, name):
    found = study(name)
    assert found["verdict"] == "right", found
    assert set(found.get("problems", ())) == WITHOUT.get(name, set())


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_for_that(study, name):
    found = study(name)
    assert found["verdict"] == "refused", found
    assert REFUSED[name] in found["why"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(JOBS) - {*RIGHT, *REFUSED}))
def test_none_is_wrong_or_ends_in_a_traceback(study, name):
    found = study(name)
    assert found["verdict"] in ("right", "refused", "not built"), found
    assert all(why.startswith("refused: ") for why in found.get("problems", {}).values())


def test_a_wrong_number_is_seen(study, monkeypatch):
    """The study itself: a scorer that leaves the soft cap out is found wrong, not right."""
    monkeypatch.setattr("etw_lightning.models.label_scorer.find_transform", lambda *_: None)
    found = study("gemma2")
    assert found["verdict"] == "wrong"
    assert "log-probabilities" in found["problems"]["batch"]


def test_a_refusal_without_a_reason_is_seen(study, monkeypatch):
    def refuse(*_):
        raise studies.InputError("model.pretrained: no.")

    monkeypatch.setattr("etw_lightning.models.label_scorer.find_transform", refuse)
    found = study("llama")
    assert found["verdict"] == "wrong"
    assert found["why"].startswith("refused for no reason")


def test_the_page_lists_each_once():
    results = {
        "llama": {"verdict": "right"},
        "bert": {"verdict": "refused", "why": "it | transforms"},
        "gemma3_text/capped": {"verdict": "right", "problems": {"states": "refused: no"}},
    }
    text = page(results)
    assert "| right | 1 | 1 |" in text
    assert "| `bert` | it \\| transforms |" in text
    assert "| `gemma3_text/capped` | states | no |" in text
