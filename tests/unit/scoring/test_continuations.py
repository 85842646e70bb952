"""What a model says after prompts: in the order of rows and samples, whatever the batches."""

import pytest

from etw_lightning.data.encode import Encoder
from etw_lightning.models.loading import LabelScorer, load_model
from etw_lightning.models.positions import Extent
from etw_lightning.models.sampling import Sampling
from etw_lightning.schema import Conventions, EvalSet, Example, InputError
from etw_lightning.scoring import continuations
from etw_lightning.scoring.batches import build_batches, make_records, score_batch
from etw_lightning.scoring.continuations import Prompt, continue_prompts, prompts_of, said_records


@pytest.fixture(scope="module")
def lm(tiny_model_dir):
    return load_model(str(tiny_model_dir)).double().eval()


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer):
    return Encoder(tiny_tokenizer)


@pytest.fixture(scope="module")
def eval_set():
    asked = ("Who?", "What of the river and the town of Quillmere?", "And where was that?")
    rows = tuple(Example(f"forget/{n}", "the mill", text) for n, text in enumerate(asked))
    return EvalSet("forget", rows, max_new_tokens=6, stop_strings=("zz",))


def test_greedy_texts_are_those_of_scoring(lm, encoder, eval_set, tiny_tokenizer):
    scorer = LabelScorer(lm)
    scores = [
        score
        for batch in build_batches(eval_set, encoder, 2)
        for score in score_batch(scorer, batch, tiny_tokenizer)
    ]
    expected = [record.generation for record in make_records(eval_set, scores)]
    prompts = prompts_of(eval_set.examples, encoder)
    for size in (1, 2, 8):
        said = continue_prompts(lm, encoder, prompts, eval_set, size)
        assert [texts for (texts,) in said] == expected


def test_samples_do_not_depend_on_how_they_are_batched(lm, encoder, eval_set):
    prompts = prompts_of(eval_set.examples, encoder)
    found = [
        continue_prompts(lm, encoder, prompts, eval_set, size, Sampling(seed=2), 4)
        for size in (1, 5, 64)
    ]
    assert found[0] == found[1] == found[2]
    assert [len(texts) for texts in found[0]] == [4, 4, 4]
    assert len({text for texts in found[0] for text in texts}) > 8
    # Fewer samples, or fewer rows, are the first of the same.
    alone = continue_prompts(lm, encoder, prompts[1:2], eval_set, 2, Sampling(seed=2), 2)
    assert alone == [found[0][1][:2]]


def test_the_longest_prompts_are_continued_first_and_samples_of_a_row_together(
    lm, encoder, eval_set, monkeypatch
):
    seen = []

    def said(_lm, ids, *_, **settings):
        seen.append((ids.shape[1], settings["keys"]))
        return [""] * len(ids)

    monkeypatch.setattr(continuations, "continue_sampled", said)
    prompts = [Prompt("a", (3,) * 4), Prompt("b", (3,) * 9), Prompt("c", (3,) * 6)]
    continue_prompts(lm, encoder, prompts, eval_set, 2, Sampling(), 2)
    assert seen == [(9, ["b#0", "b#1"]), (6, ["c#0", "c#1"]), (4, ["a#0", "a#1"])]


def test_records_of_a_row_follow_each_other(eval_set):
    records = said_records(eval_set, [["a", "b"], ["c", "d"], ["e", "f"]])
    assert [one.generation for one in records] == list("abcdef")
    assert [one.id for one in records] == [f"forget/{n}" for n in (0, 0, 1, 1, 2, 2)]
    assert {one.answer for one in records} == {"the mill"}
    others = said_records(eval_set, [["a"], ["b"], ["c"]], answers=["x", "y", "z"])
    assert [one.answer for one in others] == ["x", "y", "z"]


def test_a_row_without_a_prompt_is_named(encoder):
    with pytest.raises(InputError, match="Row raw/0 can't be continued"):
        prompts_of([Example("raw/0", "the town")], encoder)


def test_prompts_are_measured_with_what_is_to_follow(lm, encoder, eval_set, monkeypatch):
    seen = []
    monkeypatch.setattr(continuations, "check_extents", lambda *given: seen.append(given))
    continue_prompts(lm, encoder, [Prompt("forget/0", (3, 4))], eval_set, 1)
    ((_, name, extents),) = seen
    assert name == "LlamaForCausalLM"
    assert extents == [Extent("forget/0", 2, 6)]


def test_hidden_tokens_are_hidden_but_the_last_of_a_prompt_of_nothing_else(
    lm, tiny_tokenizer, eval_set, monkeypatch
):
    seen = []

    def said(_lm, ids, mask, *_):
        seen.append((ids.tolist(), mask.tolist()))
        return [""] * len(ids)

    monkeypatch.setattr(continuations, "continue_greedily", said)
    encoder = Encoder(tiny_tokenizer, conventions=Conventions(attention_mask="token_id"))
    pad = encoder.pad_id
    prompts = [Prompt("a", (pad, pad)), Prompt("b", (9, pad, 8))]
    continue_prompts(lm, encoder, prompts, eval_set, 2)
    assert seen == [([[9, pad, 8], [pad] * 3], [[1, 0, 1], [0, 0, 1]])]
