"""What checkpoints agree on before a run goes on; the rest is tested on whole runs."""

import errno
import os
from types import SimpleNamespace

import pytest
import torch

from etw_lightning.callbacks.findings import TrainingStoppedError
from etw_lightning.runs.checkpointing import Checkpoints
from etw_lightning.runs.state_file import UnwrittenError
from etw_lightning.schema import InputError


def trainer(step, *others):
    """A process at a step, beside others at theirs."""

    def reduce(values, reduce_op):
        assert reduce_op == "max"
        ends = [values, *(torch.tensor([-1.0, 1.0]) * other for other in others)]
        return torch.stack(ends).amax(0)

    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=reduce)
    return SimpleNamespace(global_step=step, strategy=strategy)


@pytest.fixture
def checkpoints():
    found = Checkpoints()
    found._watch = lambda: None
    return found


def test_processes_at_one_step_go_on(checkpoints):
    checkpoints.on_train_start(trainer(7, 7, 7), None)


@pytest.mark.parametrize("others", [(8,), (6,), (7, 3)])
def test_processes_at_different_steps_stop_together(checkpoints, others):
    with pytest.raises(InputError, match="processes went on from different checkpoints"):
        checkpoints.on_train_start(trainer(7, *others), None)


def os_error(number):
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (os_error(errno.EACCES), "(Permission denied); make the folder writable, and"),
        (os_error(errno.EROFS), "(Read-only file system); make the folder writable, and"),
        (os_error(errno.ENOSPC), "(No space left on device); make room there, and"),
        (
            UnwrittenError("unexpected pos 64 vs 0"),
            "(unexpected pos 64 vs 0); make room there, and",
        ),
    ],
    ids=["no right", "read-only", "full", "cut"],
)
def test_a_folder_that_may_not_be_written_is_not_called_full(checkpoints, tmp_path, error, way_out):
    checkpoints._run = tmp_path
    where = SimpleNamespace(is_global_zero=True, global_step=3, current_epoch=0)

    def fail(_):
        raise error

    checkpoints._write = fail
    with pytest.raises(TrainingStoppedError) as stopped:
        checkpoints._save(where)
    assert way_out in str(stopped.value).replace(f"[Errno {getattr(error, 'errno', '')}] ", "")
    assert "the same command goes on from the start" in str(stopped.value)
