"""MUSE's sequential and growing forget requests: one file each, laid over a run."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDS = range(1, 5)


@pytest.fixture
def resolved(command, home):
    """Return what a run with these files on top of MUSE-News does."""

    def parse(*files):
        options = [f"--config={CONFIGS / file}.yaml" for file in ("muse_news", *files)]
        result = command("fit", *options, "--print_config")
        assert (result.status, result.err) == (0, "")
        return yaml.safe_load(result.out)

    return parse


def test_sequential_requests_start_where_the_last_one_ended(resolved):
    target = resolved()["model"]["pretrained"]
    for fold in FOLDS:
        config = resolved(f"fold/sust_{fold}", "method/ga")
        assert config["data"]["forget_split"] == f"sust/forget_{fold}"
        assert config["model"]["pretrained"] == target
        target = f"{config['output_dir']}/model"


def test_growing_requests_all_start_from_the_target_model(resolved):
    target, folders = resolved()["model"]["pretrained"], set()
    for fold in FOLDS:
        config = resolved(f"fold/scal_{fold}", "method/ga")
        assert config["data"]["forget_split"] == f"scal/forget_{fold}"
        assert config["model"]["pretrained"] == target
        folders.add(config["output_dir"])
    assert len(folders) == len(FOLDS)


def test_a_fold_says_nothing_else():
    said = {
        path.stem: {
            key: set(value) if isinstance(value, dict) else None for key, value in part.items()
        }
        for path in CONFIGS.glob("fold/*.yaml")
        if (part := yaml.safe_load(path.read_text()))
    }
    assert set(said) == {f"{kind}_{fold}" for kind in ("sust", "scal") for fold in FOLDS}
    for keys in said.values():
        assert keys == {"output_dir": None, "model": {"pretrained"}, "data": {"forget_split"}}


@pytest.mark.slow
def test_two_requests_in_a_row(command, muse_args, muse_dir, write_rows, tmp_path):
    root = tmp_path / "rows"
    shutil.copytree(muse_dir, root)
    rows = [json.loads(line) for line in (root / "raw/forget.jsonl").read_text().splitlines()]
    for fold in (1, 2):
        write_rows(root / f"sust/forget_{fold}.jsonl", rows[2 * fold - 2 : 2 * fold])
    for fold, start in ((1, ()), (2, ("--model.pretrained=runs/muse_news_sust/1/model",))):
        files = f"--config={CONFIGS / f'fold/sust_{fold}.yaml'}"
        args = [*muse_args[:2], files, *muse_args[2:], f"--data.root={root}", *start]
        result = command(
            *args, "--trainer.max_epochs=1", "--trainer.precision=32-true", "--model.dtype=float32"
        )
        assert result.status == 0, result.err
        folder = Path(f"runs/muse_news_sust/{fold}")
        assert (folder / "model/config.json").is_file()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["pretrained"] == "runs/muse_news_sust/1/model"
    assert config["data"]["forget_split"] == "sust/forget_2"
