"""One scoring pass over an evaluation set, giving one record an example."""

import copy
import random
import warnings
from dataclasses import replace

import pytest
import torch
from toy import text
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, Phi3Config

from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import TOFU
from etw_lightning.data.encode import Encoder
from etw_lightning.data.lost_labels import LostLabels
from etw_lightning.models.loading import LabelScorer, load_model, load_tokenizer
from etw_lightning.models.packing import pack_rows, prefix_tree
from etw_lightning.schema import (
    Conventions,
    EncodedRow,
    EvalSet,
    Example,
    InputError,
    Record,
)
from etw_lightning.scoring.answers import batches as answer_batches
from etw_lightning.scoring.answers import rows as answer_rows
from etw_lightning.scoring.batches import (
    AnswerBatch,
    GenerationBatch,
    Score,
    build_batches,
    make_records,
    pad_rows,
    score_batch,
)
from etw_lightning.scoring.lengths import room_for, tell_lost_scored


@pytest.fixture(scope="module")
def eval_set():
    """Rows of very different lengths; some have other wordings and wrong answers."""
    examples = tuple(
        Example(
            id=f"forget/{number}",
            question=f"What of {text(number, 1 + 5 * number % 7)}?",
            answer=text(number, 1 + 4 * number % 11),
            paraphrased_answer=text(number + 2, 3) if number % 2 else None,
            perturbed_answers=tuple(text(number + k, k) for k in range(1, number % 4 + 1)),
        )
        for number in range(11)
    )
    return EvalSet("forget", examples, max_new_tokens=6)


@pytest.fixture(scope="module")
def scorer(tiny_model_dir):
    """In float64, where a batch can't turn the order of two tokens by rounding."""
    return LabelScorer(load_model(str(tiny_model_dir)).double()).eval()


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer):
    return Encoder(tiny_tokenizer)


def score(scorer, eval_set, encoder, batch_size=32):
    batches = build_batches(eval_set, encoder, batch_size)
    return [one for batch in batches for one in score_batch(scorer, batch, encoder.tokenizer)]


def records(scorer, eval_set, encoder, batch_size=32):
    return make_records(eval_set, score(scorer, eval_set, encoder, batch_size))


def losses(record):
    return [record.answer_loss, *record.token_logps, *record.perturbed_losses] + (
        [] if record.paraphrase_loss is None else [record.paraphrase_loss]
    )


# Batches.


def test_rows_are_padded_on_one_side():
    ids, mask = pad_rows([[5, 6], [7]], fill=9)
    assert (ids.tolist(), mask.tolist()) == ([[5, 6], [7, 9]], [[1, 1], [1, 0]])
    ids, mask = pad_rows([[5, 6], [7]], fill=9, left=True)
    assert (ids.tolist(), mask.tolist()) == ([[5, 6], [9, 7]], [[1, 1], [0, 1]])


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_everything_is_scored_once_longest_first(eval_set, encoder, batch_size):
    batches = build_batches(replace(eval_set, gradient_norm=True), encoder, batch_size)
    slots = [slot for batch in batches for slot in batch.slots]
    wanted = [
        (number, name, place)
        for number, example in enumerate(eval_set.examples)
        for name, count in (
            ("answer_loss", 1),
            ("paraphrase_loss", example.paraphrased_answer is not None),
            ("perturbed_losses", len(example.perturbed_answers)),
            ("gradient_norm", 1),
            ("generation", 1),
        )
        for place in range(count)
    ]
    assert sorted(slots) == sorted(wanted)
    # Answers of an example stay together, however small a batch is to be, and more examples
    # share one as long as it feeds no more than so many of the longest answers would.
    most = max(batch_size, 5)
    every = [batch for batch in batches if isinstance(batch, AnswerBatch)]
    longest = max(extent.num_tokens for batch in every for extent in batch.extents())
    for batch in batches:
        is_small = isinstance(batch, AnswerBatch) and (
            pack_rows(batch.trees(shared=True), 0).input_ids.numel() <= batch_size * longest
        )
        assert batch.slots
        assert len(batch.slots) <= most or is_small
    widths = {True: [], False: []}
    for batch in batches:
        if isinstance(batch, AnswerBatch):
            trees = batch.trees(shared=True)
            assert len({tree.is_chain for tree in trees}) == 1
            widths[trees[0].is_chain] += [len(tree.ids) for tree in trees]
    generated = [
        width
        for batch in batches
        if isinstance(batch, GenerationBatch)
        for width in batch.attention_mask.sum(1).tolist()
    ]
    for found in (widths[True], widths[False], generated):
        assert found == sorted(found, reverse=True)
        assert found


