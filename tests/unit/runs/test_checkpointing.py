"""What checkpoints agree on before a run goes on; the rest is tested on whole runs."""

from types import SimpleNamespace

import pytest
import torch

from etw_lightning.runs.checkpointing import Checkpoints
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
