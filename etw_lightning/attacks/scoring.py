"""The run's metrics of a model that is in memory, on the run's rows or on an attacker's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from etw_lightning.api.loaded import interruptible, quietly
from etw_lightning.attacks.attacked_run import AttackedRun
from etw_lightning.attacks.interface import Who
from etw_lightning.callbacks.evaluation import Suite
from etw_lightning.catalogue.entries import KEYS, Extra
from etw_lightning.catalogue.listing import CATALOGUE
from etw_lightning.catalogue.suite import metric_of
from etw_lightning.files.class_paths import is_class_path
from etw_lightning.metrics import Metric
from etw_lightning.models.loading import LabelScorer
from etw_lightning.schema import EvalSet, InputError
from etw_lightning.scoring.cache.keys import precision_name
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.known_scores import find_known
from etw_lightning.training.module import UnlearningModule
from etw_lightning.training.strategies import computing_precision, place_whole

__all__ = ["Examiner", "metrics_of_run", "trainer_like"]


#: What gives an attack what a metric needs.
_WAYS: Mapping[Extra, str] = {
    "retain": "--retain_model PATH",
    "retain_tokens": "--retain_model PATH",
    "annotations": "--data.annotations FILE",
}


def metrics_of_run(run: AttackedRun, *, needed: bool = True) -> list[str]:
    """Return the metrics that gave the numbers of the run's ``results.json``.

    Args:
        run: The run.
        needed: Whether there must be one.

    Raises:
        InputError: If the run has none, and one is needed.
    """
    found = dict.fromkeys(filter(None, map(metric_of, run.results.get("metrics", {}))))
    if not found and needed:
        raise InputError(
            f"attack: --model {str(run.folder)!r} has no numbers; name some, such as --metrics "
            "probability,rouge."
        )
    return list(found)


def trainer_like(run: AttackedRun, *, progress: bool, **settings: Any) -> Trainer:
    """Return a trainer on one device of the run's kind, in its precision, that writes no file.

    Args:
        run: The run.
        progress: Draw bars.
        settings: Further arguments of ``lightning.Trainer``.

    Raises:
        InputError: If this machine has no such device, or not the run's precision.
    """
    defaults = {
        "accelerator": run.trainer.get("accelerator") or "auto",
        "devices": 1,
        "precision": run.trainer.get("precision"),
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": progress,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    try:
        return Trainer(**{**defaults, **settings})
    except (MisconfigurationException, ValueError) as error:
        raise InputError(
            f"attack: the run's trainer.accelerator {defaults['accelerator']!r} and "
            f"trainer.precision {defaults['precision']!r} can't be had here "
            f"({' '.join(str(error).split())}); attack it where it was run, or change them in "
            f"{str(run.folder / 'config.yaml')!r}."
        ) from error


class Examiner:
    """Scores models on a run's rows, all by the same metrics.

    Args:
        run: The run.
        metrics: Names of metrics.
        rewrite: What changes the rows; None leaves them as they are.
        progress: Draw bars.
    """

    def __init__(
        self,
        run: AttackedRun,
        metrics: Sequence[str],
        rewrite: Callable[[EvalSet], EvalSet] | None = None,
        *,
        progress: bool = False,
    ) -> None:
        self.run, self.progress = run, progress
        self.data = run.data()
        if rewrite is not None:
            self.data.rewrite_sets(rewrite)
            # Their records are of other questions.
            self.data.results_paths = {"retain": None, "target": None}
            self.data.retain_model = run.name("retain") if run.has("retain") else None
            self.data.target_model = run.name("target")
        has = self.data.extras
        self.metrics = [
            name
            for name in metrics
            if is_class_path(name) or name not in CATALOGUE or CATALOGUE[name].needs <= has
        ]

    def require(self, names: Sequence[str]) -> None:
        """Refuse metrics that the run has not what they need for.

        Args:
            names: Metrics that somebody has asked for.

        Raises:
            InputError: Names the first of them, and what gives it.
        """
        for name in names:
            if name not in self.metrics:
                lacking = sorted(CATALOGUE[name].needs - self.data.extras)
                ways = {_WAYS[one] for one in lacking if one in _WAYS}
                way_out = f", or give {' and '.join(sorted(ways))}" if ways else ""
                raise InputError(
                    f"attack: --metrics {name} needs {' and '.join(KEYS[one] for one in lacking)}, "
                    f"which this attack does not have; leave it out{way_out}."
                )

    @property
    def sets(self) -> Mapping[str, EvalSet]:
        """Every evaluation set that there is, by name."""
        self.data.load(self.run.name("unlearned"))
        return {name: self.data.offered(name) for name in self.data.offered_sets}

    def of_lm(self, lm: Any) -> dict[str, Metric]:
        """Return the numbers of a model in memory."""
        module = UnlearningModule.from_model(lm, self.run.tokenizer)
        return self._numbers(module)

    def of(self, who: Who) -> dict[str, Metric]:
        """Return the numbers of one of the run's models; what is known of it is read."""
        run = self.run
        module = UnlearningModule(
            run.name(who), dtype=run.dtype, attention=run.model.get("attention")
        )
        return self._numbers(module)

    def _numbers(self, module: UnlearningModule) -> dict[str, Metric]:
        if not self.metrics:
            return {}
        module.trains = False
        suite = Suite(list(self.metrics))
        with quietly(), interruptible():
            trainer = trainer_like(self.run, progress=self.progress, callbacks=[suite])
            if module.given is None:
                self._read_known(module, suite, trainer)
            trainer.validate(module, datamodule=self.data, verbose=False)
        return dict(suite.latest)

    def _read_known(self, module: UnlearningModule, suite: Suite, trainer: Trainer) -> None:
        data: UnlearningDataModule = self.data
        suite.prepare(data)
        data.require(suite.needs)
        data.load(module.pretrained)
        precision = precision_name(
            module.dtype_name, computing_precision(trainer), module.attention
        )
        module.known, module.journal_keys = find_known(
            module.pretrained, data, precision, whole=True, say=_nothing
        )

    def placed(self, lm: Any) -> Any:
        """Return a model on the run's device, as an attack gets it."""
        with quietly():
            trainer = trainer_like(self.run, progress=False)
        place_whole(trainer, LabelScorer(lm))
        return lm.eval()


def _nothing(line: str) -> None:
    """Say nothing of what is read from the cache."""
