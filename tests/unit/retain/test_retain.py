"""Retain objectives: plain formulas, limits, chunks, padding."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from etw_lightning.forget.states import steering_vector
from etw_lightning.kernels.distributions import GivenDistributions, HeadDistributions, TopLogps
from etw_lightning.kernels.signals import Counts, Padded, States, TokenSignals, reduce_terms
from etw_lightning.retain import KL, NLL, EmbedDiff
from etw_lightning.schema import InputError

#: Sequence of each token; row 1 has none.
ROWS = torch.tensor([0, 0, 0, 2, 3, 3])
VOCABULARY = 7


def near(found, wanted):
    np.testing.assert_allclose(found.detach().numpy(), np.asarray(wanted), rtol=0, atol=1e-10)


def random(*size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(size, dtype=torch.float64, generator=generator)


def signals(rows=ROWS, num_rows=4, **parts):
    labels = torch.zeros(len(rows), dtype=torch.long)
    return TokenSignals(labels, rows, num_rows, torch.zeros(len(rows)).double(), **parts)


def given(logits):
    return GivenDistributions(logits.log_softmax(-1))


def softmax(logits):
    return [math.exp(z) / sum(math.exp(y) for y in logits) for z in logits]


def plain_kl(logits, reference):
    """Return KL(reference || model) at one position and its gradient by the logits."""
    p, q = softmax(logits.tolist()), softmax(reference.tolist())
    value = sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True))
    return value, [a - b for a, b in zip(p, q, strict=True)]


def test_nll_is_the_labels_cross_entropy():
    logps = torch.tensor([-1.0, -2.5], requires_grad=True)
    none = torch.zeros(2, dtype=torch.long)
    terms = NLL()(TokenSignals(none, none, 1, logps))
    terms.sum().backward()
    assert terms.tolist() == [1.0, 2.5]
    assert logps.grad.tolist() == [-1.0, -1.0]


# KL at the labels.


def test_kl_value_and_gradient_are_the_formula_s():
    logits, reference = random(6, VOCABULARY).requires_grad_(), random(6, VOCABULARY, seed=1)
    terms = KL()(signals(distributions=given(logits), reference_distributions=given(reference)))
    incoming = torch.arange(1.0, 7.0).double()
    (terms * incoming).sum().backward()
    pairs = [plain_kl(*rows) for rows in zip(logits.detach(), reference, strict=True)]
    near(terms, [value for value, _ in pairs])
    near(logits.grad, [[(n + 1) * part for part in grad] for n, (_, grad) in enumerate(pairs)])


def test_kl_by_hand():
    even = TopLogps(torch.tensor([[0.5, 0.5]], dtype=torch.float64).log())
    said = GivenDistributions(torch.tensor([[0.25, 0.75]], dtype=torch.float64).log())
    rows = torch.tensor([0])
    found = KL()(signals(rows, 1, distributions=said, reference_distributions=even))
    near(found, [0.5 * math.log(4 / 3)])


@pytest.mark.parametrize("num_held", [None, 1, 3, VOCABULARY])
def test_kl_to_itself_is_0_with_no_gradient(num_held):
    logits = random(6, VOCABULARY).requires_grad_()
    logps = logits.log_softmax(-1)
    known = GivenDistributions(logps.detach())
    if num_held:
        largest = logps.detach().topk(num_held)
        known = TopLogps(largest.values, largest.indices)
    terms = KL()(signals(distributions=GivenDistributions(logps), reference_distributions=known))
    (grad,) = torch.autograd.grad(terms.sum(), logits)
    near(terms, [0.0] * 6)
    near(grad, torch.zeros_like(grad))


def test_kl_of_buckets_is_0_where_only_the_rest_is_divided_otherwise():
    """Equal over the first two tokens and the others' sum: a documented blind spot of top-k."""
    said = torch.tensor([[0.5, 0.2, 0.25, 0.05]], dtype=torch.float64).log()
    other = torch.tensor([[0.5, 0.2, 0.05, 0.25]], dtype=torch.float64).log()
    ids, rows = torch.tensor([[0, 1]]), torch.tensor([0])
    known = TopLogps(other[:, :2], ids)
    found = [
        KL()(signals(rows, 1, distributions=GivenDistributions(said), reference_distributions=ref))
        for ref in (known, GivenDistributions(other))
    ]
    near(found[0], [0.0])
    near(found[1], [0.2 * math.log(5)])


