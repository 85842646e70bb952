"""Stochastic rounding: its mean, its neighbours, and what bf16 weights learn with it."""

import copy

import pytest
import torch

from etw_lightning.schema import InputError
from etw_lightning.tuning.optimizers import make_optimizer
from etw_lightning.tuning.rounding import (
    _BLOCKS,
    Draws,
    _filled,
    _goes_in_blocks,
    round_stochastically,
    rounding_class,
)

KINDS = [torch.bfloat16, torch.float16]


def rounded(values, dtype, seed=0):
    target = torch.empty(values.shape, dtype=dtype)
    round_stochastically(target, values, Draws(target.device, seed))
    return target


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("value", [1.001, -3.3333, 1e-3, 6.1e-7, -65000.7, 0.0])
def test_a_value_becomes_one_of_its_neighbours_and_its_mean_stays(dtype, value):
    found = rounded(torch.full((200_000,), value), dtype).double()
    nearest = torch.tensor(value).to(dtype)
    seen = sorted(set(found.tolist()))
    assert nearest.item() in seen
    if nearest.item() == torch.tensor(value).item():
        assert seen == [nearest.item()]
        return
    assert len(seen) == 2
    assert seen[0] < value < seen[1]
    # No 16-bit number lies between: the middle is rounded to one of the two.
    assert torch.tensor(sum(seen) / 2).to(dtype).item() in seen
    share = (value - seen[0]) / (seen[1] - seen[0])
    deviation = (seen[1] - seen[0]) * (share * (1 - share) / found.numel()) ** 0.5
    assert abs(found.mean().item() - torch.tensor(value).double().item()) < 4 * deviation


@pytest.mark.parametrize("dtype", KINDS)
def test_what_can_be_kept_stays_to_the_bit(dtype):
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values[values.isfinite()]
    assert torch.equal(rounded(values.float(), dtype), values)


@pytest.mark.parametrize("dtype", KINDS)
def test_infinity_and_no_number_stay_and_the_largest_numbers_stay_finite(dtype):
    largest = torch.finfo(dtype).max
    given = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0004 * largest, -1.0004 * largest])
    for seed in range(20):
        found = rounded(given, dtype, seed).float()
        assert found[:2].tolist() == [torch.inf, -torch.inf]
        assert found[2].isnan()
        assert found[3:].tolist() == [largest, -largest]


def test_blocks_draw_numbers_of_their_own():
    found = rounded(torch.full((1 << 20,), 1.003), torch.bfloat16).view(4, -1)
    assert not any(torch.equal(found[0], other) for other in found[1:])
    assert rounded(torch.tensor(1.0), torch.bfloat16) == 1
    assert rounded(torch.ones(0, 3), torch.bfloat16).shape == (0, 3)
    assert torch.equal(
        rounded(torch.ones(3, 1 << 19), torch.bfloat16).float(), torch.ones(3, 1 << 19)
    )


def made(dtype, path="torch.optim.AdamW", **settings):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 64))
    net.to(torch.bfloat16).to(dtype)
    given = {"lr": 1e-5, "weight_decay": 0.01, **settings}
    return net, make_optimizer(net.named_parameters(), path, **given)


def train(net, optimizer, steps, start=0):
    """Step on a loss whose gradients all precisions agree on."""
    for number in range(start, start + steps):
        generator = torch.Generator().manual_seed(number)
        rows = torch.randn(32, 64, generator=generator).to(next(net.parameters()).dtype)
        optimizer.zero_grad()
        (net(rows) - 0.5 * rows).float().square().mean().backward()
        optimizer.step()


def change(net, start):
    pairs = zip(net.parameters(), start, strict=True)
    return torch.cat([(one.detach().double() - was).flatten() for one, was in pairs])


