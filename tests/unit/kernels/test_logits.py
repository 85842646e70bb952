"""What models make of their logits, by hand; the head's own numbers: test_kernel_numbers.py."""

import math

import pytest
import torch

from etw_lightning.kernels.logits import LogitTransform


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 0.0}, "scale must not be 0"),
        ({"scale": math.nan}, "scale must not be 0"),
        ({"cap": 0.0}, "cap must be > 0"),
        ({"cap": -1.0}, "cap must be > 0"),
        ({"cap": math.nan}, "cap must be > 0"),
        ({"size": 0}, "size must be >= 1"),
    ],
)
def test_numbers_out_of_range(changes, message):
    with pytest.raises(ValueError, match=f"^LogitTransform.{message}"):
        LogitTransform(**changes)


@pytest.mark.parametrize(
    ("scale", "cap"), [(1.0, None), (2.0, None), (-0.5, None), (1.0, 3.0), (2.0, 3.0), (1.0, 1e-3)]
)
def test_logits_and_their_slope(scale, cap):
    """``cap * tanh(scale * x / cap)`` and its derivative, ``scale / cosh(scale * x / cap)^2``."""
    given = [-4.0, -0.25, 0.0, 1.0, 3.0]
    transform = LogitTransform(scale=scale, cap=cap)
    if cap is None:
        expected, slopes = [scale * x for x in given], [scale] * 5
    else:
        expected = [cap * math.tanh(scale * x / cap) for x in given]
        slopes = [scale * (1 - math.tanh(scale * x / cap) ** 2) for x in given]
    logits = torch.tensor(given, dtype=torch.float64)
    changed = transform.change(logits)
    assert changed.tolist() == pytest.approx(expected, abs=1e-14)
    assert logits.tolist() == given
    slope = transform.slope(changed)
    assert torch.as_tensor(slope).expand(5).tolist() == pytest.approx(slopes, abs=1e-14)
    own = transform.change_(logits)
    assert own.data_ptr() == logits.data_ptr()
    assert torch.equal(own, changed)


def test_logits_that_stay_are_not_copied():
    logits = torch.ones(3)
    assert LogitTransform().change(logits) is logits


def test_a_head_is_cut_to_the_tokens_that_are_kept():
    weight, bias = torch.arange(6.0).reshape(3, 2), torch.arange(3.0)
    kept, own = LogitTransform(size=1).cut(weight, bias)
    assert (kept.tolist(), own.tolist()) == ([[0, 1]], [0])
    assert LogitTransform(size=2).cut(weight, None)[1] is None
    assert LogitTransform().cut(weight, bias) == (weight, bias)
