"""Groups of curves, pictures of weights, hyperparameters, and progress without a terminal."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from etw_lightning.boards.grouped import GroupedTensorBoard, hyperparameters
from etw_lightning.boards.groups import HEADLINES, card
from etw_lightning.boards.loggers import give_defaults, place_loggers
from etw_lightning.boards.pictures import WeightPictures, heat_map
from etw_lightning.boards.progress import LineProgress
from etw_lightning.catalogue.suite import is_known_number
from etw_lightning.runs.folder import run_label
from etw_lightning.schema import InputError


def test_every_headline_has_a_card_and_is_a_number_we_have():
    for name in HEADLINES:
        assert card(f"eval/{name}")
        assert is_known_number(name)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("eval/forget_quality", "forgetting/forget_quality"),
        ("eval/model_utility", "keeping/model_utility"),
        ("eval/retain_stutter", "sanity/retain_stutter"),
        ("eval/mia_min_k", "privacy/mia_min_k"),
        ("eval/forget_quality_floor", None),
        ("eval/mia_zlib_relative_difference", None),
        ("loss/total", "losses/total"),
        ("weights/max", "weights/max"),
        ("lr-AdamW", "learning rate/AdamW"),
        ("epoch", None),
    ],
)
def test_a_number_has_one_place(name, tag):
    assert card(name) == tag


def test_the_end_of_a_run_is_hparams_with_metrics_and_a_table(tmp_path):
    logger = GroupedTensorBoard(str(tmp_path), "run", "", default_hp_metric=False)
    logger.log_metrics({"eval/forget_quality": 0.5, "eval/forget_distinct_1": 0.1,
                        "eval/my_own": 3.0, "loss/total": 1.0}, 4)  # fmt: skip
    logger.show_end({"method": "etw", "lambda": 0.1}, {"forget_quality": 0.5, "privleak": 7.0}, 4)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert scalars == {"forgetting/forget_quality", "own/my_own", "losses/total"}
    plugins = events.summary_metadata
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(plugins)
    experiment = plugins["_hparams_/experiment"].plugin_data.content
    assert b"forgetting/forget_quality" in experiment
    assert b"privacy/privleak" in experiment
    assert b"lambda" in experiment
    [table] = events.Tensors("numbers/all/text_summary")
    assert b"| privleak | 7 |" in table.tensor_proto.string_val[0]


def test_hyperparameters_are_plain_values_by_short_names():
    config = {
        "model": {
            "weighting": {"class_path": "etw_lightning.weighting.ETW",
                          "init_args": {"temperature": 2.0, "top_share": None}},
            "forget": {"class_path": "etw_lightning.forget.GA"},
            "forget_weight": 0.1,
        },
        "trainer": {"max_epochs": 3},
    }  # fmt: skip
    assert hyperparameters(config, 7) == {
        "weighting": "ETW", "weighting.temperature": 2.0, "forget": "GA", "lambda": 0.1,
        "epochs": 3, "seed": 7,
    }  # fmt: skip


def test_a_folder_is_named_by_method_and_numbers():
    config = {
        "model": {"weighting": {"class_path": "a.ETW"}, "forget": {"class_path": "a.GA"},
                  "forget_weight": 0.5, "lr": 1e-5},
        "seed_everything": 2,
    }  # fmt: skip
    assert run_label(config) == "etw-ga-lambda0.5-lr1e-05-seed2-"
    assert run_label({"model": {"forget": None, "lr": 1e-5}}) == "finetune-lr1e-05-seed0-"


def test_a_picture_shows_each_token_on_its_colour():
    picture = heat_map([[("one", 0.0), ("two", 2.0)], [("<b>\x1b[31m", 1.0)]])
    assert picture.dtype == np.uint8
    colours = {tuple(one) for one in picture.reshape(-1, 3)}
    assert {(230, 90, 60), (255, 255, 255)} <= colours
    top, bottom = np.array_split(picture, 2)
    assert (230, 90, 60) in {tuple(one) for one in top.reshape(-1, 3)}
    # The largest weight of its own row has the whole colour.
    assert (230, 90, 60) in {tuple(one) for one in bottom.reshape(-1, 3)}
    long = heat_map([[("word" * 8, 1.0)] * 20])
    assert len(long) > len(picture)


def test_progress_is_a_line_a_minute(capsys):
    now = [0.0]
    progress = LineProgress(60.0, lambda: now[0])
    trainer = SimpleNamespace(
        is_global_zero=True, global_step=0, current_epoch=0, estimated_stepping_batches=100,
        callback_metrics={"loss/total": torch.tensor(1.5), "eval/x": torch.tensor(1.0)},
        sanity_checking=False, num_val_batches=[7], num_sanity_val_batches=[7],
    )  # fmt: skip
    progress.on_train_start(trainer, None)
    for second in range(1, 131):
        now[0], trainer.global_step = float(second), second // 10
        progress.on_train_batch_end(trainer, None, None, None, 0)
    progress.on_validation_batch_end(trainer, None, None, None, 3)
    now[0] = 200.0
    progress.on_validation_batch_end(trainer, None, None, None, 3)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1, step 6 of 100, loss/total 1.5, about 16 min left",
        "epoch 1, step 12 of 100, loss/total 1.5, about 15 min left",
        "evaluating, batch 4 of 7",
    ]


def test_loggers_write_into_the_run_s_folder(tmp_path, monkeypatch):
    give_defaults()
    give_defaults()
    assert CSVLogger().save_dir == "."
    assert CSVLogger("there", "named").name == "named"
    setting = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "."}}
    place_loggers([setting, True], tmp_path)
    assert setting["init_args"]["save_dir"] == str(tmp_path)
    own = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "mine"}}
    place_loggers(own, tmp_path)
    assert own["init_args"]["save_dir"] == "mine"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    absent = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {}}
    with pytest.raises(InputError, match="needs the package wandb; install it"):
        place_loggers(absent, tmp_path)


def test_wandb_is_offline_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    path = "lightning.pytorch.loggers.WandbLogger"
    setting = {"class_path": path, "init_args": {"save_dir": ".", "offline": False}}
    place_loggers(setting, tmp_path)
    assert setting["init_args"] == {"save_dir": str(tmp_path), "offline": True}
    monkeypatch.setenv("WANDB_API_KEY", "key")
    setting = {"class_path": path, "init_args": {"offline": False}}
    place_loggers(setting, tmp_path)
    assert not setting["init_args"]["offline"]


@pytest.mark.parametrize("count", [0, 2])
def test_a_process_without_a_row_in_the_last_step_shows_no_weights(tmp_path, count):
    """Several processes end an epoch with rows for some of them; TensorBoard takes no empty set."""
    logger = GroupedTensorBoard(tmp_path, "run", "")
    trainer = SimpleNamespace(
        logger=logger, is_global_zero=True, sanity_checking=False, global_step=3
    )
    found = torch.arange(count), torch.zeros(count, dtype=torch.long), torch.ones(count)
    tokenizer = SimpleNamespace(decode=lambda ids: str(ids[0]))
    encoder = SimpleNamespace(tokenizer=tokenizer)
    module = SimpleNamespace(last_weights=found, datamodule=SimpleNamespace(encoder=encoder))
    WeightPictures().on_validation_end(trainer, module)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert events.Tags()["histograms"] == ["weights/all"] * (count > 0)
    assert events.Tags()["images"] == ["weights/heat map"] * (count > 0)
