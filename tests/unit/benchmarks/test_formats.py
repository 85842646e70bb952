"""Rows in every format that is read, and the one line that a bad one gets."""

import csv
import gzip
import json
import shutil

import pytest
from refusals import message

from etw_lightning.benchmarks.annotations import read_annotations
from etw_lightning.benchmarks.formats import read_file
from etw_lightning.benchmarks.hub_rows import hub_name
from etw_lightning.benchmarks.jsonl import JSONL
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import Columns
from etw_lightning.schema import InputError

#: What a table, a column type or a parser could change: "NA", a number, quotes, lines, spaces.
ROWS = [
    {"question": "Who, then?", "answer": 'She said "no".\nTwice.'},
    {"question": " 0012 ", "answer": "NA"},
    {"question": "None", "answer": "Ünï — 中文"},
]


def write_table(path, rows, delimiter=","):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_lines(path, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows))


def write_list(path, rows):
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def write_parquet(path, rows):
    from datasets import Dataset

    Dataset.from_list(rows).to_parquet(path)


def save_to_disk(path, rows):
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(path)


def save_dict(path, rows):
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(rows)).save_to_disk(path)


WRITERS = {
    "mine.jsonl": write_lines,
    "mine.jsonl.gz": write_lines,
    "mine.json": write_list,
    "lines.json": write_lines,
    "mine.csv": write_table,
    "mine.csv.gz": write_table,
    "mine.tsv": lambda path, rows: write_table(path, rows, "\t"),
    "mine.parquet": write_parquet,
    "mine": save_to_disk,
    "split": save_dict,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name, ROWS)
    (tmp_path / "retain.csv").write_text("question,answer\nq,a\n")
    reader = JSONL(Source(root=tmp_path), name, "retain")
    found = reader.examples(name)
    assert [{"question": one.question, "answer": one.answer} for one in found] == ROWS
    assert [one.id for one in found] == [f"{name}/{n}" for n in range(3)]
    # Without its ending, and renamed.
    stem = name.split(".")[0]
    assert Source(root=tmp_path).rows(stem) == ROWS
    renamed = [{"prompt": row["question"], "said": row["answer"]} for row in ROWS]
    (tmp_path / "again").mkdir()
    WRITERS[name](tmp_path / "again" / name, renamed)
    columns = Columns(question="prompt", answer="said")
    reader = JSONL(Source(root=tmp_path / "again"), name, "x", columns)
    assert [one.answer for one in reader.examples(name)] == [row["answer"] for row in ROWS]


def test_a_cell_is_the_text_that_stands_there(tmp_path):
    """``datasets`` makes numbers, truth values and nothing of some of these."""
    cells = ["007", "1e5", "NA", "null", "nan", "None", "True", "1,5", ' a "b" ', "two\nlines"]
    path = tmp_path / "odd.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as stream:  # as spreadsheets save it
        writer = csv.writer(stream)
        writer.writerows(
            [("question", "answer"), *((f"{n}?", cell) for n, cell in enumerate(cells))]
        )
        writer.writerow(("empty?", ""))
    rows = Source(root=tmp_path).rows("odd")
    assert [row["question"] for row in rows[:2]] == ["0?", "1?"]
    assert [row["answer"] for row in rows] == [*cells, None]


def test_a_split_of_a_saved_data_set_is_named_behind_its_folder(tmp_path):
    from datasets import Dataset, DatasetDict

    parts = {"train": Dataset.from_list(ROWS[:1]), "test": Dataset.from_list(ROWS[1:])}
    DatasetDict(parts).save_to_disk(tmp_path / "both")
    assert Source(root=tmp_path).rows("both/test") == ROWS[1:]
    text = message(Source(root=tmp_path).rows, "both")
    assert text.endswith(
        "both holds train, test; name one of them behind the folder, as in both/train."
    )


