"""Rows of chat: what is read of them, and which turns are learnt."""

import json

import pytest

from etw_lightning.benchmarks.jsonl import JSONL
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import Columns
from etw_lightning.schema import Example, InputError, Turn


def say(*words, system=None):
    """Return messages of user and assistant in turn."""
    found = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return found + [{"role": roles[n % 2], "content": word} for n, word in enumerate(words)]


LONG = say("u0", "a0", "u1", "a1", "u2", "a2", system="s")


@pytest.fixture
def reader(tmp_path):
    def make(*rows, **settings):
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return JSONL(Source(root=tmp_path), "mine.jsonl", "mine.jsonl", **settings)

    return make


def test_the_last_turn_is_the_answer_to_all_before_it(reader):
    (one, two) = reader({"messages": LONG}, {"messages": say("q", "a")}).examples("mine.jsonl")
    before = (Turn("system", "s"), Turn("user", "u0"), Turn("assistant", "a0"))
    before += (Turn("user", "u1"), Turn("assistant", "a1"))
    assert one == Example("mine.jsonl/0", "a2", "u2", turns=before)
    assert two == Example("mine.jsonl/1", "a", "q")


def test_all_turns_are_one_row_to_train_and_a_row_each_to_score(reader):
    read = reader({"messages": LONG}, {"messages": say("q", "a")}, which_turns="all")
    assert [one.labels_turns for one in read.examples("mine.jsonl")] == [True, False]
    rows = read.eval_sets(["forget"])["forget"].examples
    assert [(row.id, row.question, row.answer, len(row.turns)) for row in rows] == [
        ("mine.jsonl/0/turn0", "u0", "a0", 1),
        ("mine.jsonl/0/turn1", "u1", "a1", 3),
        ("mine.jsonl/0/turn2", "u2", "a2", 5),
        ("mine.jsonl/1", "q", "a", 0),
    ]
    assert not any(row.labels_turns for row in rows)


def test_columns_are_renamed_and_further_answers_belong_to_the_last_turn(reader):
    row = {"chat": json.dumps(LONG), "other": "b2", "wrong": ["x"], "prompt": "unread"}
    columns = Columns(messages="chat", alternative_answer="other", perturbed_answer="wrong")
    (one,) = reader(row, columns=columns).examples("mine.jsonl")
    assert (one.answer, one.alternative_answer, one.perturbed_answers) == ("a2", "b2", ("x",))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "column 'messages' must hold a list of messages"),
        ("hello", "column 'messages' must hold a list of messages"),
        (["hello"], "message 0 must be an object with role and content"),
        ([{"from": "human", "value": "q"}], "message 0 must have the role system, user or assis"),
        (say("q", "a", "q"), "must end with an assistant's message"),
        (say("q"), "must end with an assistant's message"),
        (say("q", " "), "message 1 must have a text as content; got ' '"),
        (say("q", ["part"]), "message 1 must have a text as content; got ['part']"),
        (say("q", "a", system="s")[::-1], "message 0 must be the user's"),
        ([*say("q"), *say("q", "a")], "message 1 must be the assistant's, as user and assistant"),
        ([*say("q"), {"role": "assistant", "content": "a", "tool_calls": [1]}], "has tool_calls"),
        ([*say("q", "a"), {"role": "tool", "content": "x"}], "message 2 must have the role"),
    ],
)
def test_other_forms_are_refused_with_row_and_message(reader, messages, said):
    read = reader({"messages": LONG}, {"messages": messages})
    with pytest.raises(InputError) as error:
        read.examples("mine.jsonl")
    assert str(error.value).startswith("mine.jsonl/1: column 'messages'")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", ["question", "answer", "text"])
def test_a_row_of_two_kinds_is_refused(reader, other):
    with pytest.raises(InputError, match=f"both 'messages' and '{other}'.*data.columns.messages"):
        reader({"messages": LONG, other: "x"}).examples("mine.jsonl")