@pytest.mark.parametrize("chunk_size", [1, 3, 64])
@pytest.mark.parametrize("num_held", [None, 3])
def test_kl_does_not_depend_on_chunks(chunk_size, num_held):
    parts = [random(*size).requires_grad_() for size in ((6, 5), (VOCABULARY, 5), (VOCABULARY,))]
    known = given(random(6, VOCABULARY, seed=1))
    if num_held:
        largest = known.logps.topk(num_held)
        known = TopLogps(largest.values, largest.indices)
    whole = given(nn.functional.linear(*parts))
    found = []
    for distributions in (whole, HeadDistributions(*parts, chunk_size)):
        terms = KL()(signals(distributions=distributions, reference_distributions=known))
        found.append((terms, *torch.autograd.grad(terms.square().sum(), parts)))
    for one, other in zip(*found, strict=True):
        near(one, other.detach())


def test_kl_to_a_live_reference_head_gives_it_no_gradient():
    logits, weight = random(6, VOCABULARY).requires_grad_(), random(VOCABULARY, 5).requires_grad_()
    reference = HeadDistributions(random(6, 5, seed=2), weight, None, 4)
    hidden, head = random(6, 5).requires_grad_(), random(VOCABULARY, 5, seed=3)
    for said in (given(logits), HeadDistributions(hidden, head, None, 4)):
        terms = KL()(signals(distributions=said, reference_distributions=reference))
        assert torch.autograd.grad(terms.sum(), weight, allow_unused=True) == (None,)


# KL at all positions.


def padded_group(lengths, logits, reference):
    """Return the signals of rows whose labels are their last two tokens' predictions."""
    size = logits.shape[1]
    mask = (torch.arange(size)[None] < torch.tensor(lengths)[:, None]).long()
    rows = torch.arange(len(lengths)).repeat_interleave(2)
    return signals(
        rows,
        len(lengths),
        padded=Padded(logits, mask, given),
        reference_padded=Padded(reference, mask, given),
    )


def test_padded_kl_is_the_mean_over_all_positions():
    logits, reference = random(2, 5, VOCABULARY).requires_grad_(), random(2, 5, VOCABULARY, seed=1)
    group = padded_group([5, 3], logits, reference)
    objective = KL("padded")
    terms = objective(group)
    loss = reduce_terms(terms, group, Counts(4, 2), "token", objective.level)
    loss.backward()
    rows, grads = [], []
    for said, wanted in zip(logits.detach(), reference, strict=True):
        pairs = [plain_kl(*both) for both in zip(said, wanted, strict=True)]
        rows.append(sum(value for value, _ in pairs) / 5)
        grads.append([[part / 10 for part in grad] for _, grad in pairs])
    near(terms, rows)
    near(loss, sum(rows) / 2)
    near(logits.grad, grads)


def test_padded_kl_reads_up_to_the_longest_row_only():
    logits, reference = random(2, 5, VOCABULARY), random(2, 5, VOCABULARY, seed=1)
    found = KL("padded")(padded_group([4, 3], logits, reference))
    near(found, KL("padded")(padded_group([4, 3], logits[:, :4], reference[:, :4])))
    changed = logits.clone()
    changed[:, 4] = 50.0
    near(found, KL("padded")(padded_group([4, 3], changed, reference)))
    # Padding before that counts: what the name warns of.
    changed[1, 3] = 50 * torch.arange(7.0)
    assert abs(found - KL("padded")(padded_group([4, 3], changed, reference)))[1] > 1


def test_padded_kl_of_one_row_of_a_batch_is_over_its_own_length():
    logits, reference = random(2, 5, VOCABULARY), random(2, 5, VOCABULARY, seed=1)
    group = padded_group([5, 3], logits, reference)
    alone = KL("padded")(group.slice_rows(1, 2))
    near(alone, KL("padded")(padded_group([3], logits[1:, :3], reference[1:, :3])))


@pytest.mark.parametrize("chunk_size", [1, 3, 64])
def test_padded_kl_does_not_depend_on_chunks(chunk_size):
    hidden, reference = random(2, 5, 4).requires_grad_(), random(2, 5, VOCABULARY, seed=1)
    weight = random(VOCABULARY, 4, seed=2).requires_grad_()
    heads = (
        lambda states: given(states @ weight.T),
        lambda states: HeadDistributions(states, weight, None, chunk_size),
    )
    mask, found = torch.ones(2, 5).long(), []
    for head in heads:
        group = signals(
            torch.tensor([0, 1]),
            2,
            padded=Padded(hidden, mask, head),
            reference_padded=Padded(reference, mask, given),
        )
        terms = KL("padded")(group)
        found.append((terms, *torch.autograd.grad(terms.square().sum(), (hidden, weight))))
    for one, other in zip(*found, strict=True):
        near(one, other.detach())


