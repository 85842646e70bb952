"""What a call that must be refused says."""

import pytest

from etw_lightning.schema import InputError


def message(call, *args, **kwargs):
    """Call what must raise an ``InputError``; return its message, which is one line."""
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    text = str(error.value)
    assert "\n" not in text
    return text
