"""The fused head: memory, dtypes and what it refuses. Its numbers: parity/test_etw_formula.py."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from etw_lightning.kernels import head as kernels
from etw_lightning.kernels import plain_rows
from etw_lightning.kernels.head import linear_scores, linear_statistics
from etw_lightning.kernels.logits import LogitTransform

NUM, WIDTH, VOCABULARY = 10, 4, 31


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, requires_grad=True)
    return hidden, weight, torch.arange(NUM)


#: Bytes of a row of logits.
ROW = 4 * VOCABULARY


@pytest.mark.parametrize("chunk_size", [1, 4, 10, 100])
@pytest.mark.parametrize("num_kept", [0, 3, 4, 9, 10])
def test_a_chunk_at_a_time_and_nothing_twice_that_there_is_room_for(
    inputs, monkeypatch, chunk_size, num_kept
):
    made, saved = [], []
    original = kernels._float_logits

    def spy(hidden, *rest):
        made.append(len(hidden))
        return original(hidden, *rest)

    monkeypatch.setattr(kernels, "_float_logits", spy)
    monkeypatch.setattr(kernels, "_ROOM", num_kept * ROW)
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor
    )
    with hooks:
        scores = linear_scores(*inputs, chunk_size=chunk_size)
    ctx = scores.logps.grad_fn
    held = sum(len(logits) for logits in ctx.kept.values())
    ends = [min(start + chunk_size, NUM) for start in range(0, NUM, chunk_size)]
    assert held == max([end for end in ends if end <= num_kept], default=0)
    assert sum(made) == NUM
    scores.logps.sum().backward(retain_graph=True)
    assert max(made) == min(chunk_size, NUM)
    assert sum(made) == 2 * NUM - held
    assert (NUM, VOCABULARY) not in saved
    assert not ctx.kept
    first = inputs[0].grad.clone()
    scores.logps.sum().backward()
    assert sum(made) == 3 * NUM - held
    torch.testing.assert_close(inputs[0].grad, 2 * first)


@pytest.mark.parametrize("room", [0, 1 << 28])
@pytest.mark.parametrize("cached", [1, 1 << 19])
@pytest.mark.parametrize("transform", [None, LogitTransform(scale=0.3, size=20)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kept_or_computed_again_gradients_are_those_of_all_logits(
    inputs, monkeypatch, room, cached, transform, temperature
):
    """In float64, by autograd through the full logits; a near-certain row among them."""
    monkeypatch.setattr(kernels, "_ROOM", room)
    monkeypatch.setattr(plain_rows, "_CACHED", cached)
    hidden, weight = (tensor.detach().double() for tensor in inputs[:2])
    hidden[0] = 60 * weight[0] / weight[0].norm()
    bias = torch.linspace(-1, 1, VOCABULARY, dtype=torch.float64)
    incoming = torch.linspace(-2, 3, NUM, dtype=torch.float64)
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
    settings = {"chunk_size": 3, "temperature": temperature, "transform": transform}
    scores = linear_scores(leaves[0], leaves[1], inputs[2], leaves[2], **settings)
    logits = leaves[0] @ leaves[1].T + leaves[2]
    if transform is not None:
        logits = transform.scale * logits[:, : transform.size]
    logps = logits.log_softmax(-1).gather(-1, inputs[2][:, None])[:, 0]
    tempered = (logits.detach() / temperature).log_softmax(-1)
    found = [
        [one.detach(), entropies, *torch.autograd.grad((one * incoming).sum(), leaves)]
        for one, entropies in (scores, (logps, -(tempered.exp() * tempered).sum(-1)))
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("head_learns", "num_products"), [(True, 3), (False, 2)])
def test_a_head_that_is_frozen_takes_two_products(inputs, head_learns, num_products):
    """A product is 2 * positions * width * vocabulary operations, of whatever operator."""
    hidden = inputs[0]
    weight = inputs[1].detach().requires_grad_(head_learns)

    def in_place(_, first, second, **__):
        return 2 * first[0] * first[1] * second[1]

    mapping = {torch.ops.aten.addmm_: in_place}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        linear_scores(hidden, weight, inputs[2]).logps.sum().backward()
    assert counter.get_total_flops() == num_products * 2 * NUM * WIDTH * VOCABULARY


def test_nothing_is_kept_where_nothing_learns(inputs):
    hidden, weight, labels = inputs
    kept = []
    original = plain_rows._score_cached

    def spy(*given, keeps):
        kept.append(keeps)
        return original(*given, keeps=keeps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_rows, "_score_cached", spy)
        with torch.no_grad():
            linear_scores(hidden, weight, labels)
        linear_scores(hidden.detach(), weight.detach(), labels)
        linear_scores(hidden, weight, labels, transform=LogitTransform(cap=3.0))
        assert not any(kept)
        linear_scores(hidden, weight.detach(), labels)
        assert kept[-1]


def test_entropies_only_when_asked_for_and_never_with_a_gradient(inputs):
    scores = linear_scores(*inputs, entropy=False)
    assert scores.entropies is None
    scores = linear_scores(*inputs)
    assert scores.logps.requires_grad
    assert not scores.entropies.requires_grad
    torch.testing.assert_close(linear_scores(*inputs, entropy=False).logps, scores.logps)


def test_temperature_is_the_entropy_s_alone(inputs):
    cold, hot = (linear_scores(*inputs, temperature=t) for t in (0.5, 3.0))
    assert torch.equal(cold.logps, hot.logps)
    assert (cold.entropies < hot.entropies).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(inputs, dtype):
    hidden, weight = (tensor.detach().to(dtype).requires_grad_() for tensor in inputs[:2])
    scores = linear_scores(hidden, weight, inputs[2])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert scores.logps.dtype == scores.entropies.dtype == wide
    scores.logps.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == dtype


def test_inputs_are_left_as_they_were(inputs):
    before = [tensor.detach().clone() for tensor in inputs]
    bias = torch.ones(VOCABULARY, requires_grad=True)
    linear_scores(*inputs, bias, chunk_size=3).logps.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert (bias == 1).all()


def test_inputs_need_not_be_contiguous(inputs):
    hidden, weight, labels = inputs
    plain = linear_scores(hidden, weight, labels, chunk_size=3)
    strided = torch.stack([hidden, hidden], -1)[..., 0], weight.T.contiguous().T, labels
    assert not strided[0].is_contiguous()
    assert not strided[1].is_contiguous()
    scores = linear_scores(*strided, chunk_size=3)
    torch.testing.assert_close(scores, plain)
    (expected,) = torch.autograd.grad(plain.logps.sum(), hidden)
    (actual,) = torch.autograd.grad(scores.logps.sum(), hidden)
    torch.testing.assert_close(actual, expected)


def test_a_second_derivative_is_refused(inputs):
    """It would treat the normalizers as constants."""
    hidden, *_ = inputs
    (first,) = torch.autograd.grad(linear_scores(*inputs).logps.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.sum().backward()


# Statistics.


def plain_statistics(hidden, weight, labels, bias=None):
    """The definitions, in float64 with all logits."""
    logits = hidden.double() @ weight.double().T
    logits = logits if bias is None else logits + bias.double()
    logps = logits.log_softmax(-1)
    shares = logps.exp()
    entropies = -(shares * logps).sum(-1)
    variances = (shares * (logps + entropies[:, None]).square()).sum(-1)
    picked = logps.gather(-1, labels[:, None])[:, 0]
    return picked, entropies, variances, logits.argmax(-1) == labels


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_statistics_are_their_definitions(inputs, chunk_size, with_bias, dtype):
    hidden, weight = (3 * tensor.detach().to(dtype) for tensor in inputs[:2])
    bias = torch.linspace(-1, 1, VOCABULARY, dtype=dtype) if with_bias else None
    labels = torch.cat([inputs[2][:5], (hidden @ weight.T).argmax(-1)[5:]])
    found = linear_statistics(hidden, weight, labels, bias, chunk_size=chunk_size)
    expected = plain_statistics(hidden, weight, labels, bias)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)
    assert torch.equal(found.matches, expected[3])
    assert 0 < found.matches.sum() < NUM


@pytest.mark.parametrize("gap", [5.0, 12.0, 25.0, 60.0])
@pytest.mark.parametrize("level", [0.0, 40.0])
def test_statistics_of_a_near_certain_prediction_keep_their_digits(gap, level):
    """In float32 ``1 - p`` has none left beyond 16 nats; MinK++ divides by the variance's root."""
    logits = torch.full((1, VOCABULARY), level)
    logits[0, 4] += gap
    hidden, weight = torch.eye(VOCABULARY)[:1], torch.zeros(VOCABULARY, VOCABULARY)
    weight[:, 0] = logits[0]
    found = linear_statistics(hidden, weight, torch.tensor([4]))
    rest = 30 * torch.exp(torch.tensor(-gap, dtype=torch.float64))
    share = rest / (1 + rest)
    expected = (-rest.log1p(), rest.log1p() + share * gap, share * (1 - share) * gap**2)
    for one, other in zip(found[:3], expected, strict=True):
        torch.testing.assert_close(one.double()[0], other, rtol=2e-5, atol=1e-30)


