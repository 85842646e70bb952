"""Streams: second answers, several retain sets and their weights, and what is refused."""

import pytest
from toy import text, write_rows

from etw_lightning.benchmarks.jsonl import JSONL
from etw_lightning.benchmarks.muse import MUSE
from etw_lightning.benchmarks.quickstart_reader import Quickstart
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import TOFU, Columns
from etw_lightning.data.encode import Encoder
from etw_lightning.data.refusals import REFUSALS, read_refusals
from etw_lightning.data.streams import StreamSettings, read_streams
from etw_lightning.schema import IGNORE_INDEX, InputError

NUM = {"forget": 6, "first": 3, "second": 5}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    for name, count in NUM.items():
        rows = [
            {"question": f"What of {name} {n}?", "answer": text(n, 2), "other": f"Not {n}."}
            for n in range(count)
        ]
        write_rows(folder / f"{name}.jsonl", rows)
    write_rows(folder / "raw.jsonl", [{"text": text(0, 20)}, {"text": text(3, 20)}])
    write_rows(folder / "more.jsonl", [{"text": text(5, 30)}])
    (folder / "no.txt").write_text("No.\nNever.\nNot me.\n")
    return folder


@pytest.fixture
def read(root, tiny_tokenizer):
    """Reads streams of the files above."""

    def read_one(forget="forget", retain="first", columns=Columns(), max_length=64, **settings):
        benchmark = JSONL(Source(root=root), forget, retain, columns)
        encoder = Encoder(tiny_tokenizer, max_length=max_length)
        return read_streams(benchmark, encoder, StreamSettings(**settings))

    return read_one


def refused(call, **given):
    with pytest.raises(InputError) as error:
        call(**given)
    assert "\n" not in str(error.value)
    return str(error.value)


def said(tokenizer, row):
    """The question and the labelled text of a row."""
    prompt = [t for t, label in zip(row.input_ids, row.labels, strict=True) if label < 0]
    labels = [label for label in row.labels if label != IGNORE_INDEX]
    return tokenizer.decode(prompt), tokenizer.decode(labels).removesuffix("<|eos|>")


# Second answers.


def test_a_column_gives_second_answers(read, tiny_tokenizer):
    columns = Columns(alternative_answer="other")
    for settings in ({}, {"alternative": "column"}):
        rows = read(columns=columns, uses_alternative=True, **settings).rows
        assert list(rows) == ["forget", "alternative", "retain"]
        for n, (one, other) in enumerate(zip(rows["forget"], rows["alternative"], strict=True)):
            question, answer = said(tiny_tokenizer, other)
            assert question == said(tiny_tokenizer, one)[0]
            assert answer == f"Not {n}."
            assert one.id == other.id
    assert "alternative" not in read(columns=columns).rows


def test_a_file_gives_second_answers_whatever_its_order(read, tmp_path, tiny_tokenizer):
    pairs = [(f"What of forget {n}?", text(n, 2)) for n in range(NUM["forget"])]
    held = [
        {"question": f" {question}", "answer": f"{answer} ", "alternative_answer": f"Or {n}."}
        for n, (question, answer) in enumerate(pairs)
    ]
    other = {"question": "Of none?", "answer": "No.", "alternative_answer": "Yes."}
    write_rows(tmp_path / "second.jsonl", [other, *reversed(held), held[0]])
    path = str(tmp_path / "second.jsonl")
    # The column is not looked at.
    rows = read(columns=Columns(alternative_answer="other"), uses_alternative=True,
                alternatives=path).rows["alternative"]  # fmt: skip
    assert [said(tiny_tokenizer, row)[1] for row in rows] == [f"Or {n}." for n in range(6)]

    held[4]["alternative_answer"] = None
    write_rows(tmp_path / "second.jsonl", held)
    message = refused(read, uses_alternative=True, alternatives=path)
    assert message.startswith("Row forget/4 has no second answer, which model.forget needs: ")
    assert f"data.alternatives '{path}' holds none" in message
    write_rows(tmp_path / "second.jsonl", [held[0], {**held[0], "alternative_answer": "Else."}])
    message = refused(read, uses_alternative=True, alternatives=path)
    assert message.startswith(f"data.alternatives is '{path}': row 1 gives 'What of forget 0?'")
    message = refused(read, uses_alternative=True, alternatives="gone.jsonl")
    assert message.startswith("data.alternatives must be a file of second answers (.jsonl")
    assert message.endswith("'gone.jsonl' does not exist.")


