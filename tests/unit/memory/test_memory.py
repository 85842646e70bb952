"""Memory by strategy: what is whole, what is split, which moment counts, what fits first."""

from dataclasses import replace

import pytest

from etw_lightning.memory.prediction import (
    RESERVED,
    STRATEGIES,
    Needs,
    choose_strategy,
    predict_footprint,
    predict_host,
    state_bytes,
    update_bytes,
)
from etw_lightning.memory.step_trace import Moment
from etw_lightning.memory.table import memory_table, say_choice

#: 1000 weights of 4 bytes, all trained with AdamW.
NEEDS = Needs(
    num_weights=1000,
    num_trained=1000,
    weights=4000,
    trained=4000,
    layer=300,
    root=400,
    largest=200,
    state=8000,
    forward=100,
    moments=[Moment(500, 0), Moment(50, 4000)],
    on_cuda=False,
)


def total(strategy="single", count=1, **changes):
    return predict_footprint(replace(NEEDS, **changes), strategy, count).total


def test_one_device_holds_everything():
    # Weights, gradients, two means of AdamW, and two intermediate results of the largest tensor.
    assert total() == 4000 + 4000 + 8000 + 2 * 200
    assert total(forward=7000) == 4000 + 4000 + 8000 + 7000


def test_gradients_are_gone_when_the_backward_pass_begins():
    begins = [Moment(9000, 0)]
    assert total(moments=begins) == 4000 + 8000 + 9000
    assert total(moments=begins, accumulates=True) == 4000 + 4000 + 8000 + 9000


def test_surgery_keeps_a_gradient_of_each_term_beside_what_it_makes_of_them():
    assert total(apart=8000) == 4000 + 3 * 4000 + 8000 + 50


def test_on_gpus_all_tensors_are_updated_at_a_time():
    assert total(on_cuda=True) == 4000 + 4000 + 8000 + 4000 + RESERVED


@pytest.mark.parametrize(
    ("optimizer", "itemsize", "rounds", "expected"),
    [
        ("torch.optim.AdamW", 4, True, 0),
        # Of a block float32 copies of a weight, its gradient and two means, and draws.
        ("torch.optim.AdamW", 2, True, 70 * 10),
        ("torch.optim.AdamW", 2, False, 0),
        ("torch.optim.SGD", 2, True, 8 * 100),
        ("torch.optim.SGD", 4, True, None),
        ("bitsandbytes.optim.AdamW8bit", 2, True, None),
    ],
)
def test_weights_are_updated_one_by_one(optimizer, itemsize, rounds, expected):
    assert update_bytes(optimizer, 100, itemsize, rounds=rounds, block=10) == expected
    if expected is not None:
        # 100 are alive in the forward pass, beside the gradients of the step before.
        held = 4000 + 4000 + 8000 + max(expected, 100)
        assert total(update=expected, on_cuda=True) == held + RESERVED


def test_ddp_keeps_its_gradients_in_buckets():
    """They are there in the forward pass too, where one device has let them go."""
    assert total("ddp", 2) == 4000 + 4000 + 8000 + 500
    assert total("ddp", 2) == total("ddp", 64)
    assert total("ddp", 2, moments=[Moment(9000, 0)]) == 4000 + 4000 + 8000 + 9000


def test_fsdp_splits_all_but_what_is_gathered():
    # Gathered: layers that run and come next, and the rest; the same of their gradients.
    gathered = 2 * (400 + 2 * 300)
    assert total("fsdp", 4, forward=500) == (4000 + 4000 + 8000) // 4 + gathered + 500
    assert total("fsdp", 1) > total("fsdp", 2) > total("fsdp", 8)


def test_shards_are_evaluated_on_a_whole_copy():
    found = predict_footprint(replace(NEEDS, evaluation=10), "fsdp", 64)
    assert found.moment == "evaluation"
    assert (found.gathered, found.working) == (4000, 10)
    whole = predict_footprint(replace(NEEDS, evaluation=10_000), "single", 1)
    assert (whole.moment, whole.gathered) == ("evaluation", 0)


def test_zero_trains_a_float32_copy_of_16_bit_weights():
    low = {"weights": 2000, "trained": 2000, "state": 4000}
    state = predict_footprint(replace(NEEDS, **low), "deepspeed_zero2", 4).state
    assert state == (4000 + 8000) // 4


def test_zero2_keeps_weights_whole_and_zero3_does_not():
    assert predict_footprint(NEEDS, "deepspeed_zero2", 4).weights == 4000
    assert predict_footprint(NEEDS, "deepspeed_zero3", 4).weights == 1000


