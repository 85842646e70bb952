"""``weights``: the weights of one forget row in the terminal, side by side; nothing is written."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture
def weights_args(tofu_args):
    """``weights`` of the tiny model, without what only scoring reads."""
    unread = ("--data.retain_model", "--data.max_new_tokens")
    return ["weights", *(word for word in tofu_args[1:] if not word.startswith(unread))]


def table(out):
    """Return the printed rows: the words of each line of the table, numbers last."""
    lines = [line.split() for line in out.splitlines()]
    return [words for words in lines if words and re.fullmatch(r"-?\d+\.\d{4}", words[-1])]


def by_hand(folder, row, count):
    """Return entropies and probabilities of the first tokens of an answer, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [("user", row["question"]), ("assistant", row["answer"])]
    turns = [{"role": role, "content": text} for role, text in turns]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    first = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    last = first + count
    assert last >= len(ids) - 1, "every token of the answer"
    picked = logps[first - 1 : last - 1]
    entropies = -(picked.exp() * picked).sum(-1)
    return entropies, picked.gather(-1, torch.tensor(ids[first:last])[:, None])[:, 0].exp()


def test_the_entropies_are_those_of_the_model_that_is_named(
    command, weights_args, tofu_dir, tiny_model_dir, retain_model_dir
):
    words = ["--model.weighting.source=reference", f"--model.entropy_model={retain_model_dir}"]
    outcome = command(*weights_args, *words, "--row", "1")
    assert (outcome.status, outcome.err) == (0, "")
    row = json.loads((tofu_dir / "forget10.jsonl").read_text().splitlines()[1])
    shown = table(outcome.out)
    theirs, _ = by_hand(retain_model_dir, row, len(shown))
    found = [float(words[-1]) for words in shown]
    assert found == pytest.approx((len(shown) * theirs / theirs.sum()).tolist(), abs=1e-4)
    own, _ = by_hand(tiny_model_dir, row, len(shown))
    assert [float(words[-3]) for words in shown] == pytest.approx(own.tolist(), abs=1e-4)


def test_weights_are_the_formulas_side_by_side(command, weights_args, tofu_dir, tiny_model_dir):
    outcome = command(*weights_args, "--row", "1", "--weightings", "etw,imp,wga,uniform,tnpo")
    assert (outcome.status, outcome.err) == (0, "")
    assert "\x1b" not in outcome.out, "what is no terminal gets no colours"
    row = json.loads((tofu_dir / "forget10.jsonl").read_text().splitlines()[1])
    assert outcome.out.startswith(f"forget10/1: {row['question']}\n")
    shown = table(outcome.out)
    entropies, probabilities = by_hand(tiny_model_dir, row, len(shown))
    expected = [
        entropies,
        probabilities,
        len(shown) * entropies / entropies.sum(),
        1 - probabilities,
        probabilities,
        torch.ones(len(shown)),
        torch.ones(len(shown)),  # next to itself a model is as likely as itself
    ]
    for place, column in enumerate(expected):
        found = [float(words[place - len(expected)]) for words in shown]
        assert found == pytest.approx(column.tolist(), abs=1e-4)


def test_marked_words_are_told_with_their_auc(command, weights_args, tofu_dir, home):
    answers = [json.loads(line) for line in (tofu_dir / "forget10.jsonl").open()]
    rows = [{"answer": one["answer"], "spans": [[0, 4]]} for one in answers]
    (home.parent / "marks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = command(*weights_args, f"--data.annotations={home.parent / 'marks.jsonl'}")
    assert (outcome.status, outcome.err) == (0, "")
    marked = [words for words in table(outcome.out) if "*" in words]
    assert marked
    shown = table(outcome.out)
    assert shown[0] in marked
    assert marked == shown[: len(marked)], "the first characters are marked, no others"
    body = [words for words in shown if not words[0].startswith("<|")]
    ours = [float(words[-1]) for words in body]
    pairs = [(a, b) for a in ours[: len(marked)] for b in ours[len(marked) :]]
    auc = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
    [line] = [words for words in map(str.split, outcome.out.splitlines()) if words[:1] == ["AUC"]]
    assert float(line[-1]) == pytest.approx(auc, abs=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--row=4"], "row must be from 0 to 3: data.forget_split has 4 rows; got 4."),
        (["--row=-1"], "row must be a whole number >= 0; got -1."),
        (["--weightings=etw,etv"], "weightings must be .*; got 'etv'"),
        (["--weightings=annotated"], "data.annotations is missing: .*"),
        (["--model.forget=null"], "weights needs a run that forgets: .*"),
        (["--model.pretrained=nowhere"], "model.pretrained .*nowhere.*"),
    ],
)
def test_bad_input_is_one_line(refused, weights_args, flags, message):
    assert re.match(message.replace("(", r"\("), refused(*weights_args, *flags))


def test_nothing_is_written(command, weights_args, home):
    before = set(home.parent.rglob("*"))
    assert command(*weights_args).status == 0
    assert set(home.parent.rglob("*")) == before