def test_refusals_are_ours_or_a_file_s(read, root, tiny_tokenizer):
    def answers(**settings):
        rows = read(uses_alternative=True, alternative="refusal", **settings).rows
        pairs = list(zip(rows["forget"], rows["alternative"], strict=True))
        told = [[said(tiny_tokenizer, row) for row in pair] for pair in pairs]
        assert all(one[0] == other[0] for one, other in told)
        return [other[1] for _, other in told]

    assert set(answers()) <= set(REFUSALS)
    assert len(set(answers())) > 1
    assert answers() == answers(seed=0) != answers(seed=1)
    path = str(root / "no.txt")
    assert set(answers(refusals=path)) <= set(read_refusals(path))
    # The column is not looked at, nor missed.
    assert answers(columns=Columns(alternative_answer="other")) == answers()


def test_a_row_keeps_its_refusal_if_fewer_are_read(root, tiny_tokenizer):
    rows = {}
    for count in (2, 6):
        source = Source(root=root, limits={"forget": count})
        settings = StreamSettings(uses_alternative=True, alternative="refusal")
        streams = read_streams(JSONL(source, "forget", "first"), Encoder(tiny_tokenizer), settings)
        rows[count] = streams.rows["alternative"]
    assert rows[6][:2] == rows[2]


def test_a_missing_second_answer_names_row_column_and_way_out(read):
    message = refused(read, uses_alternative=True)
    assert message.startswith("Row forget/0 has no second answer, which model.forget needs")
    assert "'alternative_answer'" in message
    assert message.endswith("--data.alternative refusal")


@pytest.mark.parametrize("alternative", ["column", "refusal"])
def test_raw_text_has_no_second_answer(read, alternative):
    message = refused(read, forget="raw", uses_alternative=True, alternative=alternative)
    assert message.startswith("Row raw/0 is raw text, which has no question")


def test_an_empty_file_of_refusals_is_refused(read, tmp_path):
    (tmp_path / "none.txt").write_text("\n")
    given = {"uses_alternative": True, "alternative": "refusal"}
    assert "which is empty" in refused(read, refusals=str(tmp_path / "none.txt"), **given)
    assert "can't be read" in refused(read, refusals=str(tmp_path / "gone.txt"), **given)


def test_every_forget_row_of_the_quickstart_has_one(tiny_tokenizer):
    settings = StreamSettings(uses_alternative=True, uses_retain=False)
    rows = read_streams(Quickstart(Source()), Encoder(tiny_tokenizer), settings).rows
    assert len(rows["alternative"]) == len(rows["forget"]) == 40
    for one, other in zip(rows["forget"], rows["alternative"], strict=True):
        assert said(tiny_tokenizer, one)[0] == said(tiny_tokenizer, other)[0]
        assert said(tiny_tokenizer, one)[1] != said(tiny_tokenizer, other)[1]


# Marks.


def test_marks_are_made_if_something_reads_them(read, root):
    answers = [text(n, 2) for n in range(NUM["forget"])]
    path = root / "marked.jsonl"
    write_rows(path, [{"answer": answer, "spans": [[0, 2]]} for answer in answers])
    assert read(annotations=str(path)).marks == []
    streams = read(annotations=str(path), uses_marks=True)
    assert [len(marks) for marks in streams.marks] == [
        len(row.labels) for row in streams.rows["forget"]
    ]
    assert all(any(marks) for marks in streams.marks)
    assert refused(read, uses_marks=True).startswith("data.annotations is missing")