def test_only_what_is_asked_for_is_scored(eval_set, encoder):
    def fields(**wanted):
        nothing = replace(eval_set, losses=False, max_new_tokens=0)
        batches = build_batches(replace(nothing, **wanted), encoder, 32)
        return {slot.field for batch in batches for slot in batch.slots}

    assert fields() == set()
    assert fields(max_new_tokens=6) == {"generation"}
    assert fields(gradient_norm=True) == {"gradient_norm"}
    assert fields(losses=True) == {"answer_loss", "paraphrase_loss", "perturbed_losses"}


def test_a_very_long_row_is_not_made_longer_by_sharing(eval_set, encoder, monkeypatch):
    """Attention in a row costs its length squared."""
    monkeypatch.setattr(answer_rows, "_MAX_WIDTH", 1)
    (batch, *rest) = build_batches(replace(eval_set, max_new_tokens=0), encoder, 1000)
    assert not rest
    assert all(len(group) == 1 for group in batch.groups)


# Losses.


def test_losses_are_the_library_s(scorer, eval_set, encoder):
    """Over all logits of an unpadded row, the mean over its labels, shifted by one."""
    for example, record in zip(eval_set.examples, records(scorer, eval_set, encoder), strict=True):
        answers = [example.answer, example.paraphrased_answer, *example.perturbed_answers]
        found = [record.answer_loss, record.paraphrase_loss, *record.perturbed_losses]
        for answer, loss in zip(answers, found, strict=True):
            if answer is None:
                assert loss is None
                continue
            row = encoder.encode(example, answer)
            ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
            with torch.no_grad():
                logits = scorer.lm(input_ids=ids).logits
            expected = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:]).item()
            assert loss == pytest.approx(expected, rel=1e-10)
        assert -sum(record.token_logps) / len(record.token_logps) == pytest.approx(
            record.answer_loss, rel=1e-10
        )
        assert len(record.token_logps) == encoder.encode(example).num_labels


def plain_tokens(scorer, row, hidden_id=None):
    """Describe the labelled tokens of one row by its formulas, from all its logits."""
    ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels)[1:]
    mask = torch.ones_like(ids)
    if hidden_id is not None:
        mask[ids == hidden_id] = 0
    with torch.no_grad():
        logits = scorer.lm(input_ids=ids, attention_mask=mask).logits[0, :-1][labels != -100]
    labels = labels[labels != -100]
    logps = logits.double().log_softmax(-1)
    picked = logps.gather(-1, labels[:, None])[:, 0]
    entropies = -(logps.exp() * logps).sum(-1)
    variances = (logps.exp() * logps.square()).sum(-1) - entropies.square()
    return picked, entropies, variances, logits.argmax(-1) == labels


def test_tokens_of_the_gold_answer(scorer, eval_set, encoder):
    # One token is made the likeliest at about half of all places: else no label ever is.
    scorer = copy.deepcopy(scorer)
    labels = [label for one in eval_set.examples for label in encoder.encode(one).labels]
    common = max({*labels} - {-100}, key=labels.count)
    scorer.lm.lm_head.weight.data[common] *= 20
    found = records(scorer, eval_set, encoder)
    for example, record in zip(eval_set.examples, found, strict=True):
        expected = plain_tokens(scorer, encoder.encode(example))
        fields = (
            record.token_logps,
            record.token_entropies,
            record.token_variances,
            record.token_matches,
        )
        for values, wanted in zip(fields, expected, strict=True):
            assert values == pytest.approx(wanted.double().tolist(), rel=1e-9, abs=1e-12)
        assert record.token_spans == tuple(encoder.answer_spans(example))
        assert record.paraphrase == example.paraphrased_answer
    matches = [one for record in found for one in record.token_matches]
    assert 0 < sum(matches) < len(matches)


