"""``weights``: shows the weights of one forget row; nothing is trained, scored or written."""

from __future__ import annotations

from etw_lightning.commands.run.run_checks import RunChecks
from etw_lightning.memory.model_checks import check_devices
from etw_lightning.schema import InputError
from etw_lightning.training import quickstart_models

__all__ = ["WeightsCommand"]

_MARKS_OF_QUICKSTART = "quickstart:annotations"


class WeightsCommand(RunChecks):
    """Loads the model and the forget rows of a run, and asks the one for the other."""

    def before_weights(self) -> None:
        """Read the forget rows; what only training or scoring reads is left alone."""
        model, data = self.model, self.datamodule
        if model.method.forget is None:
            raise InputError(
                "weights needs a run that forgets: model.forget is null, so no token has a weight."
            )
        check_devices(self.trainer)
        model.trains = False
        data.follow(model.method)
        data.uses_retain = data.uses_alternative = data.uses_marks = data.uses_words = False
        data.conventions = self._conventions
        data.seed = self.seed if data.seed is None else data.seed
        if data.benchmark_name == "quickstart" and data.annotations is None:
            data.annotations = _MARKS_OF_QUICKSTART
        model.pretrained = quickstart_models.resolve(model.pretrained, self.seed)
        data.load(model.pretrained)
