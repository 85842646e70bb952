"""ETW, gradient ascent, cross-entropy and the fused head against the formulas, in float64 numpy.

The formulas below are written from the papers' definitions and import nothing of ours.
"""

import json

import numpy as np
import pytest
import torch
from toy import FixedLogits, Positionwise, random_rows

from etw_lightning.forget import GA
from etw_lightning.kernels.head import linear_scores
from etw_lightning.kernels.signals import Counts, reduce_terms
from etw_lightning.models.loading import LabelScorer
from etw_lightning.retain import NLL
from etw_lightning.weighting import ETW, Uniform

TEMPERATURES = (0.7, 1.0, 2.0)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def entropies_of(logits, temperature):
    logp = log_softmax(logits / temperature)
    return -(np.exp(logp) * logp).sum(-1)


def etw_of(logits, temperature):
    """w_i = n H_i / sum_j H_j of one sequence."""
    entropies = entropies_of(logits, temperature)
    return len(entropies) * entropies / entropies.sum()


class Formula:
    """Loss and gradients of rows under ``logits = embedding[id] @ head.T + bias``.

    ``sign`` is +1 for weighted gradient ascent (minimise w log p), -1 for cross-entropy.
    """

    def __init__(self, embedding, head, bias, ids, labels, temperature, reduction, sign=1):
        self.loss = 0.0
        self.embedding, self.head, self.bias = map(np.zeros_like, (embedding, head, bias))
        self.weights = []
        places = [[t for t in range(1, ids.shape[1]) if row[t] != -100] for row in labels]
        num_tokens, num_rows = sum(map(len, places)), sum(bool(here) for here in places)
        for row, here in enumerate(places):
            if not here:
                continue
            hidden = embedding[[ids[row, t - 1] for t in here]]
            logits = hidden @ head.T + bias
            weights = etw_of(logits, temperature) if sign > 0 else np.ones(len(here))
            self.weights.extend(weights)
            logp = log_softmax(logits)
            share = 1 / num_tokens if reduction == "token" else 1 / (len(here) * num_rows)
            for place, t in enumerate(here):
                label = labels[row, t]
                self.loss += sign * share * weights[place] * logp[place, label]
                # d log p_y / d z = onehot(y) - p; the weight is a constant.
                slope = -np.exp(logp[place])
                slope[label] += 1
                slope *= sign * share * weights[place]
                self.embedding[ids[row, t - 1]] += slope @ head
                self.head += np.outer(slope, hidden[place])
                self.bias += slope


#: Lengths and prompts of the rows; the last one has no labelled token.
LENGTHS, PROMPTS = (9, 2, 5, 7, 1), (3, 1, 4, 1, 1)
COUNTS = Counts(tokens=6 + 1 + 1 + 6, rows=4)


@pytest.fixture
def rows():
    return random_rows(torch.Generator().manual_seed(0), 23, LENGTHS, PROMPTS)


