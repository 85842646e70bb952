"""Which checkpoint a path means, and what is said where it means none."""

import pytest
import torch
from toy import write_manifest

from etw_lightning.files.stored_weights import find_checkpoint, is_checkpoint, read_description
from etw_lightning.schema import InputError


@pytest.fixture
def run(tmp_path):
    """A run's folder with two steps: a file and a folder of shards."""
    for step in (4, 12):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    torch.save({"state_dict": {}}, tmp_path / "checkpoints" / "step-00000004" / "state.ckpt")
    shards = tmp_path / "checkpoints" / "step-00000012" / "state.ckpt"
    (shards / "checkpoint").mkdir(parents=True)
    name = "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({"epoch": 3}, shards / "checkpoint" / name)
    for folder in (tmp_path / "checkpoints").iterdir():
        write_manifest(folder)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "step"),
    [
        ("", 12),
        ("checkpoints/step-00000012", 12),
        ("checkpoints/step-00000012/state.ckpt", 12),
        ("checkpoints/step-00000004", 4),
        ("checkpoints/step-00000004/state.ckpt", 4),
    ],
)
def test_a_path_is_a_file_shards_a_step_or_a_run(run, given, step):
    assert is_checkpoint(str(run / given))
    found = find_checkpoint(str(run / given), "checkpoint")
    assert found == run / "checkpoints" / f"step-{step:08d}" / "state.ckpt"


def test_a_step_that_was_broken_off_is_passed_over(run):
    (run / "checkpoints" / "step-00000016").mkdir()
    assert find_checkpoint(str(run), "checkpoint").parent.name == "step-00000012"


def test_shards_are_described_without_their_weights(run):
    found = find_checkpoint(str(run), "checkpoint")
    assert read_description(found, "checkpoint") == {"epoch": 3}


def test_a_model_is_no_checkpoint(tiny_model_dir, tmp_path):
    assert not is_checkpoint(str(tiny_model_dir))
    assert not is_checkpoint("owner/name")
    assert not is_checkpoint(str(tmp_path))


def test_what_is_none_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^checkpoint: checkpoint '.*gone.ckpt' is not there; "):
        find_checkpoint(str(tmp_path / "gone.ckpt"), "checkpoint")
    with pytest.raises(InputError, match=r"holds no checkpoint; give a .ckpt file, a folder of"):
        find_checkpoint(str(tmp_path), "checkpoint")
