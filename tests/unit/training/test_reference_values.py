"""Values of the target model kept in a file: what they are, when they are read, what is refused."""

import errno
import json
import multiprocessing
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults import PATIENCE
from safetensors import safe_open
from toy import FixedLogits

from etw_lightning.files import reference_file
from etw_lightning.files.reference_file import DamagedError, read_tensors, write_tensors
from etw_lightning.models.loading import LabelScorer, load_model
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, InputError
from etw_lightning.training.references import values as reference_values
from etw_lightning.training.references.model import ReferenceModel, ReferenceValues, Wanted

EVERYTHING = frozenset({"reference_logps", "reference_entropies", "reference_distributions"})
LOGPS = Wanted(frozenset({"reference_logps"}))


def make_rows(lengths=(9, 4, 12, 7), seed=0):
    """Return random rows; the first three tokens of each are its prompt."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(5, 300, (length,), generator=generator).tolist()
        labels = [IGNORE_INDEX] * 3 + ids[3:]
        rows.append(EncodedRow(f"forget/{number}", tuple(ids), tuple(labels)))
    return rows


ROWS = make_rows()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tiny_model_dir):
    return ReferenceModel(str(tiny_model_dir))


def forbidden():
    raise AssertionError("the model was loaded")


def values_of(model, rows=ROWS, wanted=LOGPS, **options):
    options = {"group": "forget", "batch_size": 2, **options}
    with model:
        return reference_values.reference_values(rows, wanted, model, **options)


def read_only(model, rows=ROWS, wanted=LOGPS, **options):
    """Return values that are there already."""
    return values_of(replace(model, load=forbidden), rows, wanted, **options)


def logits_of(lm, row):
    """Return the whole model's own logits at the positions that predict a label, and these."""
    with torch.no_grad():
        logits = lm(input_ids=torch.tensor([row.input_ids])).logits[0].double()
    places = [place for place, label in enumerate(row.labels) if label != IGNORE_INDEX]
    return logits[[place - 1 for place in places]], [row.labels[place] for place in places]


def as_double(scorer):
    return scorer.double()


@pytest.mark.parametrize(
    ("place", "tolerance"), [(lambda scorer: scorer, 1e-5), (as_double, 1e-12)]
)
def test_values_are_the_models_own(model, tiny_model_dir, place, tolerance):
    wanted = Wanted(EVERYTHING, temperature=2.5, top_k=4)
    found = values_of(replace(model, place=place), wanted=wanted)
    lm = place(load_model(str(tiny_model_dir)))
    assert len(found) == len(ROWS)
    for number, row in enumerate(ROWS):
        batch = found.batch([number])
        logits, labels = logits_of(lm, row)
        for token, label in enumerate(labels):
            probabilities = logits[token].softmax(-1)
            tempered = (logits[token] / 2.5).softmax(-1)
            expected = {
                "reference_logps": probabilities[label].log(),
                "reference_entropies": -(tempered * tempered.log()).sum(),
                "top_logps": probabilities[batch["top_ids"][token]].log(),
            }
            for name, value in expected.items():
                torch.testing.assert_close(
                    batch[name][token].double(), value, rtol=tolerance, atol=tolerance
                )
        assert len(labels) == len(batch["reference_logps"])


def test_the_same_as_the_scorer_says_of_single_rows(model, tiny_model_dir):
    found = values_of(model, wanted=Wanted(EVERYTHING, temperature=3.0))
    scorer = LabelScorer(load_model(str(tiny_model_dir))).eval()
    for number, row in enumerate(ROWS):
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        with torch.no_grad():
            alone = scorer(ids, torch.ones_like(ids), labels, {"entropies"}, 3.0)
        batch = found.batch([number])
        torch.testing.assert_close(batch["reference_logps"], alone.logps, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            batch["reference_entropies"], alone.entropies, rtol=1e-5, atol=1e-5
        )


def test_batches_of_any_size_and_chunk_say_the_same(model):
    wanted = Wanted(EVERYTHING, top_k=5)
    double = replace(model, place=as_double)
    first = values_of(double, wanted=wanted, batch_size=1)
    scorer = LabelScorer(load_model(model.pretrained), chunk_size=2).double().eval()
    again = reference_values.compute_values(
        ROWS, wanted, replace(double, load=lambda: scorer), "forget", 9
    )
    for name, value in first.values.items():
        torch.testing.assert_close(again.values[name], value, rtol=1e-12, atol=1e-12)


