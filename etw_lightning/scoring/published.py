"""Reads logs that open-unlearning has published: ``TOFU_EVAL.json`` and ``MUSE_EVAL.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from etw_lightning.schema import InputError, Record

__all__ = ["from_published"]

#: Published metric -> our set and the record field that its rows fill.
_TOFU_SETS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
_TOFU_LOSSES = {
    "Q_A_Prob": "answer_loss",
    "Q_A_PARA_Prob": "paraphrase_loss",
    "Q_A_PERT_Prob": "perturbed_losses",
}
_ROUGE_SETS = {f"{key}_Q_A_ROUGE": name for key, name in _TOFU_SETS.items()} | {
    "forget_verbmem_ROUGE": "verbmem",
    "forget_knowmem_ROUGE": "knowmem_forget",
    "retain_knowmem_ROUGE": "knowmem_retain",
}
#: Published membership attack -> the record field that its scores fill.
_ATTACKS = {"mia_loss": "answer_loss", "mia_min_k": "min_k", "mia_gradnorm": "gradient_norm"}


def from_published(log: dict[str, Any], path: Path, key: str) -> dict[str, list[Record]]:
    """Return the records of a published log, by set; none if it has none of its metrics.

    Args:
        log: What the file holds.
        path: The file, for errors.
        key: Configuration key that errors name.

    Raises:
        InputError: If it holds averages only, a row can't be read, or metrics of a set hold
            different rows.
    """
    is_ours = path.name == "results.json"
    if log and not is_ours and all(type(value) in (int, float) for value in log.values()):
        raise InputError(
            f"{key}: {path} holds averages only; give {path.name.replace('SUMMARY', 'EVAL')}, "
            "which holds every row."
            if "SUMMARY" in path.name
            else f"{key}: {path} holds averages only; give TOFU_EVAL.json or MUSE_EVAL.json."
        )
    fields: dict[str, dict[int, dict[str, Any]]] = {}
    try:
        for metric, name in _ROUGE_SETS.items():
            for row, entry in _rows(log, metric):
                target = fields.setdefault(name, {}).setdefault(row, {})
                target["question"], target["answer"] = entry["input"], entry["ground_truth"]
                target["generation"] = entry["generation"]
        for short, name in _TOFU_SETS.items():
            for suffix, field_name in _TOFU_LOSSES.items():
                for row, entry in _rows(log, f"{short}_{suffix}"):
                    loss = entry["avg_loss"]
                    value = tuple(loss) if field_name == "perturbed_losses" else loss
                    fields.setdefault(name, {}).setdefault(row, {})[field_name] = value
        _read_attacks(log, fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{key}: {path} looks like a published log, but a row can't be read ({error!r})."
        ) from error
    return {name: _to_records(name, rows, path, key) for name, rows in fields.items()}


def _read_attacks(log: dict[str, Any], fields: dict[str, dict[int, dict[str, Any]]]) -> None:
    """Add the scores of membership attacks: to MUSE's sets, and to TOFU's own if it is a TOFU log.

    Min-K++ and zlib scores have no field: what they are computed from is not in the log.
    """
    is_tofu = "forget" in fields
    for side in ("forget", "holdout"):
        for metric, field_name in _ATTACKS.items():
            for row, entry in _rows(log.get(metric, {}), side):
                if field_name == "min_k":
                    fields.setdefault(f"privleak_{side}", {})[row] = {"min_k": entry["score"]}
                if is_tofu:
                    target = fields.setdefault(side, {}).setdefault(row, {})
                    target.setdefault(field_name, entry["score"])


def _rows(log: dict[str, Any], metric: str) -> list[tuple[int, dict[str, Any]]]:
    by_index = log.get(metric, {}).get("value_by_index", {})
    return sorted((int(index), entry) for index, entry in by_index.items())


def _to_records(name: str, rows: dict[int, dict[str, Any]], path: Path, key: str) -> list[Record]:
    first = set(rows.get(0, {}))
    if sorted(rows) != list(range(len(rows))) or any(set(row) != first for row in rows.values()):
        raise InputError(
            f"{key}: {path} does not hold the same rows in every metric of {name!r}; copy it anew."
        )
    return [
        Record(**{"dataset": name, "id": f"{name}/{row}", "answer": "", **rows[row]})
        for row in range(len(rows))
    ]
