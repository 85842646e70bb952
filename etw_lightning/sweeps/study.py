"""What a search has drawn so far: one of Optuna's studies a method, in a journal of its folder."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etw_lightning.schema import InputError
from etw_lightning.sweeps.ranges import Range

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.storages import JournalStorage

__all__ = ["JOURNAL", "Drawn", "Study", "check_optuna", "open_journal"]

#: The file in a search's folder.
JOURNAL = "search.journal"


@dataclass(frozen=True)
class Drawn:
    """One point that was drawn.

    Args:
        number: Which it is of its study, from 0.
        values: Value of each setting that is searched.
    """

    number: int
    values: Mapping[str, Any]


def check_optuna() -> None:
    """Refuse to search where what draws the points is not installed.

    Raises:
        InputError: With the way out.
    """
    if find_spec("optuna") is None:
        raise InputError(
            "sweep search needs optuna, which is not installed: pip install -c constraints.txt "
            "'etw-lightning[search]'."
        )


def open_journal(folder: Path, *, mends: bool) -> JournalStorage:
    """Return the journal of a search's folder.

    Args:
        folder: The folder.
        mends: Take away what a process left that was killed in the middle of writing. The folder
            must be held.

    Raises:
        InputError: If the journal can't be read.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / JOURNAL
    if mends and path.is_file():
        whole = path.read_bytes()
        os.truncate(path, whole.rfind(b"\n") + 1)
        for lock in folder.glob(f"{JOURNAL}.lock*"):
            lock.unlink()
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError, OSError) as error:
        raise InputError(
            f"{path} can't be read ({error}); remove it: the same points are drawn again, and "
            "what they have left is found."
        ) from error


class Study:
    """The points drawn for one method.

    A point depends on the seed, its number and the points before alone, so that a search that goes
    on draws what it would have drawn. A floor is told to Optuna as a constraint, its own way: of
    two points that miss it the nearer one is better, of two that keep to it the one of the better
    number, and any of these before any of those. A penalty would need a weight.

    Args:
        storage: The journal.
        name: Of the study; says all that its points depend on, so that no other search's are taken.
        space: Each setting that is searched, with its range or its values.
        seed: Seed of the draws.
        maximise: Whether the highest number is best.
        reads: Do not make the study where it is absent.

    Raises:
        KeyError: If it is absent, and ``reads``.
    """

    def __init__(
        self,
        storage: JournalStorage,
        name: str,
        space: Mapping[str, Sequence[Any] | Range],
        *,
        seed: int = 0,
        maximise: bool = True,
        reads: bool = False,
    ) -> None:
        import optuna

        self.name, self.space, self.seed = name, space, seed
        if reads:
            self.study = optuna.load_study(study_name=name, storage=storage)
            return
        self.study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize" if maximise else "minimize",
            load_if_exists=True,
        )

    @property
    def drawn(self) -> list[Drawn]:
        """All points, finished or not."""
        trials = self.study.get_trials(deepcopy=False)
        return [
            Drawn(trial.number, dict(trial.params))
            for trial in trials
            if trial.params.keys() == self.space.keys()
        ]

    @property
    def num_ended(self) -> int:
        """How many points have their numbers, or failed."""
        return sum(one.state.is_finished() for one in self.study.get_trials(deepcopy=False))

    def broken_off(self) -> list[Drawn]:
        """Return the points whose runs were not all finished when the search ended."""
        trials = self.study.get_trials(deepcopy=False)
        return [self._values(one.number) for one in trials if not one.state.is_finished()]

    def draw(self) -> Drawn:
        """Return a new point."""
        self._use_sampler(len(self.study.get_trials(deepcopy=False)))
        return self._suggest(self.study.ask())

    def _values(self, number: int) -> Drawn:
        self._use_sampler(number)
        return self._suggest(self._trial(number))

    def _use_sampler(self, number: int) -> None:
        """Have a point drawn by a sampler that nothing but the seed and its number decides."""
        import optuna

        text = f"{self.seed}/{number}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)

    def _trial(self, number: int) -> Trial:
        from optuna import Trial

        frozen = self.study.get_trials(deepcopy=False)[number]
        return Trial(self.study, frozen._trial_id)

    def _suggest(self, trial: Trial) -> Drawn:
        """Return a trial's values; those it has already are kept."""
        values: dict[str, Any] = {}
        for key, one in self.space.items():
            if not isinstance(one, Range):
                values[key] = trial.suggest_categorical(key, list(one))
            elif one.is_whole:
                values[key] = trial.suggest_int(key, *map(int, one.ends), log=one.log)
            else:
                values[key] = trial.suggest_float(key, one.low, one.high, log=one.log)
        return Drawn(trial.number, values)

    def tell(self, drawn: Drawn, value: float, excess: float | None = None) -> None:
        """Keep a point's number.

        Args:
            drawn: The point.
            value: The number that is searched for.
            excess: By how much it misses the floor, <= 0 for not at all; None without one.
        """
        if excess is not None:
            trial = self._trial(drawn.number)
            with warnings.catch_warnings():
                # Set already, where the search ended between this line and the next but one.
                warnings.simplefilter("ignore")
                trial.set_constraint("floor", excess)
        self.study.tell(drawn.number, value)

    def fail(self, drawn: Drawn) -> None:
        """Keep that a point has no number, as a run of it failed."""
        import optuna

        self.study.tell(drawn.number, state=optuna.trial.TrialState.FAIL)
