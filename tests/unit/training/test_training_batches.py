"""Steps as batches: marks, weights of rows, values of the target model, and counts of terms."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch.utils.data import DataLoader

from etw_lightning.data.pairing import Pairing, StepRows
from etw_lightning.data.streams import Streams
from etw_lightning.schema import IGNORE_INDEX, EncodedRow
from etw_lightning.training.training_batches import (
    PairedLoader,
    PairedRows,
    PairedSampler,
    trained_batches,
)

#: Tokens and labels of each row.
FORGET = [(4, 2), (6, 5), (3, 1)]
RETAIN = [(5, 3), (2, 1), (7, 4), (3, 2)]
ALTERNATIVE = [(5, 3), (8, 4), (4, 1)]


def make_rows(name, shapes):
    return [
        EncodedRow(
            f"{name}/{number}",
            tuple(range(10, 10 + length)),
            (*(IGNORE_INDEX,) * (length - labels), *range(10 + length - labels, 10 + length)),
        )
        for number, (length, labels) in enumerate(shapes)
    ]


def make_streams(**more):
    rows = {"forget": make_rows("forget", FORGET), "retain": make_rows("retain", RETAIN)}
    return Streams(rows, **more)


@dataclass
class Values:
    """Row r has the values r + .0, r + .1, ... at its labels."""

    labels: list

    def batch(self, rows):
        found = [r + place / 10 for r in rows if r >= 0 for place in range(self.labels[r])]
        return {"reference_logps": torch.tensor(found)}


def step(forget, retain, all_forget=None, all_retain=None):
    real = [tuple(row for row in rows if row >= 0) for rows in (forget, retain)]
    return StepRows(forget, retain, all_forget or real[0], all_retain or real[1])


def test_a_batch_has_no_key_that_is_not_asked_for():
    batch = PairedRows(make_streams(), 1.0, 0)[step((0, 1), (2, 3))]
    assert {"marked", "row_weights", "reference"}.isdisjoint(batch)
    assert batch["counts"] == {"forget": (7, 2), "retain": (6, 2)}


def test_marks_stand_at_their_labels():
    marks = [(False, False, True, False), (False, *[True] * 5), (False, False, False)]
    streams = make_streams(marks=marks)
    streams.rows["alternative"] = make_rows("alternative", ALTERNATIVE)
    batch = PairedRows(streams, 1.0, 0)[step((1, 0), (2,))]
    assert batch["marked"].dtype == torch.bool
    assert batch["marked"].shape == batch["labels"].shape == (5, 8)
    assert batch["marked"].int().tolist() == [
        [0, 1, 1, 1, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],
        *[[0] * 8] * 3,
    ]
    assert not (batch["marked"] & (batch["labels"] == IGNORE_INDEX)).any()


def test_weights_are_those_of_the_retain_rows():
    streams = make_streams(retain_weights=[0.5, 2.0, 0.0, 3.0])
    streams.rows["alternative"] = make_rows("alternative", ALTERNATIVE)
    batch = PairedRows(streams, 1.0, 0)[step((2, 0), (3, 2, 0))]
    assert list(batch["sizes"].items()) == [("forget", 2), ("retain", 3), ("alternative", 2)]
    assert batch["row_weights"].dtype == torch.float32
    assert batch["row_weights"].tolist() == [1, 1, 3, 0, 0.5, 1, 1]
    assert batch["counts"]["retain"] == (9, 3)  # counts are not weighed


def test_reference_values_are_those_of_the_rows():
    references = {
        "forget": Values([labels for _, labels in FORGET]),
        "retain": Values([labels for _, labels in RETAIN]),
    }
    batch = PairedRows(make_streams(), 1.0, 0, references)[step((2, 0), (1,))]
    found = {name: values["reference_logps"] for name, values in batch["reference"].items()}
    assert found["forget"].tolist() == pytest.approx([2.0, 0.0, 0.1])
    assert found["retain"].tolist() == [1.0]
    # As many as there are labels, also where a process has no row.
    batch = PairedRows(make_streams(), 1.0, 0, references)[step((-1,), (-1,))]
    assert [len(v["reference_logps"]) for v in batch["reference"].values()] == [0, 0]
    moved = move_data_to_device(batch, torch.device("meta"))
    assert moved["reference"]["forget"]["reference_logps"].device.type == "meta"


def test_a_filler_has_no_mark_no_value_and_weighs_1():
    streams = make_streams(marks=[(True,) * 4, (True,) * 6, (True,) * 3], retain_weights=[0.0] * 4)
    streams.rows["alternative"] = make_rows("alternative", ALTERNATIVE)
    everywhere = {"all_forget": (0, 1, 2), "all_retain": (0, 1, 2)}
    batch = PairedRows(streams, 1.0, 0)[step((-1,), (-1,), **everywhere)]
    assert batch["row_ids"] == ["filler"] * 3
    assert not batch["marked"].any()
    assert batch["row_weights"].tolist() == [1, 1, 1]
    assert batch["counts"] == {"forget": (8, 3), "retain": (8, 3), "alternative": (8, 3)}


@pytest.mark.parametrize(
    ("skipped", "count"), [(0, (8, 3)), (1, (5, 2)), (2, (3, 1)), (4, (1, 1)), (5, (0, 0))]
)
def test_skipped_tokens_count_for_nothing(skipped, count):
    """Labels 2, 5 and 1: what is left of each beyond those skipped, and rows with any left."""
    streams = make_streams()
    streams.rows["alternative"] = make_rows("alternative", ALTERNATIVE)
    batch = PairedRows(streams, 1.0, 0, None, skipped)[step((0, 1, 2), (0,))]
    assert batch["counts"] == {"forget": count, "retain": (3, 1), "alternative": (8, 3)}


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_counts_are_of_the_effective_batch_in_every_group(accumulate, world):
    """Counted here from the labels of all micro-batches of all processes of a step."""
    streams = make_streams(retain_weights=[1.0, 0.5, 0.5, 1.0])
    streams.rows["alternative"] = make_rows("alternative", ALTERNATIVE)
    rows = PairedRows(streams, 1.0, 0, None, 1)
    pairing = Pairing(3, 4, batch_size=1, accumulate=accumulate, world_size=world)
    for start in range(0, pairing.num_batches, accumulate):
        numbers = range(start, min(start + accumulate, pairing.num_batches))
        parts = [rows[pairing.step_rows(0, n, rank)] for n in numbers for rank in range(world)]
        for place, name in enumerate(("forget", "retain", "alternative")):
            labels = [(part["labels"][place] != IGNORE_INDEX).sum().item() for part in parts]
            terms = [max(0, n - (name == "forget")) for n in labels]
            expected = (sum(terms), sum(term > 0 for term in terms))
            assert {part["counts"][name] for part in parts} == {expected}


def test_workers_make_the_same_batches():
    streams = make_streams(marks=[(True,) * 4, (True,) * 6, (True,) * 3], retain_weights=[0.5] * 4)
    rows = PairedRows(streams, 1.0, 0, {"forget": Values([2, 5, 1])}, 1)
    steps = [step((0,), (1,)), step((2, 1), (3, 0))]
    loader = DataLoader(rows, batch_size=None, sampler=steps, num_workers=1)
    for made, expected in zip(loader, map(rows.__getitem__, steps), strict=True):
        for key in ("labels", "marked", "row_weights"):
            assert torch.equal(made[key], expected[key])
        values = [batch["reference"]["forget"]["reference_logps"] for batch in (made, expected)]
        assert torch.equal(*values)
        assert made["counts"] == expected["counts"]


def test_only_the_first_epoch_begins_where_training_was_broken_off():
    pairing = Pairing(num_forget=6, num_retain=6, batch_size=2)
    sampler = PairedSampler(pairing, rank=0, epoch=0)
    whole = list(sampler)
    assert len(whole) == 3
    sampler.start = 2
    assert list(sampler) == whole[2:]
    assert list(sampler) == whole


@pytest.mark.parametrize(
    ("trained", "state"), [(0, (4, 0)), (2, (4, 2)), (3, (5, 0))], ids=["new", "within", "done"]
)
def test_a_loader_goes_on_behind_what_was_trained_on(trained, state):
    pairing = Pairing(num_forget=6, num_retain=6, batch_size=2)
    rows = PairedRows(make_streams(), scale=1.0, pad_id=0)
    sampler = PairedSampler(pairing, rank=0, epoch=4)
    found = PairedLoader(rows, sampler, lambda: (trained, 3)).state_dict()
    assert found == dict(zip(("epoch", "batches"), state, strict=True))


def test_a_batch_counts_once_its_step_is_made():
    """A checkpoint at a batch's end finds it processed, and not yet completed."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=3, completed=2))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    assert trained_batches(SimpleNamespace(fit_loop=loop, num_training_batches=5)) == (3, 5)
