"""Meters on two CPU processes give what the functions give of all rows."""

import os
from datetime import timedelta

import pytest
import torch
from faults import PATIENCE
from meter_cases import make_cases
from sharded import run_forked

from etw_lightning.schema import InputError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

CASES = make_cases()
#: Eighths of the rows that each process gets, update by update.
SHARES = {
    "ragged": [[(0, 1), (1, 5)], [(5, 6), (6, 8)]],
    "empty": [[(0, 0), (0, 0)], [(0, 4), (4, 8)]],
    "untouched": [[], [(0, 8)]],
}


def computed():
    """Return each meter's number in this process, for each way of sharing the rows."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    rank = torch.distributed.get_rank()
    found = {}
    for way, shares in SHARES.items():
        for name, case in CASES.items():
            meter = case.make()
            for part in shares[rank]:
                meter.update(*case.part(*part))
                if way == "ragged":
                    try:
                        # What is gathered on the way is not counted again.
                        meter.compute()
                    except InputError:
                        assert not meter._is_synced
            found[f"{way}: {name}"] = meter.compute().item()
    torch.distributed.destroy_process_group()
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_two_processes_give_what_one_gives(tmp_path):
    first, second = run_forked(computed, 2, tmp_path)
    assert first == second
    expected = {f"{way}: {name}": case.expected for way in SHARES for name, case in CASES.items()}
    assert first == pytest.approx(expected, abs=1e-12, rel=1e-12)


def test_one_process_alone_has_another_number():
    """Or the test above could not fail: of some of the rows each number is another, or none."""
    for name, case in CASES.items():
        if case.expected == 0:
            continue
        meter = case.make()
        meter.update(*case.part(0, 5))
        try:
            found = meter.compute().item()
        except InputError:
            continue
        assert abs(found - case.expected) > 1e-9, name
