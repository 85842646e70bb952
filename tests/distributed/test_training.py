"""Each strategy trains as DDP does, goes on from its checkpoints, and its models export."""

import os
from functools import partial

import pytest
import torch
from sharded import (
    Rows,
    assert_near,
    assert_same_weights,
    run_forked,
    save_resume_export,
    train,
    write_texts,
)

from etw_lightning.callbacks.retain_budget import RetainBudget
from etw_lightning.commands.export import export
from etw_lightning.files.stored_weights import read_shapes, read_weights
from etw_lightning.forget import NPO, RMU
from etw_lightning.models.fixed_text import text_logits
from etw_lightning.models.loading import check_stored, load_model
from etw_lightning.retain import KL, EmbedDiff
from etw_lightning.weighting import Uniform

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

#: Tried in full by ``-m slow``; by default ``test_shards`` and ``test_resume`` run ZeRO-3.
SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in ("zero2", "zero3")]
MORE_SPLITS = ("accumulated", "ddp", "ddp accumulated", "zero2 accumulated", "zero3 accumulated")
#: One step that changes each weight by its gradient: Adam's, clipped, would hide a wrong scale.
GRADIENT = {
    "optimizer": "torch.optim.SGD",
    "lr": 1.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "trainer": {"max_steps": 1, "gradient_clip_val": None, "accumulate_grad_batches": 2},
}
#: Losses of each kind: of label log-probabilities, against the target model's, of distributions at
#: labels and at all positions, of hidden states; and passes beside the steps.
CASES = {
    "etw": dict,
    "gradient": lambda: dict(GRADIENT),
    "laid out": lambda: {**GRADIENT, "share_beginnings": True},
    "laid out, computed again": lambda: {
        **GRADIENT,
        "share_beginnings": True,
        "gradient_checkpointing": True,
    },
    "gradient of kl": lambda: {**GRADIENT, "retain": KL(), "reference": "live"},
    "npo": lambda: {"forget": NPO()},
    "kl": lambda: {"retain": KL(), "reference": "live", "gradient_checkpointing": True},
    "padded": lambda: {"retain": KL(positions="padded"), "reference": "live"},
    "rmu": lambda: {
        "weighting": Uniform(),
        "forget": RMU(layer=0),
        "retain": EmbedDiff(layer=0),
        "reference": "live",
        "train_only": [r".*layers\.0\.mlp.*"],
    },
    "budget": lambda: {"callbacks": [RetainBudget(budget=0.05, every_n_steps=1)]},
}
ONE_STEP = ("gradient", "laid out", "laid out, computed again")