def mean_change(path, lr, dtype, copies, **settings):
    """Return the change of a layer's weights in three steps, averaged over equal copies of it."""
    generator = torch.Generator().manual_seed(0)
    start = 0.1 * torch.randn(32, 16, generator=generator).to(torch.bfloat16)
    weights = torch.nn.Parameter(start.to(dtype).repeat(copies, 1, 1))
    optimizer = make_optimizer([("w", weights)], path, lr=lr, weight_decay=0.01, **settings)
    for _ in range(3):
        rows, truth = torch.randn(2, 24, 32, generator=generator).to(torch.bfloat16).to(dtype)
        optimizer.zero_grad()
        (rows @ weights - truth[:, :16]).float().square().sum((1, 2)).div(24).sum().backward()
        optimizer.step()
    return (weights.detach().double() - start.double()).mean(0).flatten()


@pytest.mark.parametrize(
    ("path", "lr"),
    [("torch.optim.AdamW", 1e-5), ("torch.optim.SGD", 3e-5), ("torch.optim.RMSprop", 1e-5)],
)
def test_the_mean_change_of_bf16_weights_follows_float32(path, lr):
    """Over draws; to the nearest, what a step leaves points elsewhere."""
    right = mean_change(path, lr, torch.float32, 1)
    found = {
        rounding: mean_change(path, lr, torch.bfloat16, 1000, rounding=rounding)
        for rounding in (None, "stochastic", "nearest")
    }
    cosine = {name: torch.cosine_similarity(one, right, 0).item() for name, one in found.items()}
    assert cosine["stochastic"] > 0.97, cosine
    assert (found["stochastic"].norm() / right.norm()).item() == pytest.approx(1, abs=0.05)
    assert cosine["nearest"] < 0.6, cosine
    assert torch.equal(found[None], found["stochastic"])


def test_a_second_moment_goes_on_rising_in_bf16():
    """To the nearest it stops where a step's share of it is below half its spacing."""
    weight = torch.nn.Parameter(torch.zeros(1024, dtype=torch.bfloat16))
    states = {}
    for rounding in ("stochastic", "nearest"):
        optimizer = make_optimizer([("w", weight)], lr=1e-5, betas=(0.9, 0.99), rounding=rounding)
        for _ in range(400):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        states[rounding] = optimizer.state[weight]["exp_avg_sq"].double().mean().item()
    assert states["stochastic"] == pytest.approx(1 - 0.99**400, rel=0.01)
    assert states["nearest"] < 0.9


@pytest.mark.parametrize("path", ["torch.optim.AdamW", "torch.optim.SGD", "torch.optim.Adafactor"])
def test_a_run_that_goes_on_is_bit_equal(path):
    whole, optimizer = made(torch.bfloat16, path)
    train(whole, optimizer, 6)
    first, optimizer = made(torch.bfloat16, path)
    train(first, optimizer, 3)
    states = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    second, optimizer = made(torch.bfloat16, path)
    second.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    train(second, optimizer, 3, start=3)
    for one, other in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_state_is_kept_in_16_bits_and_every_step_draws_anew():
    net, optimizer = made(torch.bfloat16)
    train(net, optimizer, 1)
    state = optimizer.state[net[0].weight]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    assert state["step"] == 1
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    assert all(weight.dtype == torch.bfloat16 for weight in net.parameters())


