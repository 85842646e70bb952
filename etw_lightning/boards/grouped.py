"""TensorBoard with its curves in groups, and what it shows of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from etw_lightning.boards.groups import HEADLINES, card
from etw_lightning.catalogue.suite import is_known_number

__all__ = ["GroupedTensorBoard", "hyperparameters"]


class GroupedTensorBoard(TensorBoardLogger):
    """Shows each number in the group it belongs to; those without a card stand in one table."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers under the tags of their groups."""
        tags = {name: card(name, is_known_number(name.removeprefix("eval/"))) for name in metrics}
        super().log_metrics(
            {tag: metrics[name] for name, tag in tags.items() if tag is not None}, step
        )

    def show_end(
        self, settings: Mapping[str, Any], numbers: Mapping[str, float], step: int
    ) -> None:
        """Show all numbers as a table, and settings with the headline numbers as hparams.

        Args:
            settings: The run's hyperparameters.
            numbers: Its last numbers by name.
            step: Steps that were made.
        """
        from torch.utils.tensorboard.summary import hparams

        lines = [f"| {name} | {value:.4g} |" for name, value in numbers.items()]
        table = "\n".join(["| number | value |", "| --- | ---: |", *lines])
        self.experiment.add_text("numbers/all", table, step)
        tags = {card(f"eval/{name}"): numbers[name] for name in HEADLINES if name in numbers}
        for part in hparams(dict(settings), {tag: value for tag, value in tags.items() if tag}):
            self.experiment._get_file_writer().add_summary(part)


def hyperparameters(config: Mapping[str, Any], seed: int) -> dict[str, str | float | bool]:
    """Return what tells a run from others, by short names.

    Args:
        config: All settings of a run, as plain values.
        seed: Its seed.

    Example:
        >>> part = {"class_path": "etw_lightning.weighting.ETW", "init_args": {"temperature": 2.0}}
        >>> hyperparameters({"model": {"weighting": part, "lr": 1e-5}}, 0)
        {'weighting': 'ETW', 'weighting.temperature': 2.0, 'lr': 1e-05, 'seed': 0}
    """
    model, data, trainer = (config.get(key) or {} for key in ("model", "data", "trainer"))
    found: dict[str, Any] = {}
    for name in ("weighting", "forget", "retain"):
        part = model.get(name)
        if isinstance(part, Mapping) and "class_path" in part:
            found[name] = str(part["class_path"]).rpartition(".")[2]
            for key, value in (part.get("init_args") or {}).items():
                found[f"{name}.{key}"] = value
    shown = {"forget_weight": "lambda"}
    for key in ("forget_weight", "retain_weight", "lr", "schedule", "weight_decay", "optimizer"):
        found[shown.get(key, key)] = model.get(key)
    found |= {key: data.get(key) for key in ("forget_split", "batch_size")}
    found["epochs"], found["seed"] = trainer.get("max_epochs"), seed
    return {key: one for key, one in found.items() if isinstance(one, str | int | float)}
