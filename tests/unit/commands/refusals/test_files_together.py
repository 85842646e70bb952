"""Which shipped files are complete runs that exclude each other, and which are laid over one."""

import itertools

import pytest

from etw_lightning.commands.refusals.files_together import check_together
from etw_lightning.files.config_files import shipped
from etw_lightning.schema import InputError

FILES = {
    name: path for name, path in shipped().items() if not name.startswith(("sweep/", "attack/"))
}
COMPLETE = [name for name in FILES if "/" not in name and name != "budget"]
OVERLAYS = [name for name in FILES if name not in COMPLETE]


@pytest.mark.parametrize("pair", list(itertools.combinations(COMPLETE, 2)), ids="-".join)
def test_two_complete_runs_exclude_each_other(pair):
    for one, other in (pair, reversed(pair)):
        with pytest.raises(InputError, match=f"{one}.yaml and .*{other}.yaml: what the later"):
            check_together([FILES[one], FILES[other]])


def test_all_else_goes_over_a_complete_run():
    assert {"budget", "data/own", "fold/scal_1", "method/npo", "strategy/ddp"} <= set(OVERLAYS)
    for name, over in itertools.product(COMPLETE, OVERLAYS):
        check_together([FILES[name], FILES[over]])


def test_a_file_that_is_no_yaml_is_left_to_the_parser(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    check_together([FILES["quickstart"], broken])