def test_token_values_are_written_short_and_read_back_the_same(tiny_model_dir, eval_set, encoder):
    scorer = LabelScorer(load_model(str(tiny_model_dir))).eval()
    found = records(scorer, replace(eval_set, max_new_tokens=0), encoder)
    for record in found:
        for value in (*record.token_logps, *record.token_variances):
            assert (
                len(f"{value!r}".replace("-", "").replace(".", "").split("e")[0].lstrip("0")) < 10
            )
            assert value == float(f"{float(torch.tensor(value)):.9g}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_do_not_depend_on_batch_size_and_sharing(tiny_model_dir, eval_set, encoder, dtype):
    scorer = LabelScorer(load_model(str(tiny_model_dir)).to(dtype)).eval()
    assert scorer.takes_trees
    assert scorer.takes_packed
    one, many = (records(scorer, eval_set, encoder, size) for size in (1, 32))
    scorer._takes_packed = False
    trees = records(scorer, eval_set, encoder)
    scorer._takes_trees = False
    alone = records(scorer, eval_set, encoder)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    if dtype == torch.float64:
        assert [record.generation for record in one] == [record.generation for record in many]
        # Positions become angles in float32.
        tolerance = 1e-6
    for first, *others in zip(one, many, trees, alone, strict=True):
        for other in others:
            assert numbers(first) == pytest.approx(numbers(other), rel=tolerance, abs=tolerance)


def numbers(record):
    return [*losses(record), *record.token_entropies, *record.token_variances]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_real_rows_whatever_is_batched_padded_and_shared(data_dir, tiny_model_dir, attention):
    """TOFU's seven answers a question: float32, prefixes shared or not, in any order."""
    benchmark = TOFU(Source(root=data_dir / "tofu"), forget_split="forget01")
    eval_set = benchmark.eval_sets(["forget"])["forget"]
    eval_set = replace(eval_set, examples=eval_set.examples[:6], max_new_tokens=0)
    assert {len(example.perturbed_answers) for example in eval_set.examples} == {5}
    scorer = LabelScorer(load_model(str(tiny_model_dir), attention=attention)).eval()
    assert scorer.takes_trees
    encoder = Encoder(load_tokenizer(str(tiny_model_dir)))
    many, one = (records(scorer, eval_set, encoder, size) for size in (32, 1))
    backwards = replace(eval_set, examples=eval_set.examples[::-1])
    turned = records(scorer, backwards, encoder)[::-1]
    assert scorer.takes_packed == (attention == "sdpa")
    scorer._takes_packed = scorer._takes_trees = False
    alone = records(scorer, eval_set, encoder)
    rows = [
        encoder.encode(example, text)
        for example in eval_set.examples
        for text in (example.answer, example.paraphrased_answer, *example.perturbed_answers)
    ]
    ids, mask = pad_rows([row.input_ids for row in rows], encoder.pad_id, left=True)
    labels, _ = pad_rows([row.labels for row in rows], -100, left=True)
    with torch.no_grad():
        signals = scorer(ids, mask, labels)
    means = (-signals.row_sums(signals.logps) / signals.row_counts()).view(-1, 7).tolist()
    for first, second, third, fourth, left in zip(many, one, turned, alone, means, strict=True):
        for other in (second, third, fourth):
            assert numbers(first) == pytest.approx(numbers(other), rel=1e-5, abs=1e-5)
        found = [first.answer_loss, first.paraphrase_loss, *first.perturbed_losses]
        assert found == pytest.approx(left, rel=1e-5)


@pytest.mark.slow
def test_a_third_less_is_fed_when_seven_answers_share_their_question(data_dir, tiny_tokenizer):
    benchmark = TOFU(Source(root=data_dir / "tofu"), forget_split="forget10")
    eval_set = benchmark.eval_sets(["forget"])["forget"]
    batches = build_batches(
        replace(eval_set, max_new_tokens=0), Encoder(tiny_tokenizer), batch_size=32
    )
    shared, alone = (
        sum(len(tree.ids) for batch in batches for tree in batch.trees(shared=share))
        for share in (True, False)
    )
    fed = sum(pack_rows(batch.trees(shared=True), 0).input_ids.numel() for batch in batches)
    assert shared < 0.65 * alone
    # A batch holds up to the tokens of 32 of the longest answers, padded to its first row.
    assert fed < 1.05 * shared


@pytest.mark.parametrize(
    ("hides", "in_shards", "is_packed"),
    [(False, False, True), (True, False, False), (False, True, False)],
    ids=["plain", "hidden tokens", "shards"],
)
def test_answers_are_laid_out_together_where_nothing_stands_against_it(
    scorer, eval_set, tiny_model_dir, monkeypatch, hides, in_shards, is_packed
):
    """What several rows begin with is fed once, and what several answers go on with."""
    tokenizer = load_tokenizer(str(tiny_model_dir))
    (*_, token) = Encoder(tokenizer).encode_prompt(eval_set.examples[0])
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(token)
    way = "token_id" if hides else "length"
    encoder = Encoder(tokenizer, conventions=Conventions(attention_mask=way))
    fed, asked = [], []
    for name in ("score_packed", "score_edges"):
        original = getattr(scorer, name)

        def spy(rows, *more, name=name, original=original):
            asked.append(name)
            fed.append(rows.input_ids.numel())
            return original(rows, *more)

        monkeypatch.setattr(scorer, name, spy)
    monkeypatch.setattr(scorer, "in_shards", in_shards)
    answers_only = replace(eval_set, max_new_tokens=0)
    found = records(scorer, answers_only, encoder)
    assert set(asked) == {"score_packed" if is_packed else "score_edges"}
    if is_packed:
        batches = build_batches(answers_only, encoder, 32)
        rows = [one.row for batch in batches for group in batch.groups for one in group]
        assert sum(fed) < 0.8 * sum(len(row.input_ids) for row in rows)
        monkeypatch.setattr(scorer, "_takes_packed", False)
        for one, other in zip(found, records(scorer, answers_only, encoder), strict=True):
            assert numbers(one) == pytest.approx(numbers(other), rel=1e-5, abs=1e-5)


# Conventions.


def test_tokens_that_look_like_padding_are_hidden(scorer, eval_set, tiny_model_dir):
    """Also inside the prompt, and where prefixes are shared; positions are counted with them."""
    tokenizer = load_tokenizer(str(tiny_model_dir))
    (*_, pad_id) = Encoder(tokenizer).encode_prompt(eval_set.examples[0])
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    assert pad_id in tokenizer.all_special_ids
    encoder = Encoder(tokenizer, conventions=Conventions(attention_mask="token_id"))
    answers_only = replace(eval_set, max_new_tokens=0)
    found = records(scorer, answers_only, encoder)
    plain = records(scorer, answers_only, Encoder(tokenizer))
    for example, record, other in zip(eval_set.examples, found, plain, strict=True):
        rows = [encoder.encode(example, text) for text in example.perturbed_answers]
        expected = [-plain_tokens(scorer, row, pad_id)[0].mean().item() for row in rows]
        assert list(record.perturbed_losses) == pytest.approx(expected, rel=1e-6)
        picked, *_ = plain_tokens(scorer, encoder.encode(example), pad_id)
        assert record.token_logps == pytest.approx(picked.tolist(), rel=1e-6)
        assert record.answer_loss != pytest.approx(other.answer_loss, rel=1e-3)


def test_a_row_that_begins_with_the_hidden_token_has_numbers(scorer, tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, "plain", conventions=Conventions("token_id"))
    first, second = tiny_tokenizer("ab", add_special_tokens=False)["input_ids"][:2]
    row = EncodedRow("0", (first, first, second), (-100, first, second))
    for other in ((first, first, first), (first, second, second)):
        rows = [row, EncodedRow("1", other, (-100, *other[1:]))]
        packed = pack_rows([prefix_tree(rows)], encoder.pad_id, hidden_id=first)
        logps, _ = scorer.score_edges(packed, torch.ones(len(packed.labels), dtype=torch.bool))
        assert logps.isfinite().all()


# Choices.


def test_each_option_is_the_sum_of_its_tokens(scorer, encoder):
    example = Example(
        "wmdp/0",
        " the river",
        "Question: What lies by it?\nAnswer:",
        verbatim=True,
        choices=(" the town", " the river", " a mill of it", " the"),
        right_choice=1,
    )
    (record,) = records(scorer, EvalSet("wmdp", (example,)), encoder)
    expected, counts = [], []
    for choice in example.choices:
        prompt = encoder.tokenizer(example.question)["input_ids"]
        ids = encoder.tokenizer(example.question + choice)["input_ids"]
        assert ids[: len(prompt)] == prompt
        with torch.no_grad():
            logps = scorer.lm(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        places = range(len(prompt), len(ids))
        expected.append(sum(logps[place - 1, ids[place]].item() for place in places))
        counts.append(len(places))
    assert record.choice_logps == pytest.approx(expected, rel=1e-6)
    assert record.choice_num_tokens == tuple(counts)
    assert (record.choices, record.right_choice) == (example.choices, 1)
    assert sum(record.token_logps) == pytest.approx(record.choice_logps[1], rel=1e-6)
    assert len(set(counts)) > 1


# Gradients.


def plain_gradients(scorer, row):
    """Backward through the library's own loss of one row."""
    lm = copy.deepcopy(scorer.lm).requires_grad_()
    lm.zero_grad()
    ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels)
    logits = lm(input_ids=ids).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits, labels[1:]).backward()
    return [weight.grad for weight in lm.parameters()]


