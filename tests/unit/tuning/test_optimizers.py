"""Optimisers by class path, the two groups of weights, and the course of the learning rate."""

import math

import pytest
import torch

from etw_lightning.schema import InputError
from etw_lightning.tuning.optimizers import make_optimizer, scale_of


@pytest.fixture
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.LayerNorm(128), torch.nn.Linear(128, 64)
    )


def make(net, optimizer="torch.optim.AdamW", **settings):
    return make_optimizer(
        net.named_parameters(), optimizer, **{"lr": 0.01, "weight_decay": 0.1, **settings}
    )


def step(net, optimizer, count=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad()
        net(torch.randn(8, 64, generator=generator)).square().mean().backward()
        optimizer.step()
    return [weight.detach().clone() for weight in net.parameters()]


def test_adamw_is_torchs_to_the_bit(net):
    start = [weight.detach().clone() for weight in net.parameters()]
    found = step(net, make(net, betas=(0.8, 0.95)))
    with torch.no_grad():
        for weight, value in zip(net.parameters(), start, strict=True):
            weight.copy_(value)
    weights = list(net.parameters())
    groups = [
        {"params": [weights[0], weights[4]], "weight_decay": 0.1},
        {"params": [weights[1], weights[2], weights[3], weights[5]], "weight_decay": 0.0},
    ]
    expected = step(net, torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), fused=True))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_frozen_weights_are_left_out_and_an_empty_group_too(net):
    for name, weight in net.named_parameters():
        weight.requires_grad_(name == "0.weight")
    groups = make(net).param_groups
    assert [group["params"] for group in groups] == [[net[0].weight]]


def test_sgd_takes_its_arguments_and_no_betas(net):
    start = net[0].weight.detach().clone()
    made = make(net, "torch.optim.SGD", optimizer_args={"momentum": 0.9}, weight_decay=0.5)
    assert isinstance(made, torch.optim.SGD)
    net(torch.ones(1, 64)).sum().backward()
    gradient, vector = net[0].weight.grad.clone(), net[1].bias.detach().clone()
    made.step()
    torch.testing.assert_close(net[0].weight, start - 0.01 * (gradient + 0.5 * start))
    torch.testing.assert_close(net[1].bias, vector - 0.01 * net[1].bias.grad)
    assert made.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize("name", ["Adafactor", "RAdam", "Adagrad", "RMSprop", "NAdam"])
def test_others_of_torchs_step(net, name):
    start = [weight.detach().clone() for weight in net.parameters()]
    found = step(net, make(net, f"torch.optim.{name}"))
    assert not any(torch.equal(one, other) for one, other in zip(start, found, strict=True))


@pytest.mark.parametrize("package", ["bitsandbytes", "torchao"])
@pytest.mark.filterwarnings("ignore")
def test_eight_bit_optimisers_step_and_resume(net, package):
    pytest.importorskip(package)
    path = f"{package}.optim.AdamW8bit"
    start = net[0].weight.detach().clone()
    made = make(net, path)
    found = step(net, made)
    exact = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.LayerNorm(128), torch.nn.Linear(128, 64)
    )
    torch.manual_seed(0)
    for layer in exact:
        layer.reset_parameters()
    assert torch.equal(exact[0].weight, start)
    expected = step(exact, make(exact))
    # Eight bits of state: near AdamW's step, not on it.
    moved = (expected[0] - start).norm()
    assert 0 < (found[0] - expected[0]).norm() < 0.1 * moved
    state = made.state[net[0].weight]
    sizes = [value for value in state.values() if isinstance(value, torch.Tensor)]
    assert any(
        value.dtype == torch.uint8 or type(value).__name__ == "OptimState8bit" for value in sizes
    )
    again = make(net, path)
    again.load_state_dict(made.state_dict())
    step(net, again, count=1)


@pytest.mark.parametrize(
    ("optimizer", "settings", "said"),
    [
        ("AdamW", {}, r"model\.optimizer must be the import path of a class, such as .*'AdamW'"),
        (
            "torch.optim.Adamw",
            {},
            r"got 'torch\.optim\.Adamw'\. Did you mean 'torch\.optim\.AdamW'",
        ),
        (
            "{class_path: torch.optim.SGD, init_args: {momentum: 0.9}}",
            {},
            r"model\.optimizer takes a class path alone, .*its arguments go into model\.opt",
        ),
        ("torch.nn.Linear", {}, r"model\.optimizer must be an optimiser"),
        ("no_such_package.optim.Adam", {}, r"'no_such_package' is not installed: pip install no_s"),
        (
            "torch.no_such_part.Adam",
            {},
            r"can't be imported; No module named 'torch\.no_such_part'",
        ),
        (
            "torch.optim.SGD",
            {"optimizer_args": {"momentun": 0.9}},
            r"model\.optimizer_args\.momentun is not an argument of torch\.optim\.SGD; it tak",
        ),
        ("torch.optim.SGD", {"optimizer_args": {"lr": 1}}, r"optimizer_args\.lr has a key of its"),
        (
            "torch.optim.SGD",
            {"optimizer_args": {"momentum": -1.0}},
            r"model\.optimizer_args\.momentum is refused by torch\.optim\.SGD: Invalid momentum",
        ),
        ("torch.optim.SGD", {"betas": (0.8, 0.9)}, r"model\.betas is not an argument of torch"),
        ("torch.optim.Rprop", {}, r"model\.weight_decay must be 0 for torch\.optim\.Rprop"),
        ("torch.optim.AdamW", {"betas": (0.9, 1.0)}, r"model\.betas must each be .*\[0\.9, 1\.0\]"),
        ("torch.optim.LBFGS", {"weight_decay": 0.0}, r"model\.optimizer is refused by torch\.opti"),
    ],
)
def test_bad_input_is_one_line(net, optimizer, settings, said):
    with pytest.raises(InputError, match=said) as found:
        make(net, optimizer, **settings)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 2 / 3, 1 / 3]),
        ("cosine", [0.5, 1.0, 1.0, 0.75, 0.25]),
    ],
)
def test_the_rate_rises_then_falls(schedule, expected):
    scale = scale_of(schedule, warmup=0.4, total=5)
    assert [scale(step) for step in range(5)] == pytest.approx(expected)
    assert scale(5) == (1.0 if schedule == "constant" else pytest.approx(0.0))
    assert scale(50) == (1.0 if schedule == "constant" else pytest.approx(0.0))


def test_without_warm_up_the_first_step_has_the_whole_rate():
    assert [scale_of("cosine", 0.0, 2)(step) for step in (0, 1)] == pytest.approx([1.0, 0.5])
    assert scale_of("linear", 1.0, 4)(4) == 1.0
    assert math.isfinite(scale_of("linear", 0.0, 0)(0))


def test_a_partitioned_weight_is_decayed_by_its_whole_shape():
    """What ZeRO-3 leaves of a matrix on a process has one dimension, or none of its numbers."""
    matrix, vector = (torch.nn.Parameter(torch.empty(0)) for _ in range(2))
    matrix.ds_shape, vector.ds_shape = torch.Size([4, 2]), torch.Size([4])
    made = make_optimizer([("a", vector), ("b", matrix)], lr=0.1, weight_decay=0.5)
    groups = [(group["params"], group["weight_decay"]) for group in made.param_groups]
    assert groups == [([matrix], 0.5), ([vector], 0.0)]
