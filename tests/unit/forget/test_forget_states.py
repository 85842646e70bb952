"""RMU: plain formula, the steering vector, and what is not its business."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from etw_lightning.forget import RMU
from etw_lightning.forget.states import steering_vector
from etw_lightning.kernels.signals import Counts, States, TokenSignals, reduce_terms
from etw_lightning.schema import InputError

#: Sequence of each token with a state: one more than tokens that are predicted in row 0.
ROWS = torch.tensor([0, 0, 0, 2, 3, 3])
WIDTH = 5


def near(found, wanted, tolerance=1e-10):
    np.testing.assert_allclose(found.detach().numpy(), np.asarray(wanted), rtol=0, atol=tolerance)


def signals(states, rows=ROWS, num_rows=4, layer=7):
    labelled = rows[1:]  # the first token of row 0 is labelled, and nothing predicts it
    return TokenSignals(
        labels=torch.zeros(len(labelled), dtype=torch.long),
        rows=labelled,
        num_rows=num_rows,
        logps=torch.zeros(len(labelled)),
        states=States({layer: states}, rows),
    )


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(1)
    found = 3 * torch.randn(len(ROWS), WIDTH, dtype=torch.float64, generator=generator)
    return found.requires_grad_()


@pytest.mark.parametrize("seed", [0, 4])
def test_value_and_gradient_are_the_formula_s(states, seed):
    terms = RMU(steering_coefficient=6.5, seed=seed)(signals(states), torch.ones(5))
    incoming = torch.tensor([2.0, 3.0, 5.0, 7.0], dtype=torch.float64)
    (terms * incoming).sum().backward()
    direction = steering_vector(WIDTH, seed).tolist()
    values, grads = [0.0] * 4, []
    for token, row in enumerate(ROWS.tolist()):
        size = ROWS.tolist().count(row) * WIDTH
        gaps = [h - 6.5 * u for h, u in zip(states[token].tolist(), direction, strict=True)]
        values[row] += sum(gap**2 for gap in gaps) / size
        grads.append([2 * gap / size * incoming[row].item() for gap in gaps])
    near(terms, values)
    near(states.grad, grads)
    assert values[1] == 0  # no token


def test_by_hand():
    """Three and four off in the two numbers of one token: 25 / 2."""
    u = steering_vector(2, seed=0)
    said = (10 * u + torch.tensor([3.0, 4.0]))[None]
    rows = torch.tensor([0])
    found = RMU(steering_coefficient=10.0)(signals(said, rows, 1), torch.ones(0))
    near(found, [12.5])


def test_it_is_at_its_goal_on_the_vector(states):
    there = 20 * steering_vector(WIDTH, 0).expand(len(ROWS), -1).clone().requires_grad_()
    terms = RMU()(signals(there), torch.ones(5))
    (grad,) = torch.autograd.grad(terms.sum(), there)
    near(terms, [0.0] * 4)
    near(grad, torch.zeros_like(grad))


def test_sequences_weigh_the_same_however_long(states):
    """The mean of the module over three rows with tokens; the batch's parts add up to it."""
    objective, said, counts = RMU(), signals(states), Counts(tokens=5, rows=3)
    terms = objective(said, torch.ones(5))
    whole = reduce_terms(terms, said, counts, "token", objective.level)
    near(whole, terms.sum().item() / 3)
    parts = [said.slice_rows(*pair) for pair in ((0, 2), (2, 3), (3, 4))]
    shares = [
        reduce_terms(objective(part, torch.ones(0)), part, counts, "token", objective.level)
        for part in parts
    ]
    near(sum(shares), whole.item())


@pytest.mark.parametrize("width", [1, 4, 4096])
def test_steering_vector_is_a_unit_vector_of_seed_and_width_only(width):
    torch.manual_seed(0)
    found = steering_vector(width, seed=3)
    torch.rand(5)
    again = steering_vector(width, seed=3)
    assert torch.equal(found, again)
    assert found.dtype == torch.float64
    assert (found >= 0).all()
    near(found.norm(), 1.0)
    if width > 1:
        assert not torch.equal(found, steering_vector(width, seed=4))


def test_steering_vector_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    steering_vector(8, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_steering_vector_stays_what_it_was():
    """Runs of another version or machine steer to the same place."""
    numbers = [0.5679844085, 0.4144419390, 0.2689774154, 0.5391152110, 0.3776738412]
    near(steering_vector(5, seed=0), numbers, 1e-9)


@pytest.mark.parametrize("layer", [0, 3])
def test_it_reads_its_own_layer(states, layer):
    objective = RMU(layer=layer)
    others = {n: torch.full_like(states, torch.nan) for n in (0, 3) if n != layer}
    said = dataclasses.replace(signals(states), states=States({**others, layer: states}, ROWS))
    assert objective(said, torch.ones(5)).isfinite().all()
    assert objective.layers == (layer,)


def test_bfloat16_states_are_compared_in_float32(states):
    rough = states.detach().bfloat16().requires_grad_()
    terms = RMU()(signals(rough), torch.ones(5))
    assert terms.dtype == torch.float32
    near(terms, RMU()(signals(rough.detach().double()), torch.ones(5)), 1e-4)
    terms.sum().backward()
    assert rough.grad.dtype == torch.bfloat16


def test_no_tokens():
    states = torch.zeros(0, WIDTH, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    terms = RMU()(signals(states, none, 2), torch.ones(0))
    terms.sum().backward()
    assert terms.tolist() == [0, 0]
    assert states.grad.shape == (0, WIDTH)


def test_declarations():
    assert RMU().needs == {"states"}
    assert (RMU().level, RMU().group, RMU().takes_weights) == ("sequence", "forget", False)
    assert (RMU().layer, RMU().steering_coefficient, RMU().seed) == (7, 20.0, 0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"layer": -1}, r"model\.forget\.layer must be a whole number >= 0; got -1"),
        ({"layer": "one"}, r"model\.forget\.layer must be a whole number >= 0; got 'one'"),
        ({"seed": -2}, r"model\.forget\.seed must be a whole number .*; got -2"),
        ({"steering_coefficient": 0.0}, r"model\.forget\.steering_coefficient .*> 0; got 0\.0"),
        (
            {"steering_coefficient": math.nan},
            r"steering_coefficient must be a finite number > 0; got nan",
        ),
    ],
)
def test_bad_numbers_are_named(numbers, message):
    with pytest.raises(InputError, match=message):
        RMU(**numbers)


def test_the_largest_seed_is_that_of_a_generator():
    """torch's generators take 64 bits."""
    assert RMU(seed=18446744073709551615).seed == 18446744073709551615
    with pytest.raises(InputError, match=r"model\.forget\.seed"):
        RMU(seed=18446744073709551616)
