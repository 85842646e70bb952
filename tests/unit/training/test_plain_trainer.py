"""A plain ``lightning.Trainer`` with its defaults, and a model that is in memory already."""

import pytest
import torch
from lightning.pytorch import Trainer
from toy import make_trainer, qa_rows, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from etw_lightning.callbacks import ForgetQuality, SetScores
from etw_lightning.forget import NPO
from etw_lightning.schema import InputError
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.given import GivenModel
from etw_lightning.training.module import UnlearningModule
from etw_lightning.weighting import Uniform


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for name in ("forget10", "forget10_perturbed", "retain90"):
        write_rows(folder / f"{name}.jsonl", qa_rows(6))
    return folder


def tofu(root, **settings):
    return UnlearningDataModule("tofu", root=str(root), max_new_tokens=2, batch_size=3, **settings)


def plain(tmp_path, *callbacks, **settings):
    """Lightning's own defaults, but for the device, the folder and the number of epochs."""
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        **settings,
    )


@pytest.fixture
def loaded(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    return model, AutoTokenizer.from_pretrained(tiny_model_dir)


def test_a_plain_trainer_scores_the_retain_model_and_whole_sets(root, tmp_path, tiny_model_dir):
    quality = ForgetQuality()
    data = tofu(root, retain_model=str(tiny_model_dir))
    before = {}

    class Before(ForgetQuality):
        def on_validation_end(self, trainer, pl_module):
            if trainer.sanity_checking:
                before.update(self.latest)

    trainer = plain(tmp_path, quality, Before())
    trainer.fit(UnlearningModule(str(tiny_model_dir), lr=1e-2), datamodule=data)
    assert [row.id for row in data.results["retain"].records["forget"]] == [
        f"forget10_perturbed/{n}" for n in range(6)
    ]
    # The model that training starts from is the retain model here: no difference at all.
    assert before["forget_quality"].value == 1.0
    assert before["forget_quality"].n == quality.latest["forget_quality"].n == 6
    assert trainer.num_sanity_val_steps == float("inf")


def test_without_a_retain_model_a_plain_trainer_says_how_to_get_one(root, tmp_path, tiny_model_dir):
    with pytest.raises(InputError, match=r"data\.retain_results is missing"):
        plain(tmp_path, ForgetQuality()).fit(UnlearningModule(str(tiny_model_dir)), tofu(root))


def test_several_callbacks_have_the_retain_model_scored_for_all_of_them(
    root, tmp_path, tiny_model_dir
):
    class Generations(SetScores):
        def prepare(self, data):
            self.retain_needs = {"forget": {"generation"}}

    data = tofu(root, retain_model=str(tiny_model_dir))
    callbacks = (ForgetQuality(), Generations(["forget"]))
    plain(tmp_path, *callbacks).fit(UnlearningModule(str(tiny_model_dir)), datamodule=data)
    first = data.results["retain"].records["forget"][0]
    assert first.answer_loss is not None
    assert first.generation is not None


@pytest.mark.parametrize("setting", [{"limit_val_batches": 2}, {"fast_dev_run": True}])
def test_a_set_is_never_scored_in_part(setting, root, tmp_path, tiny_model_dir):
    with pytest.raises(InputError, match=rf"Trainer\({next(iter(setting))}="):
        plain(tmp_path, SetScores(["forget"]), **setting).fit(
            UnlearningModule(str(tiny_model_dir)), datamodule=tofu(root)
        )


def test_a_fast_dev_run_without_scores_runs(root, tmp_path, tiny_model_dir):
    trainer = plain(tmp_path, fast_dev_run=True)
    trainer.fit(UnlearningModule(str(tiny_model_dir)), datamodule=tofu(root))
    assert trainer.global_step == 1


def test_a_model_in_memory_trains_as_the_same_model_by_name(root, loaded, tiny_model_dir):
    model, tokenizer = loaded
    parts = {"lr": 1e-3, "weighting": Uniform(), "forget": NPO(beta=0.5)}
    given = UnlearningModule.from_model(model, tokenizer, **parts)
    make_trainer().fit(given, datamodule=tofu(root))
    named = UnlearningModule(str(tiny_model_dir), **parts)
    make_trainer().fit(named, datamodule=tofu(root))
    pairs = zip(model.parameters(), named.scorer.lm.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    assert given.scorer.lm is model, "trained in place"
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    assert not torch.equal(model.lm_head.weight, fresh.lm_head.weight)


def test_a_model_in_memory_is_told_from_others_by_its_weights(loaded):
    model, tokenizer = loaded
    first = GivenModel(model, tokenizer).identity()
    assert GivenModel(model, tokenizer).identity() == first
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    assert GivenModel(model, tokenizer).identity() != first


def test_what_the_target_model_says_is_not_taken_from_another_model_in_memory(root, loaded):
    model, tokenizer = loaded
    losses = []
    for scale in (1.0, 2.0):
        with torch.no_grad():
            model.lm_head.weight.mul_(scale)
        module = UnlearningModule.from_model(
            model, tokenizer, lr=1e-12, weighting=Uniform(), forget=NPO(beta=1.0)
        )
        make_trainer(limit_train_batches=1).fit(module, datamodule=tofu(root))
        losses.append(module.losses["forget"].item())
    # Where the target model is the model itself, NPO begins at 2 log 2.
    assert losses == pytest.approx([2 * torch.tensor(2.0).log().item()] * 2, abs=1e-5)


def test_a_plain_trainer_remembers_what_the_model_said_before(root, tmp_path, loaded):
    heard = []

    class Relative(SetScores):
        def prepare(self, data):
            self.target_needs = {"forget": {"answers"}}

        def compute(self, given):
            heard.append((given.records["forget"][0], given.target["forget"][0]))
            return super().compute(given)

    module = UnlearningModule.from_model(*loaded, lr=1e-2)
    plain(tmp_path, Relative(["forget"])).fit(module, datamodule=tofu(root))
    (before, target), (after, same_target) = heard
    assert before == target == same_target
    assert after.answer_loss != target.answer_loss


def test_what_is_no_plain_language_model_is_refused(loaded):
    model, tokenizer = loaded
    with pytest.raises(InputError, match="tokenizer must be the model's tokenizer; got str"):
        UnlearningModule.from_model(model, "name")
    with pytest.raises(InputError, match="no output head"):
        UnlearningModule.from_model(model.model, tokenizer)
    model.is_quantized = True
    with pytest.raises(InputError, match="quantized"):
        UnlearningModule.from_model(model, tokenizer)
