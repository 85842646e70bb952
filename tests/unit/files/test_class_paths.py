"""Classes of the user's own: what is said of a module that is there and broken."""

import pytest

from etw_lightning.files.class_paths import class_at
from etw_lightning.schema import InputError


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nosuchmodule\n", "No module named 'nosuchmodule'"),
        ("from etw_lightning.schema import Nothing\n", "cannot import name 'Nothing'"),
        ("class Broken(:\n", "invalid syntax"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(tmp_path, monkeypatch, text, reason):
    name = f"broken_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"^metrics .* can't be imported: ") as caught:
        class_at(f"{name}.R", object, "metrics")
    assert reason in str(caught.value)