def toy_model(dtype, seed=1, vocabulary=23, width=6):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((vocabulary, width), (vocabulary, width), (vocabulary,))
    embedding, head, bias = (
        1.5 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return Positionwise(embedding.to(dtype), head.to(dtype), bias.to(dtype))


def arrays(lm):
    return [
        parameter.detach().double().numpy()
        for parameter in (lm.embedding, lm.head.weight, lm.head.bias)
    ]


def check_loss(lm, loss, formula, tolerance):
    check(loss, formula.loss, tolerance)
    check(lm.embedding.grad, formula.embedding, tolerance)
    check(lm.head.weight.grad, formula.head, tolerance)
    check(lm.head.bias.grad, formula.bias, tolerance)


def check(actual, expected, tolerance):
    actual = actual.detach().double().numpy() if torch.is_tensor(actual) else actual
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_weighted_gradient_ascent(rows, dtype, reduction, temperature):
    ids, mask, labels = rows
    lm = toy_model(dtype)
    formula = Formula(*arrays(lm), ids.numpy(), labels.numpy(), temperature, reduction)
    signals = LabelScorer(lm, chunk_size=4)(ids, mask, labels, {"entropies"}, temperature)
    weights = ETW(temperature=temperature)(signals)
    loss = reduce_terms(GA()(signals, weights), signals, COUNTS, reduction)
    loss.backward()
    check(weights, formula.weights, TOLERANCE[dtype])
    check_loss(lm, loss, formula, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_cross_entropy(rows, dtype, reduction):
    ids, mask, labels = rows
    lm = toy_model(dtype)
    formula = Formula(*arrays(lm), ids.numpy(), labels.numpy(), 1.0, reduction, sign=-1)
    signals = LabelScorer(lm)(ids, mask, labels)
    loss = reduce_terms(NLL()(signals), signals, COUNTS, reduction)
    loss.backward()
    check_loss(lm, loss, formula, TOLERANCE[dtype])


def test_the_paper_argument_of_equal_confidence():
    """Two tokens of one confidence can differ by (1 - p) ln(V - 1) nats, and by no more."""
    p, vocabulary = 0.6, 50
    peaked = torch.full((vocabulary,), -200.0, dtype=torch.float64)
    peaked[0], peaked[1] = np.log(p), np.log(1 - p)
    spread = torch.full_like(peaked, np.log((1 - p) / (vocabulary - 1)))
    spread[0] = np.log(p)
    eye = torch.eye(vocabulary, dtype=torch.float64)
    scores = linear_scores(torch.stack([peaked, spread]), eye, torch.tensor([0, 0]))
    check(scores.logps, np.log([p, p]), 1e-10)
    lowest = -p * np.log(p) - (1 - p) * np.log(1 - p)
    check(scores.entropies, [lowest, lowest + (1 - p) * np.log(vocabulary - 1)], 1e-10)


# The fused head.


def head_inputs(dtype=torch.float64, num=11, width=5, vocabulary=19, scale=1.5):
    generator = torch.Generator().manual_seed(num)
    shapes = ((num, width), (vocabulary, width), (vocabulary,))
    tensors = [scale * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    hidden, weight, bias = (tensor.to(dtype).requires_grad_() for tensor in tensors)
    labels = torch.randint(vocabulary, (num,), generator=generator)
    incoming = torch.randn(num, generator=generator, dtype=torch.float64)
    return hidden, weight, bias, labels, incoming


def head_formula(hidden, weight, bias, labels, incoming, temperature):
    """Values and, for ``sum(incoming * logps)``, gradients of the head, in float64."""
    hidden, weight, bias, incoming = (
        tensor.detach().double().numpy() for tensor in (hidden, weight, bias, incoming)
    )
    logits = hidden @ weight.T + bias
    logp = log_softmax(logits)
    slope = (np.eye(len(bias))[labels.numpy()] - np.exp(logp)) * incoming[:, None]
    picked = logp[np.arange(len(labels)), labels.numpy()]
    gradients = (slope @ weight, slope.T @ hidden, slope.sum(0))
    return picked, entropies_of(logits, temperature), gradients


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 64])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("num", [11, 0])
def test_head(dtype, chunk_size, temperature, num):
    hidden, weight, bias, labels, incoming = head_inputs(dtype, num)
    scores = linear_scores(
        hidden, weight, labels, bias, temperature=temperature, chunk_size=chunk_size
    )
    (scores.logps * incoming).sum().backward()
    logps, entropies, gradients = head_formula(hidden, weight, bias, labels, incoming, temperature)
    tolerance = TOLERANCE[dtype]
    check(scores.logps, logps, tolerance)
    check(scores.entropies, entropies, tolerance)
    for parameter, gradient in zip((hidden, weight, bias), gradients, strict=True):
        check(parameter.grad, gradient, tolerance)


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (0, 2)])
def test_gradcheck(frozen):
    *inputs, labels, _ = head_inputs(num=4, width=3, vocabulary=6)
    for place in frozen:
        inputs[place].requires_grad_(False)

    def logps(hidden, weight, bias):
        return linear_scores(hidden, weight, labels, bias, chunk_size=3).logps

    assert torch.autograd.gradcheck(logps, inputs)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0, 1e4])
def test_head_near_certainty(dtype, gap):
    """One logit stands ``gap`` above the others: entropies near 0, neither negative nor NaN."""
    vocabulary = 19
    eye = torch.eye(vocabulary, dtype=dtype, requires_grad=True)
    hidden = (gap * torch.eye(vocabulary, dtype=dtype)[:3]).requires_grad_()
    labels = torch.tensor([0, 5, 2])  # the certain one, another, the certain one
    bias = torch.zeros(vocabulary, dtype=dtype, requires_grad=True)
    incoming = torch.ones(3)
    scores = linear_scores(hidden, eye, labels, bias, chunk_size=2)
    scores.logps.sum().backward()
    logps, entropies, gradients = head_formula(hidden, eye, bias, labels, incoming, 1.0)
    check(scores.logps, logps, TOLERANCE[dtype])
    check(scores.entropies, entropies, TOLERANCE[dtype])
    assert (scores.entropies >= 0).all()
    check(hidden.grad, gradients[0], TOLERANCE[dtype])