def test_the_largest_are_kept_and_the_label_among_them():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(1, 4, 4).double()
    rows = [EncodedRow("a", (0, 3, 1, 2), (IGNORE_INDEX, 3, 1, 2))]
    scorer = LabelScorer(FixedLogits(logits), chunk_size=2)

    def top(top_k):
        wanted = Wanted(frozenset({"reference_distributions"}), top_k=top_k)
        fixed = ReferenceModel("fixed", load=lambda: scorer)
        return reference_values.compute_values(rows, wanted, fixed, "forget", 1).batch([0])

    two = top(2)
    assert two["top_ids"].tolist() == [[0, 3], [0, 1], [0, 2]]
    expected = torch.tensor([[0.5, 0.05], [0.5, 0.3], [0.5, 0.15]]).double()
    torch.testing.assert_close(two["top_logps"].exp(), expected, rtol=1e-6, atol=1e-7)
    assert top(1)["top_ids"].tolist() == [[3], [1], [2]]
    # No more than there are.
    for top_k in (4, 128):
        assert top(top_k)["top_ids"].tolist() == [[0, 1, 2, 3]] * 3
        torch.testing.assert_close(
            top(top_k)["top_logps"].exp().sum(-1), torch.ones(3).double(), rtol=1e-6, atol=0
        )


def test_types_fit_what_reads_them(model):
    batch = values_of(model, wanted=Wanted(EVERYTHING, top_k=3)).batch([2, 0])
    assert {name: value.dtype for name, value in batch.items()} == {
        "reference_logps": torch.float32,
        "reference_entropies": torch.float32,
        "top_ids": torch.int64,
        "top_logps": torch.float32,
        "top_rest": torch.float32,
    }
    assert batch["top_ids"].shape == batch["top_logps"].shape == (9 + 6, 3)
    assert not any(value.requires_grad or value.is_inference() for value in batch.values())


def test_batches_follow_the_order_asked_for_with_fillers_and_repeats(model):
    found = values_of(model, wanted=Wanted(EVERYTHING, top_k=3))
    alone = [found.batch([number]) for number in range(len(ROWS))]
    asked = [3, -1, 1, 3, -1, 0]
    batch = found.batch(asked)
    for name, value in batch.items():
        parts = [alone[number][name] for number in asked if number >= 0]
        assert torch.equal(value, torch.cat(parts))
    empty = found.batch([-1, -1])
    assert empty["reference_logps"].shape == (0,)
    assert empty["top_logps"].shape == empty["top_ids"].shape == (0, 3)


def test_only_what_is_wanted_is_there(model):
    assert set(values_of(model).values) == {"reference_logps"}
    tops = values_of(model, wanted=Wanted(frozenset({"reference_distributions"}), top_k=2))
    assert set(tops.values) == {"top_ids", "top_logps", "top_rest"}
    # The rest is what the others sum to, also where one minus the held ones would round to 0.
    held = tops.values["top_logps"].exp().sum(-1)
    torch.testing.assert_close(tops.values["top_rest"].exp(), 1 - held, rtol=1e-4, atol=1e-6)


def test_rows_without_labels_need_no_model(model):
    ids = ROWS[0].input_ids
    mute = EncodedRow("mute", ids, (IGNORE_INDEX,) * len(ids))
    for rows in ([], [mute]):
        found = read_only(model, rows, Wanted(EVERYTHING))
        assert {len(value) for value in found.batch(range(len(rows))).values()} == {0}
        assert len(found.batch([])) == 4
    between = values_of(model, [ROWS[0], mute, ROWS[1]])
    assert torch.equal(
        between.batch([0, 1, 2])["reference_logps"],
        values_of(model, ROWS[:2]).batch([0, 1])["reference_logps"],
    )


def test_a_first_token_has_no_value(model):
    """As in training: nothing predicts it."""
    full = [replace(row, labels=row.input_ids) for row in ROWS[:2]]
    batch = values_of(model, full).batch([1])
    logits, _ = logits_of(load_model(model.pretrained), replace(ROWS[1], labels=(0,) * 4))
    expected = logits[1:].log_softmax(-1).gather(-1, torch.tensor([ROWS[1].input_ids[1:]]).T)[:, 0]
    torch.testing.assert_close(batch["reference_logps"].double(), expected, rtol=1e-5, atol=1e-5)


def test_what_was_computed_is_read(model, cache):
    first = values_of(model)
    (file,) = (cache / "reference").glob("*.safetensors")
    written = file.stat().st_mtime_ns
    again = read_only(model)
    assert torch.equal(first.values["reference_logps"], again.values["reference_logps"])
    assert torch.equal(first.offsets, torch.tensor([0, 6, 7, 16, 20]))
    assert file.stat().st_mtime_ns == written


