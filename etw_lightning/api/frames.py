"""What a run has left in its folder, as pandas frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from etw_lightning.schema import InputError
from etw_lightning.scoring.retain_results import load_records as read_records

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["load_records", "load_results"]


def load_results(run: str | Path, history: bool = False) -> DataFrame:
    """Return the numbers of a run, one row a number.

    Args:
        run: Folder of a run of ``fit`` or ``evaluate``, or its ``results.json``.
        history: The numbers of every evaluation of ``fit``, the target model's at epoch 0, in
            place of the last ones.

    Returns:
        Indexed by the metric's name: ``value``, ``direction``, ``n``, ``low`` and ``high`` (the
        ends of an interval, where one was computed). Of ``evaluate`` also ``target`` and ``retain``
        where those models have been measured. Of a history one row a number and evaluation, with
        ``epoch`` and ``step``.

    Raises:
        InputError: If there are no finished results.
    """
    import pandas as pd

    found = _read(Path(run))
    if history:
        if "history" not in found:
            raise InputError(f"run {str(run)!r} has no history: it is no run of fit.")
        rows = [
            {"metric": name, "epoch": at["epoch"], "step": at["step"], **_row(metric)}
            for at in found["history"]
            for name, metric in at["metrics"].items()
        ]
        columns = ["metric", "epoch", "step", "value", "direction", "n", "low", "high"]
        return pd.DataFrame(rows, columns=columns).set_index("metric")
    rows = [{"metric": name, **_row(metric)} for name, metric in found["metrics"].items()]
    columns = ["metric", "value", "direction", "n", "low", "high"]
    frame = pd.DataFrame(rows, columns=columns).set_index("metric")
    for label, numbers in found.get("others", {}).items():
        values = {name: metric["value"] for name, metric in numbers.items()}
        frame[label] = pd.Series(values, dtype=float)
    return frame


def _row(metric: dict[str, Any]) -> dict[str, Any]:
    low, high = metric.get("interval") or (None, None)
    return {**{key: metric[key] for key in ("value", "direction", "n")}, "low": low, "high": high}


def _read(run: Path) -> dict[str, Any]:
    path = run.expanduser()
    path = path if path.suffix == ".json" else path / "results.json"
    if not path.is_file():
        raise InputError(f"run must be the folder of a finished run; there is no {path}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"run: {path} is not JSON ({error}).") from error
    if not isinstance(found, dict) or "metrics" not in found:
        reason = found.get("stopped", {}).get("reason") if isinstance(found, dict) else None
        why = f": {reason}" if reason else ""
        raise InputError(f"run: {path} holds no finished results{why}.")
    return cast(dict[str, Any], found)


def load_records(run: str | Path, sets: str | Sequence[str] | None = None) -> DataFrame:
    """Return what a run's model said of each row, one row a record.

    Args:
        run: Folder of a run of ``fit`` or ``evaluate``.
        sets: Evaluation sets, one name or several; None for all there are.

    Returns:
        A column for each field of ``etw_lightning.schema.Record`` that any record fills,
        ``dataset`` and ``id`` first; a field of several numbers holds tuples.

    Raises:
        InputError: If there are no records, or none of a set.
    """
    import pandas as pd

    found = read_records(run, "run")
    names = list(found) if sets is None else [sets] if isinstance(sets, str) else list(sets)
    for name in names:
        if name not in found:
            raise InputError(f"sets must be some of {', '.join(found)}; got {name!r}.")
    rows = [record.to_json() for name in names for record in found[name]]
    frame = pd.DataFrame(rows)
    first = ["dataset", "id"]
    return frame[[*first, *(name for name in frame.columns if name not in first)]]