# Retain sets.


def test_retain_sets_are_joined_and_weighed(read):
    joined = read(retain="first+second")
    assert [row.id for row in joined.rows["retain"]] == [
        *(f"first/{n}" for n in range(3)),
        *(f"second/{n}" for n in range(5)),
    ]
    assert joined.retain_weights == []
    weighed = read(retain="first+second", retain_weights={"second": 0.25})
    assert weighed.rows == joined.rows
    assert weighed.retain_weights == [1.0] * 3 + [0.25] * 5
    none = read(retain="first+second", retain_weights={"first": 2, "second": 0})
    assert none.retain_weights == [2.0] * 3 + [0.0] * 5
    with pytest.raises(InputError, match="which names 'first' twice"):
        read(retain="first+second+first")


def test_rows_of_raw_text_hold_one_set_s_text(read):
    """So that a weight is of one set, and weights of 1 change nothing."""
    alone = [read(retain=name, max_length=16).rows["retain"] for name in ("raw", "more")]
    streams = read(retain="raw+more", max_length=16, retain_weights={"raw": 3.0})
    assert streams.rows["retain"] == [row for rows in alone for row in rows]
    assert streams.retain_weights == [3.0] * len(alone[0]) + [1.0] * len(alone[1])
    assert read(retain="raw+more", max_length=16).rows == streams.rows


def test_weights_name_the_sets_of_every_benchmark(data_dir, tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, "plain", 256)
    limits = {"retain90": 4, "real_authors": 3}
    tofu = TOFU(Source(root=data_dir, limits=limits), retain_split="retain90+real_authors")
    settings = StreamSettings(uses_forget=False, retain_weights={"real_authors": 0.5})
    assert read_streams(tofu, encoder, settings).retain_weights == [1.0] * 4 + [0.5] * 3
    limits = {"raw/forget": 2, "sust/forget_2": 2}
    split = "raw/forget+sust/forget_2"
    muse = MUSE(Source(root=data_dir, limits=limits), retain_split=split)
    settings = StreamSettings(uses_forget=False, retain_weights={"sust/forget_2": 0.5})
    streams = read_streams(muse, encoder, settings)
    for row, weight in zip(streams.rows["retain"], streams.retain_weights, strict=True):
        assert weight == (0.5 if row.id.startswith("sust/forget_2/chunk") else 1.0)
    assert set(streams.retain_weights) == {0.5, 1.0}


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"third": 1.0}, "names 'third', which is no set of data.retain_split; there are first,"),
        ({"first": 0.0, "second": 0.0}, "are 0 for first, second, so nothing would be kept"),
        ({"first": -1.0}, "data.retain_weights.first must be >= 0; got -1.0."),
        ({"first": float("nan")}, "data.retain_weights.first must be >= 0; got nan."),
        ({"first": float("inf")}, "data.retain_weights.first must be finite; got inf."),
    ],
)
def test_weights_that_can_t_be_are_refused(read, weights, reason):
    message = refused(read, retain="first+second", retain_weights=weights)
    assert message.startswith("data.retain_weights")
    assert reason in message


def test_fine_tuning_reads_one_split_and_nothing_else(read, root, tiny_tokenizer):
    streams = read(uses_forget=False, split="second")
    assert list(streams.rows) == ["retain"]
    questions = [said(tiny_tokenizer, row)[0] for row in streams.rows["retain"]]
    assert len(questions) == NUM["second"]
    assert all(f"What of second {n}?" in one for n, one in enumerate(questions))
    assert (streams.marks, streams.retain_weights, streams.lost) == ([], [], {})
    message = refused(read, uses_forget=False, split="third")
    assert message.startswith("data.split")
    assert "third" in message


