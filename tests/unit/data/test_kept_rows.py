"""A large split is encoded once and read from its file: the same rows, weights and warnings."""

import json
import pickle
import sys
import threading
import tracemalloc
import warnings
import zlib

import pyarrow
import pytest
from toy import text, write_rows

from etw_lightning.benchmarks.given_rows import GivenSource
from etw_lightning.benchmarks.jsonl import JSONL
from etw_lightning.benchmarks.source import Source
from etw_lightning.data import kept_rows, stored_rows
from etw_lightning.data.encode import Encoder
from etw_lightning.data.kept_rows import encode_split
from etw_lightning.data.stored_rows import StoredRows, longest, sizes
from etw_lightning.data.streams import Streams, StreamSettings, read_streams
from etw_lightning.models.positions import row_extents
from etw_lightning.schema import IGNORE_INDEX, EncodedRow, Example, InputError
from etw_lightning.training.training_batches import PairedRows

pytestmark = pytest.mark.usefixtures("small_sets")

NUM = 90


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    write_rows(folder / "forget.jsonl", rows_of(4, "forget"))
    write_rows(folder / "retain.jsonl", rows_of(NUM, "retain"))
    write_rows(folder / "more.jsonl", rows_of(7, "more"))
    write_rows(folder / "raw.jsonl", [{"text": text(n, 9)} for n in range(NUM)])
    return folder


def rows_of(count, name):
    return [
        {"question": f"What of {name} {n}?", "answer": text(n, 2 + n % 30)} for n in range(count)
    ]


def examples(count=NUM, name="mine"):
    rows = rows_of(count, name)
    return [Example(f"{name}/{n}", row["answer"], row["question"]) for n, row in enumerate(rows)]


def split_of(some, encoder, **more):
    return encode_split(lambda: iter(some), encoder, "data.retain_split", **more)


def in_memory(call, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(kept_rows, "SMALL", 10**6)
        return call()


@pytest.fixture
def calls(monkeypatch):
    """Counts the rows that are encoded."""
    counted, encode_all = [], Encoder.encode_all

    def counting(self, some, answers=None):
        counted.extend(one.id for one in some)
        return encode_all(self, some, answers)

    monkeypatch.setattr(Encoder, "encode_all", counting)
    return counted


def files(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "rows").iterdir())


# The same as in memory.


@pytest.mark.parametrize("max_length", [64, 30])
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_stored_rows_are_the_rows(template, max_length, tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, template, max_length)
    rows = split_of(examples(), encoder).rows
    expected = [encoder.encode(example) for example in examples()]
    assert isinstance(rows, StoredRows)
    assert list(rows) == expected
    assert [rows[n] for n in (0, 7, 8, NUM - 1, -1)] == [expected[n] for n in (0, 7, 8, -1, -1)]
    assert rows[5:30:7] == expected[5:30:7]
    assert len(rows) == NUM
    assert isinstance(rows[0].input_ids[0], int)
    for found, mine in zip(sizes(rows), sizes(expected), strict=True):
        assert found.tolist() == mine.tolist()
    assert sum(row.num_lost for row in expected) == sizes(rows).num_lost.sum()
    assert longest([rows]) == longest([expected])
    assert row_extents(longest([rows]))[0].num_tokens == max(len(r.input_ids) for r in expected)
    with pytest.raises(IndexError):
        rows[NUM]


def test_what_is_kept_is_named_by_24_digits_and_what_is_small_is_not(
    monkeypatch, tmp_path, tiny_tokenizer
):
    split_of(examples(), Encoder(tiny_tokenizer))
    (kept,) = (path for path in (tmp_path / "cache" / "rows").iterdir() if path.is_dir())
    assert len(kept.name) == 24
    monkeypatch.undo()
    assert (kept_rows.SMALL, kept_rows._SMALL_TEXT) == (5000, 8_000_000)


