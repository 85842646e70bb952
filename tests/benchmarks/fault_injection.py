"""Breaks runs off in many ways, starts them again with the same command, and counts lost bits.

    python tests/benchmarks/fault_injection.py --times 10

Each fault strikes a real process of its own, at a place drawn at random: of a run of the quickstart
with 15 optimiser steps of two micro-batches, an evaluation an epoch and a checkpoint every step.
Then the same command is given again. A run is recovered if it ends; the bits of its weights and its
results are compared with those of a run that nothing broke off.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# Read when torch is imported; a process forked from one that has run several threads can hang.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
Fault, left_behind, run_processes = (
    getattr(importlib.import_module("faults"), name)
    for name in ("Fault", "left_behind", "run_processes")
)

STEP = "etw_lightning.training.module:UnlearningModule.training_step"
SCORING = "etw_lightning.training.scoring_module:score_in_turn"
WRITING = (
    "etw_lightning.runs.state_file:StateFile.save_checkpoint",
    "etw_lightning.runs.checkpointing:describe_files",
    "etw_lightning.runs.checkpointing:publish",
    "etw_lightning.files.checkpoint_folder:_sync_folder",
    "etw_lightning.runs.checkpointing:remove",
)
ENDING = (
    "etw_lightning.models.export:text_logits",
    "etw_lightning.runs.run_end:save_records",
    "etw_lightning.runs.run_end:write_results",
)
MICRO_BATCHES = 30
CALLBACKS = [{"class_path": "ForgetQuality"}]


def words(world=1):
    """Return the command, but for its folder."""
    more = ["--trainer.strategy=ddp", f"--trainer.devices={world}"] if world > 1 else []
    return [
        "fit",
        f"--config={ROOT / 'configs' / 'quickstart.yaml'}",
        f"--config={ROOT / 'configs' / 'method' / 'etw.yaml'}",
        "--trainer.max_epochs=3",
        f"--data.batch_size={4 // world}",
        "--trainer.accumulate_grad_batches=2",
        f"--trainer.callbacks={json.dumps(CALLBACKS)}",
        "--trainer.enable_progress_bar=false",
        "--checkpoints.every_n_steps=1",
        *more,
    ]


def cut(folder, draw):
    """Take the end of the newest checkpoint away."""
    state = newest(folder) / "state.ckpt"
    state.write_bytes(state.read_bytes()[: draw.randrange(state.stat().st_size)])


def flip(folder, draw):
    """Turn one bit of the newest checkpoint over."""
    state = newest(folder) / "state.ckpt"
    content = bytearray(state.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    state.write_bytes(content)


def newest(folder):
    return sorted((folder / "checkpoints").glob("step-*"))[-1]


def is_finished(folder):
    results = folder / "results.json"
    return results.exists() and json.loads(results.read_text())["finished"]


def in_training(draw, number=signal.SIGKILL, first=1):
    return Fault(STEP, draw.randint(first, MICRO_BATCHES), number)


#: Name -> processes, runs that are broken off in a row, what breaks them, and what is done to the
#: newest checkpoint afterwards.
FAULTS = {
    "SIGKILL in a step": (1, 1, in_training, None),
    "SIGKILL in an evaluation": (1, 1, lambda d: Fault(SCORING, d.randint(1, 3)), None),
    "SIGKILL while a checkpoint is written": (
        1,
        1,
        lambda d: Fault(d.choice(WRITING), d.randint(1, 12)),
        None,
    ),
    "SIGKILL while model and results are saved": (
        1,
        1,
        lambda d: Fault(d.choice(ENDING), 1),
        None,
    ),
    "ten SIGKILLs in a row": (1, 10, lambda d: Fault(STEP, d.randint(1, 4)), None),
    "SIGTERM in a step": (1, 1, lambda d: in_training(d, signal.SIGTERM), None),
    "SIGUSR1 in a step": (1, 1, lambda d: in_training(d, signal.SIGUSR1), None),
    "SIGTERM in an evaluation": (
        1,
        1,
        lambda d: Fault(SCORING, d.randint(1, 3), signal.SIGTERM),
        None,
    ),
    "SIGKILL, then the newest checkpoint cut": (1, 1, lambda d: in_training(d, first=5), cut),
    "SIGKILL, then a bit of it flipped": (1, 1, lambda d: in_training(d, first=5), flip),
    "disk full": (1, 1, lambda d: in_training(d, "full"), None),
    "SIGKILL of one of two processes": (2, 1, in_training, None),
    "SIGTERM of one of two processes": (2, 1, lambda d: in_training(d, signal.SIGTERM), None),
}


def try_once(name, expected, place):
    """Break a run off and start it again; return how often it struck, and what was lost.

    Returns:
        Faults that ended the run, whether the run was ended well in the end, bits of its weights
        that differ, and whether its results do.
    """
    world, in_a_row, make, spoil = FAULTS[name]
    draw, folder = random.Random(f"{name} {place.name}"), place / "run"
    command, log = [*words(world), f"--output_dir={folder}"], place / "log"
    struck = 0
    for _ in range(in_a_row):
        if not is_finished(folder):
            struck += any(run_processes(command, world, make(draw), log))
    if spoil is not None:
        spoil(folder, draw)
    statuses = [0]
    if not is_finished(folder):
        statuses = run_processes(command, world, log=log)
    if any(statuses):
        sys.stderr.write(f"{name}, {place.name}: {statuses}\n{log.read_text()[-2000:]}\n")
        return struck, False, 0, True
    weights, results = left_behind(folder)
    bits = np.frombuffer(weights, np.uint8) ^ np.frombuffer(expected[world][0], np.uint8)
    return struck, True, int(np.unpackbits(bits).sum()), results != expected[world][1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--times", type=int, default=10, help="runs of each fault")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", default="", help="part of the names of the faults")
    given = parser.parse_args()
    lost, forking = 0, multiprocessing.get_context("fork")
    importlib.import_module("etw_lightning.commands.cli")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        expected = {}
        for world in (1, 2):
            folder, log = place / f"whole{world}", place / "log"
            command = [*words(world), f"--output_dir={folder}"]
            assert not any(run_processes(command, world, log=log)), log.read_text()
            expected[world] = left_behind(folder)
        sys.stdout.write(
            "| fault | injected | runs recovered | bits lost |\n| --- | --- | --- | --- |\n"
        )
        for name in FAULTS:
            if given.only not in name:
                continue
            spots = [place / f"{number}" for number in range(given.times)]
            for spot in spots:
                spot.mkdir()
            with ProcessPoolExecutor(given.jobs, forking) as pool:
                found = list(pool.map(partial(try_once, name, expected), spots))
            for spot in spots:
                shutil.rmtree(spot)
            struck, ended = sum(one[0] for one in found), sum(one[1] for one in found)
            bits, others = sum(one[2] for one in found), sum(one[3] for one in found)
            lost += bits + others + (given.times - ended)
            more = f" ({others} with other results)" if others else ""
            sys.stdout.write(f"| {name} | {struck} | {ended} of {given.times} | {bits}{more} |\n")
            sys.stdout.flush()
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
