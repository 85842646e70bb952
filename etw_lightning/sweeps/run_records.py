"""What the folders of runs hold of what models said, read when it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from etw_lightning.runs.folder import BEFORE, RETAIN
from etw_lightning.schema import InputError, Record

__all__ = ["RunRecords", "Whose"]

#: Whose records a run's folder holds.
Whose = Literal["run", "target", "retain"]
_FOLDERS: Mapping[Whose, str] = {"run": "", "target": BEFORE, "retain": RETAIN}
_WHO: Mapping[Whose, str] = {
    "run": "the trained model",
    "target": "the model before training",
    "retain": "the retain model",
}


@dataclass
class RunRecords:
    """What the folders of some runs hold of what models said; read when asked for.

    The target and the retain model are the same for many runs: equal files are read once, and give
    the same list. Of the runs themselves what the last one said is held.

    Args:
        read: What has been read of other models, by a hash of the file.
        last: What has been read of the last run, by its file.
    """

    read: dict[str, list[Record]] = field(default_factory=dict)
    last: dict[Path, list[Record]] = field(default_factory=dict)

    def of(self, folder: Path, who: Whose, name: str) -> list[Record]:
        """Return the records of one set.

        Args:
            folder: Of the run.
            who: ``run``, ``target`` or ``retain``.
            name: Of the set.

        Raises:
            InputError: If the folder holds none.
        """
        from etw_lightning.scoring.retain_results import load_set

        path = folder / _FOLDERS[who] / "records" / f"{name}.jsonl.gz"
        if not path.is_file():
            way_out = f"Remove {str(folder)!r} to run it again."
            if who == "retain" and path.parent.is_dir():
                way_out = (
                    "A run scores data.retain_model on what its numbers ask for; "
                    "data.retain_results of one that was evaluated by itself hold all sets."
                )
            raise InputError(
                f"sweep report: {path} is missing: what {_WHO[who]} said of {name!r}, of which "
                f"numbers of some rows are made. {way_out}"
            )
        if who == "run":
            if path not in self.last:
                mine = {one: rows for one, rows in self.last.items() if one.parent == path.parent}
                self.last = {**mine, path: load_set(path, "sweep report")}
            return self.last[path]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest not in self.read:
            self.read[digest] = load_set(path, "sweep report")
        return self.read[digest]