@pytest.mark.parametrize("strategy", ["deepspeed_zero2", "deepspeed_zero3"])
def test_zero_gathers_and_has_buffers(strategy):
    """ZeRO-2: two buckets of gradients. ZeRO-3: weights that are whole, and one such bucket."""
    found = predict_footprint(replace(NEEDS, forward=50_000), strategy, 4)
    assert (found.moment, found.working, found.gathered) == ("step", 50_000, 8000)


#: Ten thousand million weights of 4 bytes, beyond DeepSpeed's limits.
LARGE = replace(
    NEEDS,
    num_weights=10**10,
    num_trained=10**10,
    weights=4 * 10**10,
    trained=4 * 10**10,
    state=8 * 10**10,
)


def test_zeros_buffers_have_limits():
    """Two hundred million gradients in a bucket, a thousand million weights whole."""
    most = {"forward": 10**11, "moments": []}
    gathered = {
        strategy: predict_footprint(replace(LARGE, **most), strategy, 4).gathered
        for strategy in ("deepspeed_zero2", "deepspeed_zero3")
    }
    assert gathered == {
        "deepspeed_zero2": 2 * 4 * 2 * 10**8,
        "deepspeed_zero3": 4 * 10**9 + 4 * 2 * 10**8,
    }


@pytest.mark.parametrize("strategy", ["deepspeed_zero2", "deepspeed_zero3"])
def test_zeros_peak_is_its_update(strategy):
    """A quarter of the gradients in float32, and as much for the root of Adam's mean."""
    found = predict_footprint(LARGE, strategy, 4)
    assert (found.moment, found.working, found.gathered) == ("update", 2 * 10**10, 0)
    whole = 4 * 10**10
    assert found.weights == (whole if strategy == "deepspeed_zero2" else whole // 4)
    assert found.gradients == whole // 4
    # Its own float32 copy of the weights, and Adam's two means.
    assert found.state == 3 * whole // 4


def test_fsdp_updates_tensor_by_tensor():
    found = predict_footprint(replace(NEEDS, on_cuda=True), "fsdp", 4)
    assert (found.moment, found.gathered) == ("step", 2 * (400 + 2 * 300))
    small = replace(NEEDS, on_cuda=True, root=0, layer=0)
    found = predict_footprint(small, "fsdp", 4)
    assert (found.moment, found.working, found.gathered) == ("update", 2 * 200, 0)
    assert predict_footprint(small, "ddp", 4).working == 4000, "all tensors at a time"


def test_offloading_leaves_neither_weights_nor_state_on_the_device():
    found = predict_footprint(NEEDS, "deepspeed_zero3_offload", 1)
    assert (found.weights, found.gradients, found.state) == (0, 0, 0)
    assert predict_host(NEEDS) == 4000 + 4000 + 12 * 1000


def test_a_reference_model_is_laid_out_as_the_trained_one():
    assert total(reference=4000) == total() + 4000
    one, other = (
        predict_footprint(replace(NEEDS, reference=size), "fsdp", 4).weights for size in (0, 4000)
    )
    assert (one, other) == (1000, 2000)


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [("torch.optim.SGD", 0), ("torch.optim.Lion", 4), ("bitsandbytes.optim.PagedAdamW8bit", 2)],
)
def test_state_is_that_of_the_optimizer(optimizer, size):
    assert state_bytes(optimizer, trained=4000, num_trained=1000) == 1000 * size


def test_what_cant_be_laid_out_is_refused():
    with pytest.raises(ValueError, match="single can't be laid out over 2 devices"):
        predict_footprint(NEEDS, "single", 2)


def test_the_fewest_devices_are_taken_then_the_simplest_strategy():
    needs = dict.fromkeys(STRATEGIES, replace(NEEDS, layer=10, root=10))
    assert choose_strategy(needs, 10**6) == ("single", 1)
    # Less than one device needs, and more than half of it.
    assert choose_strategy({**needs}, 9000, (2, 4)) == ("fsdp", 2)
    assert choose_strategy(needs, 10) is None
    assert "no strategy fits" in say_choice(None)


def test_the_table_marks_what_fits():
    needs = dict.fromkeys(STRATEGIES, replace(NEEDS, weights=2**32, num_weights=2**30))
    lines = memory_table(needs, 5 * 2**30).splitlines()
    assert lines[0].split()[3:10] == ["1", "2", "4", "8", "16", "32", "64"]
    assert lines[1].split()[:3] == ["single", "4.0*", "-"]
    assert [line.split()[0] for line in lines[1:7]] == list(STRATEGIES)
    assert "4.0*" not in memory_table(needs, 3 * 2**30).splitlines()[1]
