"""The built wheel, installed where nothing of the checkout can be seen, run in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
#: What a wheel is built from.
SOURCES = (
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
)
#: What links of Markdown lead to.
_LINKED = re.compile(r"\]\(([^)]*)\)")


def call(*words, cwd, **variables):
    """Run a program without the paths of this one; return its outcome."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built of the source archive of a copy of this tree, in which nothing is left."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    for name in ("etw_lightning", "configs", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "generated", "api")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    words = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source)
    built = call(*words, cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of the programs of an environment that holds the wheel.

    Its libraries are those of this environment, whose own way to find the package it lacks.
    """
    folder = tmp_path_factory.mktemp("environment")
    made = call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    assert made.returncode == 0, made.stderr
    python = folder / "bin" / "python"
    where = call(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder)
    site = Path(where.stdout.strip())
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    options = ("--no-deps", "--no-index", "--disable-pip-version-check")
    words = (sys.executable, "-m", "pip", "--python", python, "install", *options, wheel)
    done = call(*words, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (site / "etw_lightning").is_dir()
    return folder / "bin"


@pytest.fixture
def etw(installed, tmp_path):
    """Run the installed program in an empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return lambda *words: call(
        installed / "etw", *words, cwd=folder, ETW_CACHE=str(tmp_path / "cache")
    )


def test_the_wheel_holds_each_configuration_once_and_the_mark_of_types(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    held = [name for name in names if name.endswith(".yaml")]
    assert sorted(held) == sorted(f"etw_lightning/{name}" for name in there)
    assert "etw_lightning/py.typed" in names


def test_what_an_index_shows_names_files_of_the_source_archive_and_links_to_none(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        head, text = archive.read(name).decode().split("\n\n", 1)
    assert "\nDescription-Content-Type: text/markdown\n" in head
    assert text.startswith(
        "# etw_lightning\n\nFiles that are named here are in the source archive."
    )
    (source,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        held = {one.partition("/")[2] for one in archive.getnames()}
    readme = (ROOT / "README.md").read_text()
    files = {one for one in _LINKED.findall(readme) if not one.startswith("https://")}
    assert len(files) > 20
    assert files <= held
    assert all(f"`{one}`" in text for one in files)
    assert {one.partition(":")[0] for one in _LINKED.findall(text)} == {"https"}
    # All else is as it is read in the tree.
    assert text.count("\n") == readme.count("\n") + 2


def test_it_lists_and_prints_what_is_shipped(etw):
    listed = etw("configs")
    assert (listed.returncode, listed.stderr) == (0, "")
    names = [line.split("  ")[0] for line in listed.stdout.splitlines()]
    below = {
        path.relative_to(ROOT / "configs").with_suffix("").as_posix()
        for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert set(names) == below
    printed = etw("configs", "method/npo")
    assert printed.stdout == (ROOT / "configs/method/npo.yaml").read_text()


def test_it_is_the_installed_one_and_says_which_versions_it_runs_on(etw, installed):
    python = installed / "python"
    code = "import etw_lightning; print(etw_lightning.__file__)"
    place = Path(call(python, "-c", code, cwd=installed).stdout.strip())
    assert place.is_relative_to(installed.parent)
    shown = etw("--version")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split(" ", 1)[0] for line in shown.stdout.splitlines()]
    assert rows == ["etw-lightning", "torch", "lightning", "transformers", "device"]


@pytest.mark.slow
def test_a_run_is_configured_by_names(etw):
    words = ("fit", "--config", "quickstart", "--config", "configs/method/npo.yaml")
    result = etw(*words, "--print_config")
    assert (result.returncode, result.stderr) == (0, "")
    held = yaml.safe_load(result.stdout)
    assert held["data"]["benchmark"] == "quickstart"
    assert held["model"]["forget"]["class_path"] == "etw_lightning.forget.NPO"


@pytest.mark.slow
def test_a_sweep_is_planned_by_name(etw, tmp_path):
    result = etw("sweep", "plan", "--config", "sweep/quickstart_lambda", "--output_dir", "out")
    assert (result.returncode, result.stderr) == (0, "")
    first = (tmp_path / "empty/out/plan.txt").read_text().splitlines()[0]
    assert first.startswith("python -m etw_lightning fit --config configs/quickstart.yaml")
