"""What is scored of a large set is encoded once and read from its file: the same batches."""

from dataclasses import replace

import pytest
from toy import text

from etw_lightning.data import kept_rows
from etw_lightning.data.answer_rows import StoredAnswers
from etw_lightning.data.encode import Encoder
from etw_lightning.data.stored_rows import StoredRows
from etw_lightning.models.loading import LabelScorer, load_model
from etw_lightning.schema import Conventions, EvalSet, Example, InputError
from etw_lightning.scoring.answers import answers_of
from etw_lightning.scoring.answers import rows as answer_rows
from etw_lightning.scoring.batches import build_batches, join_generations, make_records, score_batch
from etw_lightning.scoring.lengths import tell_lost_scored

pytestmark = pytest.mark.usefixtures("small_sets")

NUM = 60


def example(number):
    return Example(
        f"mine/{number}",
        text(number, 1 + 4 * number % 11),
        f"What of {text(number, 1 + 5 * number % 7)}?",
        paraphrased_answer=text(number + 2, 3) if number % 2 else None,
        perturbed_answers=tuple(text(number + k, k) for k in range(1, number % 4 + 1)),
    )


ROWS = tuple(map(example, range(NUM)))
RAW = tuple(Example(f"raw/{n}", text(n, 3 + n % 40)) for n in range(NUM))


def choice(number):
    options = tuple(text(number + k, 1 + k) for k in range(3))
    return Example(
        f"c/{number}", "a", f"Which {number}?", verbatim=True, choices=options, right_choice=1
    )


CHOICES = tuple(map(choice, range(NUM)))


def in_memory(call, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(kept_rows, "SMALL", 10**6)
        return call()


def said(batch):
    """All that a batch says."""
    if hasattr(batch, "groups"):
        return [list(batch.groups), batch.known, batch.slots, batch.extents(), batch.hidden_id]
    if hasattr(batch, "answers"):
        return [list(batch.answers), batch.slots, batch.extents(), batch.of_each]
    padded = [one.tolist() for one in batch.padded()]
    return [batch.slots, batch.ids, padded, batch.extents(), batch.max_new_tokens, batch.at_once]


@pytest.mark.parametrize("rows", [None, [3, 4, 17, 40, NUM - 1]])
@pytest.mark.parametrize("conventions", [Conventions(), Conventions.peer()])
@pytest.mark.parametrize("examples", [ROWS, RAW, CHOICES], ids=["questions", "raw", "choices"])
def test_batches_are_those_of_a_set_in_memory(
    examples, conventions, rows, tiny_tokenizer, monkeypatch
):
    encoder = Encoder(tiny_tokenizer, conventions=conventions)
    asks = 0 if examples is RAW else 5
    eval_set = EvalSet("s", examples, gradient_norm=True, max_new_tokens=asks, stop_strings=("E",))
    found = build_batches(eval_set, encoder, 4, rows)
    mine = in_memory(lambda: build_batches(eval_set, encoder, 4, rows), monkeypatch)
    assert list(map(said, found)) == list(map(said, mine))
    joined = [list(map(said, join_generations(some))) for some in (found, mine)]
    assert joined[0] == joined[1]
    if rows is None:
        assert isinstance(answer_rows.kept_answers(eval_set, encoder), StoredAnswers)
        assert isinstance(found[-1].rows, StoredRows) if asks else True


def test_rows_of_their_own_where_they_are_too_long_together(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(answer_rows, "_MAX_WIDTH", 20)
    encoder, eval_set = Encoder(tiny_tokenizer), EvalSet("s", ROWS)
    found = build_batches(eval_set, encoder, 4)
    mine = in_memory(lambda: build_batches(eval_set, encoder, 4), monkeypatch)
    assert list(map(said, found)) == list(map(said, mine))
    assert any(len(group) > 1 for batch in mine for group in batch.groups)


def test_records_are_equal_to_the_last_bit(tiny_model_dir, tiny_tokenizer, monkeypatch):
    scorer = LabelScorer(load_model(str(tiny_model_dir))).eval()
    encoder = Encoder(tiny_tokenizer, max_length=40)
    eval_set = EvalSet("s", ROWS[:24], gradient_norm=True, max_new_tokens=3)

    def records():
        batches = join_generations(build_batches(eval_set, encoder, 8))
        scores = [one for batch in batches for one in score_batch(scorer, batch, tiny_tokenizer)]
        return make_records(eval_set, scores)

    assert records() == in_memory(records, monkeypatch)


def test_what_was_encoded_is_not_encoded_again(tiny_tokenizer, monkeypatch):
    laid, lay_out = [], answer_rows.lay_out

    def counting(encoder, pairs):
        laid.extend(number for number, _ in pairs)
        return lay_out(encoder, pairs)

    monkeypatch.setattr(answer_rows, "lay_out", counting)
    eval_set = EvalSet("s", ROWS, gradient_norm=True)
    build_batches(eval_set, Encoder(tiny_tokenizer), 4)
    assert laid == list(range(NUM))
    build_batches(replace(eval_set, name="other"), Encoder(tiny_tokenizer), 8, [1, 2])
    assert len(laid) == NUM
    one = replace(ROWS[7], perturbed_answers=("another",))
    others = {
        "an answer": ((*ROWS[:7], one, *ROWS[8:]), Encoder(tiny_tokenizer)),
        "the order": (ROWS[::-1], Encoder(tiny_tokenizer)),
        "the length": (ROWS, Encoder(tiny_tokenizer, max_length=99)),
    }
    for what, (examples, encoder) in others.items():
        laid.clear()
        build_batches(replace(eval_set, examples=examples), encoder, 4)
        assert len(laid) == NUM, what


@pytest.mark.parametrize("examples", [ROWS, RAW], ids=["questions", "raw"])
def test_what_is_lost_is_the_same(examples, tiny_tokenizer, monkeypatch, recwarn):
    encoder, eval_set = Encoder(tiny_tokenizer, max_length=30), EvalSet("s", examples)
    found = tell_lost_scored(eval_set, encoder)
    told = [str(one.message) for one in recwarn.list if "lost" in str(one.message)]
    assert len(told) == (examples is ROWS)
    assert found == in_memory(lambda: tell_lost_scored(eval_set, encoder), monkeypatch)
    assert found.rows == sum(
        any(encoder.encode(one, answer).is_cut for _, _, answer in answers_of(one))
        for one in examples
    )
    assert tell_lost_scored(eval_set, Encoder(tiny_tokenizer, max_length=400)) is None


def test_a_row_that_cannot_be_scored_is_named(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, max_length=12)
    with pytest.raises(InputError, match=r"^Row mine/\d+ has no answer token left within"):
        build_batches(EvalSet("s", ROWS), encoder, 4)
    with pytest.raises(InputError, match=r"^Row c/0: option 2 of 3 is cut by data.max_length"):
        build_batches(EvalSet("s", CHOICES), Encoder(tiny_tokenizer, max_length=9), 4)
