"""Checkpoints of a run with an adapter: gone on from, and used as a model."""

import json

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

pytest.importorskip("peft")

from etw_lightning.models.checkpoints import (
    check_checkpoint_weights,
    check_resume,
    checkpoint_model,
    describe_model,
)
from etw_lightning.models.fixed_text import text_logits
from etw_lightning.models.label_scorer import LabelScorer
from etw_lightning.models.loading import load_model
from etw_lightning.schema import InputError
from etw_lightning.tuning.adapters import add_adapter

TARGETS = {"target_modules": ["q_proj", "down_proj"]}
#: Kept as LoRA is; ``test_adapters`` trains and merges each.
KIN = {"DoRA", "IA3", "LoHa", "OFT"}
ROWS = [(torch.arange(16) * step) % 300 for step in (7, 11, 13)]
KINDS = {
    "LoRA": {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"},
    "DoRA": {"peft_type": "LORA", "r": 4, "use_dora": True, **TARGETS},
    "dropout": {"peft_type": "LORA", "r": 4, "lora_dropout": 0.2, **TARGETS},
    "IA3": {"peft_type": "IA3", **TARGETS, "feedforward_modules": ["down_proj"]},
    "LoHa": {"peft_type": "LOHA", "r": 4, **TARGETS},
    # Their weights are placed, or multiplied, at random; the checkpoint must know how.
    "VeRA": {"peft_type": "VERA", "r": 4, **TARGETS},
    "RandLoRA": {"peft_type": "RANDLORA", "r": 4, **TARGETS},
    "FourierFT": {"peft_type": "FOURIERFT", "n_frequency": 20, "init_weights": True, **TARGETS},
    "SHiRA": {"peft_type": "SHIRA", "r": 2, **TARGETS},
    "OFT": {"peft_type": "OFT", "r": 0, "oft_block_size": 4, **TARGETS},
}


class Tuned(LightningModule):
    """A training loop around an adapter, and what our checkpoints hold."""

    def __init__(self, folder, settings):
        super().__init__()
        self.folder, self.settings, self.scorer = str(folder), settings, None

    def configure_model(self):
        if self.scorer is None:
            lm = load_model(self.folder)
            self.adapter = add_adapter(lm, self.settings)
            self.scorer = LabelScorer(lm).train()

    def configure_optimizers(self):
        return torch.optim.AdamW([w for w in self.parameters() if w.requires_grad], lr=0.01)

    def training_step(self, ids, _):
        return -self.scorer(ids, torch.ones_like(ids), ids.clone()).logps.mean()

    def on_save_checkpoint(self, checkpoint):
        settings = self.adapter.settings
        checkpoint.update(describe_model(self.scorer.lm, self.folder, settings))


def fit(folder, settings, into, steps, resume=None, seed=0):
    torch.manual_seed(seed)
    module = Tuned(folder, settings)
    saves = ModelCheckpoint(into, save_top_k=-1, every_n_train_steps=3, filename="{step}")
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[saves],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rows = DataLoader(torch.stack(ROWS), batch_size=1)
    trainer.fit(module, rows, ckpt_path=resume, **({"weights_only": True} if resume else {}))
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, id=name, marks=pytest.mark.slow if name in KIN else ())
        for name, settings in KINDS.items()
    ],
)
def test_a_run_goes_on_and_its_checkpoint_is_a_model(tiny_model_dir, tmp_path, settings):
    whole = fit(tiny_model_dir, settings, tmp_path / "whole", steps=6)
    lm = whole.scorer.lm
    with whole.adapter.switched_off():
        assert torch.equal(text_logits(lm), text_logits(load_model(str(tiny_model_dir))))

    path = str(tmp_path / "whole" / "step=6.ckpt")
    torch.manual_seed(99)
    plain = checkpoint_model(path, "model.pretrained", torch.float32, {})
    assert plain.state_dict().keys() == load_model(str(tiny_model_dir)).state_dict().keys()
    copied = whole.adapter.merged_copy().state_dict()
    assert all(torch.equal(weight, copied[name]) for name, weight in plain.state_dict().items())
    assert load_model(path).config.to_dict().keys() == plain.config.to_dict().keys()

    if "lora_dropout" not in settings:
        half = str(tmp_path / "whole" / "step=3.ckpt")
        again = fit(tiny_model_dir, settings, tmp_path / "again", 6, resume=half, seed=5)
        weights = whole.state_dict()
        found = again.state_dict()
        assert found.keys() == weights.keys()
        assert all(torch.equal(weight, weights[name]) for name, weight in found.items())


def test_a_checkpoint_without_an_adapter_says_nothing_of_one(tiny_model_dir):
    stored = describe_model(load_model(str(tiny_model_dir)), "somewhere")["etw_lightning"]
    assert stored.keys() == {"config", "generation_config", "tokenizer"}