def test_rows_are_written_512_at_a_time_and_the_file_has_its_crc_32(tmp_path, monkeypatch):
    monkeypatch.undo()
    some = [
        EncodedRow(f"a/{n}", tuple(range(n, n + 30)), (IGNORE_INDEX, 1) * 15) for n in range(600)
    ]
    stored_rows.write_rows(tmp_path, iter(some), {})
    content = (tmp_path / stored_rows._ROWS).read_bytes()
    assert len(content) > 1 << 17
    with pyarrow.ipc.open_stream(content) as stream:
        assert [batch.num_rows for batch in stream] == [512, 88]
    about = json.loads((tmp_path / stored_rows._ABOUT).read_text())
    assert about["checksum"] == zlib.crc32(content)
    assert list(StoredRows(tmp_path)) == some


@pytest.mark.parametrize("retain", ["retain+more", "raw", "retain"])
def test_streams_and_batches_are_the_same(retain, root, tiny_tokenizer, monkeypatch):
    encoder = Encoder(tiny_tokenizer, max_length=40)
    weights = dict.fromkeys(retain.split("+")[:1], 0.5)

    def read():
        benchmark = JSONL(Source(root=root), "forget", retain)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            streams = read_streams(benchmark, encoder, StreamSettings(retain_weights=weights))
        return streams, [str(one.message) for one in caught]

    kept, said = read()
    held, said_of_held = in_memory(read, monkeypatch)
    assert isinstance(kept.rows["retain"], StoredRows)
    assert isinstance(held.rows["retain"], list)
    assert list(kept.rows["retain"]) == held.rows["retain"]
    assert kept.retain_weights == held.retain_weights
    assert kept.lost == held.lost
    assert said == said_of_held
    assert len(said) == len(kept.lost) == (retain != "raw")
    batches = [PairedRows(streams, 1.0, 0) for streams in (kept, held)]
    assert batches[0].num_terms == batches[1].num_terms


def test_one_split_to_fine_tune_on_is_one_set(root, tiny_tokenizer, monkeypatch):
    settings = StreamSettings(uses_forget=False, split="raw+more")

    def read():
        benchmark = JSONL(Source(root=root), "forget", "retain")
        return read_streams(benchmark, Encoder(tiny_tokenizer, max_length=40), settings)

    kept, held = read(), in_memory(read, monkeypatch)
    assert list(kept.rows["retain"]) == held.rows["retain"]
    # A set of its own, the raw texts would be cut into rows together.
    assert len(held.rows["retain"]) == NUM + 7


def test_rows_in_both_sets_are_told(root, tiny_tokenizer):
    retain = [*rows_of(NUM, "retain"), *rows_of(2, "forget")]
    source = GivenSource(given={"forget": rows_of(4, "forget"), "retain": retain})
    encoder = Encoder(tiny_tokenizer)
    with pytest.warns(UserWarning, match=r"^2 of 4 forget rows also stand in data.retain_split"):
        read_streams(JSONL(source, "forget", "retain"), encoder, StreamSettings())


# Once.


def test_a_second_start_encodes_nothing(calls, tiny_tokenizer, tmp_path):
    first = split_of(examples(), Encoder(tiny_tokenizer)).rows
    assert len(calls) == NUM
    calls.clear()
    assert list(split_of(examples(), Encoder(tiny_tokenizer)).rows) == list(first)
    assert calls == []
    assert len([name for name in files(tmp_path) if not name.startswith(".")]) == 1


def test_few_rows_are_not_kept(calls, tiny_tokenizer, tmp_path):
    assert isinstance(split_of(examples(20), Encoder(tiny_tokenizer)).rows, list)
    assert not (tmp_path / "cache").exists()


def test_what_is_small_is_just_so_many_rows_and_characters(tiny_tokenizer, monkeypatch):
    encoder, some = Encoder(tiny_tokenizer), examples(6)
    size = sum(len(one.answer) for one in some)
    for most, most_text, is_small in ((6, size, True), (5, size, False), (6, size - 1, False)):
        monkeypatch.setattr(kept_rows, "SMALL", most)
        monkeypatch.setattr(kept_rows, "_SMALL_TEXT", most_text)
        rows = split_of(some, encoder).rows
        assert isinstance(rows, list if is_small else StoredRows)
        assert list(rows) == [encoder.encode(one) for one in some]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 40},
        {"template": "plain"},
        {"template_kwargs": {"anything": 1}},
        {"truncation": "error"},
        {"length_key": "data.eval_max_length"},
    ],
)
def test_other_settings_are_other_rows(settings, calls, tiny_tokenizer):
    split_of(examples(), Encoder(tiny_tokenizer))
    calls.clear()
    split_of(examples(), Encoder(tiny_tokenizer, **settings))
    assert len(calls) == NUM