def test_each_stream_tells_what_it_loses(read, tiny_tokenizer):
    whole = read(retain="first+second")
    most = max(len(row.input_ids) for row in whole.rows["forget"]) - 1
    with pytest.warns(UserWarning, match=f"to data.max_length = {most}: "):
        streams = read(retain="first+second", max_length=most)
    for name, rows in streams.rows.items():
        lost = [
            one.num_labels - two.num_labels for one, two in zip(whole.rows[name], rows, strict=True)
        ]
        assert [row.num_lost for row in rows] == lost
        if sum(lost):
            assert streams.lost[name].labels == sum(lost)
            assert streams.lost[name].of_rows == len(rows)
        else:
            assert name not in streams.lost
    assert streams.lost["forget"].rows > 0
    assert whole.lost == {}


def test_a_split_without_rows_is_refused(read, root):
    write_rows(root / "short.jsonl", [{"text": "a"}])
    for key, given in (
        ("data.forget_split", {"forget": "short"}),
        ("data.retain_split", {"retain": "short"}),
    ):
        message = refused(read, **given)
        assert message.startswith(key)


def test_rows_that_are_forgotten_and_kept_are_told(read):
    with pytest.warns(UserWarning, match="^6 of 6 forget rows also stand in data.retain_split"):
        read(retain="first+forget")


# What contradicts itself.


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"split": "first"}, "data.split is 'first': fine-tuning on one split needs model.forget"),
        ({"refusals": "no.txt"}, "data.refusals is 'no.txt', but data.alternative is not refusal"),
        (
            {"alternatives": "a.jsonl", "alternative": "refusal"},
            "data.alternatives is 'a.jsonl', but data.alternative is refusal, so it would not be",
        ),
        (
            {"retain_weights": {"first": 1.0}, "uses_forget": False, "split": "first"},
            "which are not read: data.split takes their place.",
        ),
        (
            {"retain_weights": {"first": 1.0}, "uses_retain": False},
            "which are not read: model.retain is null.",
        ),
    ],
)
def test_what_would_not_be_read_is_refused(settings, reason):
    assert reason in refused(StreamSettings(**settings).check)


def test_what_would_be_read_is_not():
    StreamSettings().check()
    StreamSettings(uses_forget=False, split="first").check()
    StreamSettings(alternative="refusal", refusals="no.txt", retain_weights={"first": 0.5}).check()
    # A method without second answers may meet data that could give them.
    StreamSettings(alternative="refusal").check()


# Rows of earlier requests.


def test_rows_that_are_left_out_are_no_retain_rows_wherever_they_stand(read, root):
    write_rows(
        root / "mixed.jsonl",
        [
            {"question": f"What of {name} {n}?", "answer": text(n, 2)}
            for name, n in (("first", 0), ("second", 4), ("first", 1), ("second", 1))
        ],
    )
    found = read(retain="mixed+second", leave_out="first").rows["retain"]
    assert [row.id for row in found] == [
        *("mixed/1", "mixed/3"),
        *(f"second/{n}" for n in range(5)),
    ]
    # The same question with another answer is another row.
    write_rows(root / "other.jsonl", [{"question": "What of second 4?", "answer": "Nothing."}])
    assert len(read(retain="second", leave_out="other").rows["retain"]) == 5
    assert len(read(retain="second", leave_out="mixed+first").rows["retain"]) == 3


def test_rows_that_are_left_out_must_leave_some_and_be_read(read):
    assert refused(read, retain="first", leave_out="first") == (
        "data.leave_out 'first' leaves no row of data.retain_split 'first'; give another split."
    )
    assert refused(read, leave_out="nowhere").startswith("data.leave_out is 'nowhere': no file")
    with pytest.raises(InputError, match=r"data\.leave_out is 'first', but data\.retain_split"):
        StreamSettings(uses_retain=False, leave_out="first").check()


def test_a_retain_model_is_made_by_leaving_rows_out(read):
    found = read(uses_forget=False, split="first+forget", leave_out="forget").rows["retain"]
    assert [row.id for row in found] == ["first/0", "first/1", "first/2"]
    StreamSettings(uses_forget=False, split="first+forget", leave_out="forget").check()
