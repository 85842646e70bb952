"""A model moved against its task vector, beside plain float64 arithmetic."""

import numpy as np
import pytest
import torch
from torch import nn

from etw_lightning.schema import InputError
from etw_lightning.tuning.task_vectors import negate


def two(dtype=torch.float32, width=3):
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width)).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.25, 1.0, 5.0])
def test_each_weight_is_that_of_plain_arithmetic(scale, dtype):
    start, tuned = two(dtype)
    before, after = (
        {name: weight.detach().double().numpy() for name, weight in one.named_parameters()}
        for one in (start, tuned)
    )
    negate(start, tuned, scale)
    for name, weight in start.named_parameters():
        wanted = before[name] - scale * (after[name] - before[name])
        rounded = torch.from_numpy(wanted).to(dtype)
        assert torch.equal(weight, rounded), name
        # Half of the way to it from the other side lies the model that was begun with.
        if dtype == torch.float32 and scale == 1.0:
            np.testing.assert_allclose((wanted + after[name]) / 2, before[name], rtol=1e-12)
    kept = dict(tuned.named_parameters())
    assert all(np.array_equal(kept[name].detach().double().numpy(), after[name]) for name in kept)


def test_nothing_changes_where_nothing_was_learnt():
    start, _ = two()
    same = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    same.load_state_dict(start.state_dict())
    negate(start, same, 3.0)
    assert all(map(torch.equal, start.parameters(), same.parameters()))


def test_models_of_other_shapes_and_scales_below_zero_are_refused():
    start, tuned = two()
    with pytest.raises(InputError, match=r"negate must be a number > 0; got 0\."):
        negate(start, tuned, 0)
    with pytest.raises(InputError, match=r"negate: 0\.weight is \(3, 4\) .* and \(2, 4\) in the"):
        negate(start, two(width=2)[0], 1.0)
    with pytest.raises(InputError, match=r"negate: 1\.weight is \(3,\) .* and None in the"):
        negate(start, tuned[:1], 1.0)