def test_the_model_is_loaded_once_for_all_groups_and_let_go(model):
    loads = []

    def load():
        loads.append(1)
        return LabelScorer(load_model(model.pretrained)).eval()

    counted = replace(model, load=load)
    with counted:
        for group, rows in (("forget", ROWS[:2]), ("retain", ROWS[2:])):
            reference_values.reference_values(rows, LOGPS, counted, group=group, batch_size=2)
        assert counted._scorer is not None
    assert counted._scorer is None
    assert loads == [1]


def with_other_weights(model, tmp_path):
    folder = tmp_path / "other_model"
    shutil.copytree(model.pretrained, folder)
    lm = load_model(str(folder))
    with torch.no_grad():
        lm.lm_head.weight[0, 0] += 1
    lm.save_pretrained(folder)
    return replace(model, pretrained=str(folder))


TEMPERED = Wanted(frozenset({"reference_entropies"}), temperature=1.0)
TOPS = Wanted(frozenset({"reference_distributions"}), top_k=8)
OTHERS = {
    "rows": (LOGPS, {"rows": [*ROWS[:3], replace(ROWS[3], input_ids=ROWS[3].input_ids[::-1])]}),
    "labels": (LOGPS, {"rows": [*ROWS[:3], replace(ROWS[3], labels=(IGNORE_INDEX,) * 7)]}),
    "order": (LOGPS, {"rows": ROWS[::-1]}),
    "temperature": (TEMPERED, {"wanted": replace(TEMPERED, temperature=2.0)}),
    "top_k": (TOPS, {"wanted": replace(TOPS, top_k=9)}),
    "signals": (LOGPS, {"wanted": replace(LOGPS, signals=LOGPS.signals | {"reference_entropies"})}),
}
OTHER_MODELS = {
    "dtype": {"dtype": "bfloat16"},
    "precision": {"precision": "bf16-mixed"},
    "attention": {"attention": "eager"},
}


@pytest.mark.parametrize("what", [*OTHERS, *OTHER_MODELS, "weights"])
def test_what_decides_a_value_asks_for_a_new_file(model, tmp_path, what):
    wanted, changes = OTHERS.get(what, (LOGPS, {}))
    values_of(model, wanted=wanted)
    other = replace(model, load=forbidden, **OTHER_MODELS.get(what, {}))
    if what == "weights":
        other = replace(with_other_weights(model, tmp_path), load=forbidden)
    with pytest.raises(AssertionError, match="was loaded"):
        values_of(other, **{"wanted": wanted, **changes})


def test_the_code_decides_too(model, monkeypatch):
    values_of(model)
    monkeypatch.setattr(reference_values, "code_hash", lambda _: "o" * 64)
    with pytest.raises(AssertionError, match="was loaded"):
        read_only(model)


def test_what_does_not_matter_asks_for_no_new_file(model, tmp_path):
    values_of(model)
    copy = tmp_path / "copy"
    shutil.copytree(model.pretrained, copy)
    renamed = [replace(row, id=f"other/{row.id}") for row in ROWS]
    same = replace(model, pretrained=str(copy), template="other")
    read_only(same, renamed, replace(LOGPS, temperature=9.0, top_k=3), batch_size=3, group="x")


def test_a_folder_of_the_users_own(model, tmp_path, cache):
    folder = str(tmp_path / "mine" / "values")
    first = values_of(model, folder=folder)
    second = values_of(model, ROWS[:1], folder=folder, group="retain")
    assert {path.name for path in Path(folder).glob("*.safetensors")} == {
        "forget.safetensors",
        "retain.safetensors",
    }
    assert not cache.exists()
    for rows, group, values in ((ROWS, "forget", first), (ROWS[:1], "retain", second)):
        again = read_only(model, rows, folder=folder, group=group)
        assert torch.equal(again.values["reference_logps"], values.values["reference_logps"])


def refused(model, folder, rows=ROWS, wanted=LOGPS):
    with pytest.raises(InputError) as error:
        read_only(model, rows, wanted, folder=folder)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"model.reference_cache {folder!r}: forget.safetensors ")
    assert message.endswith("; give another folder or remove it.")
    return message


