"""Objects as defaults: the same as the library's, without a look through all modules."""

import inspect

from jsonargparse import lazy_instance

from etw_lightning.training.module import UnlearningModule
from etw_lightning.tuning.defaults import default_of
from etw_lightning.weighting import ETW


def test_a_default_is_the_librarys_own():
    ours, theirs = default_of(ETW), lazy_instance(ETW)
    assert ours.lazy_get_init_data() == theirs.lazy_get_init_data()
    assert isinstance(ours, ETW)
    assert ours.temperature == 1.0
    default = inspect.signature(UnlearningModule).parameters["weighting"].default
    assert type(default) is type(ours)
    assert type(ours).__module__ == "etw_lightning.tuning.defaults"