@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradient_norms(tiny_model_dir, eval_set, tiny_tokenizer, is_trained, mode):
    scorer = LabelScorer(load_model(str(tiny_model_dir)).double()).eval()
    scorer.requires_grad_(is_trained)
    for weight in scorer.parameters():
        weight.grad = torch.ones_like(weight) if is_trained else None
    one = replace(eval_set, examples=eval_set.examples[:3], losses=False, max_new_tokens=0)
    one = replace(one, gradient_norm=True)
    for conventions in (Conventions(), Conventions(gradient_norm="tensor_mean")):
        encoder = Encoder(tiny_tokenizer, conventions=conventions)
        with mode():
            found = records(scorer, one, encoder)
        for example, record in zip(one.examples, found, strict=True):
            norms = torch.stack(
                [grad.norm() for grad in plain_gradients(scorer, encoder.encode(example))]
            )
            is_mean = conventions.gradient_norm == "tensor_mean"
            expected = norms.mean() if is_mean else norms.norm()
            assert record.gradient_norm == pytest.approx(expected.item(), rel=1e-6)
    assert all(weight.requires_grad == is_trained for weight in scorer.parameters())
    for weight in scorer.parameters():
        assert (weight.grad == 1).all() if is_trained else weight.grad is None


def test_the_last_label_may_be_left_out_of_the_gradient(scorer, eval_set, tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, conventions=Conventions(last_label="left_out"))
    example = eval_set.examples[2]
    one = EvalSet("forget", (example,), losses=False, gradient_norm=True)
    (record,) = records(scorer, one, encoder)
    row = encoder.encode(example)
    assert row.labels[-1] != -100
    cut = EncodedRow(row.id, row.input_ids, (*row.labels[:-1], -100))
    norms = torch.stack([grad.norm() for grad in plain_gradients(scorer, cut)])
    assert record.gradient_norm == pytest.approx(norms.norm().item(), rel=1e-6)


