"""Attacks on weights, against the same arithmetic written out in numpy."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from small_models import llama_config
from transformers import LlamaForCausalLM

from etw_lightning.attacks import Attack, Merge, Prune, Quantise, Relearn, Subject, quantising
from etw_lightning.files.class_paths import class_at
from etw_lightning.files.config_files import about, shipped_folder
from etw_lightning.schema import InputError
from etw_lightning.training.datamodule import UnlearningDataModule

#: Levels of NF4 as its paper lists them (arXiv:2305.14314, appendix E).
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0)  # fmt: skip


def model(seed, **others):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(llama_config(48, 32, **{"tie_word_embeddings": False} | others))


def subject(lm, target=None):
    run = SimpleNamespace(load=lambda who: target)
    return Subject("unlearned", lm, None, {}, None, run)


def weights(lm):
    return {name: weight.detach().double().numpy().copy() for name, weight in lm.named_parameters()}


def is_of_decoder(name):
    return ".layers." in name and "norm" not in name


@pytest.mark.parametrize("tied", [False, True])
def test_pruning_takes_the_smallest_of_each_matrix(tied):
    lm = model(0, tie_word_embeddings=tied)
    before = weights(lm)
    after = weights(Prune(share=0.3).change_model(subject(lm)))
    for name, weight in before.items():
        if not is_of_decoder(name):
            assert (after[name] == weight).all(), name
            continue
        sizes = np.sort(np.abs(weight).ravel())
        count = int(0.3 * weight.size)
        assert (after[name] == 0).sum() == count
        kept = np.abs(weight) >= sizes[count]
        assert (after[name] == np.where(kept, weight, 0)).all(), name


def test_pruning_nothing_changes_nothing():
    lm = model(0)
    before = weights(lm)
    after = weights(Prune(share=0.0).change_model(subject(lm)))
    assert all((after[name] == weight).all() for name, weight in before.items())


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_merging_lies_between_both(share):
    lm, target = model(0), model(1)
    mine, theirs = weights(lm), weights(target)
    after = weights(Merge(share=share).change_model(subject(lm, target)))
    for name, weight in after.items():
        assert weight == pytest.approx((1 - share) * mine[name] + share * theirs[name], abs=1e-7)


def test_models_of_other_shapes_are_not_merged():
    with pytest.raises(InputError, match=r"can't be merged: .* \(48, 32\)"):
        Merge().change_model(subject(model(0), model(0, hidden_size=64)))


def int8(rows):
    rows = rows.astype(np.float16).astype(float)
    scales = np.abs(rows).max(1, keepdims=True)
    return np.round(rows / scales * 127) * scales / 127


def nf4(rows):
    blocks = rows.reshape(-1, 64)
    scales = np.abs(blocks).max(1, keepdims=True)
    levels = np.array(NF4)
    nearest = np.abs((blocks / scales)[..., None] - levels).argmin(-1)
    return (levels[nearest] * scales).reshape(rows.shape)


def q8_0(rows):
    blocks = rows.reshape(-1, 32)
    scales = np.abs(blocks).max(1, keepdims=True) / 127
    return (np.round(blocks / scales) * scales.astype(np.float16)).reshape(rows.shape)


def q4_0(rows):
    blocks = rows.reshape(-1, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scales = largest / -8
    codes = np.clip(np.floor(blocks / scales + 8.5), 0, 15) - 8
    return (codes * scales.astype(np.float16)).reshape(rows.shape)


@pytest.mark.parametrize(
    ("scheme", "by_hand"),
    [("int8", int8), ("nf4", nf4), ("gguf_q8_0", q8_0), ("gguf_q4_0", q4_0)],
)
def test_rounding_is_that_of_its_definition(scheme, by_hand):
    if not scheme.startswith("gguf"):
        pytest.importorskip("bitsandbytes")
    lm = model(2)
    before = weights(lm)
    after = weights(Quantise(scheme=scheme).change_model(subject(lm)))
    for name, weight in before.items():
        if weight.ndim < 2 or not (is_of_decoder(name) or scheme.startswith("gguf")):
            assert (after[name] == weight).all(), name
            continue
        step = np.abs(weight).max() * (1 / 127 if "8" in scheme else 1 / 8)
        expected = by_hand(weight)
        # A value that lies between two levels may go either way in float32.
        near = np.isclose(after[name], expected, rtol=0, atol=0.02 * step)
        assert near.mean() > 0.995, (name, near.mean())
        assert np.abs(after[name] - expected).max() < 1.7 * step
        assert (after[name] != weight).any()


def test_rows_that_no_block_fits_become_float16():
    lm = model(0, hidden_size=36, intermediate_size=64, num_attention_heads=2, head_dim=18)
    before = lm.model.embed_tokens.weight.detach().clone()
    after = Quantise(scheme="gguf_q4_0").change_model(subject(lm)).model.embed_tokens.weight
    assert torch.equal(after, before.half().float())


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(quantising, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs bitsandbytes, which is not installed: pip install"):
        Quantise(scheme="int8").check(SimpleNamespace())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prune(share=1.0), "attack.share must be from 0 to below 1; got 1.0."),
        (lambda: Merge(share=1.5), "attack.share must be from 0 to 1; got 1.5."),
        (lambda: Quantise(scheme="q3"), "attack.scheme must be nf4, int8, gguf_q4_0, gguf_q8_0; "),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "path", sorted(shipped_folder().glob("attack/*.yaml")), ids=lambda path: path.stem
)
def test_a_shipped_file_writes_every_argument(path):
    held = yaml.safe_load(path.read_text())
    assert set(held) == {"attack"}
    given = held["attack"]
    kind = class_at(given["class_path"], Attack, "attack")
    taken = set(inspect.signature(kind).parameters)
    assert set(given.get("init_args", {})) == taken
    assert about(path)


@pytest.mark.parametrize(
    ("rows", "split", "left_out"),
    [("retain", "full", "request1+request2"), ("forget", "request2", None)],
)
def test_relearning_kept_rows_brings_no_earlier_request_back(rows, split, left_out):
    """A run of a sequence keeps rows that were asked for out of its retain split."""
    given = {"forget_split": "request2", "retain_split": "full", "leave_out": "request1+request2"}
    run = SimpleNamespace(
        make_data=lambda: UnlearningDataModule("quickstart", **given), tokenizer=None, seed=0
    )
    data = Relearn(rows=rows)._data(run)
    assert (data.split, data.leave_out) == (split, left_out)
