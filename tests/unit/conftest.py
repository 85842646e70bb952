"""The tiny model, loaded once and copied for each test that changes it."""

import copy

import pytest

from etw_lightning.models.loading import load_model


@pytest.fixture(scope="module")
def loaded(tiny_model_dir):
    return load_model(str(tiny_model_dir))


@pytest.fixture
def lm(loaded):
    return copy.deepcopy(loaded)
