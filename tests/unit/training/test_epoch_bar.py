"""The bar counts epochs as all else does, and its numbers have names that fit beside it."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import RichProgressBar

from etw_lightning.training.step_log import count_epochs_from_one


@pytest.mark.parametrize(("epochs", "words"), [(7, "Epoch 1/7"), (-1, "Epoch 1")])
def test_the_bar_counts_epochs_from_one(epochs, words):
    callbacks = [RichProgressBar(refresh_rate=3)]
    count_epochs_from_one(callbacks)
    (bar,) = callbacks
    bar._trainer = SimpleNamespace(max_epochs=epochs)
    assert bar.refresh_rate == 3
    assert bar._get_train_description(0).rstrip() == words


def test_numbers_beside_the_bar_have_short_names():
    callbacks = [RichProgressBar()]
    count_epochs_from_one(callbacks)
    given = {"loss/forget": 0.5, "eval/forget_quality": 0.25, "eval/privleak": -99.5}
    trainer = SimpleNamespace(loggers=[], progress_bar_metrics=given)
    shown = callbacks[0].get_metrics(trainer, None)
    assert shown == {"loss/forget": 0.5, "FQ": 0.25, "privleak": -99.5}
