"""A sequence's file: which requests come in which order, and what is watched; read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etw_lightning.files.config_files import find_config
from etw_lightning.files.setting_names import renamed, why_unread
from etw_lightning.schema import InputError
from etw_lightning.sweeps.file_checks import (
    FileKind,
    as_pairs,
    as_texts,
    changes_of,
    check_keys,
    config_of,
    folder_of,
    needed,
    optional,
    read_file,
    settings_of,
)
from etw_lightning.sweeps.runs import option_words

__all__ = ["Request", "RequestFile", "load_requests"]

#: What each request gives its run.
_OF_REQUESTS = {
    "data.forget_split": "forget",
    "data.retain_split": "retain",
    "data.retain_model": "retain_model",
    "data.retain_results": "retain_results",
}
_KIND = FileKind(
    "sequence",
    ("config", "output_dir", "overwrite", "ckpt_path", "data.leave_out", "save_model"),
)
_KEYS = ("config", "output_dir", "requests", "settings", "columns", "watched", "watched_with")
_REQUEST_KEYS = (*_OF_REQUESTS.values(), "watched_as")
_REQUESTS_HINT = "at least two, each with its rows: [{forget: forget01}, ...]"
_COLUMNS = ("forget_quality", "model_utility")
_WATCHED = (
    *("forget_quality", "forget_probability", "forget_rougeL_recall", "extraction_strength"),
)


@dataclass(frozen=True)
class Request:
    """One request.

    Args:
        forget: Its rows: a split, as ``data.forget_split``.
        retain: What is to stay while it is forgotten; None for the configuration's.
        retain_model: Model that never saw the request's rows, nor those of earlier ones.
        retain_results: Its records, in place of the model.
        watched_as: Split of the same rows as ``watched_with`` reads it; None for ``forget``.
    """

    forget: str
    retain: str | None = None
    retain_model: str | None = None
    retain_results: str | None = None
    watched_as: str | None = None

    @property
    def settings(self) -> dict[str, str | None]:
        """Settings of its run.

        A retain model of its own stands in the place of the configuration's records, and records
        in that of its model: those are of other rows.

        Example:
            >>> "data.retain_results" in Request("a", retain_model="retain/model").settings
            True
        """
        given = self._given
        other = {"data.retain_model": "data.retain_results"}
        other |= {value: key for key, value in other.items()}
        return {**given, **{other[key]: None for key in given if key in other}}

    @property
    def _given(self) -> dict[str, str]:
        given = {key: getattr(self, name) for key, name in _OF_REQUESTS.items()}
        return {key: value for key, value in given.items() if value is not None}

    def told(self, number: int, message: str, names: Mapping[str, str] | None = None) -> str:
        """Return what was said of its run with its settings under the names they have in the file.

        Args:
            number: Its place among the requests, from 1.
            message: Of an error.
            names: Names of further settings, by the names that a run has for them.

        Example:
            >>> Request("forget01").told(2, "data.forget_split must be another.")
            'requests.2.forget must be another.'
        """
        place = f"requests.{number}"
        own = {key: f"{place}.{_OF_REQUESTS[key]}" for key in self._given}
        # A way out may name an option, and a file has none.
        plain = message.replace("--data.", "data.")
        named = renamed(plain, {**own, **(names or {})})
        return named if named.startswith(f"{place}.") else f"{place}: {named}"


@dataclass(frozen=True)
class RequestFile:
    """A sequence's file, checked.

    Args:
        config: Complete run files, laid over one another.
        output_dir: Folder of the folders of the runs.
        requests: In their order.
        settings: Settings that all runs have in common.
        columns: Numbers shown of the model after each request.
        watched: Numbers of each request's own rows that are followed to the end.
        watched_with: Settings with which they are scored, where a run itself does not have them.
    """

    config: tuple[str, ...]
    output_dir: str
    requests: tuple[Request, ...]
    settings: Mapping[str, Any]
    columns: tuple[str, ...]
    watched: tuple[str, ...]
    watched_with: Mapping[str, Any]


def load_requests(
    path: str,
    output_dir: str | None = None,
    changes: Sequence[str] = (),
    method: str | None = None,
) -> RequestFile:
    """Read and check a sequence's file.

    Args:
        path: The file.
        output_dir: Folder to use instead of the file's.
        changes: Texts ``key=value``; each takes the place of the file's setting.
        method: Method file that is laid over the file's configurations.

    Raises:
        InputError: If a key is unknown or missing, or a value is none that the key takes.
    """
    given = read_file(path, _KIND)
    check_keys("", given, _KEYS)
    files = config_of(given, _KIND)
    if method is not None:
        find_config(method, "--method")
        files = (*files, method)
    requests = _requests(needed(given, "requests", _REQUESTS_HINT, _KIND))
    settings = settings_of("settings", optional(given, "settings"), _KIND)
    changed = changes_of("--set", changes, _KIND)
    settings |= changed
    for key, name in _OF_REQUESTS.items():
        if key in settings:
            raise InputError(f"{key} must stand in the requests, as {name}; it is in settings.")
    watched_with = settings_of("watched_with", optional(given, "watched_with"), _KIND)
    for key, value in (given.get("watched_with") or {}).items():
        if why_unread("evaluate", option_words(key, value)) is not None:
            raise InputError(
                f"watched_with.{key} is not read by evaluate, which scores what is watched; leave "
                "it out, or give it under settings."
            )
    for key in changed.keys() & watched_with.keys():
        raise InputError(
            f"--set {key} would not reach what is watched, which has {watched_with[key]!r} by "
            "watched_with; change it in the file."
        )
    columns, watched = (
        tuple(dict.fromkeys(as_texts(key, list(usual) if given.get(key) is None else given[key])))
        for key, usual in (("columns", _COLUMNS), ("watched", _WATCHED))
    )
    folder = folder_of(output_dir, given, _KIND)
    return RequestFile(files, folder, requests, settings, columns, watched, watched_with)


def _requests(given: Any) -> tuple[Request, ...]:
    if not isinstance(given, list) or len(given) < 2:
        raise InputError(
            f"requests must be a list, {_REQUESTS_HINT}; got {given!r:.60}. One request is a run "
            "of fit."
        )
    found = []
    for number, one in enumerate(given, start=1):
        place = f"requests.{number}"
        check_keys(f"{place}.", as_pairs(place, one), _REQUEST_KEYS)
        for key, value in one.items():
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"{place}.{key} must be a text; got {value!r:.60}.")
        if "forget" not in one:
            raise InputError(f"{place}.forget is missing: the split that is to be forgotten.")
        if "retain_model" in one and "retain_results" in one:
            raise InputError(f"{place} must hold retain_model or retain_results; it has both.")
        found.append(Request(**one))
    splits = [one.forget for one in found]
    twice = next((split for split in splits if splits.count(split) > 1), None)
    if twice is not None:
        raise InputError(f"requests must ask for each split once; {twice!r} comes more often.")
    return tuple(found)
