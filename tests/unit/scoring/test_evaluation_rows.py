"""What is laid out to be scored: which rows, in which batches, by which process."""

from dataclasses import replace

import pytest

from etw_lightning.data.encode import Encoder
from etw_lightning.schema import EvalSet, Example, InputError, MissingRowsError
from etw_lightning.scoring import batches
from etw_lightning.scoring.evaluation_rows import (
    IDLE,
    EvaluationRows,
    ScoreWork,
    deal,
    join_works,
)
from etw_lightning.scoring.scores import Score

SET = EvalSet(
    "forget",
    tuple(Example(f"forget/{n}", "a b " * (5 - n), f"Question {n}?") for n in range(5)),
    max_new_tokens=4,
)
OTHER = EvalSet("retain", SET.examples[:2])


class Sets:
    """A benchmark of two sets that notes what is asked of it."""

    def __init__(self):
        self.asked = []

    def eval_sets(self, names):
        self.asked.append(list(names))
        if "holdout" in names:
            raise MissingRowsError("there is no holdout set")
        return {name: {"forget": SET, "retain": OTHER}[name] for name in names}


@pytest.fixture
def encoder(tiny_tokenizer):
    return Encoder(tiny_tokenizer)


@pytest.fixture
def rows(encoder):
    made = EvaluationRows()
    made.require({"forget": ["answers", "generation"], "retain": ["answers"]})
    made.load(Sets(), encoder, 2)
    return made


def test_sets_are_read_in_an_order_that_is_always_the_same(encoder):
    names = [f"set_{letter}" for letter in "hbgaecfd"]
    asked = []

    class Many:
        def eval_sets(self, names):
            asked.append(list(names))
            return dict.fromkeys(names, OTHER)

    made = EvaluationRows()
    made.require({name: ["answers"] for name in names})
    made.load(Many(), encoder, 2)
    assert asked == [sorted(names)]


def placed(works):
    """Return the rows of the whole set that each batch scores."""
    return [[work.rows[slot.row] for slot in work.batch.slots] for work in works]


@pytest.mark.parametrize("num", [0, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_process_has_as_many_and_one_of_them_keeps_each(num, world):
    works = [ScoreWork("forget", "answers", (n,), None) for n in range(num)]
    dealt = [deal(works, rank, world) for rank in range(world)]
    assert {len(mine) for mine in dealt} == {-(-num // world)}
    kept = [work.rows[0] for mine in dealt for work in mine if not work.is_repeated]
    assert sorted(kept) == list(range(num))
    for rank, mine in enumerate(dealt):
        own = [work.rows[0] for work in mine if not work.is_repeated]
        assert own == list(range(rank, num, world))
        assert all(work.dataset == "forget" and work.part == "answers" for work in mine)
    assert IDLE.batch is None
    assert not IDLE.is_repeated


def test_scores_get_the_places_of_their_rows_in_the_set():
    work = ScoreWork("forget", "answers", (3, 8), None)
    scores = [Score(1, "answer_loss", 0, 0.5), Score(0, "perturbed_losses", 2, 0.25)]
    assert work.in_set(scores) == [
        Score(8, "answer_loss", 0, 0.5),
        Score(3, "perturbed_losses", 2, 0.25),
    ]


def test_parts_that_are_wanted_add_up_and_sets_are_read_once(encoder):
    made, sets = EvaluationRows(), Sets()
    made.require({"forget": ["answers"]})
    made.require({"forget": ["generation"], "retain": ["answers"]})
    assert made.wanted == {"forget": {"answers", "generation"}, "retain": {"answers"}}
    assert made.missing("forget", sets) == ""
    assert made.missing("forget", sets) == ""
    assert made.missing("holdout", sets) == "there is no holdout set"
    assert made.offered("forget") is SET
    made.load(sets, encoder, 2)
    made.load(sets, encoder, 2)
    assert sets.asked == [["forget"], ["holdout"], ["retain"]]
    assert made.sets == {"forget": SET, "retain": OTHER}


def test_what_is_not_wanted_of_a_set_is_off(encoder):
    made = EvaluationRows()
    made.require({"forget": ["generation"]})
    made.load(Sets(), encoder, 2)
    assert made.sets == {"forget": replace(SET, losses=False)}


def test_batches_hold_the_rows_that_have_no_scores_yet(rows):
    """The longest first, two at a time."""
    assert placed(rows.works("forget", "answers", ())) == [[0, 1], [2, 3], [4]]
    known = [Score(row, "answer_loss", 0, 1.0) for row in (0, 3)]
    works = rows.works("forget", "answers", known)
    assert placed(works) == [[1, 2], [4]]
    assert {(work.dataset, work.part) for work in works} == {("forget", "answers")}
    assert rows.works("forget", "answers", [Score(n, "x", 0, 1.0) for n in range(5)]) == []
    assert [len(work.batch.slots) for work in rows.works("forget", "generation", ())] == [2, 2, 1]


def test_whole_sets_are_laid_out_once(rows):
    first, again = (rows.works("forget", "answers", ()) for _ in range(2))
    assert [one.batch for one in first] == [one.batch for one in again]
    assert all(one.batch is two.batch for one, two in zip(first, again, strict=True))


def test_a_row_that_can_not_be_scored_is_found_before_anything_is(tiny_tokenizer):
    made = EvaluationRows()
    made.require({"forget": ["answers"]})
    made.load(Sets(), Encoder(tiny_tokenizer, max_length=3), 2)
    with pytest.raises(InputError, match="Row forget/0 has no answer token left"):
        made.check({})
    some = [Score(row, "answer_loss", 0, 1.0) for row in range(4)]
    with pytest.raises(InputError, match="Row forget/0 has no answer token left"):
        made.check({("forget", "answers"): some})
    made.check({("forget", "answers"): [*some, Score(4, "answer_loss", 0, 1.0)]})


def test_a_process_s_own_questions_are_joined_and_nothing_else(rows, monkeypatch):
    monkeypatch.setattr(batches, "_FEW", 1)
    asked = rows.works("forget", "generation", ())
    answers = rows.works("forget", "answers", ())
    found = join_works([*answers, *asked, IDLE])
    joined = found[len(answers)]
    assert found == [*answers, joined, IDLE]
    assert (joined.dataset, joined.part, joined.is_repeated) == ("forget", "generation", False)
    assert placed([joined]) == [[row for rows in placed(asked) for row in rows]]


@pytest.mark.parametrize("few", [1, 2])
def test_processes_have_as_many_batches_once_their_questions_are_joined(rows, monkeypatch, few):
    """Three batches: one process joins its two, or keeps them, where the other has one."""
    monkeypatch.setattr(batches, "_FEW", few)
    asked = rows.works("forget", "generation", ())
    shares = [deal(asked, rank, 2) for rank in range(2)]
    assert [len(share) for share in shares] == ([1, 1] if few == 1 else [2, 2])
    own = [work for share in shares for work in share if not work.is_repeated]
    assert sorted(row for rows in placed(own) for row in rows) == [0, 1, 2, 3, 4]