def test_the_first_of_equally_likely_tokens_is_the_match():
    """As ``argmax`` has it."""
    hidden, weight = torch.ones(2, 1), torch.tensor([[0.0], [2.0], [2.0]])
    assert linear_statistics(hidden, weight, torch.tensor([1, 2])).matches.tolist() == [True, False]


def test_an_even_prediction_has_no_variance_and_no_labels_are_no_error(inputs):
    hidden, weight, labels = inputs
    found = linear_statistics(hidden * 0, weight, labels)
    assert (found.variances == 0).all()
    assert [len(part) for part in linear_statistics(hidden[:0], weight, labels[:0])] == [0] * 4


def test_statistics_hold_no_more_than_a_chunk_of_logits(inputs, monkeypatch):
    made = []
    original = kernels._float_logits
    monkeypatch.setattr(
        kernels, "_float_logits", lambda one, *rest: made.append(len(one)) or original(one, *rest)
    )
    found = linear_statistics(*inputs, chunk_size=4)
    assert made == [4, 4, 2]
    assert not any(part.requires_grad for part in found)


def test_a_chunk_is_of_256_positions_unless_it_is_given(monkeypatch):
    made = []
    original = kernels._float_logits
    monkeypatch.setattr(
        kernels, "_float_logits", lambda one, *rest: made.append(len(one)) or original(one, *rest)
    )
    hidden, weight, labels = torch.ones(300, 1), torch.ones(2, 1), torch.zeros(300, dtype=torch.int)
    linear_scores(hidden, weight, labels.long())
    linear_statistics(hidden, weight, labels.long())
    assert made == [256, 44, 256, 44]


