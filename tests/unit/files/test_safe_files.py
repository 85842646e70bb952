"""Checkpoints that would run something are refused before, and while, they are read."""

import io
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader

from etw_lightning.files.safe_files import check_checkpoint, reading_safely
from etw_lightning.files.stored_weights import read_weights
from etw_lightning.schema import InputError


class Touch:
    """A pickle of this writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def sign(tmp_path):
    """What is there once something has been run."""
    return tmp_path / "was_run"


@pytest.fixture
def shards(tmp_path):
    """A folder as FSDP2 leaves it; whole numbers lie there as pickles."""
    folder = tmp_path / "shards"
    state = {"state_dict": {"scorer.lm.weight": torch.arange(4.0)}, "optimizer_0": {"lr": 0.1}}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    torch.save({"epoch": 1}, folder / "meta.pt")
    return folder


def test_what_our_runs_write_is_read(shards, tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "name": "x"}, tmp_path / "state.ckpt")
    check_checkpoint(tmp_path / "state.ckpt", "ckpt_path")
    check_checkpoint(shards, "ckpt_path")
    weights = read_weights(shards, "ckpt_path")
    assert {name: value.tolist() for name, value in weights.items()} == {
        "scorer.lm.weight": [0.0, 1.0, 2.0, 3.0]
    }


@pytest.mark.parametrize("name", ["state.ckpt", "shards/meta.pt", "shards/other.pt"])
def test_a_file_that_runs_something_is_refused(name, shards, sign, tmp_path):
    torch.save({"state_dict": {}, "more": Touch(sign)}, tmp_path / name)
    place = tmp_path / name if name == "state.ckpt" else shards
    with pytest.raises(InputError, match=r"ckpt_path: .* holds posix.mkdir, more than weights"):
        check_checkpoint(place, "ckpt_path")
    assert not sign.exists()


def test_an_index_that_runs_something_is_refused(shards, sign):
    (shards / ".metadata").write_bytes(pickle.dumps(Touch(sign)))
    with pytest.raises(InputError, match=r"model.pretrained: .*metadata' holds posix.mkdir"):
        read_weights(shards, "model.pretrained")
    assert not sign.exists()


def test_a_pickle_among_the_shards_is_refused(shards, sign):
    """In the place of a plain number, as the index gives it."""
    written = io.BytesIO()
    torch.save(Touch(sign), written)
    index = FileSystemReader(shards).read_metadata()
    where = next(one for one in index.storage_data if one.fqn == "optimizer_0.lr")
    found = index.storage_data[where]
    (shards / "more.distcp").write_bytes(written.getvalue())
    index.storage_data[where] = type(found)("more.distcp", 0, len(written.getvalue()))
    (shards / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(InputError, match=r"more.distcp' holds posix.mkdir"):
        check_checkpoint(shards, "ckpt_path")
    assert not sign.exists()


@pytest.mark.parametrize("name", ["../secret.distcp", "/etc/passwd"])
def test_an_index_names_no_file_elsewhere(name, shards):
    index = FileSystemReader(shards).read_metadata()
    where, found = next(iter(index.storage_data.items()))
    index.storage_data[where] = type(found)(name, found.offset, found.length)
    (shards / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(InputError, match="names a file outside its folder"):
        check_checkpoint(shards, "ckpt_path")


def test_deepspeed_is_led_to_no_other_folder(tmp_path):
    (tmp_path / "latest").write_text("../../elsewhere")
    with pytest.raises(InputError, match=r"names a folder outside its own, '../../elsewhere'"):
        check_checkpoint(tmp_path, "ckpt_path")


@pytest.mark.parametrize("name", ["state.ckpt", ".metadata"])
def test_a_cut_file_is_one_line(name, shards):
    (shards / name).write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match=r"can't be read .* copy it anew"):
        check_checkpoint(shards, "ckpt_path")


def test_nothing_is_run_where_a_loader_would_allow_it(sign, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"more": Touch(sign)}, tmp_path / "state.ckpt")
    with reading_safely(), pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(tmp_path / "state.ckpt", weights_only=False)
    assert not sign.exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    torch.load(tmp_path / "state.ckpt", weights_only=False)
    assert Path(sign).is_dir()
