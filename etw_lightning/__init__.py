"""Language-model unlearning with entropy-guided token weighting, on PyTorch Lightning.

From Python: ``unlearn``, ``evaluate``, ``weights``, ``alternatives`` and ``etw_weights``;
``load_results`` and ``load_records`` of a run's folder; ``UnlearningModule`` and
``UnlearningDataModule`` for a trainer of one's own. Each is imported when it is first used.
"""

from __future__ import annotations

# Nothing is imported here: until ``__main__`` is at hand, Ctrl-C gets Python's own traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from etw_lightning.api.alternatives import alternatives
    from etw_lightning.api.frames import load_records, load_results
    from etw_lightning.api.scores import evaluate
    from etw_lightning.api.token_table import weights
    from etw_lightning.api.unlearning import unlearn
    from etw_lightning.method import Method
    from etw_lightning.training.datamodule import UnlearningDataModule
    from etw_lightning.training.module import UnlearningModule
    from etw_lightning.weighting.logits import etw_weights

__all__ = [
    "Method",
    "UnlearningDataModule",
    "UnlearningModule",
    "__version__",
    "alternatives",
    "etw_weights",
    "evaluate",
    "load_records",
    "load_results",
    "unlearn",
    "weights",
]

__version__ = "0.1.0"

#: Where each name is defined.
_PLACES = {
    "Method": "method",
    "UnlearningDataModule": "training.datamodule",
    "UnlearningModule": "training.module",
    "alternatives": "api.alternatives",
    "etw_weights": "weighting.logits",
    "evaluate": "api.scores",
    "load_records": "api.frames",
    "load_results": "api.frames",
    "unlearn": "api.unlearning",
    "weights": "api.token_table",
}


def __getattr__(name: str) -> Any:
    """Import what is used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