def test_small_entropies_keep_their_ratio():
    """Weights of a sequence that is certain everywhere hang on the ratio of tiny entropies."""
    gaps = np.array([14.0, 16.0, 20.0, 30.0])
    logits = np.zeros((4, 19))
    logits[:, 0] = gaps
    # H = log(sum exp) - E[z], the certain logit taken off: log1p keeps what 1 + x would lose.
    rest = 18 * np.exp(-gaps)
    expected = np.log1p(rest) + gaps * rest / (1 + rest)
    eye = torch.eye(19)
    scores = linear_scores(torch.tensor(logits, dtype=torch.float32), eye, torch.zeros(4).long())
    np.testing.assert_allclose(scores.entropies.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_inputs_give_float32_values(autocast, weight_dtype):
    hidden, weight, bias, labels, incoming = head_inputs(torch.bfloat16, num=33, width=16)
    weight = weight.detach().to(weight_dtype).requires_grad_()
    bias = bias.detach().to(weight_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scores = linear_scores(hidden, weight, labels, bias, chunk_size=7)
    assert scores.logps.dtype == scores.entropies.dtype == torch.float32
    (scores.logps * incoming.float()).sum().backward()
    logps, entropies, gradients = head_formula(hidden, weight, bias, labels, incoming, 1.0)
    check(scores.logps, logps, 1e-5)
    check(scores.entropies, entropies, 1e-5)
    for parameter, gradient in zip((hidden, weight, bias), gradients, strict=True):
        # Products of the backward pass are bfloat16's: 8 bits.
        actual = parameter.grad.double().numpy()
        assert np.linalg.norm(actual - gradient) < 1e-2 * np.linalg.norm(gradient)
        assert parameter.grad.dtype == parameter.dtype


def test_autocast_leaves_float32_inputs_exact():
    hidden, weight, bias, labels, incoming = head_inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        scores = linear_scores(hidden, weight, labels, bias)
    logps, entropies, _ = head_formula(hidden, weight, bias, labels, incoming, 1.0)
    check(scores.logps, logps, 1e-5)
    check(scores.entropies, entropies, 1e-5)


# Published code: values stored in losses.json, see the README beside it.


@pytest.fixture(scope="module")
def oracle(data_dir):
    path = data_dir.parent / "oracle" / "losses.json"
    if not path.is_file():
        pytest.skip(f"no stored losses of the published code: {path}")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ["masked_v11", "full_v11"])
@pytest.mark.parametrize(
    ("method", "hyper"),
    [
        ("GradAscent", {}),
        ("GradDiff", {"gamma": 1.0, "alpha": 1.0, "retain_loss_type": "NLL"}),
        ("GradDiff", {"gamma": 0.5, "alpha": 2.0, "retain_loss_type": "NLL"}),
    ],
)
def test_published_gradient_ascent(oracle, name, method, hyper):
    inputs = oracle["sets"][name]
    (case,) = (
        case
        for case in oracle["cases"]
        if (case["name"], case["hyper"], case["set"]) == (method, hyper, name)
    )
    logits, loss = {}, 0.0
    for group in ("forget", "retain") if hyper else ("forget",):
        values = torch.tensor(inputs["model_logits"][group], dtype=torch.float64)
        labels = torch.tensor(inputs["labels"][group])
        lm = FixedLogits(values)
        signals = LabelScorer(lm)(labels, torch.ones_like(labels), labels)
        counts = Counts(len(signals.labels), len(labels))
        terms = GA()(signals, Uniform()(signals)) if group == "forget" else NLL()(signals)
        scale = hyper.get({"forget": "gamma", "retain": "alpha"}[group], 1.0)
        loss = loss + scale * reduce_terms(terms, signals, counts, "token")
        logits[group] = lm.logits
    loss.backward()
    check(loss, case["loss"], 1e-10)
    assert set(case["grad"]) == set(logits)
    for group, gradient in case["grad"].items():
        check(logits[group].grad, np.array(gradient), 1e-10)
