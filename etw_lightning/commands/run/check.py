"""``check``: verifies what ``fit`` would, and predicts memory; nothing is loaded or written."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import get_args

from etw_lightning.commands.run.run_checks import RunChecks, say
from etw_lightning.memory.check_memory import run_shape
from etw_lightning.memory.model_checks import (
    check_devices,
    check_parts,
    check_training,
    describe_input,
    describe_other,
    describe_weights,
)
from etw_lightning.models.checkpoints import check_resume_settings
from etw_lightning.models.loading import load_config
from etw_lightning.schema import InputError
from etw_lightning.training.datamodule import Role

__all__ = ["CheckCommand"]


class CheckCommand(RunChecks):
    """Says what a run would find, without making it."""

    def before_check(self) -> None:
        """Verify what ``fit`` would, a line each; nothing is loaded, scored or written."""
        model, data = self.model, self.datamodule
        # Takes the quickstart's model where none is trained yet.
        self.untrained = TemporaryDirectory()
        given = model.pretrained
        self._check_settings()
        ckpt_path = self.config["check"].ckpt_path
        if ckpt_path:
            # Whether its weights fit is told by fit, which loads them.
            check_resume_settings(ckpt_path, model.settings)
        config = load_config(model.pretrained)
        lines = [*describe_input(data, config), describe_weights(given)]
        check_parts(model, config)
        room = [check_devices(self.trainer)]
        self._no_room: InputError | None = None
        try:
            room.append(self._check_disk())
        except InputError as error:
            # Memory is predicted all the same: the run may be meant for another machine.
            self._no_room = error
        shape = run_shape(model, data, self.trainer)
        check_training(model, config, shape, data.streams.values())
        others, needs = self._others_needed()
        for role in get_args(Role):
            lines.append(describe_other(others, role, needs[role]) or "")
        for line in filter(None, (*lines, *room)):
            say(line)

    def after_check(self) -> None:
        """Remove what stood for a model that is not trained yet; refuse a full disk."""
        assert self.untrained is not None
        self.untrained.cleanup()
        if self._no_room is not None:
            raise self._no_room