def test_another_word_another_order_another_id_another_code(calls, tiny_tokenizer, monkeypatch):
    encoder, some = Encoder(tiny_tokenizer), examples()
    split_of(some, encoder)
    changed = [*some[:50], Example(some[50].id, "Another.", some[50].question), *some[51:]]
    for other in (changed, some[::-1], examples(name="other"), some[:-1]):
        calls.clear()
        assert [row.id for row in split_of(other, encoder).rows] == [one.id for one in other]
        assert len(calls) == len(other)
    calls.clear()
    monkeypatch.setattr(kept_rows, "code_hash", lambda _: "another state of the code")
    split_of(some, encoder)
    assert len(calls) == NUM


def test_another_tokenizer_is_told_from_this_one(calls, tokenizer_dir):
    from transformers import AutoTokenizer

    for changes in ({}, {"additional_special_tokens": ["<|more|>"]}):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, **changes)
        calls.clear()
        split_of(examples(), Encoder(tokenizer))
        assert len(calls) == NUM


# What can be wrong with a file.


def broken(folder, how):
    file = folder / "rows.arrow"
    data = file.read_bytes()
    if how == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif how == "another byte":
        file.write_bytes(data[:900] + bytes([data[900] ^ 1]) + data[901:])
    elif how == "no rows":
        file.unlink()
    else:
        (folder / "about.json").write_text(how)


@pytest.mark.parametrize("how", ["cut", "another byte", "no rows", "", "[]", "{}"])
def test_a_broken_file_is_made_anew(how, calls, tiny_tokenizer, recwarn):
    encoder = Encoder(tiny_tokenizer)
    rows = split_of(examples(), encoder).rows
    expected, folder = list(rows), rows.folder
    broken(folder, how)
    calls.clear()
    recwarn.clear()
    assert list(split_of(examples(), encoder).rows) == expected
    assert len(calls) == NUM
    said = [str(one.message) for one in recwarn.list]
    assert all(str(folder) in one and "its rows are encoded again" in one for one in said)
    assert said or how == "no rows"


def test_what_was_half_written_counts_for_nothing(calls, tiny_tokenizer, tmp_path, monkeypatch):
    encoder = Encoder(tiny_tokenizer)
    write, left = kept_rows.write_rows, []

    def write_and_fail(folder, rows, said):
        write(folder, list(rows)[:30], said)
        left.append(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kept_rows, "write_rows", write_and_fail)
        with pytest.raises(KeyboardInterrupt):
            split_of(examples(), encoder)
    assert not left[0].exists()
    # As a process leaves it that was killed.
    left[0].mkdir()
    assert len(split_of(examples(), encoder).rows) == NUM
    assert not left[0].exists()


def test_a_row_that_is_refused_leaves_nothing(tiny_tokenizer, tmp_path):
    encoder = Encoder(tiny_tokenizer, max_length=40, truncation="error")
    some = [*examples(60), Example("mine/60", text(0, 200), "What?"), *examples(5)]
    for _ in range(2):
        with pytest.raises(InputError, match=r"^Row mine/\d+ loses"):
            split_of(some, encoder)
    assert [name for name in files(tmp_path) if not name.endswith(".lock")] == []


def test_rows_that_change_meanwhile_are_refused(tiny_tokenizer):
    states = iter([examples(), [*examples()[:-1], Example("mine/89", "Another.", "What?")]])
    with pytest.raises(InputError, match=r"^data.retain_split: the rows changed while they were"):
        encode_split(lambda: next(states), Encoder(tiny_tokenizer), "data.retain_split")


