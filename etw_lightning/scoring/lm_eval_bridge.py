"""A bridge to lm-evaluation-harness: its tasks, run on a model that is already loaded."""

from __future__ import annotations

import copy
import importlib
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etw_lightning.metrics import Direction, Metric
from etw_lightning.models.stopping import end_ids
from etw_lightning.schema import InputError

__all__ = ["check_tasks", "lm_eval_scores"]

_Z95 = 1.959963984540054


def lm_eval_scores(
    lm: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    apply_chat_template: bool = False,
    further_ends: Collection[int] = (),
) -> dict[str, Metric]:
    """Run tasks of lm-evaluation-harness and return their numbers.

    The harness gets the loaded model, so whatever ``model.pretrained`` takes is scored, GGUF files
    and Lightning checkpoints among them. Its progress bars are left on. Neither the model's mode
    nor the tokenizer nor the global random generators are changed.

    Args:
        lm: A ``transformers`` causal language model.
        tokenizer: Its tokenizer.
        tasks: Names of tasks or groups of the harness, or task files ending in ``.yaml``.
        num_fewshot: Examples shown first; None for each task's own number. A task that fixes 0,
            as ``wmdp`` does, keeps it.
        limit: First rows of each task to score; None for all.
        batch_size: Requests at a time.
        apply_chat_template: Put the model's chat template around prompts.
        further_ends: Tokens that end a generated text beside the model's and its tokenizer's end
            tokens, as the end of turn of the run's chat template.

    Returns:
        ``lm_eval_{task}_{metric}`` to the number the harness reports, with its direction, the rows
        of the task, and the interval of 1.96 of its standard errors where it gives one.

    Raises:
        InputError: If the harness is not installed, there is no such task, or its rows can't be
            read, as they can't without a connection.
    """
    check_tasks(tasks, num_fewshot, limit)
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with _quiet(), _mode_kept(lm), _ending(lm, end_ids(lm, tokenizer) | {*further_ends}):
        # Reading the harness's own task files takes seconds; the user's files need none of them.
        named = any(not task.endswith((".yaml", ".yml")) for task in tasks)
        manager = TaskManager(include_defaults=named)
        # A copy: the harness sets the padding token of what it is given.
        model = HFLM(
            pretrained=lm,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            trust_remote_code=False,
        )
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=_load_tasks(tasks, manager),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=apply_chat_template,
            log_samples=False,
            bootstrap_iters=1000,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    assert found is not None, "the harness returns nothing on ranks other than 0 only"
    return _metrics(found)


def check_tasks(tasks: Sequence[str], num_fewshot: int | None, limit: int | None) -> None:
    """Check what can be refused before anything is scored.

    Raises:
        InputError: If the harness is not installed, there are no tasks, a task file is missing, or
            a number is out of range.
    """
    if not tasks:
        raise InputError("lm_eval.tasks must name at least one task; got none.")
    for task in tasks:
        if task.endswith((".yaml", ".yml")) and not Path(task).is_file():
            raise InputError(f"lm_eval.tasks: there is no task file {task!r}.")
    if num_fewshot is not None and num_fewshot < 0:
        raise InputError(f"lm_eval.num_fewshot must be null or >= 0; got {num_fewshot}.")
    if limit is not None and limit < 1:
        raise InputError(f"lm_eval.limit must be null or a whole number >= 1; got {limit}.")
    try:
        for name in ("lm_eval", "lm_eval.models.huggingface"):
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"lm_eval.tasks needs lm-evaluation-harness ({error.name} is not installed): "
            "pip install 'etw-lightning[lm_eval]', or leave lm_eval out."
        ) from error


def _load_tasks(tasks: Sequence[str], manager: Any) -> list[Any]:
    """Return the harness's objects for tasks, one name at a time, so that an error says which."""
    import yaml
    from datasets.exceptions import DatasetsError

    found: list[Any] = []
    for task in tasks:
        try:
            loaded = manager.load([task])
        except KeyError as error:
            raise InputError(
                f"lm_eval.tasks: lm-evaluation-harness has no task {task!r}; "
                "'lm_eval ls tasks' lists them, or give a task file ending in .yaml."
            ) from error
        except (OSError, ValueError, DatasetsError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(
                f"lm_eval.tasks: task {task!r} can't be loaded ({reason}). Its rows come from the "
                "hub: run it once with a connection, or give a task file on local rows."
            ) from error
        inner = {name for names in loaded["group_map"].values() for name in names}
        every = {**loaded["groups"], **loaded["tasks"]}
        found += [item for name, item in every.items() if name not in inner]
    return found


def _metrics(found: Mapping[str, Any]) -> dict[str, Metric]:
    """Turn the harness's results into metrics; ``acc,none`` is a metric and its filter."""
    metrics = {}
    for task, numbers in found["results"].items():
        ups = found["higher_is_better"].get(task) or {}
        for key, value in numbers.items():
            name, _, kind = key.partition(",")
            if not kind or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = numbers.get(f"{name}_stderr,{kind}")
            is_known = isinstance(error, int | float) and math.isfinite(error)
            interval = (value - _Z95 * error, value + _Z95 * error) if is_known else None
            label = f"lm_eval_{task}_{name}" + ("" if kind == "none" else f"_{kind}")
            direction: Direction = "down" if ups.get(name) is False else "up"
            metrics[label] = Metric(float(value), direction, _num_rows(found, task), interval)
    return metrics


def _num_rows(found: Mapping[str, Any], task: str) -> int:
    """Return the scored rows of a task, or of all tasks of a group."""
    if task in found["n-samples"]:
        return int(found["n-samples"][task]["effective"])
    return sum(_num_rows(found, part) for part in found["group_subtasks"].get(task, ()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the harness's remarks on how it was called; its errors stay."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _mode_kept(lm: Any) -> Iterator[None]:
    """Give a model that was in training mode back in it."""
    was_training = lm.training
    try:
        yield
    finally:
        lm.train(was_training)


@contextmanager
def _ending(lm: Any, ends: Collection[int]) -> Iterator[None]:
    """Let a model's generations end in these tokens, and leave its other settings as they are."""
    own = lm.generation_config
    lm.generation_config = copy.deepcopy(own)
    lm.generation_config.eos_token_id = sorted(ends)
    try:
        yield
    finally:
        lm.generation_config = own