def test_weights_of_another_adapter_are_one_line(tiny_model_dir, tmp_path):
    fit(tiny_model_dir, KINDS["LoRA"], tmp_path, steps=3)
    path = tmp_path / "step=3.ckpt"
    content = torch.load(path, weights_only=True)
    content["etw_lightning"]["peft"] = json.dumps({**KINDS["LoRA"], "r": 2})
    torch.save(content, path)
    with pytest.raises(
        InputError, match=r"model\.pretrained .* 28 weights \(.*lora_A.*\(4, 64\) for \(2, 64\)"
    ):
        checkpoint_model(str(path), "model.pretrained", torch.float32, {})


@pytest.fixture
def written(tmp_path, tiny_model_dir):
    """A checkpoint of a run of NPO at lambda 0.1 with one callback, and its weights."""
    lm = load_model(str(tiny_model_dir))
    settings = {"model.forget": "NPO(beta=0.1)", "model.forget_weight": "0.1"}
    path = tmp_path / "run.ckpt"
    weights = {f"scorer.lm.{name}": value for name, value in lm.state_dict().items()}
    content = describe_model(lm, str(tiny_model_dir), settings=settings)
    torch.save({"state_dict": weights, "callbacks": {"Seen{'a': 1}": {}}, **content}, path)
    return str(path), settings, weights


def test_a_run_goes_on_from_its_own_checkpoint(written):
    assert check_resume(*written) == {"Seen"}


def test_another_method_does_not_go_on_from_it(written):
    path, settings, names = written
    with pytest.raises(InputError, match=r"model.forget_weight is 0.9, but ckpt_path .* with 0.1;"):
        check_resume(path, {**settings, "model.forget_weight": "0.9"}, names)
    with pytest.raises(InputError, match=r"model.forget is GA\(\), but .* NPO\(beta=0.1\)"):
        check_resume(path, {**settings, "model.forget": "GA()"}, names)


def test_other_weights_do_not_go_on_from_it(written):
    path, settings, weights = written
    with pytest.raises(InputError, match=r"holds other weights .* \(a.lora and 0 more"):
        check_resume(path, settings, weights | {"a.lora": torch.zeros(1)})
    wider = weights | {"scorer.lm.model.norm.weight": torch.zeros(64)}
    shapes = r"1 weight \(scorer.lm.model.norm.weight \(32,\) for \(64,\)\) is of another shape"
    with pytest.raises(InputError, match=shapes):
        check_resume(path, settings, wider)


def write_deepspeed(folder, lm, shapes, **parts):
    """Write what DeepSpeed's first process does, but for the weights, and our entries."""
    place = folder / "checkpoint"
    place.mkdir(parents=True)
    content = {
        "module": {},
        "buffer_names": [],
        "param_shapes": [shapes],
        "frozen_param_shapes": None,
        "shared_params": {},
        **parts,
        **describe_model(lm, "somewhere"),
    }
    torch.save(content, place / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    return str(folder)


def test_the_weights_of_deepspeed_are_compared_by_what_its_first_file_lists(
    tiny_model_dir, tmp_path
):
    """That the list is what is then read, ``tests/distributed/test_training.py`` holds."""
    lm = load_model(str(tiny_model_dir))
    shapes = {f"scorer.lm.{name}": weight.shape for name, weight in lm.named_parameters()}
    head = "scorer.lm.lm_head.weight"
    first = {name: shape for name, shape in shapes.items() if name != head}
    for name, listed, parts in (
        ("whole", shapes, {}),
        ("frozen", first, {"frozen_param_shapes": {head: shapes[head]}}),
        ("shared", first, {"shared_params": {head: "scorer.lm.model.embed_tokens.weight"}}),
        ("buffer", first, {"module": {head: lm.lm_head.weight.data}, "buffer_names": [head]}),
        ("wrapped", {f"module.{name}": shape for name, shape in shapes.items()}, {}),
    ):
        path = write_deepspeed(tmp_path / f"{name}.ckpt", lm, listed, **parts)
        check_checkpoint_weights(path, "model.pretrained")
    for name, listed, said in (
        ("lacking", first, r"1 weight \(lm_head.weight\) is missing"),
        ("more", shapes | {"scorer.lm.stray": torch.Size([2])}, r"1 weight \(stray\) is unknown"),
        ("other", shapes | {head: torch.Size([2, 32])}, r"\(2, 32\) for \(320, 32\)"),
    ):
        path = write_deepspeed(tmp_path / f"{name}.ckpt", lm, listed)
        with pytest.raises(InputError, match=rf"model\.pretrained .* {said}"):
            check_checkpoint_weights(path, "model.pretrained")
