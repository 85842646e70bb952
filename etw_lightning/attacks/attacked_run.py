"""The run that is attacked: its settings, its rows, and its three models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from etw_lightning.attacks.interface import Who
from etw_lightning.models.loading import DType, check_stored, load_model, load_tokenizer
from etw_lightning.reports.finished_runs import FinishedRun
from etw_lightning.schema import Conventions, Example, InputError
from etw_lightning.training import quickstart_models
from etw_lightning.training.datamodule import UnlearningDataModule

__all__ = ["AttackedRun"]

#: Options that name the models, as errors say them.
_KEYS = {"unlearned": "model", "target": "target_model", "retain": "retain_model"}


class AttackedRun:
    """A finished run of ``fit`` that unlearned, read for an attack.

    Args:
        run: The run as it is read.
        make_data: Makes the run's data module anew.
        data: Settings that it makes it from: the run's, and what was typed over them. Without a
            ``retain_model`` the one counts that lies beside the ``retain_results``; without a
            ``target_model`` the one that the run began with.
        seed: Of what is drawn in the attack; None takes the run's.

    Raises:
        InputError: If it is no run that unlearned, or has left no model.
    """

    def __init__(
        self,
        run: FinishedRun,
        make_data: Callable[[], UnlearningDataModule],
        data: Mapping[str, Any],
        seed: int | None = None,
    ) -> None:
        self.folder, self.config, self.results = run.folder, run.config, run.results
        self.check_run(run)
        self.make_data = make_data
        self.model: Mapping[str, Any] = run.config["model"]
        self.trainer: Mapping[str, Any] = run.config.get("trainer") or {}
        self.run_seed = int(run.results.get("seed") or 0)
        self.seed = self.run_seed if seed is None else seed
        self.data_settings = data
        self._names: dict[Who, str | None] = {
            "unlearned": str(self.folder / "model"),
            "target": data.get("target_model") or self.model["pretrained"],
            "retain": data.get("retain_model") or _model_of(data),
        }
        self._tokenizer: Any = None
        self._rows: UnlearningDataModule | None = None

    @staticmethod
    def check_run(run: FinishedRun) -> None:
        """Refuse what is no run that unlearned, or has left no model.

        Args:
            run: The run as it is read.

        Raises:
            InputError: Names what is missing.
        """
        where, config = f"attack: --model {str(run.folder)!r}", run.config
        if not (config.get("model") or {}).get("pretrained") or not config.get("data"):
            raise InputError(f"{where} holds no config.yaml that can be read; give another run.")
        if run.results["command"] != "fit" or not config["model"].get("forget"):
            raise InputError(
                f"{where} is no run that made a model forget; give the folder of a run of fit with "
                "a forget objective."
            )
        if not (run.folder / "model").is_dir():
            raise InputError(
                f"{where} holds no folder 'model': it was run with --no_save_model. Run it again "
                "without."
            )

    def name(self, who: Who) -> str:
        """Return where a model is; one of the quickstart is trained if it is not there.

        Raises:
            InputError: If there is no such model.
        """
        self.check_model(who)
        given = self._names[who]
        assert given is not None
        return quickstart_models.resolve(given, self.run_seed)

    def has(self, who: Who) -> bool:
        """Tell whether a model is named."""
        return self._names[who] is not None

    def check_model(self, who: Who) -> None:
        """Refuse a model that is not named, or not there.

        Raises:
            InputError: Names the option that gives one.
        """
        given = self._names[who]
        if given is None:
            raise InputError(
                f"attack: the run names no {who} model, which this needs; give --{who}_model PATH."
            )
        if not given.startswith(quickstart_models.PREFIX):
            check_stored(given, _KEYS[who])

    @property
    def dtype(self) -> DType:
        """Precision of the weights, as in the run."""
        found: DType = self.model.get("dtype", "float32")
        return found

    def load(self, who: Who) -> Any:
        """Return a model anew, on the CPU, in the run's precision and evaluation mode."""
        attention = self.model.get("attention")
        return load_model(self.name(who), self.dtype, attention, _KEYS[who])

    @property
    def tokenizer(self) -> Any:
        """The run's tokenizer, as it was saved with the model."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.name("unlearned"), _KEYS["unlearned"])
        return self._tokenizer

    def data(self) -> UnlearningDataModule:
        """Return the run's data module anew, for scoring, with the models named that it reads."""
        data = self.make_data()
        data.given_tokenizer = self.tokenizer
        data.trains = data.uses_forget = False
        data.split = None
        data.seed = self.run_seed if data.seed is None else data.seed
        data.conventions = _conventions(self.config.get("conventions"))
        if data.results_paths["target"] is None:
            data.target_model = self._names["target"]
        if data.results_paths["retain"] is None:
            data.retain_model = self._names["retain"]
        return data

    def examples(self, name: str) -> tuple[Example, ...]:
        """Return the rows of an evaluation set as the benchmark has them.

        Raises:
            InputError: If there is no such set.
        """
        if self._rows is None:
            self._rows = self.data()
        if name not in self._rows.offered_sets:
            raise InputError(
                f"attack: this run's data has no rows of {name!r}, only "
                f"{', '.join(self._rows.offered_sets)}."
            )
        return self._rows.offered(name).examples


def _model_of(data: Mapping[str, Any]) -> str | None:
    """Return the model beside the retain results, where a run of ours that trained it left both."""
    given = data.get("retain_results")
    folder = None if given is None else Path(given).expanduser()
    if folder is not None and folder.name == "results.json":
        folder = folder.parent
    return str(folder / "model") if folder is not None and (folder / "model").is_dir() else None


def _conventions(given: Any) -> Conventions:
    named = {None: Conventions(), "definition": Conventions(), "peer": Conventions.peer()}
    known = {field.name for field in fields(Conventions)}
    if isinstance(given, Mapping) and given.keys() <= known:
        return Conventions(**given)
    if not (given is None or isinstance(given, str)) or given not in named:
        raise InputError(
            f"attack: conventions of the run's config.yaml must be definition, peer or pairs of "
            f"{', '.join(sorted(known))}; got {given!r:.60}."
        )
    return named[given]