def test_a_folder_made_for_something_else_is_refused(model, tmp_path):
    folder = str(tmp_path / "mine")
    wanted = replace(TEMPERED, signals=TEMPERED.signals | TOPS.signals)
    values_of(model, wanted=wanted, folder=folder)
    message = refused(model, folder, ROWS[:2], wanted)
    assert "was made for other rows (" in message
    assert "temperature" not in message
    message = refused(model, folder, wanted=replace(wanted, temperature=4.0))
    assert "was made for another temperature (1.0; here 4.0);" in message
    message = refused(model, folder, wanted=replace(wanted, top_k=7))
    assert "another model.reference_top_k (128; here 7);" in message
    message = refused(model, folder, wanted=TOPS)
    assert "other signals (reference_distributions + reference_entropies; here " in message
    message = refused(replace(model, precision="bf16-mixed"), folder, wanted=wanted)
    assert "another precision (float32 32-true; here float32 bf16-mixed);" in message
    other = with_other_weights(model, tmp_path)
    message = refused(other, folder, wanted=wanted)
    assert f"another model ({model.pretrained}; here {other.pretrained});" in message
    message = refused(replace(model, template="chat"), folder, ROWS[:2], wanted)
    assert "another template (; here chat) and other rows (" in message
    # It is still there.
    read_only(model, wanted=wanted, folder=folder)


def test_weights_changed_in_place_are_another_model(model, tmp_path):
    folder = str(tmp_path / "mine")
    changed = with_other_weights(model, tmp_path)
    at = changed.pretrained
    shutil.rmtree(at)
    shutil.copytree(model.pretrained, at)
    values_of(replace(changed), folder=folder)
    time.sleep(0.01)
    shutil.rmtree(at)
    message = refused(with_other_weights(model, tmp_path), folder)
    assert f"another model ({replace(model).identity}; here " in message


def damage(file, how):
    whole = file.read_bytes()
    if how == "cut":
        file.write_bytes(whole[:-5])
    elif how == "changed":
        file.write_bytes(whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "text":
        file.write_text("not tensors at all, but long enough for a header")
    else:
        from safetensors.torch import save_file

        save_file({"reference_logps": torch.zeros(20)}, file)


DAMAGES = ("cut", "changed", "empty", "text", "foreign")


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_of_the_user_is_refused(model, tmp_path, how):
    folder = str(tmp_path / "mine")
    values_of(model, folder=folder)
    damage(Path(folder) / "forget.safetensors", how)
    assert "is damaged or not a file of reference values;" in refused(model, folder)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_of_the_cache_is_made_anew(model, cache, how):
    first = values_of(model).values["reference_logps"].clone()
    (file,) = (cache / "reference").glob("*.safetensors")
    damage(file, how)
    with pytest.warns(UserWarning, match="its values are computed again"):
        again = values_of(model)
    assert torch.equal(again.values["reference_logps"], first)
    read_only(model)


def test_what_was_broken_off_leaves_nothing(model, cache, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(reference_file.os, "fsync", full)
    with pytest.raises(InputError) as error:
        values_of(model)
    folder = cache / "reference"
    assert str(error.value) == (
        f"ETW_CACHE: {folder} can't be written (No space left on device); make room there, or "
        "give another folder."
    )
    assert [path.suffix for path in folder.iterdir()] == [".lock"]
    with pytest.raises(InputError, match=r"^model.reference_cache: .*mine can't be written"):
        values_of(model, folder=str(cache / "mine"))
    monkeypatch.undo()


def test_a_folder_that_cant_be_made_is_named(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^model.reference_cache: .*sub can't be written \(Not a"):
        values_of(replace(model, load=forbidden), folder=str(tmp_path / "file" / "sub"))
    with pytest.raises(InputError, match=r"^model.reference_cache '.*file' is a file; give a"):
        values_of(replace(model, load=forbidden), folder=str(tmp_path / "file"))
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"^ETW_CACHE: .* can't be written"):
        values_of(replace(model, load=forbidden))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_names_its_row(model, number, cache):
    lm = load_model(model.pretrained)
    with torch.no_grad():
        lm.get_input_embeddings().weight[ROWS[1].input_ids[-2]] = number
    broken = replace(model, load=lambda: LabelScorer(lm).eval())
    with pytest.raises(InputError) as error:
        values_of(broken, wanted=Wanted(EVERYTHING), batch_size=4)
    assert str(error.value) == (
        f"model.pretrained {model.pretrained!r}: row forget/1 of forget has reference_logps that "
        "are not finite numbers: the model is broken or its precision (float32 32-true) too low."
    )
    assert not list((cache / "reference").glob("*.safetensors"))


def test_autocast_and_place_are_used(model):
    entered, placed = [], []

    @contextmanager
    def context():
        entered.append(1)
        with torch.autocast("cpu", torch.bfloat16):
            yield

    def place(scorer):
        placed.append(scorer)
        return scorer

    low = replace(model, context=context, place=place, precision="bf16-mixed")
    found = values_of(low).values["reference_logps"]
    plain = values_of(model).values["reference_logps"]
    assert (len(entered), len(placed)) == (2, 1)
    assert not torch.equal(found, plain)
    torch.testing.assert_close(found, plain, rtol=0.1, atol=0.3)


def test_signals_that_no_file_holds_are_refused():
    with pytest.raises(
        InputError, match=r"^model.reference must be live or adapter for reference_"
    ):
        Wanted(frozenset({"reference_states"}))
    with pytest.raises(InputError, match=r"^model.reference_top_k must be >= 1; got 0\."):
        Wanted(TOPS.signals, top_k=0)
    with pytest.raises(InputError, match=r"temperature must be > 0; got 0\.0\."):
        Wanted(TEMPERED.signals, temperature=0.0)


def test_a_file_is_safetensors_that_says_what_it_is(model, cache):
    values_of(model, wanted=Wanted(EVERYTHING, temperature=2.0, top_k=3))
    (file,) = (cache / "reference").glob("*.safetensors")
    with safe_open(file, "pt") as content:
        said = json.loads(content.metadata()["made_for"])
        assert content.metadata()["key"] == file.stem
        assert content.get_slice("top_ids").get_shape() == [20, 3]
        assert content.get_tensor("top_ids").dtype == torch.int32
    assert said["pretrained"] == model.pretrained
    assert said["model"] == model.identity
    assert (said["temperature"], said["top_k"]) == (2.0, 3)
    assert said["precision"] == "float32 32-true"
    assert {"rows", "template", "code", "versions", "signals"} <= set(said)


def test_tensors_come_back_as_they_were(tmp_path):
    tensors = {
        "a": torch.arange(7, dtype=torch.int32),
        "b": torch.randn(3, 5, dtype=torch.float64),
        "c": torch.randn(6, 4).T,
        "d": torch.arange(3),
        "e": torch.empty(0, 4),
    }
    file = tmp_path / "x.safetensors"
    write_tensors(file, tensors, {"said": "ä"})
    found, said = read_tensors(file)
    assert said["said"] == "ä"
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype
    # A number that stands across a multiple of its width can't be mapped everywhere.
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    for name, value in tensors.items():
        assert (8 + length + header[name]["data_offsets"][0]) % value.element_size() == 0
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "y")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedError):
        read_tensors(file)


