"""Every command the README shows is one that the program takes."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
FITS = sorted({part for line in LINES for part in re.findall(r"etw_lightning (fit .*)", line)})
PATHS = sorted(set(re.findall(r"`((?:configs|etw_lightning|slurm|tests)/[\w./]*)`", README)))


def test_there_are_two_lines_to_try():
    lines = [line for line in LINES if line.startswith("pip install -c constraints.txt ")]
    assert [line.split(" && ")[1].split()[0] for line in lines] == ["python", "pytest"]


@pytest.mark.parametrize("line", FITS)
def test_a_fit_command_parses(command, monkeypatch, line):
    monkeypatch.chdir(ROOT)
    outcome = command(*shlex.split(line), "--print_config")
    assert outcome.err == ""
    assert outcome.status == 0
    assert "pretrained:" in outcome.out


def test_the_dry_run_of_the_array_job():
    assert "bash slurm/array.sh --dry-run" in README
    done = subprocess.run(
        ["bash", "slurm/array.sh", "--dry-run"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "etw_lightning fit" in done.stdout


@pytest.mark.parametrize("path", PATHS)
def test_a_path_it_names_exists(path):
    assert (ROOT / path).exists()
