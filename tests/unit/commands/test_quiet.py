"""What the libraries say: noise is left out, what matters to somebody is kept."""

import logging
import shutil
import sys
import warnings

import pytest
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from etw_lightning.commands.quiet import be_quiet


@pytest.mark.parametrize(
    ("job", "launched", "is_said"),
    [(None, False, False), ("7", False, True), ("7", True, False)],
    ids=["no job", "in a job", "torchrun in a job"],
)
def test_the_hint_is_said_where_it_may_be_right(monkeypatch, job, launched, is_said):
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setattr("etw_lightning.commands.quiet.is_torchrun", lambda: launched)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        be_quiet()
        SLURMEnvironment._validate_srun_used()
    assert bool(seen) == is_said


def test_bitsandbytes_does_not_tell_of_a_kernel_it_lacks(monkeypatch, caplog):
    speaker = logging.getLogger("bitsandbytes.backends.cpu.ops")
    monkeypatch.setattr(speaker, "filters", [])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with warnings.catch_warnings():
        be_quiet()
    speaker.warning(
        "Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "no kernels"
    )
    speaker.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_main_may_be_called_by_a_script_that_has_words_of_its_own(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "words"])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        be_quiet()
        with pytest.raises(SystemExit):
            LightningCLI(BoringModel, args=["fit", "--help"])
    assert [str(one.message) for one in seen if "args parameter" in str(one.message)] == []
