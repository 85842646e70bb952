"""What is taken from torchrun: devices, nodes, one name; and what a lost process looks like."""

import os
import socket

import pytest
import torch
from faults import torchrun_variables
from sharded import run_forked
from torch.distributed import DistNetworkError, TCPStore

from etw_lightning.runs.folder import run_folder
from etw_lightning.runs.launched import (
    agreed_name,
    is_first_to_say,
    is_lost_peer,
    launched_settings,
)
from etw_lightning.schema import InputError
from etw_lightning.training.strategies import is_first_process


@pytest.fixture
def torchrun(monkeypatch):
    """Be the second of two processes a node on three nodes."""
    variables = torchrun_variables(1, 6, 1) | {"LOCAL_WORLD_SIZE": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ETW_RUN_STAMP", raising=False)


@pytest.mark.parametrize("devices", ["auto", -1, "-1", 2, "2", [0, 1]])
@pytest.mark.parametrize("num_nodes", [1, 3])
def test_devices_and_nodes_are_those_that_were_started(torchrun, devices, num_nodes):
    assert launched_settings(devices, num_nodes) == {"devices": 2, "num_nodes": 3}


@pytest.mark.parametrize("devices", [1, 3, "1", [0]])
def test_another_number_of_devices_is_refused(torchrun, devices):
    with pytest.raises(InputError, match=r"^trainer\.devices is .* torchrun has started 2 proc"):
        launched_settings(devices, 1)


def test_another_number_of_nodes_is_refused(torchrun):
    with pytest.raises(InputError, match=r"^trainer\.num_nodes is 2, .* on 3 nodes"):
        launched_settings("auto", 2)


def test_nothing_is_settled_without_torchrun(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launched_settings(4, 2) == {}
    assert agreed_name("a") is None


def test_all_processes_take_the_name_that_came_first(torchrun, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert agreed_name("mine") is None, "no store of the launcher's"
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert agreed_name("first") == "first"
    assert agreed_name("second") == "first"
    assert str(run_folder(None, ["a/b.yaml"])) == "runs/b/first"


def test_a_folder_must_be_given_where_there_is_no_store(torchrun, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with pytest.raises(InputError, match="output_dir must be given"):
        run_folder(None, ["a/b.yaml"])


def test_an_error_that_says_a_process_is_gone():
    gloo = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1"
    assert is_lost_peer(RuntimeError(gloo))
    assert not is_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_peer(ValueError(gloo))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DistNetworkError) as caught:
            TCPStore("127.0.0.1", taken.getsockname()[1], is_master=True, use_libuv=False)
    assert is_lost_peer(caught.value)
    assert isinstance(caught.value, torch.distributed.DistError)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_of_forked_processes_one_takes_itself_for_the_first(tmp_path):
    """Lightning was imported before the fork, where each was the first."""
    assert is_first_process()
    assert run_forked(is_first_process, 3, tmp_path) == [True, False, False]


def test_what_all_processes_find_is_said_by_one(torchrun, monkeypatch):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert is_first_to_say("broken"), "no store of the launcher's"
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert is_first_to_say("broken")
    monkeypatch.setattr(os, "getpid", lambda: 7)
    assert not is_first_to_say("broken")
    assert is_first_to_say("of this process alone")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert is_first_to_say("broken")