def test_padding_on_either_side_does_not_matter(scorer, eval_set, encoder):
    rows = [encoder.encode(example) for example in eval_set.examples]
    sums = []
    for left in (False, True):
        ids, mask = pad_rows([row.input_ids for row in rows], encoder.pad_id, left=left)
        labels, _ = pad_rows([row.labels for row in rows], -100, left=left)
        with torch.no_grad():
            signals = scorer(ids, mask, labels)
        sums.append(signals.row_sums(signals.logps).tolist())
    # The library turns positions into angles in float32.
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)


# Generations.


def greedy(lm, ids, count, ends):
    """Continue a row by its likeliest token, without batch, padding, cache or ``generate``."""
    found = []
    while len(found) < count and not (found and found[-1] in ends):
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([[*ids, *found]]), use_cache=False).logits
        found.append(int(logits[0, -1].argmax()))
    return found


def expected_text(scorer, encoder, example, count, ends=()):
    ends = {encoder.tokenizer.eos_token_id, *ends}
    ids = greedy(scorer.lm, encoder.encode_prompt(example), count, ends)
    return encoder.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_generation_is_greedy_and_unbatched(scorer, eval_set, tiny_tokenizer, template, batch_size):
    encoder = Encoder(tiny_tokenizer, template)
    found = records(scorer, replace(eval_set, losses=False), encoder, batch_size)
    expected = [expected_text(scorer, encoder, example, 6) for example in eval_set.examples]
    assert [record.generation for record in found] == expected
    assert len(set(expected)) > 5


def test_the_model_s_own_sampling_defaults_are_not_used(scorer, eval_set, encoder, monkeypatch):
    """Published models bring a repetition penalty and the like; greedy means greedy."""
    one = replace(eval_set, losses=False)
    plain = records(scorer, one, encoder)
    before = scorer.lm.generation_config.to_dict()
    for name, value in {
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "num_beams": 3,
        "min_new_tokens": 30,
        "temperature": 0.3,
        "top_k": 2,
        "do_sample": True,
    }.items():
        monkeypatch.setattr(scorer.lm.generation_config, name, value)
    changed = scorer.lm.generation_config.to_dict()
    assert changed != before
    assert records(scorer, one, encoder) == plain
    assert scorer.lm.generation_config.to_dict() == changed


def test_generation_ends_at_any_of_the_model_s_end_tokens(scorer, eval_set, encoder, monkeypatch):
    example = eval_set.examples[0]
    free = greedy(scorer.lm, encoder.encode_prompt(example), 6, {encoder.tokenizer.eos_token_id})
    monkeypatch.setattr(scorer.lm.generation_config, "eos_token_id", [2, free[2]])
    (record,) = records(scorer, replace(eval_set, examples=(example,), losses=False), encoder)
    place = free.index(free[2])
    assert record.generation == encoder.tokenizer.decode(free[: place + 1]).strip()


@pytest.mark.parametrize(
    ("raw", "stops", "cut"),
    [
        (" 1472. Question: next", ("Question:",), "1472."),
        ("one\n\ntwo", ("\n\n", "\nQuestion"), "one"),
        ("one Question: two\n\nthree", ("\n\n", "Question:"), "one"),
        (" all of it ", ("\n\n",), "all of it"),
        ("\n\nanswer\n\nmore", ("\n\n",), ""),
        ("\n\nanswer", ("\n\n",), ""),
        ("text", (), "text"),
    ],
)
def test_stop_strings(scorer, eval_set, encoder, monkeypatch, raw, stops, cut):
    """What comes before the first of them, wherever that is: as in the published evaluation."""
    monkeypatch.setattr(type(encoder.tokenizer), "batch_decode", lambda *args, **kwargs: [raw])
    one = replace(eval_set, examples=eval_set.examples[:1], losses=False, stop_strings=stops)
    (record,) = records(scorer, one, encoder)
    assert record.generation == cut


