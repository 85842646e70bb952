"""``explain``: what a metric, or a number of ``results.json``, is."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from etw_lightning.catalogue.attacked import OF_ATTACKS
from etw_lightning.catalogue.listing import CATALOGUE
from etw_lightning.catalogue.suite import explain
from etw_lightning.notices import program
from etw_lightning.schema import InputError

__all__ = ["explain_names"]


def explain_names(names: Sequence[str]) -> int:
    """Print the pages of some metrics.

    Args:
        names: Words after ``explain``.

    Raises:
        InputError: If there is none of a name, or no name.
    """
    if not names:
        raise InputError(
            "explain must be given the name of a metric: explain forget_quality. There are "
            f"{', '.join(CATALOGUE)}, of attacks {', '.join(OF_ATTACKS)}, and each of their "
            "numbers."
        )
    if {"-h", "--help"} & set(names):
        sys.stdout.write(
            f"usage: {program()} explain NAME [NAME ...]\n\nPrints what a metric, or a "
            f"number of results.json, is. Metrics: {', '.join(CATALOGUE)}. Of attacks: "
            f"{', '.join(OF_ATTACKS)}.\n"
        )
        return 0
    for name in names:
        sys.stdout.write(f"{explain(name)}\n")
    return 0
