"""What is verified of devices and disk: which layout a trainer has, and what room a run needs."""

import re
from collections import namedtuple
from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from etw_lightning.memory.check_memory import asked_layout
from etw_lightning.memory.model_checks import check_disk
from etw_lightning.memory.prediction import GIB
from etw_lightning.memory.run_needs import Sizes
from etw_lightning.schema import InputError


def deepspeed(**how):
    pytest.importorskip("deepspeed")
    return DeepSpeedStrategy(**how)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (SingleDeviceStrategy, "single"),
        (DDPStrategy, "ddp"),
        (ModelParallelStrategy, "fsdp"),
        (lambda: deepspeed(stage=2), "deepspeed_zero2"),
        (lambda: deepspeed(stage=3), "deepspeed_zero3"),
        (lambda: deepspeed(stage=3, offload_optimizer=True), "deepspeed_zero3_offload"),
        (lambda: deepspeed(stage=3, offload_parameters=True), "deepspeed_zero3_offload"),
    ],
)
def test_the_layout_is_that_of_the_trainer(make, name):
    trainer = SimpleNamespace(strategy=make(), num_devices=4, num_nodes=2)
    assert asked_layout(trainer) == (name, 8)


@pytest.fixture
def disk(monkeypatch):
    """Have a disk with this many free GiB."""
    usage = namedtuple("usage", "total used free")

    def call(free):
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, round(free * GIB)))

    return call


SIZES = Sizes(model=GIB, checkpoint=3 * GIB, working=0)


def test_checkpoints_need_room_for_the_best_and_the_one_that_is_written(disk, tmp_path):
    disk(13)
    said = check_disk(tmp_path / "a" / "b", SIZES, 2, saves_model=True)
    assert said == (
        "disk: up to 13.0 GiB (4 checkpoints of 3.0 GiB and the model of 1.0 GiB), 13.0 GiB free "
        f"in {tmp_path}"
    )
    disk(12.9)
    with pytest.raises(InputError, match=r"--checkpoints\.keep with a lower number"):
        check_disk(tmp_path, SIZES, 2, saves_model=True)
    assert check_disk(tmp_path, SIZES, 2, saves_model=False).startswith("disk: up to 12.0 GiB")


@pytest.mark.parametrize(
    ("kept", "best", "saves", "ways"),
    [
        (2, True, True, ["checkpoints.keep", "checkpoints.best", "no_save_model"]),
        (1, False, False, []),
    ],
)
def test_only_ways_out_that_help_are_told(disk, tmp_path, kept, best, saves, ways):
    disk(1)
    with pytest.raises(InputError) as caught:
        check_disk(tmp_path, SIZES, kept, saves_model=saves, keeps_best=best)
    assert re.findall(r"--([\w.]+)", str(caught.value)) == ways
    assert str(caught.value).endswith(" or give a folder on another disk.")
    disk(100)
    said = check_disk(tmp_path, SIZES, kept, saves_model=saves, keeps_best=best)
    assert f"{kept + best + 1} checkpoints" in said


def test_what_an_earlier_run_left_is_replaced(disk, tmp_path):
    (tmp_path / "model").mkdir()
    with (tmp_path / "model" / "weights").open("wb") as file:
        file.truncate(GIB // 2)
    disk(0.5)
    assert "1.0 GiB free" in check_disk(tmp_path, SIZES, 0, saves_model=True)


def test_a_run_that_writes_nothing_large_needs_no_room(disk, tmp_path):
    disk(0)
    assert check_disk(tmp_path, SIZES, 0, saves_model=False) == "disk: nothing large is written"
    assert "not verified" in check_disk(tmp_path, None, 2, saves_model=True)