def test_half_precision_under_autocast_is_described_in_float32(inputs):
    """Logits of 16 bits would be off by 1e-2; what there is of no labels has the same dtypes."""
    hidden, weight = (tensor.detach().bfloat16() for tensor in inputs[:2])
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_statistics(hidden, weight, inputs[2])
        none = linear_statistics(hidden[:0], weight, inputs[2][:0])
        scores = linear_scores(hidden, weight, inputs[2])
    expected = plain_statistics(hidden, weight, inputs[2])
    for one, other in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    for one, other in zip(scores, expected[:2], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    assert [part.dtype for part in none] == [torch.float32] * 3 + [torch.bool]
    assert [part.dtype for part in found] == [torch.float32] * 3 + [torch.bool]


def test_gradients_of_half_precision_are_summed_in_float32():
    """Two tokens, even: each of 600 positions gives label 0 a half; bfloat16 stops at 128.

    d logp / d logit is 1/2 for the label and -1/2 for the other token, whatever the position.
    """
    hidden = torch.ones(600, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(600, dtype=torch.long)
    linear_scores(hidden, weight, labels, bias, chunk_size=1).logps.sum().backward()
    assert bias.grad.tolist() == [300, -300]
    assert weight.grad.tolist() == [[300], [-300]]
    assert weight.grad.dtype == bias.grad.dtype == torch.bfloat16


def test_products_of_the_backward_pass_are_of_the_run_s_dtype(inputs):
    """Under autocast the slopes are rounded to 16 bits before they meet the head, as autocast does.

    Of one position: d logp / d hidden = (onehot - p) @ weight, both factors rounded.
    """
    hidden, weight, labels = (tensor.detach()[:1] for tensor in inputs)
    hidden, weight = hidden.clone().requires_grad_(), inputs[1].detach()
    with torch.autocast("cpu", torch.bfloat16):
        linear_scores(hidden, weight, labels).logps.sum().backward()
    slope = -(hidden.detach() @ weight.T).softmax(-1)
    slope[0, labels[0]] += 1
    rounded = slope.bfloat16() @ weight.bfloat16()
    torch.testing.assert_close(hidden.grad, rounded.float(), rtol=0, atol=1e-7)
    assert not torch.allclose(hidden.grad, slope @ weight, rtol=0, atol=1e-4)


def test_on_cuda_the_head_is_not_widened(inputs, monkeypatch):
    """There 16-bit products are summed in float32 by ``mm``, which the CPU has not."""
    hidden, weight = (tensor.detach().bfloat16() for tensor in inputs[:2])
    monkeypatch.setattr(
        torch, "mm", lambda one, other, *, out_dtype: one.to(out_dtype) @ other.to(out_dtype)
    )
    found = kernels._float_logits(hidden, weight, torch.ones(VOCABULARY), torch.float32)
    expected = hidden.double() @ weight.double().T + 1
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    for is_cuda in (True, False):
        for dtype in (torch.bfloat16, torch.float16):
            states = SimpleNamespace(is_cuda=is_cuda, dtype=dtype)
            is_kept = is_cuda and dtype == torch.bfloat16
            own = kernels._widened(weight, states, torch.float32)
            assert own.dtype == (torch.bfloat16 if is_kept else torch.float32)


def test_what_a_pass_may_keep_and_what_a_core_has_at_hand():
    assert kernels._ROOM == 1_073_741_824
    assert plain_rows._CACHED == 524_288


@pytest.mark.parametrize(
    ("width", "expected"), [(0, [7]), (1 << 10, [7]), (1 << 15, [4, 3]), (1 << 18, [1] * 7)]
)
def test_rows_are_gone_over_as_many_at_a_time_as_a_core_has_at_hand(width, expected):
    """131,072 bytes of a row of 32,768 numbers: four of them are 524,288."""
    rows, labels = torch.zeros(7, width), torch.arange(7)
    parts = plain_rows._cached_rows(rows)
    assert [len(part) for part in parts] == expected
    assert torch.equal(torch.cat(parts), rows)
    assert [len(part) for part in plain_rows._cached_rows(labels, rows)] == expected
    assert torch.equal(torch.cat(plain_rows._cached_rows(labels, rows)), labels)