def test_raw_text_that_is_too_short_is_refused(root, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(Encoder, "cut_tokens", lambda *_: iter([]))
    benchmark = JSONL(Source(root=root), "forget", "raw")
    with pytest.raises(InputError, match=r"^data.retain_split is 'raw', which has no rows to"):
        read_streams(benchmark, Encoder(tiny_tokenizer), StreamSettings(uses_forget=False))


def test_a_cache_that_cannot_be_written_is_named(tiny_tokenizer, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(InputError, match=r"^ETW_CACHE: .* can't be written"):
        split_of(examples(), Encoder(tiny_tokenizer))


# Others, beside this process and behind it.


def test_two_at_once_encode_once(calls, tokenizer_dir):
    from transformers import AutoTokenizer

    found = {}

    def run(number):
        encoder = Encoder(AutoTokenizer.from_pretrained(tokenizer_dir))
        found[number] = list(split_of(examples(), encoder).rows)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert len(calls) == NUM


def test_loading_processes_and_datasets_read_it_too(tiny_tokenizer):
    from datasets import Dataset

    rows = split_of(examples(), Encoder(tiny_tokenizer)).rows
    again = pickle.loads(pickle.dumps(Streams({"retain": rows})))
    assert list(again.rows["retain"]) == list(rows)
    table = Dataset.from_file(str(rows.folder / "rows.arrow"))
    row = table[41]
    assert EncodedRow(row["id"], tuple(row["input_ids"]), tuple(row["labels"])) == rows[41]


def test_ten_times_the_rows_take_about_the_same_memory(root, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("etw_lightning.data.stored_rows._TOGETHER", 200)
    encoder, peaks = Encoder(tiny_tokenizer), []
    for count in (200, 2000):
        file = tmp_path / f"rows{count}.jsonl"
        write_rows(file, rows_of(count, f"of{count}"))
        benchmark = JSONL(Source(), str(root / "forget.jsonl"), str(file))
        read_streams(benchmark, encoder, StreamSettings(uses_forget=False))  # what is made once
        tracemalloc.start()
        streams = read_streams(benchmark, encoder, StreamSettings())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(streams.rows["retain"]) == count
    # Rows in memory take 5 KB each, a few numbers of them 20 bytes.
    assert peaks[1] - peaks[0] < 1800 * 100


def test_so_it_is_with_raw_text(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("etw_lightning.data.encode_many.WIDTH", 10_000)
    encoder, peaks = Encoder(tiny_tokenizer, max_length=64), []
    for count in (200, 2000):
        file = tmp_path / f"texts{count}.jsonl"
        write_rows(
            file, [{"text": f"The town of {n} lies by the river. " * 5} for n in range(count)]
        )
        benchmark = JSONL(Source(), "unused", str(file))
        tracemalloc.start()
        streams = read_streams(benchmark, encoder, StreamSettings(uses_forget=False))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        rows = encoder.chunk([Example("x", text) for text in texts], str(file))
        assert list(streams.rows["retain"]) == rows
    # Ten times the text is 300 KB more of text, and 10 MB more of tokens in memory.
    assert peaks[1] - peaks[0] < 300_000


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
def test_one_long_text_is_kept_too_and_cut_by_several_processes(
    calls, tiny_tokenizer, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("etw_lightning.data.kept_rows.SMALL", 5)
    monkeypatch.setattr("etw_lightning.data.kept_rows._SMALL_TEXT", 30_000)
    monkeypatch.setattr("etw_lightning.data.encode_many.WIDTH", 10_000)
    monkeypatch.setattr("etw_lightning.data.encode_many._num_processes", lambda *_: 2)
    encoder = Encoder(tiny_tokenizer, max_length=64)
    long = [Example("book/0", "The town lies by the river, as towns do, in 1958. " * 1000)]
    found = split_of(long, encoder).rows
    assert list(found) == encoder.chunk(long, "book")
    assert "encoding book: 50000 characters of text by 2 processes" in capsys.readouterr().err
    assert len(list((tmp_path / "cache" / "rows").glob("*/rows.arrow"))) == 1
    assert list(split_of(long, encoder).rows) == list(found)
    assert capsys.readouterr().err == ""
