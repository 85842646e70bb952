"""Whether the Hugging Face hub can be reached, asked once, so that no run waits for retries."""

from __future__ import annotations

import functools
import ssl
import urllib.error
import urllib.request

__all__ = ["hub_answers"]

_PATIENCE = 3.0  # seconds the hub may take to answer before its cache is used


@functools.cache
def hub_answers() -> bool:
    """Ask the hub once a process; any answer, an error page too, means it can be reached."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        # The hub's client brings its own certificates, so a failed check here decides nothing.
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