@pytest.mark.parametrize("positions", ["labels", "padded"])
def test_kl_of_no_rows(positions):
    hidden, none = torch.zeros(0, 4, 3, requires_grad=True), torch.zeros(0, dtype=torch.long)

    def head(states):
        return HeadDistributions(states, torch.zeros(5, 3))

    padded = Padded(hidden, torch.zeros(0, 4).long(), head)
    group = signals(
        none,
        0,
        distributions=head(hidden[:, 0]),
        reference_distributions=head(hidden[:, 0]),
        padded=padded,
        reference_padded=padded,
    )
    terms = KL(positions)(group)
    terms.sum().backward()
    assert terms.shape == (0,)
    assert hidden.grad is not None


# Hidden states.


def both_states(said, reference, rows=ROWS, num_rows=4):
    """Return rows with states; of row 0 also that of a first token, which nothing predicts."""
    return signals(
        rows[1:],
        num_rows,
        states=States({7: said}, rows),
        reference_states=States({7: reference}, rows),
    )


def test_embed_diff_value_and_gradient_are_the_formula_s():
    said, reference = random(6, 5).requires_grad_(), random(6, 5, seed=1).requires_grad_()
    terms = EmbedDiff()(both_states(said, reference))
    incoming = torch.tensor([2.0, 3.0, 5.0, 7.0]).double()
    (terms * incoming).sum().backward()
    values, grads = [0.0] * 4, []
    for token, row in enumerate(ROWS.tolist()):
        size = ROWS.tolist().count(row) * 5
        gaps = [a - b for a, b in zip(said[token].tolist(), reference[token].tolist(), strict=True)]
        values[row] += sum(gap**2 for gap in gaps) / size
        grads.append([2 * gap / size * incoming[row].item() for gap in gaps])
    near(terms, values)
    near(said.grad, grads)
    assert reference.grad is None


def test_embed_diff_by_hand():
    """Gaps (1, 3) and (0, 4) in two tokens of one row: (1 + 9 + 16) / 4."""
    said = torch.tensor([[2.0, 3.0], [5.0, 5.0]], dtype=torch.float64)
    reference = torch.tensor([[1.0, 0.0], [5.0, 1.0]], dtype=torch.float64)
    near(EmbedDiff()(both_states(said, reference, torch.tensor([0, 0]), 1)), [6.5])


def test_embed_diff_is_0_where_training_starts():
    said = random(6, 5).requires_grad_()
    terms = EmbedDiff()(both_states(said, said.detach()))
    (grad,) = torch.autograd.grad(terms.sum(), said)
    near(terms, [0.0] * 4)
    near(grad, torch.zeros_like(grad))


def test_embed_diff_of_bfloat16_states_is_taken_in_float32():
    """1 and 2^-9 are bfloat16; their difference is not."""
    said = torch.tensor([[1.0]]).bfloat16().requires_grad_()
    group = both_states(said, torch.tensor([[2.0**-9]]).bfloat16(), torch.tensor([0]), 1)
    terms = EmbedDiff()(group)
    assert terms.tolist() == [(1 - 2.0**-9) ** 2]
    terms.sum().backward()
    assert said.grad.dtype == torch.bfloat16


def test_embed_diff_reads_its_own_layer():
    said, nothing = random(6, 5), torch.full((6, 5), torch.nan).double()
    layers = States({0: nothing, 2: said}, ROWS)
    group = signals(ROWS, 4, states=layers, reference_states=layers)
    near(EmbedDiff(2)(group), [0.0] * 4)


def test_embed_diff_has_rmu_s_layer_and_scale():
    """Against a reference that says the steering vector everywhere the two are one formula."""
    from etw_lightning.forget import RMU

    said = random(6, 5)
    steered = 20 * steering_vector(5, 0).expand(6, -1)
    near(EmbedDiff()(both_states(said, steered)), RMU()(both_states(said, said), torch.ones(6)))
    assert EmbedDiff().layer == RMU().layer


# What an objective says of itself.


def test_declarations():
    assert (NLL().level, NLL().needs) == ("token", frozenset())
    assert (KL().level, KL().needs) == ("token", {"distributions", "reference_distributions"})
    assert (KL("padded").level, KL("padded").needs) == ("sequence", {"padded", "reference_padded"})
    assert (EmbedDiff().level, EmbedDiff().needs) == ("sequence", {"states", "reference_states"})
    assert (EmbedDiff(3).layers, KL().layers, NLL().layers) == ((3,), (), ())


def test_bad_values_are_named():
    with pytest.raises(InputError, match=r"model\.retain\.layer must be a whole number .*; got -1"):
        EmbedDiff(-1)
    with pytest.raises(InputError, match=r"model\.retain\.positions must be labels or padded; got"):
        KL("all")
