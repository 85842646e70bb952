"""The numbers that a run ends with: as a benchmark has them, as tables, and in a file."""

from etw_lightning.runs.results.file import left_out_line, precision_lines, write_results
from etw_lightning.runs.results.model_rows import (
    MUSE_SETS,
    Row,
    model_row,
    muse_row,
    own_row,
    tofu_row,
)
from etw_lightning.runs.results.tables import print_metrics

__all__ = [
    "MUSE_SETS",
    "Row",
    "left_out_line",
    "model_row",
    "muse_row",
    "own_row",
    "precision_lines",
    "print_metrics",
    "tofu_row",
    "write_results",
]