# Records.


def test_records_are_in_file_order_whatever_the_order_of_scores(scorer, eval_set, encoder):
    scores = score(scorer, eval_set, encoder)
    expected = make_records(eval_set, scores)
    assert [record.id for record in expected] == [one.id for one in eval_set.examples]
    for seed in range(3):
        shuffled = random.Random(seed).sample(scores, len(scores))
        # A process that had nothing left to do scores a batch again.
        assert make_records(eval_set, [*shuffled, *scores[:5]]) == expected


def test_a_record_has_what_its_example_has(eval_set):
    example = replace(eval_set.examples[0], perturbed_answers=("a", "b"))
    one = EvalSet("forget", (example,))
    tokens = {
        "token_logps": (-0.5, -1.5),
        "token_entropies": (0.1, 0.2),
        "token_variances": (0.3, 0.4),
        "token_matches": (1, 0),
        "token_spans": ((0, 3), (3, 3)),
    }
    scores = [Score(0, "answer_loss", 0, 1.0)]
    scores += [Score(0, "perturbed_losses", place, 2.0 + place) for place in (1, 0)]
    scores += [Score(0, name, 0, value) for name, value in tokens.items()]
    assert make_records(one, scores) == [
        Record(
            "forget",
            example.id,
            example.answer,
            example.question,
            answer_loss=1.0,
            perturbed_losses=(2.0, 3.0),
            **tokens,
        )
    ]


def test_scored_text_is_what_max_length_left_of_the_answer(scorer, eval_set, tiny_tokenizer):
    whole = Encoder(tiny_tokenizer)
    example = max(eval_set.examples, key=lambda one: len(one.answer))
    length = len(whole.encode(example).input_ids)
    one = EvalSet("forget", (example,))
    (record,) = records(scorer, one, whole)
    assert record.scored_text is None
    (record,) = records(scorer, one, Encoder(tiny_tokenizer, max_length=length - 8))
    assert record.scored_text
    assert example.answer.startswith(record.scored_text)
    assert record.scored_text == example.answer[: record.token_spans[-1][1]]


