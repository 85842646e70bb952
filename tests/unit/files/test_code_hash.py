"""The hash of our own code: of whole modules, none of which may be missing."""

import hashlib
from pathlib import Path

import pytest

import etw_lightning
from etw_lightning.files.code_hash import code_hash
from etw_lightning.scoring.cache import keys
from etw_lightning.training.references import values as reference_values


def test_it_is_the_hash_of_the_files():
    package = Path(etw_lightning.__file__).parent
    text = (package / "schema.py").read_bytes() + (package / "metrics" / "tofu.py").read_bytes()
    assert code_hash(("schema", "metrics.tofu")) == hashlib.sha256(text).hexdigest()


def test_a_module_that_has_moved_is_an_error():
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        code_hash(("schema", "elsewhere"))


@pytest.mark.parametrize("modules", [keys._CODE, reference_values._CODE])
def test_the_lists_in_use_name_files_that_are_there(modules):
    assert len(code_hash(modules)) == 64
