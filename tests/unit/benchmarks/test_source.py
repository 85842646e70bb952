"""Rows from folders, from the hub's cache, and the errors on the way."""

import gzip
import json
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import message

from etw_lightning.benchmarks import hub_rows
from etw_lightning.benchmarks.given_rows import as_rows
from etw_lightning.benchmarks.source import Source, check_limits, check_name, field, fields

ROWS = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(4)]


def write(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("file", ["forget10.jsonl", "forget10.jsonl.gz"])
def test_reads_plain_and_gzipped_files_in_order(tmp_path, file):
    write(tmp_path / file)
    assert Source(root=tmp_path).rows("forget10") == ROWS
    assert Source(root=str(tmp_path)).rows(file) == ROWS


def test_reads_nested_absolute_and_current_folder_names(tmp_path, monkeypatch):
    write(tmp_path / "raw" / "forget.jsonl.gz")
    assert Source(root=tmp_path).rows("raw/forget") == ROWS
    assert Source(root=tmp_path / "raw").rows(str(tmp_path / "raw/forget.jsonl.gz")) == ROWS
    monkeypatch.chdir(tmp_path / "raw")
    assert Source().rows("forget") == ROWS


def test_blank_lines_marks_and_windows_endings_are_ignored(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "x"}\r\n\r\n  \n{"text": "y\xe2\x80\xa8z"}'
    )
    assert Source(root=tmp_path).rows("a") == [{"text": "x"}, {"text": "y\u2028z"}]


def test_limits_keep_the_first_rows_of_the_named_split_only(tmp_path):
    write(tmp_path / "forget10.jsonl")
    write(tmp_path / "retain90.jsonl")
    source = Source(root=tmp_path, limits={"forget10": 3})
    assert source.rows("forget10") == ROWS[:3]
    assert source.rows("retain90") == ROWS


def test_a_limit_beyond_the_file_names_both_numbers(tmp_path):
    write(tmp_path / "forget10.jsonl")
    text = message(Source(root=tmp_path, limits={"forget10": 5}).rows, "forget10")
    assert text.startswith("data.rows.forget10 is 5, but forget10 has 4 rows")


def test_a_benchmark_folder_under_the_root_is_used_if_there(tmp_path):
    write(tmp_path / "tofu" / "forget10.jsonl")
    for root in (tmp_path, tmp_path / "tofu"):
        assert Source(root=root).at("tofu", hub="a/b").rows("forget10") == ROWS
    assert Source(root=tmp_path).at("tofu", hub="a/b").hub is None
    assert Source().at("tofu", hub="a/b").hub == "a/b"
    assert Source(hub="c/d").at("tofu", hub="a/b").hub == "c/d"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "x"', "is not JSON"),
        ("[1, 2]", "must be a JSON object"),
        ('"text"', "must be a JSON object"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, says):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "x"}}\n\n{line}\n')
    text = message(Source(root=tmp_path).rows, "a")
    assert str(tmp_path / "a.jsonl") in text
    assert "line 3" in text
    assert says in text


def test_other_broken_files_are_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n \n")
    assert "empty.jsonl has no rows" in message(Source(root=tmp_path).rows, "empty")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9t\xe9"}\n')
    assert "latin.jsonl line 1 is not UTF-8" in message(Source(root=tmp_path).rows, "latin")
    whole = gzip.compress(b'{"text": "x"}\n' * 50)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "plain.jsonl.gz").write_bytes(b'{"text": "x"}\n')
    for name in ("cut", "plain"):
        assert f"{name}.jsonl.gz can't be read" in message(Source(root=tmp_path).rows, name)


def test_a_missing_file_is_an_error_with_the_near_ones(tmp_path):
    write(tmp_path / "raw" / "forget.jsonl.gz")
    write(tmp_path / "knowmem" / "retain_qa.jsonl")
    text = message(Source(root=tmp_path).rows, "raw/retain1")
    assert text.startswith("data.root: no file ")
    assert str(tmp_path / "raw" / "retain1.jsonl") in text
    assert "raw/forget.jsonl.gz" in text
    text = message(Source(root=tmp_path).rows, "mine.jsonl", key="data.forget_split")
    assert text.startswith("data.forget_split is 'mine.jsonl': no file ")
    (tmp_path / "void").mkdir()
    write(tmp_path / "a" / "b" / "mine.jsonl")
    text = message(Source(root=tmp_path).rows, "a/b/main")
    assert text.endswith("(there: a/b/mine.jsonl).")
    assert (
        "no .jsonl or .jsonl.gz, .json, .csv, .tsv, .parquet, or a folder of save_to_disk there"
        in message(Source(root=tmp_path / "void").rows, "a")
    )
    text = message(Source(root=tmp_path / "nowhere").rows, "a")
    assert text.startswith("data.root must be a folder")


def test_names_are_checked_with_a_suggestion():
    check_name("data.forget_split", "forget05", ("forget01", "forget05", "forget10"))
    text = message(
        check_name, "data.forget_split", "forget11", ("forget01", "forget05", "forget10")
    )
    assert text == (
        "data.forget_split must be forget01, forget05 or forget10; got 'forget11'. "
        "Did you mean 'forget10'?"
    )
    assert message(check_name, "data.x", "zzz", ("only",)) == "data.x must be only; got 'zzz'."


def test_limits_are_checked():
    check_limits({}, ("forget10",))
    check_limits({"forget10": 1}, ("forget10", "retain90"))
    text = message(check_limits, {"forget1": 3}, ("forget10", "retain90"))
    assert text.startswith("each name in data.rows must be forget10 or retain90; got 'forget1'.")
    for bad in (0, -1, 2.5, "3", True, None):
        text = message(check_limits, {"forget10": bad}, ("forget10",))
        assert text.startswith("data.rows.forget10 must be a whole number >= 1; got ")