def test_a_large_table_is_mapped_not_copied(tmp_path):
    size = 64 << 20
    file = tmp_path / "large.safetensors"
    tensors = {"offsets": torch.tensor([0, 1]), "top_logps": torch.zeros(size // 512, 128)}
    write_tensors(file, tensors, {})
    del tensors

    def anonymous():
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) << 10

    before = anonymous()
    found, _ = read_tensors(file)
    values = ReferenceValues(found["offsets"], {"top_logps": found["top_logps"]})
    assert values.batch([0])["top_logps"].shape == (1, 128)
    assert float(found["top_logps"].sum()) == 0
    assert anonymous() - before < size // 4


def _compute_in_a_process(pretrained, log, barrier, out):
    def load():
        with open(log, "a") as stream:
            stream.write("loaded\n")
        time.sleep(0.5)
        return LabelScorer(load_model(pretrained)).eval()

    barrier.wait()
    found = values_of(ReferenceModel(pretrained, load=load))
    out.put(found.values["reference_logps"].tolist())


def test_two_processes_at_once_compute_once(tiny_model_dir, tmp_path):
    # Forked: a fresh interpreter would take seconds to import.
    start = multiprocessing.get_context("fork")
    log, barrier, out = tmp_path / "log", start.Barrier(2), start.Queue()
    work = (str(tiny_model_dir), log, barrier, out)
    processes = [start.Process(target=_compute_in_a_process, args=work) for _ in range(2)]
    for process in processes:
        process.start()
    found = [out.get(timeout=PATIENCE) for _ in processes]
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert log.read_text() == "loaded\n"
    assert found[0] == found[1]
    assert len(found[0]) == 20


def test_no_pickle_is_written_or_read(model, cache):
    values_of(model)
    (file,) = (cache / "reference").glob("*.safetensors")
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    assert set(header) == {"__metadata__", "offsets", "reference_logps"}
    assert len(whole) == 8 + length + 8 * 5 + 4 * 20
    sources = [Path(module.__file__).read_text() for module in (reference_file, reference_values)]
    assert not any("pickle" in source or "torch.load" in source for source in sources)
