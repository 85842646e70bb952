"""What requests read beside their rows, looked at before the first one runs.

A run tells by itself what it can't read, but a later one's turn comes hours in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etw_lightning.callbacks.evaluation import Suite
from etw_lightning.files.hub import hub_answers
from etw_lightning.models.loading import check_stored, is_hub_name
from etw_lightning.runs.second_passes import extras_of
from etw_lightning.schema import InputError
from etw_lightning.sequences.request_file import RequestFile
from etw_lightning.sequences.steps import Step, Watch
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.quickstart_models import PREFIX, check_role

__all__ = ["check_inputs"]

_Make = Callable[[Mapping[str, Any]], UnlearningDataModule]


def check_inputs(
    given: RequestFile,
    steps: Sequence[Step],
    watches: Sequence[Watch],
    make_data: _Make,
    *,
    runs: bool,
) -> None:
    """Refuse what a later request would be refused for at its turn.

    Args:
        given: The sequence's file.
        steps: What is done for each request.
        watches: What scores the rows of each, one a request.
        make_data: Makes what reads rows from its settings.
        runs: The requests are to run, so that a model on the hub must be within reach; a plan can
            be made without it.

    Raises:
        InputError: If a retain model can't be found or is not whole, its records are of other
            rows, or rows can't be read as they are watched, or do not have the numbers that are
            watched.
    """
    for request, step, watch in zip(given.requests, steps, watches, strict=True):
        names = {key: f"watched_with.{key}" for key in given.watched_with} | {"metrics": "watched"}
        if request.watched_as is not None:
            names["data.forget_split"] = f"requests.{step.number}.watched_as"
        try:
            _check_retain_model(make_data(step.data), runs=runs)
        except InputError as error:
            raise InputError(request.told(step.number, str(error))) from error
        try:
            _check_watched(make_data(watch.run.settings["data"]), watch.run.settings)
        except InputError as error:
            raise InputError(request.told(step.number, str(error), names)) from error


def _check_retain_model(data: UnlearningDataModule, *, runs: bool) -> None:
    """Find a retain model that is to be scored."""
    given, key = data.retain_model, "data.retain_model"
    if given is None or data.results_paths["retain"] is not None:
        return
    if given.startswith(PREFIX):
        check_role(given, key)
    elif runs or not is_hub_name(given) or hub_answers():
        check_stored(given, key)


def _check_watched(data: UnlearningDataModule, settings: Mapping[str, Any]) -> None:
    """Read the rows that are watched, and choose their numbers, as ``evaluate`` will."""
    data.trains = data.uses_forget = False
    data.split = None
    data.forget_examples()
    data.further = extras_of(
        data, settings.get("gibberish_classifier"), settings.get("spacy_model")
    )
    suite = Suite(settings["metrics"])
    suite.prepare(data)
    asks = suite.plan is not None and suite.plan.needs & {"retain", "retain_tokens"}
    if asks and "forget" in suite.retain_needs and "retain" in data.results:
        data.results["retain"].require("forget", sum(1 for _ in data.forget_examples()))
