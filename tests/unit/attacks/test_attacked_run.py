"""Where the models of an attacked run are found, and whose options come first."""

import shutil
from types import SimpleNamespace

import pytest

from etw_lightning.attacks.attacked_run import AttackedRun
from etw_lightning.attacks.scoring import trainer_like
from etw_lightning.reports.finished_runs import FinishedRun
from etw_lightning.schema import InputError


@pytest.fixture
def attacked(tmp_path, tiny_model_dir):
    """Make an attacked run of some data settings and options."""
    shutil.copytree(tiny_model_dir, tmp_path / "run" / "model")

    def make(data, **options):
        forgets = {"pretrained": "./start", "forget": {"class_path": "GA"}}
        config = {"model": forgets, "data": {"benchmark": "jsonl", **data}}
        run = FinishedRun(tmp_path / "run", "run", {"command": "fit", "seed": 3}, {}, config)
        return AttackedRun(run, lambda: None, config["data"], **options)

    return make


def test_the_retain_model_lies_beside_its_results(attacked, tmp_path, tiny_model_dir):
    assert not attacked({}).has("retain")
    (tmp_path / "kept").mkdir()
    given = {"retain_results": str(tmp_path / "kept")}
    assert not attacked(given).has("retain"), "records alone can't be attacked"
    shutil.copytree(tiny_model_dir, tmp_path / "kept" / "model")
    for name in ("kept", "kept/results.json"):
        found = attacked({"retain_results": str(tmp_path / name)})
        assert found.name("retain") == str(tmp_path / "kept" / "model")


def test_the_models_are_those_of_the_settings(attacked, tmp_path, tiny_model_dir):
    data = {"retain_model": str(tiny_model_dir), "target_model": str(tiny_model_dir)}
    found = attacked(data, seed=7)
    assert found.name("retain") == found.name("target") == str(tiny_model_dir)
    assert found.name("unlearned") == str(tmp_path / "run" / "model")
    assert (found.seed, found.run_seed) == (7, 3)
    assert attacked(data).seed == 3


@pytest.mark.parametrize("given", [[1], "peers", {"flor": "peer"}])
def test_conventions_that_are_none_are_refused(attacked, given):
    found = attacked({})
    found.config["conventions"] = given
    found.make_data, found._tokenizer = lambda: SimpleNamespace(seed=0), object()
    with pytest.raises(
        InputError, match=r"^attack: conventions of the run's config\.yaml must be "
    ):
        found.data()


def test_a_machine_without_the_run_s_device_is_told(attacked):
    found = attacked({})
    found.trainer = {"accelerator": "nope"}
    with pytest.raises(InputError) as error:
        trainer_like(found, progress=False)
    assert str(error.value).startswith("attack: the run's trainer.accelerator 'nope' and ")
    assert "\n" not in str(error.value)


def test_a_model_that_is_not_there_is_named_by_its_option(attacked):
    with pytest.raises(InputError, match=r"names no retain model.*--retain_model PATH"):
        attacked({}).check_model("retain")
    with pytest.raises(InputError, match=r"^target_model: there is no folder './start'"):
        attacked({}).check_model("target")