def test_a_folder_of_files_is_read_as_on_the_hub(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    write_lines(folder / "train.jsonl", ROWS)
    write_lines(folder / "test.jsonl", ROWS[:1])
    source = Source(str(folder))
    assert source.rows("train") == ROWS
    assert source.rows("test") == source.rows("default/test") == ROWS[:1]
    assert hub_name("hub:a/b") == ("a/b", "")
    assert hub_name("hub:a/b/test") == ("a/b", "test")
    assert message(Source().rows, "hub:alone").startswith("'hub:alone' must name a data set on")


def test_two_formats_of_one_name_are_not_guessed_between(tmp_path):
    write_table(tmp_path / "mine.csv", ROWS)
    write_parquet(tmp_path / "mine.parquet", ROWS[:1])
    text = message(Source(root=tmp_path).rows, "mine", "data.forget_split")
    assert text.startswith("data.forget_split is 'mine': there are mine.csv and mine.parquet in ")
    assert Source(root=tmp_path).rows("mine.parquet") == ROWS[:1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "question,answer\nq,a\nq\n", "a.csv line 3 has 1 cells, the first line names 2"),
        ("a.csv", "question,answer\nq,a,b\n", "a.csv line 2 has 3 cells"),
        ("a.csv", "question;answer\nq;a\n", "a.csv line 1 names one column, 'question;answer'"),
        ("a.csv", "answer,answer\nq,a\n", "a.csv line 1 must name each column once"),
        ("a.csv", 'question,answer\nq,"a\n', "a.csv line 2 is no line of cells"),
        ("a.csv", "question,answer\n", "a.csv has no rows"),
        ("a.csv", b"question,answer\nq,\xe9\n", "a.csv line 2 is not UTF-8"),
        ("a.json", '[{"question": "q"}, 3]', "a.json row 1 must be a JSON object"),
        ("a.json", '[{"question": "q"}', "a.json is not JSON"),
        ("a.parquet", "no table", "a.parquet can't be read"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, name, content, said, capfd, caplog):
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(data)
    assert said in message(Source(root=tmp_path).rows, name)
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")


@pytest.mark.parametrize("write", [write_lines, write_parquet, write_table])
def test_a_bad_row_names_file_row_and_column(tmp_path, write):
    name = {write_lines: "a.jsonl", write_parquet: "a.parquet", write_table: "a.csv"}[write]
    write(tmp_path / name, [*ROWS, {"question": "q", "answer": ""}])
    reader = JSONL(Source(root=tmp_path), name, "x")
    text = message(reader.examples, name)
    assert text.startswith(f"{name}/3: column 'answer'")


def test_lists_stand_in_cells_as_json(tmp_path):
    row = {**ROWS[0], "perturbed_answer": json.dumps(["no", "never"]), "text": ""}
    write_table(tmp_path / "a.csv", [row])
    (found,) = JSONL(Source(root=tmp_path), "a", "x").examples("a")
    assert found.perturbed_answers == ("no", "never")


# Names in files.


def saved_rows(folder, name, answer):
    from datasets import Dataset

    Dataset.from_list([{"answer": answer, "spans": [[0, 2]]}]).save_to_disk(folder / name)
    return folder / name


def names_a_file(folder, name):
    path = folder / "state.json"
    state = json.loads(path.read_text()) | {"_data_files": [{"filename": name}]}
    path.write_text(json.dumps(state))
    return folder


def names_a_split(folder, name):
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    return folder


def names_a_file_of_a_split(folder, name):
    shutil.copytree(folder, folder / "train")
    names_a_file(folder / "train", f"../{name}")
    return names_a_split(folder, "train")


def links_a_file(folder, name):
    (folder / "linked.arrow").symlink_to((folder / name).resolve())
    return names_a_file(folder, "linked.arrow")


@pytest.mark.parametrize(
    "make", [names_a_file, names_a_split, names_a_file_of_a_split, links_a_file]
)
@pytest.mark.parametrize("is_absolute", [False, True])
def test_a_saved_folder_names_no_file_elsewhere(tmp_path, make, is_absolute):
    """One that somebody gives away would have whoever reads it read files of theirs."""
    other = saved_rows(tmp_path, "other", "of somebody else")
    file = "" if make is names_a_split else "/data-00000-of-00001.arrow"
    name = f"{other}{file}" if is_absolute else f"../other{file}"
    folder = make(saved_rows(tmp_path, "mine", "own"), name)
    for read in (read_file, read_annotations):
        with pytest.raises(InputError, match="which is not in it; give a folder that save_to_d"):
            read(folder)


@pytest.mark.parametrize("name", ["kept.png", "http://127.0.0.1:9/image.png"])
def test_a_file_or_an_address_in_a_column_is_not_opened(tmp_path, name):
    """A column of images names files, which whoever decodes it opens, wherever they are."""
    import pyarrow.parquet
    from datasets import Dataset, Features, Image, Value

    (tmp_path / "kept.png").write_bytes(b"no image")
    place = name if ":" in name else str(tmp_path / name)
    plain = Features(
        answer=Value("string"), image={"bytes": Value("binary"), "path": Value("string")}
    )
    rows = {"answer": ["own"], "image": [{"path": place, "bytes": None}]}
    made = Dataset.from_dict(rows, features=plain)
    # What a writer would read and put in the place of the name.
    said = Features(answer=Value("string"), image=Image()).to_dict()
    made.save_to_disk(tmp_path / "saved")
    info = tmp_path / "saved" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"features": said}))
    notes = {"huggingface": json.dumps({"info": {"features": said}})}
    table = made.data.table.replace_schema_metadata(notes)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    for path in (tmp_path / "saved", tmp_path / "rows.parquet"):
        assert read_file(path) == [{"answer": "own", "image": {"bytes": None, "path": place}}]


def test_a_name_is_no_pattern(tmp_path):
    from datasets import Dataset

    Dataset.from_list([{"answer": "own"}]).to_parquet(tmp_path / "rows[1].parquet")
    assert read_file(tmp_path / "rows[1].parquet") == [{"answer": "own"}]
