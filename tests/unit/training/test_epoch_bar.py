"""The bar counts epochs as all else does."""

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
