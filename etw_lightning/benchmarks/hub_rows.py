"""Rows of data sets on the Hugging Face hub, or of what an earlier run has stored of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etw_lightning.benchmarks.formats import rows_of
from etw_lightning.files.hub import hub_answers
from etw_lightning.schema import InputError

__all__ = ["HUB", "hub_name", "read_hub"]

#: What begins the name of a split that is a data set on the hub.
HUB = "hub:"


def hub_name(split: str) -> tuple[str, str]:
    """Return the data set and the rest of ``hub:owner/name``, ``hub:owner/name/config/split``.

    Args:
        split: As the user gave it; what stands behind the data set may be a split, or a
            configuration and a split.

    Raises:
        InputError: If it names no data set.

    Example:
        >>> hub_name("hub:locuslab/TOFU/forget10/train")
        ('locuslab/TOFU', 'forget10/train')
    """
    owner, _, rest = split.removeprefix(HUB).partition("/")
    name, _, rest = rest.partition("/")
    if not owner or not name:
        raise InputError(
            f"{split!r} must name a data set on the hub: hub:owner/name, hub:owner/name/split or "
            "hub:owner/name/configuration/split."
        )
    return f"{owner}/{name}", rest


def read_hub(hub: str, name: str) -> Iterator[dict[str, Any]]:
    """Give a split's rows from the hub; without a connection from what an earlier run has stored.

    Args:
        hub: Data set, or a folder laid out as one.
        name: ``config/split``; or one of both: the configuration of that name, whose only split is
            ``train``, or the split of that name; or nothing for ``train``.

    Raises:
        InputError: If it can't be read.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    config, _, split = name.partition("/")
    online = Path(hub).is_dir() or (not datasets.config.HF_HUB_OFFLINE and hub_answers())
    try:
        if online:
            return rows_of(_load(hub, config, split))
        with _without_network():
            return rows_of(_read_cache(hub, config, split))
    # A RuntimeError: the data set comes with a script, which is not run.
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:200] if online else "no connection, no stored copy"
        raise InputError(
            f"{hub} (configuration {config!r}, split {split or 'train'!r}) can't be read from the "
            f"hub ({reason}). Give a folder that holds {name or 'train'}.jsonl or "
            f"{name or 'train'}.jsonl.gz: --data.root DIR"
        ) from error


def _load(hub: str, config: str, split: str) -> Any:
    """Return a split as an Arrow table."""
    import datasets

    try:
        found = datasets.load_dataset(hub, config or None, split=split or "train")
    except ValueError:
        names = [] if split or not config else datasets.get_dataset_config_names(hub)
        if len(names) != 1 or names == [config]:
            raise
        # Where there is one configuration, nobody names it.
        found = datasets.load_dataset(hub, names[0], split=config)
    return found.with_format("arrow")[:]


def _read_cache(hub: str, config: str, split: str) -> Any:
    """Read what `load_dataset` has prepared, else a snapshot that was only downloaded."""
    from huggingface_hub import snapshot_download

    try:
        return _load(hub, config, split)
    except (OSError, ValueError):
        folder = snapshot_download(hub, repo_type="dataset", local_files_only=True)
        return _load(folder, config, split)


@contextmanager
def _without_network() -> Iterator[None]:
    """Keep `datasets` from its five retries (23 s a split) when there is no connection."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
