"""Classes under their former names, as saved configurations and YAML files of users hold them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from etw_lightning.schema import InputError

__all__ = ["check_current", "new_name"]

#: What a configuration can name: former module and present one, without the package's name, to its
#: classes.
_MOVED: Mapping[tuple[str, str], str] = {
    ("checkpointing", "runs.checkpointing"): "Checkpoints",
    ("collapse", "callbacks.collapse"): "Collapse",
    ("collapse_settings", "callbacks.collapse_settings"): "CollapseSettings",
    ("data", "training.datamodule"): "UnlearningDataModule",
    ("encode", "data.encode"): "Encoder",
    ("evaluate", "runs.trainer"): "LmEval UnlearningTrainer",
    ("guards", "callbacks.guards"): "FiniteGuard",
    ("label_scorer", "models.label_scorer"): "LabelScorer",
    ("module", "training.module"): "UnlearningModule",
    ("prepared_module", "training.prepared_module"): "PreparedModule",
    ("reference_model", "training.references.model"): "ReferenceModel",
    ("retain_budget", "callbacks"): "RetainBudget",
    ("run_report", "runs.run_report"): "RunReport",
    ("scoring_module", "training.scoring_module"): "ScoringModule",
    ("state_file", "runs.state_file"): "StateFile",
    ("step_log", "training.step_log"): "StepLog",
    ("streams", "data.streams"): "StreamSettings",
}
_NEW = {
    f"etw_lightning.{old}.{name}": f"etw_lightning.{new}.{name}"
    for (old, new), names in _MOVED.items()
    for name in names.split()
}
_PATH = re.compile(r"\betw_lightning\.\w+\.[A-Z]\w*")


def new_name(path: str) -> str | None:
    """Return where a class is now; None for one that has not moved.

    Example:
        >>> new_name("etw_lightning.retain_budget.RetainBudget")
        'etw_lightning.callbacks.RetainBudget'
        >>> new_name("etw_lightning.forget.GA")
    """
    return _NEW.get(path)


def check_current(texts: Iterable[tuple[str, int]], what: str) -> None:
    """Refuse texts that name a class by a former path.

    Args:
        texts: Each with its line; 0 for a text that has none.
        what: What the error names as their place.

    Raises:
        InputError: Gives the new name.
    """
    for text, line in texts:
        for path in _PATH.findall(text):
            new = new_name(path)
            if new is not None:
                place = f"{what}, line {line}" if line else what
                raise InputError(f"{place}: {path} is now {new}; write that name.")
