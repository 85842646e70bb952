"""Thousands of steps with evaluations and checkpoints: nothing grows that should not.

python -m pytest -m slow tests/soak
"""

import json
import os
from pathlib import Path

import pytest
from faults import run_forked
from toy import jsonl_words, text, write_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc"),
]

EPOCHS, STEPS = 150, 20
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "rows").mkdir()
    for name in ("forget", "retain"):
        rows = [{"question": f"{name} {n}?", "answer": text(n, 4 + n % 5)} for n in range(STEPS)]
        write_rows(tmp_path / "rows" / f"{name}.jsonl", rows)
    return tmp_path / "rows"


def measure(folder):
    """Return this process's memory and open files, and what its run holds on the disk, in bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    events = [path for path in files if path.name.startswith("events.")]
    return {
        "memory": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE,
        "open files": len(os.listdir("/proc/self/fd")),
        "files": len(files),
        "events": sum(path.stat().st_size for path in events),
        "disk": sum(path.stat().st_size for path in files if path not in events),
    }


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """Note the process's state at each epoch's end; return where the notes go."""
    from etw_lightning.runs.checkpointing import Checkpoints

    notes, original = tmp_path / "notes.jsonl", Checkpoints.on_train_epoch_end

    def note(self, trainer, pl_module):
        original(self, trainer, pl_module)
        with notes.open("a") as file:
            file.write(json.dumps({"step": trainer.global_step, **measure(self._run)}) + "\n")

    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", note)
    return notes


def test_nothing_grows(root, watched, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "cache"))
    words = [
        "fit",
        *jsonl_words(root, tiny_model_dir),
        "--model.lr=1e-5",
        "--trainer.accelerator=cpu",
        f"--trainer.max_epochs={EPOCHS}",
        '--trainer.callbacks=[{"class_path": "SetScores"}]',
        "--trainer.enable_progress_bar=false",
        "--checkpoints.every_n_steps=10",
        f"--output_dir={tmp_path / 'run'}",
    ]
    log = tmp_path / "log"
    assert run_forked(words, log=log) == 0, log.read_text()
    notes = [json.loads(line) for line in watched.read_text().splitlines()]
    assert notes[-1]["step"] == EPOCHS * STEPS >= 3000
    early, late = notes[EPOCHS // 3], notes[-1]
    growth = {name: late[name] - early[name] for name in early}
    assert growth["open files"] <= 0
    assert growth["files"] <= 0
    evaluations, steps = EPOCHS - EPOCHS // 3 - 1, growth["step"]
    # What each epoch said is kept, in the checkpoints too, and each step's curves.
    assert growth["disk"] <= evaluations * 2 * 4096
    assert growth["events"] <= steps * 2048
    # A tenth of a percent of what a leak of one batch's tensors a step would make.
    assert growth["memory"] <= 8 * 2**20, f"{growth['memory'] / steps:.0f} bytes a step"
