"""What stored losses of other code can be held to: ours, torch's two ways, and float64."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from etw_lightning.kernels.head import linear_scores, linear_statistics


@pytest.mark.parametrize(("size", "least", "most"), [(32_000, 1e-5, 1e-4), (128_000, 1e-4, 1e-3)])
def test_ours_is_float64_s_where_the_class_axis_in_the_middle_reads_low(size, least, most):
    """Logits with a standard deviation of 3, as a trained model's; seen with torch 2.13 on CPUs."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(32, 16, generator=generator)
    weight = 0.75 * torch.randn(size, 16, generator=generator)
    labels = torch.randint(size, (32,), generator=generator)
    logits = hidden @ weight.T
    exact = cross_entropy(hidden.double() @ weight.double().T, labels, reduction="none")
    for ours in (
        linear_scores(hidden, weight, labels, entropy=False).logps,
        linear_statistics(hidden, weight, labels).logps,
    ):
        torch.testing.assert_close(-ours.double(), exact, rtol=0, atol=1e-5)
        assert abs((-ours.double() - exact).mean()) < 2e-6
    last = cross_entropy(logits, labels, reduction="none").double()
    assert abs((last - exact).mean()) < 1e-5
    middle = cross_entropy(logits.T[None], labels[None], reduction="none")[0].double()
    assert least < (exact - middle).mean() < most
    assert (middle < exact).double().mean() > 0.9