@pytest.mark.parametrize(
    "field", ["answer_loss", "paraphrase_loss", "perturbed_losses", "gradient_norm"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_the_row(scorer, eval_set, encoder, field, value):
    wanted = replace(eval_set, max_new_tokens=0, gradient_norm=True)
    scores = score(scorer, wanted, encoder)
    place = next(i for i, one in enumerate(scores) if one.row == 7 and one.field == field)
    scores[place] = scores[place]._replace(value=value)
    with pytest.raises(InputError, match="Row forget/7 of forget has a loss that is not a finite"):
        make_records(wanted, scores)


def test_a_broken_model_names_its_row(tiny_model_dir, eval_set, encoder):
    lm = load_model(str(tiny_model_dir))
    lm.lm_head.weight.data[0] = float("nan")
    with pytest.raises(InputError, match="Row forget/0 of forget"):
        records(LabelScorer(lm).eval(), replace(eval_set, max_new_tokens=0), encoder)


@pytest.mark.parametrize(
    "field",
    [
        "answer_loss",
        "paraphrase_loss",
        "perturbed_losses",
        "token_logps",
        "token_variances",
        "token_spans",
        "generation",
    ],
)
def test_a_row_that_was_not_scored_is_an_error(scorer, eval_set, encoder, field):
    """A validation that was cut short would give metrics of other numbers."""
    scores = score(scorer, eval_set, encoder)
    lost = next(one for one in scores if one.row == 7 and one.field == field)
    with pytest.raises(InputError, match=r"Row forget/7 of forget .*trainer\.limit_val_batches"):
        make_records(eval_set, [one for one in scores if one is not lost])


# Rows that are too long, or too short.


QUESTION = "Question: where is the mill?\nAnswer:"
OPTIONS = (" by the river and the mill of the author", " Rome")


def test_an_option_that_is_cut_is_refused(tiny_tokenizer):
    one = Example("c/0", OPTIONS[0], QUESTION, True, choices=OPTIONS, right_choice=0)
    whole = len(Encoder(tiny_tokenizer).encode(one).input_ids)
    build_batches(EvalSet("test", (one,)), Encoder(tiny_tokenizer, max_length=whole), 2)
    short = Encoder(tiny_tokenizer, max_length=whole - 1)
    with pytest.raises(InputError, match=rf"^Row c/0: option 1 of 2 .* = {whole - 1};.* Raise"):
        build_batches(EvalSet("test", (one,)), short, 2)


def lengths_of(examples, tokenizer):
    return [len(Encoder(tokenizer).encode(one).input_ids) for one in examples]


def test_cut_answers_are_told_of(eval_set, tiny_tokenizer, monkeypatch):
    raw = tuple(Example(f"raw/{n}", example.answer) for n, example in enumerate(eval_set.examples))
    lengths = lengths_of(eval_set.examples, tiny_tokenizer)
    encoder = Encoder(tiny_tokenizer, max_length=max(lengths) - 1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        lost = tell_lost_scored(eval_set, encoder)
        of_raw = tell_lost_scored(EvalSet("raw", raw), Encoder(tiny_tokenizer, max_length=3))
        assert tell_lost_scored(eval_set, Encoder(tiny_tokenizer)) is None
        assert tell_lost_scored(replace(eval_set, losses=False), encoder) is None
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert tell_lost_scored(eval_set, encoder) == lost
    (told,) = map(str, (warning.message for warning in seen))
    texts = [
        (example, answer)
        for example in eval_set.examples
        for answer in (example.answer, example.paraphrased_answer, *example.perturbed_answers)
        if answer is not None
    ]
    whole = [Encoder(tiny_tokenizer).encode(*pair) for pair in texts]
    over = [max(len(row.input_ids) - encoder.max_length, 0) for row in whole]
    cut = list(dict.fromkeys(row.id for row, num in zip(whole, over, strict=True) if num))
    assert lost == LostLabels(
        sum(over), sum(over) / sum(row.num_labels for row in whole), len(cut), 11, tuple(cut[:5])
    )
    assert told.startswith(
        f"forget: answers of {len(cut)} of 11 rows are cut by data.max_length = "
        f"{encoder.max_length}: {sum(over)} labels ("
    )
    assert of_raw.rows == sum(length > 3 for length in lengths_of(raw, tiny_tokenizer))


def test_cut_answers_of_a_set_are_told_of_though_raw_text_is_among_its_rows(tiny_tokenizer):
    rows = (Example("a/0", "The mill stands by the river."), Example("a/1", "Rome. " * 9, "Where?"))
    encoder = Encoder(tiny_tokenizer, max_length=40)
    with pytest.warns(UserWarning, match=r"^mixed: answers of 1 of 2 rows are cut by"):
        tell_lost_scored(EvalSet("mixed", rows), encoder)


def test_one_cut_answer_is_told_of_beside_those_that_surely_fit(tiny_tokenizer):
    rows = (Example("a/0", "No.", "Who?"), Example("a/1", "Rome. " * 99, "Where?"))
    encoder = Encoder(tiny_tokenizer, "plain", max_length=100)
    with pytest.warns(UserWarning, match=r"^some: answers of 1 of 2 rows are cut by"):
        assert tell_lost_scored(EvalSet("some", rows), encoder).first == ("a/1",)


def test_what_surely_fits_is_not_encoded(eval_set, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(Encoder, "encode", None)
    monkeypatch.setattr(Encoder, "encode_prompt", None)
    encoder = Encoder(tiny_tokenizer, max_length=2000)
    assert tell_lost_scored(eval_set, encoder) is None
    assert room_for([eval_set], encoder) == (2000, 0)


def test_room_is_made_for_prompts_that_have_none(eval_set, tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, max_length=64)
    assert room_for([eval_set], encoder) == (64, 0)
    long = Example("long/0", "No.", "What? " * 40, paraphrased_answer="It is not. " * 60)
    prompt = len(encoder.encode_prompt(long))
    whole = Encoder(tiny_tokenizer, max_length=10**6)
    needed = len(whole.encode(long, long.paraphrased_answer).input_ids)
    length, longest = room_for([eval_set, EvalSet("long", (long,))], encoder)
    assert longest == prompt > 64
    assert length in (64 * 2**n for n in range(9))
    assert length / 2 < needed <= length
    # A prompt that just leaves a label is no reason for another length.
    one = EvalSet("long", (long,))
    assert room_for([one], Encoder(tiny_tokenizer, max_length=prompt + 1)) == (prompt + 1, 0)
    assert room_for([one], Encoder(tiny_tokenizer, max_length=prompt))[1] == prompt
    assert room_for([replace(one, losses=False, max_new_tokens=3)], encoder) == (64, 0)
    only_gradients = replace(one, losses=False, gradient_norm=True)
    assert room_for([only_gradients], encoder) == room_for([one], encoder) == (length, prompt)
    shorter = EvalSet("shorter", (Example("shorter/0", "No.", "What? " * 30),))
    assert room_for([one, shorter], encoder) == room_for([shorter, one], encoder)
    assert room_for([one, shorter], encoder) == (length, prompt)
    # A prompt of few bytes more than it has tokens.
    short = Example("short/0", "No.", "1958?")
    plain = len(Encoder(tiny_tokenizer, "plain").encode_prompt(short))
    found = room_for([EvalSet("short", (short,))], Encoder(tiny_tokenizer, "plain", plain))
    assert found == (2 * plain, plain)
    # What just fits into the doubled length is not doubled again.
    for words in range(1, 200):
        exact = replace(long, answer="No " * words, paraphrased_answer=None)
        needed = whole.num_tokens(exact, exact.answer)
        if needed % 2 == 0 and needed < 2 * prompt:
            half = Encoder(tiny_tokenizer, max_length=needed // 2)
            assert room_for([EvalSet("long", (exact,))], half) == (needed, prompt)
            break
    else:
        pytest.fail("no answer of an even row")
    raw = Example("raw/0", "What? " * 40)
    assert room_for([EvalSet("raw", (raw,))], encoder) == (64, 0)


def test_nothing_to_continue_is_refused(encoder):
    bad = Example("v/0", "a", "", verbatim=True)
    for examples in ((bad,), (replace(bad, id="v/1", question="abc"), bad)):
        with pytest.raises(InputError, match=r"^Row v/0 of v can't be continued"):
            build_batches(EvalSet("v", examples, False, max_new_tokens=3), encoder, 2)


def model_with(config, tokenizer, **fields):
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    return LabelScorer(AutoModelForCausalLM.from_config(config(**{**sizes, **fields}))).eval()


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
    "original_max_position_embeddings": 40,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}


@pytest.mark.parametrize("part", ["answers", "gradient_norm", "generation"])
@pytest.mark.parametrize(
    ("config", "fields", "most"),
    [
        (GPT2Config, {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 40}, 40),
        (OPTConfig, {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 40}, 40),
        (LlamaConfig, {"max_position_embeddings": 41, "rope_parameters": DYNAMIC}, 40),
        (
            Phi3Config,
            {
                "num_key_value_heads": 4,
                "max_position_embeddings": 160,
                "original_max_position_embeddings": 40,
                "rope_parameters": LONGROPE,
            },
            40,
        ),
    ],
    ids=["gpt2", "opt", "dynamic", "longrope"],
)
def test_rows_longer_than_a_model_takes_are_named(tiny_tokenizer, config, fields, most, part):
    """The last row that fits is scored, one token more is not."""
    scorer, encoder = model_with(config, tiny_tokenizer, **fields), Encoder(tiny_tokenizer)
    short, long = (Example(f"f/{n}", "a" * n, "Who?", True) for n in (1, 3))
    fixed = len(encoder.encode(short).input_ids) - 1

    def run(length):
        """Score two rows, the longer one of ``length`` fed tokens."""
        if part == "generation":
            prompt = len(encoder.encode_prompt(long))
            wanted = {"losses": False, "max_new_tokens": length - prompt + 1}
            examples = (short, long)
        else:
            wanted = {"losses": part == "answers", "gradient_norm": part == "gradient_norm"}
            count = length - fixed + (part == "answers")
            examples = (short, replace(long, answer="!?" * (count // 2) + "!" * (count % 2)))
        return records(scorer, EvalSet("f", examples, **wanted), encoder)

    assert len(run(most)) == 2
    name = "f/[13]" if part == "generation" else "f/3"
    with pytest.raises(InputError, match=rf"^Row {name} takes {most + 1} positions .* data\.max_"):
        run(most + 1)


def test_a_rotary_model_beyond_what_it_was_made_for_is_warned_of(tiny_tokenizer, eval_set):
    scorer = model_with(LlamaConfig, tiny_tokenizer, max_position_embeddings=8)
    with pytest.warns(UserWarning, match="longer than the 8 positions LlamaForCausalLM was made"):
        score(scorer, eval_set, Encoder(tiny_tokenizer))


def test_training_rows_longer_than_the_positions_are_refused(tiny_tokenizer):
    scorer = model_with(GPT2Config, tiny_tokenizer, n_embd=32, n_layer=1, n_head=4, n_positions=8)
    ids = torch.ones(1, 9, dtype=torch.long)
    with pytest.raises(InputError, match=r"9 tokens\); GPT2LMHeadModel has 8\. Set data\."):
        scorer(ids, torch.ones_like(ids), ids)


def test_what_is_laid_out_together_is_what_is_laid_out_alone(eval_set, tiny_tokenizer, monkeypatch):
    encoder = Encoder(tiny_tokenizer, max_length=60)

    def batches():
        found = build_batches(replace(eval_set, max_new_tokens=0), encoder, 4)
        return [(batch.groups, batch.known) for batch in found]

    together = batches()
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "_look_ahead", lambda *_: None)
        assert batches() == together
    for few in (1, 2, 3):
        monkeypatch.setattr(answer_batches, "_TOGETHER", few)
        assert batches() == together
    assert build_batches(EvalSet("none", ()), encoder, 4) == []