@given(st.text().filter(str.strip))
def test_a_field_is_returned_unchanged(text):
    assert field({"answer": text}, "answer", "s/0") == text
    assert fields({"wrong": [text, text]}, "wrong", "s/0") == (text, text)


@pytest.mark.parametrize("bad", [None, 3, ["a"], "", " \n\t"])
def test_a_bad_field_names_the_row(bad):
    assert message(field, {"answer": bad}, "answer", "forget10/7").startswith("forget10/7: column")
    text = message(fields, {"wrong": ["ok", bad]}, "wrong", "forget10/7")
    assert text.startswith("forget10/7: column 'wrong[1]'")


def test_a_text_that_looks_like_a_date_stays_a_text(tmp_path):
    for name in ("rows.jsonl", "rows.json"):
        write(tmp_path / name, [{"answer": "1958-01-02"}, {"answer": "007"}])
        found = Source(root=tmp_path).rows(name)
        assert found == [{"answer": "1958-01-02"}, {"answer": "007"}]


def test_a_date_in_the_place_of_a_text_is_refused_with_the_way_out(tmp_path):
    from datasets import Dataset

    rows = Dataset.from_dict({"answer": [datetime(1958, 1, 2)]})
    text = message(field, as_rows(rows, "forget")[0], "answer", "forget/0")
    assert text.startswith("forget/0: column 'answer' must hold a text; got datetime.datetime(1958")
    assert text.endswith("give the file itself, in .jsonl, .json or .csv.")


def test_a_missing_field_names_the_columns_there_are():
    text = message(field, {"q": "a", "response": "b"}, "answer", "forget10/7")
    assert text == "forget10/7: no column 'answer'; its columns are q, response."
    for bad in ([], "text", None):
        assert "must hold a list of texts" in message(fields, {"wrong": bad}, "wrong", "s/0")


@pytest.fixture
def hub_home(tmp_path, monkeypatch):
    """Empty caches, and no connection."""
    import datasets
    import huggingface_hub

    hub, prepared = tmp_path / "home" / "hub", tmp_path / "home" / "datasets"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", prepared)
    # Whatever the caller has exported.
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_rows, "hub_answers", lambda: False)
    datasets.disable_progress_bars()
    yield tmp_path / "home"
    datasets.enable_progress_bars()


def data_set(folder, configs=("forget10",)):
    """A data set as it lies on the hub: a card that names the files, and the files."""
    lines = [f"- config_name: {c}\n  data_files: {c}.json\n" for c in configs]
    for config in configs:
        write(folder / f"{config}.json")
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(lines) + "---\n")
    return folder


def test_a_snapshot_is_read_offline(hub_home):
    repository = hub_home / "hub" / "datasets--locuslab--TOFU"
    data_set(repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    source = Source("locuslab/TOFU", limits={"forget10": 2})
    assert source.rows("forget10") == ROWS[:2]
    text = message(source.rows, "forget05")
    assert text.startswith("locuslab/TOFU (configuration 'forget05', split 'train') can't be read")


def test_a_prepared_data_set_is_read_offline(hub_home, tmp_path):
    import datasets

    folder = data_set(tmp_path / "tofu")
    datasets.load_dataset(str(folder), "forget10", split="train")
    # What an earlier online run leaves differs only in the name of the folder.
    shutil.move(hub_home / "datasets" / "tofu", hub_home / "datasets" / "locuslab___tofu")
    assert Source("locuslab/TOFU").rows("forget10") == ROWS
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_local_data_set_is_read_by_its_folder(hub_home, tmp_path):
    source = Source(str(data_set(tmp_path / "tofu", ("forget10", "raw"))))
    assert source.rows("forget10") == ROWS
    assert source.rows("raw/train") == ROWS
    text = message(source.rows, "forget11")
    assert "forget11" in text
    assert "forget10" in text  # the library lists what there is


def test_without_connection_and_copy_the_error_comes_at_once(hub_home):
    start = time.monotonic()
    text = message(Source("muse-bench/MUSE-News").rows, "raw/forget")
    assert time.monotonic() - start < 2
    assert text == (
        "muse-bench/MUSE-News (configuration 'raw', split 'forget') can't be read from the hub "
        "(no connection, no stored copy). Give a folder that holds raw/forget.jsonl or "
        "raw/forget.jsonl.gz: --data.root DIR"
    )


def test_an_unknown_data_set_on_the_hub_is_named(hub_home, monkeypatch):
    import datasets

    def load(hub, config, split):
        raise datasets.exceptions.DatasetNotFoundError(f"'{hub}'\ndoesn't exist")

    monkeypatch.setattr(hub_rows, "hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    text = message(Source("locuslab/TOFUU").rows, "forget10")
    assert "(''locuslab/TOFUU' doesn't exist)" not in text
    assert "'locuslab/TOFUU' doesn't exist" in text
    assert "--data.root DIR" in text


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (urllib.error.URLError(OSError("no such host")), False),
        (TimeoutError("late"), False),
        (urllib.error.HTTPError("u", 503, "busy", None, None), True),
        (urllib.error.URLError(ssl.SSLError("unknown issuer")), True),
    ],
)
def test_any_answer_of_the_hub_counts(monkeypatch, error, answers):
    import huggingface_hub

    def urlopen(request, timeout):
        assert request.get_method() == "HEAD"
        assert timeout <= 5
        raise error

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert hub_rows.hub_answers.__wrapped__() is answers
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub_rows.hub_answers.__wrapped__() is False


def test_the_readers_import_neither_torch_nor_datasets():
    code = (
        "import sys\n"
        "from etw_lightning.benchmarks import jsonl, muse, source, tofu\n"
        "print([m for m in ('torch', 'datasets', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