def test_copies_of_a_weight_stay_equal_whatever_else_is_drawn(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    first, optimizer = made(torch.bfloat16)
    train(first, optimizer, 2)
    second, optimizer = made(torch.bfloat16)
    train(second, optimizer, 1)
    torch.rand(1000)
    train(second, optimizer, 1, start=1)
    assert torch.equal(first[0].weight, second[0].weight)
    monkeypatch.setenv("PL_GLOBAL_SEED", "8")
    other, optimizer = made(torch.bfloat16)
    train(other, optimizer, 2)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_weights_of_32_bits_beside_them_step_as_ever():
    mixed, optimizer = made(torch.float32)
    train(mixed, optimizer, 2)
    expected = mixed[2].weight.detach().clone()
    found, _ = made(torch.float32)
    cls = rounding_class(torch.optim.AdamW)
    idle = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = make_optimizer(
        [*found.named_parameters(), ("idle", idle)], lr=1e-5, weight_decay=0.01
    )
    assert type(optimizer).__name__ == cls.__name__ == "RoundingAdamW"
    train(found, optimizer, 2)
    assert torch.equal(found[2].weight, expected)
    # It had no gradient.
    assert idle not in optimizer.state


def test_what_can_not_be_rounded_is_refused_by_name():
    weights = torch.nn.Linear(2, 2).to(torch.bfloat16)
    with pytest.raises(
        InputError, match=r"model\.rounding 'stochastic' can't be had with torch\.optim\.LB"
    ):
        make_optimizer(weights.named_parameters(), "torch.optim.LBFGS", lr=1, rounding="stochastic")


def test_adam_is_fused_unless_asked_otherwise_and_alike():
    ends = {}
    for name, settings in (("fused", {}), ("plain", {"optimizer_args": {"foreach": False}})):
        net, optimizer = made(torch.float32, lr=1e-3, **settings)
        assert bool(optimizer.defaults["fused"]) == (name == "fused")
        train(net, optimizer, 5)
        ends[name] = net[0].weight.detach().clone()
    torch.testing.assert_close(ends["fused"], ends["plain"], rtol=0, atol=1e-6)
    _, optimizer = made(torch.float32, fuses=False)
    assert not optimizer.defaults["fused"]


@pytest.mark.parametrize("block", [7, 100, 1 << 17])
@pytest.mark.parametrize("path", ["torch.optim.AdamW", "torch.optim.Adam"])
def test_blocks_of_many_weights_or_parts_of_one_are_each_stepped_as_in_float32(
    path, block, monkeypatch
):
    monkeypatch.setitem(_BLOCKS, "cpu", block)
    torch.manual_seed(0)
    sizes = [(3, 5), (1, 1), (64, 33), (9,), (2, 4)]
    weights = [torch.nn.Parameter(torch.randn(size).bfloat16()) for size in sizes]
    named = [(str(number), weight) for number, weight in enumerate(weights)]
    optimizer = make_optimizer(named, path, lr=1e-2, weight_decay=0.1)
    fused = torch._fused_adamw_ if path.endswith("W") else torch._fused_adam_
    for step in range(3):
        # One has no gradient at first, and so another number of steps than its neighbours.
        for weight in weights[1 - min(step, 1) :]:
            weight.grad = torch.randn_like(weight)
        expected = []
        for weight in weights:
            if weight.grad is None:
                continue
            state = optimizer.state.get(weight) or {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
            exact = [weight.detach(), weight.grad, state["exp_avg"], state["exp_avg_sq"]]
            exact = [one.float() for one in exact]
            settings = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
            settings |= {"weight_decay": 0.1 * (weight.dim() > 1)}
            settings |= {"amsgrad": False, "maximize": False}
            fused(*([one] for one in exact), [], [state["step"] + 1], **settings)
            expected.append((weight, exact))
        optimizer.step()
        for weight, (value, _, mean, square) in expected:
            state = optimizer.state[weight]
            kept = {"w": weight.detach(), "m": state["exp_avg"], "v": state["exp_avg_sq"]}
            for (name, found), right in zip(kept.items(), (value, mean, square), strict=True):
                # Never further than the next 16-bit number, 2 ** -7 of one that is just above a
                # power of 2; off by half of that in one of very few if it were to the nearest.
                off = (found.float() - right).abs() / right.abs()
                assert off.max() < 2**-7 * (1 + 1e-5), name
                if found.numel() > 1000:
                    assert off.max() > 2**-8 * 1.2, name
                    signed = (found.float() - right) / right.abs()
                    assert signed.mean().abs() < 4 * signed.std() / found.numel() ** 0.5


def test_a_checkpoint_is_laid_out_as_adamw_lays_it_out():
    """So that what was saved before weights were stepped in blocks goes on, and the other way."""
    states = {}
    for name, settings in (("blocks", {}), ("nearest", {"rounding": "nearest"})):
        net, optimizer = made(torch.bfloat16, **settings)
        train(net, optimizer, 2)
        states[name] = optimizer.state_dict()
    blocks, nearest = states["blocks"], states["nearest"]
    assert blocks["state"].keys() == nearest["state"].keys()
    for number, state in nearest["state"].items():
        found = blocks["state"][number]
        assert {k: (v.dtype, v.shape) for k, v in found.items()} == {
            k: (v.dtype, v.shape) for k, v in state.items()
        }
        assert found["step"] == state["step"] == 2
    for found, group in zip(blocks["param_groups"], nearest["param_groups"], strict=True):
        assert found == {**group, "rounded_steps": 2}
    for state in states.values():
        net, optimizer = made(torch.bfloat16)
        optimizer.load_state_dict(copy.deepcopy(state))
        train(net, optimizer, 1, start=2)
        assert optimizer.state[net[0].weight]["step"] == 3


def test_what_stands_in_blocks_before_a_sharded_weight_moves_no_draw_of_a_whole_one():
    """Processes hold parts of unequal sizes; copies of whole weights must stay equal on all."""

    class Sharded(torch.nn.Parameter):
        placements = ("of a shard",)

    ends = []
    for size in (11, 300):
        torch.manual_seed(0)
        whole = torch.nn.Parameter(torch.ones(40, 40, dtype=torch.bfloat16))
        part = Sharded(torch.ones(size, 2, dtype=torch.bfloat16))
        optimizer = make_optimizer([("part", part), ("whole", whole)], lr=1e-3)
        for weight in (part, whole):
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        ends.append(whole.detach().clone())
    assert torch.equal(*ends)
    assert 0 < (ends[0] < 1).sum() < 1600


def test_blocks_are_filled_to_the_last_number():
    assert [*_filled([3, 5], 4)] == [[(0, 0, 3), (1, 0, 1)], [(1, 1, 5)]]
    assert [*_filled([2, 0, 2], 2)] == [[(0, 0, 2)], [(2, 0, 2)]]
    assert [*_filled([1], 4)] == [[(0, 0, 1)]]
    assert [*_filled([], 4)] == []


def test_no_number_becomes_infinite_that_was_none():
    """bfloat16's largest is 3.3895e38, float32's 3.4028e38: what is between is cut."""
    largest = torch.finfo(torch.bfloat16).max
    value = torch.tensor([3.4e38, -3.4e38, float("inf"), -float("inf"), float("nan"), 1.0])
    target = torch.empty(6, dtype=torch.bfloat16)
    for seed in range(8):
        round_stochastically(target, value, Draws(target.device, seed))
        assert target[:4].tolist() == [largest, -largest, float("inf"), -float("inf")]
        assert target[4].isnan()
        assert target[5] == 1


@pytest.mark.parametrize(
    ("fused", "amsgrad", "goes"),
    [(True, False, True), (None, False, False), (True, True, False)],
)
def test_blocks_are_for_the_fused_kernel_that_looks_at_no_largest_square(fused, amsgrad, goes):
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    assert _goes_in_blocks({"fused": fused, "amsgrad": amsgrad}, weight, {}) == goes


@pytest.mark.parametrize("maximize", [False, True])
def test_the_fused_step_goes_the_way_that_is_asked_for(maximize):
    weight = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    kind = rounding_class(torch.optim.AdamW)
    kind([weight], lr=0.125, weight_decay=0.0, fused=True, maximize=maximize).step()
    # Adam's first step is the rate, whatever the gradient's size.
    expected = 1.125 if maximize else 0.875
    assert weight.detach().float().mean().item() == pytest.approx(expected, abs=0.005)
