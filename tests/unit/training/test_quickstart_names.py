"""Names of the quickstart's models under whatever key they are given."""

import pytest

from etw_lightning.schema import InputError
from etw_lightning.training.quickstart_models import check_role, resolve, resolve_untrained


@pytest.mark.parametrize("key", ["model.pretrained", "model.entropy_model", "data.retain_model"])
def test_a_model_that_is_none_is_refused_in_the_name_of_its_key(key, tmp_path):
    said = f"{key} must be quickstart:target or quickstart:retain; got 'quickstart:foo'."
    for look in (
        lambda: check_role("quickstart:foo", key),
        lambda: resolve("quickstart:foo", 0, key),
        lambda: resolve_untrained("quickstart:foo", tmp_path, 0, key),
    ):
        with pytest.raises(InputError) as caught:
            look()
        assert str(caught.value) == said