@pytest.fixture(autouse=True)
def _cheap(monkeypatch, tmp_path_factory):
    torch.set_num_threads(1)
    monkeypatch.setenv("ETW_CACHE", str(tmp_path_factory.getbasetemp() / "strategies_cache"))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    # Once here, not in every process that is forked.
    pytest.importorskip("deepspeed")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def tied_model_dir(tmp_path_factory, tiny_model_dir):
    """Folder of a random model whose output head is its input embeddings."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("tied")
    config = AutoConfig.from_pretrained(tiny_model_dir)
    config.tie_word_embeddings = True
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return folder


def train_cases(name, model_dir, root, cases=tuple(CASES)):
    """Train each case; return its losses and weights."""
    return {case: train(name, model_dir, root, **CASES[case]())[:2] for case in cases}


@pytest.fixture(scope="module")
def expected(tiny_model_dir, root, tmp_path_factory):
    """What DDP makes of each case; its steps are clipped, some hold no row for a process."""
    folder = tmp_path_factory.mktemp("ddp")
    first, _ = run_forked(train_cases, 2, folder, "ddp", tiny_model_dir, root)
    return first


@pytest.fixture(scope="module")
def one_step(tiny_model_dir, root, tmp_path_factory):
    """What DDP makes of the cases of one step, of rows that are laid out and of others."""
    folder = tmp_path_factory.mktemp("one_step")
    first, _ = run_forked(train_cases, 2, folder, "ddp", tiny_model_dir, root, ONE_STEP)
    return first


def test_the_gradient_is_what_one_step_changes(one_step, tiny_model_dir):
    before = load_model(str(tiny_model_dir)).state_dict()
    after = one_step["gradient"][1]
    moved = torch.stack([(after[f"lm.{name}"] - weight).norm() for name, weight in before.items()])
    assert moved.min() > 1e-3
    assert moved.norm() > 1, "else a share of 1e-5 would not show"


def assert_laid_out(found):
    """Rows that are laid out change as much as whole ones, but for the last digits."""
    whole, other = found["gradient"]
    for case in ONE_STEP[1:]:
        losses, weights = found[case]
        assert_near(losses, whole)
        assert_same_weights(weights, other)
        assert any(not torch.equal(weights[name], one) for name, one in other.items())


def test_rows_that_are_laid_out_change_as_much(one_step):
    assert_laid_out(one_step)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp", *SLOWER])
def test_losses_and_weights_are_those_of_ddp(expected, name, tiny_model_dir, root, tmp_path):
    for found in run_forked(train_cases, 2, tmp_path, name, tiny_model_dir, root):
        for case, (losses, weights) in expected.items():
            assert_near(found[case][0], losses)
            assert_same_weights(found[case][1], weights)
        assert_laid_out(found)


@pytest.mark.parametrize("name", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow), *SLOWER])
def test_a_run_goes_on_from_its_checkpoint_and_exports(name, tied_model_dir, root, tmp_path):
    """The head is tied: it must be one tensor before, in and after the shards."""
    arguments = (save_resume_export, 2, tmp_path, name, tied_model_dir, root, tmp_path)
    for straight, weights, again, resumed in run_forked(*arguments):
        assert len(straight) == 6
        assert_near(again, straight[3:], 1e-6)
        assert_same_weights(resumed, weights, 1e-7)
    saved = load_model(str(tmp_path / "model"))
    assert saved.lm_head.weight is saved.model.embed_tokens.weight
    of_lm = {f"lm.{key}": value for key, value in saved.named_parameters()}
    assert_same_weights(of_lm, weights, 0)

    stored = tmp_path / "half.ckpt"
    weights = read_weights(stored, "ckpt_path")
    assert read_shapes(stored, "ckpt_path") == {n: (*w.shape,) for n, w in weights.items()}
    assert check_stored(str(stored)).startswith("all that the model has")

    assert export([f"--checkpoint={tmp_path / 'half.ckpt'}"]) == 0
    half = load_model(str(tmp_path / "half-model"))
    assert torch.equal(text_logits(half), text_logits(load_model(str(tmp_path / "half.ckpt"))))
    start = load_model(str(tied_model_dir)).model.embed_tokens.weight
    moved = [(one.model.embed_tokens.weight - start).norm().item() for one in (half, saved)]
    assert 0 < moved[0] < moved[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_16_bit_weights_are_rounded_alike_everywhere(name, tied_model_dir, root, tmp_path):
    """Each process draws the same numbers, and a run that goes on those of one that ran on."""
    work = partial(save_resume_export, trainer={"precision": "bf16-true"}, lr=1e-5)
    ends = run_forked(work, 2, tmp_path, name, tied_model_dir, root, tmp_path)
    for _, weights, _, resumed in ends:
        assert_same_weights(weights, ends[0][1], 0)
        assert_same_weights(resumed, ends[0][1], 0)
    start = load_model(str(tied_model_dir), dtype="bfloat16").state_dict()
    assert any((start[key.removeprefix("lm.")] != one).any() for key, one in ends[0][1].items())


def train_in_16_bits(model_dir, root):
    """Return losses under ZeRO-2 and ZeRO-3, and the precision of what is no weight."""
    how = {"trainer": {"precision": "bf16-mixed"}}
    whole, _, _ = train("zero2", model_dir, root, **how)
    shards, weights, (_, module, _) = train("zero3", model_dir, root, **how)
    kinds = {str(weight.dtype) for weight in weights.values()}
    return whole, shards, kinds, {str(buffer.dtype) for buffer in module.scorer.buffers()}


@pytest.mark.slow
def test_shards_in_16_bits_keep_their_buffers_wide(tiny_model_dir, root, tmp_path):
    """Rotary frequencies in bfloat16 would make another model of it."""
    arguments = (train_in_16_bits, 2, tmp_path, tiny_model_dir, root)
    for whole, shards, kinds, buffers in run_forked(*arguments):
        assert_near(shards, whole, 2e-3)
        assert (kinds, buffers) == ({"torch.bfloat16"}, {"torch.float32"})


#: Processes, rows of a micro-batch, micro-batches of a step: eight rows a step each time.
SPLITS = {
    "ddp alone": ("ddp", 1, 8, 1),
    "accumulated": ("ddp", 1, 4, 2),
    "ddp": ("ddp", 2, 4, 1),
    "ddp accumulated": ("ddp", 2, 2, 2),
    "fsdp accumulated": ("fsdp", 2, 2, 2),
    "zero2 accumulated": ("zero2", 2, 2, 2),
    "zero3 accumulated": ("zero3", 2, 2, 2),
}


def train_split(strategy, devices, batch_size, accumulate, model_dir, root):
    """Return losses of each step and the rows that this process was trained on."""
    rows = Rows()
    losses, _, _ = train(
        strategy,
        model_dir,
        root,
        devices=devices,
        callbacks=[rows],
        data={"batch_size": batch_size},
        trainer={"accumulate_grad_batches": accumulate, "max_epochs": 3},
    )
    return losses, rows.steps


@pytest.fixture(scope="module")
def alone(tiny_model_dir, root, tmp_path_factory):
    """The run of one process with whole batches: three steps an epoch, the last of one row."""
    folder = tmp_path_factory.mktemp("alone")
    (found,) = run_forked(train_split, 1, folder, *SPLITS["ddp alone"], tiny_model_dir, root)
    return found


@pytest.mark.parametrize(
    "split",
    [
        "fsdp accumulated",
        *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_SPLITS),
    ],
)
def test_the_split_changes_no_loss_and_shares_no_row(alone, split, tiny_model_dir, root, tmp_path):
    losses, steps = alone
    assert len(losses) == len(steps) == 9
    arguments = (*SPLITS[split], tiny_model_dir, root)
    found = run_forked(train_split, SPLITS[split][1], tmp_path, *arguments)
    for mine, _ in found:
        assert_near(mine, losses)
    for step, rows in enumerate(steps):
        dealt = [row for _, seen in found for row in seen[step]]
        assert sorted(dealt) == sorted(rows)
        assert len({tuple(row) for row in dealt}) == len(dealt)
