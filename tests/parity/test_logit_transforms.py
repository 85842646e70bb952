"""Scaled, capped and cut logits: the fused head against the formula written down in float64."""

import pytest
import torch

from etw_lightning.kernels import head as kernels
from etw_lightning.kernels.distributions import HeadDistributions
from etw_lightning.kernels.head import linear_scores, linear_statistics
from etw_lightning.kernels.logits import LogitTransform

NUM, WIDTH, VOCABULARY = 9, 6, 31
#: Those of Cohere, Granite, Falcon-H1; Gemma 2 and 3n; Inkling; all at once.
TRANSFORMS = [
    LogitTransform(scale=0.0625),
    LogitTransform(scale=-8.0),
    LogitTransform(cap=30.0),
    LogitTransform(cap=1.5),
    LogitTransform(size=20),
    LogitTransform(scale=0.5, cap=6.0, size=20),
]


def make_inputs(dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = ((NUM, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    made = [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]
    # Logits of about 10, so that caps are felt and some predictions are near certain.
    made[0] *= 4
    return [part.to(dtype).requires_grad_() for part in made], torch.arange(NUM) * 2


def formula(hidden, weight, bias, transform):
    """Return the model's logits: what Gemma's, Cohere's and Inkling's own code says."""
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    logits = logits * transform.scale
    if transform.cap is not None:
        logits = torch.tanh(logits / transform.cap) * transform.cap
    return logits if transform.size is None else logits[:, : transform.size]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str
)
def test_values_and_gradients(transform, has_bias, dtype, tolerance):
    (hidden, weight, bias), labels = make_inputs(dtype)
    bias = bias if has_bias else None
    inputs = [part for part in (hidden, weight, bias) if part is not None]
    logits = formula(hidden, weight, bias, transform)
    logps = logits.log_softmax(-1)
    picked = logps.gather(-1, labels[:, None])[:, 0]
    slopes = torch.linspace(-1, 2, NUM)
    wanted = torch.autograd.grad((picked * slopes).sum(), inputs, retain_graph=True)
    tempered = (logits / 0.7).log_softmax(-1)

    found = linear_scores(
        hidden, weight, labels, bias, temperature=0.7, chunk_size=4, transform=transform
    )
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(found.logps, picked, **close)
    torch.testing.assert_close(found.entropies, -(tempered.exp() * tempered).sum(-1), **close)
    grads = torch.autograd.grad((found.logps * slopes).sum(), inputs)
    for one, other in zip(grads, wanted, strict=True):
        # Sums of products of size 10 in float32.
        scale = other.abs().max().clamp(min=1)
        torch.testing.assert_close(one / scale, other / scale, **close)

    told = linear_statistics(hidden, weight, labels, bias, chunk_size=4, transform=transform)
    torch.testing.assert_close(told.logps, picked, **close)
    entropies = -(logps.exp() * logps).sum(-1)
    torch.testing.assert_close(told.entropies, entropies, **close)
    variances = (logps.exp() * (logps + entropies[:, None]).square()).sum(-1)
    torch.testing.assert_close(told.variances, variances, **close)
    assert torch.equal(told.matches, logits.argmax(-1) == labels)

    every = HeadDistributions(hidden, weight, bias, 4, transform)
    torch.testing.assert_close(every.log_probs(), logps, **close)
    torch.testing.assert_close(every[2:5].log_probs(), logps[2:5], **close)
    sums = every.map(lambda said: (said.exp() * said).sum(-1))
    torch.testing.assert_close(sums, -entropies, **close)
    one = torch.autograd.grad((sums * slopes).sum(), inputs)
    other = torch.autograd.grad((-entropies * slopes).sum(), inputs)
    for a, b in zip(one, other, strict=True):
        scale = b.abs().max().clamp(min=1)
        torch.testing.assert_close(a / scale, b / scale, **close)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_gradients_are_finite_differences(transform):
    (hidden, weight, bias), labels = make_inputs(torch.float64)

    def logps(*inputs):
        return linear_scores(
            inputs[0], inputs[1], labels, inputs[2], chunk_size=4, transform=transform
        ).logps

    assert torch.autograd.gradcheck(logps, (hidden, weight, bias))


def test_a_logit_at_its_cap_has_no_slope():
    hidden = torch.tensor([[1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0]], requires_grad=True)
    found = linear_scores(hidden, weight, torch.tensor([1]), transform=LogitTransform(cap=30.0))
    torch.testing.assert_close(found.logps, torch.tensor([-30.0]))
    found.logps.sum().backward()
    assert hidden.grad.item() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_changed_is_the_plain_path_to_the_bit(dtype):
    (hidden, weight, bias), labels = make_inputs(dtype)
    inputs = (hidden, weight, bias)
    results = []
    for transform in (None, LogitTransform()):
        said = linear_scores(hidden, weight, labels, bias, chunk_size=4, transform=transform)
        told = linear_statistics(hidden, weight, labels, bias, chunk_size=4, transform=transform)
        every = HeadDistributions(hidden, weight, bias, 4, transform).log_probs()
        grads = torch.autograd.grad(said.logps.sum(), inputs)
        results.append([*said, *told, every, *grads])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_cut_vocabulary_costs_no_logits(monkeypatch):
    made = []
    original = kernels._float_logits
    monkeypatch.setattr(
        kernels, "_float_logits", lambda *args: made.append(original(*args)) or made[-1]
    )
    (hidden, weight, bias), labels = make_inputs(torch.float32)
    linear_scores(hidden, weight, labels, bias, transform=LogitTransform(size=20))
    assert [tuple(one.shape) for one in made] == [(NUM, 20)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 0.0}, "LogitTransform.scale must not be 0"),
        ({"scale": float("nan")}, "LogitTransform.scale must not be 0"),
        ({"cap": 0.0}, "LogitTransform.cap must be > 0, got 0.0"),
        ({"size": 0}, "LogitTransform.size must be >= 1, got 0"),
    ],
)
def test_bad_numbers(fields, message):
    with pytest.raises(ValueError, match=message):
        LogitTransform(**fields)
