"""A sequence's file, its runs and their order, and what is told of them; nothing is trained."""

import json
from pathlib import Path

import pytest
import yaml

from etw_lightning.benchmarks.quickstart_reader import REQUESTS
from etw_lightning.files.setting_names import why_unread
from etw_lightning.runs.key import run_key
from etw_lightning.schema import InputError, Record
from etw_lightning.scoring.retain_results import save_records
from etw_lightning.sequences.course import Course
from etw_lightning.sequences.inputs import check_inputs
from etw_lightning.sequences.request_file import load_requests
from etw_lightning.sequences.rows import RowCounts, count_rows
from etw_lightning.sequences.steps import is_watched, make_steps, watch_of, watches_of
from etw_lightning.training.datamodule import UnlearningDataModule

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
GIVEN = {
    "config": ["run.yaml"],
    "output_dir": "out",
    "requests": [
        {"forget": "request1", "retain": "retain+request2", "retain_model": "near"},
        {"forget": "sust/two", "retain": "retain", "retain_results": "theirs"},
        {"forget": "request3"},
    ],
    "settings": {"model.lambda": 0.2},
    "watched": ["forget_quality", "forget_probability"],
}
MISSING = "\u2013"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Read a sequence's file, changed in some keys, where its run can be found."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("model: {}\n")

    def call(*more, **changes):
        kept = {key: one for key, one in {**GIVEN, **changes}.items() if one is not ...}
        Path("some.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
        return load_requests("some.yaml", *more)

    return call


def parse(words):
    """Read options as a parser would; where a run writes is no setting."""
    pairs = zip(words[1::2], words[2::2], strict=True)
    found = {"data": {}, "command": words[0]}
    for option, value in pairs:
        key, value = option.removeprefix("--"), None if value == "null" else value
        if key.startswith("data."):
            found["data"][key.removeprefix("data.")] = value
        else:
            found[key] = value
    return found


def options(run):
    return dict(zip(run.words[1::2], run.words[2::2], strict=True))


def leave(run, model, metrics, before=None, command="fit"):
    """Write what a run leaves."""
    run.folder.mkdir(parents=True, exist_ok=True)

    def told(numbers):
        return {name: {"value": value, "direction": "up"} for name, value in numbers.items()}

    results = {
        "finished": True,
        "command": command,
        "config_hash": run.key,
        "metrics": told(metrics),
        "history": [{"epoch": 0, "metrics": told(before or {})}],
        "provenance": {"model": {"hash": model}},
    }
    (run.folder / "results.json").write_text(json.dumps(results))


# The file.


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"requests": ...}, "requests is missing from the sequence's file; it holds at least two,"),
        ({"requests": [{"forget": "a"}]}, "requests must be a list, at least two, each with"),
        ({"requests": "abc"}, "requests must be a list, at least two"),
        ({"requests": ["a", "b"]}, "requests.1 must hold pairs `name: value`; got 'a'."),
        ({"requests": [{"forget": "a"}, {"retain": "b"}]}, "requests.2.forget is missing: the"),
        (
            {"requests": [{"forget": "a"}, {"forget": 3}]},
            "requests.2.forget must be a text; got",
        ),
        (
            {"requests": [{"forget": "a", "retian": "b"}, {"forget": "c"}]},
            "requests.1.retian is not known. Did you mean requests.1.retain?",
        ),
        (
            {"requests": [{"forget": "a", "retain_model": "b", "retain_results": "c"}] * 2},
            "requests.1 must hold retain_model or retain_results; it has both.",
        ),
        ({"requests": [{"forget": "a"}] * 2}, "requests must ask for each split once; 'a' comes"),
        ({"request": []}, "request is not known. Did you mean requests?"),
        ({"settings": {"data.forget_split": "a"}}, "data.forget_split must stand in the requests"),
        (
            {"settings": {"output_dir": "a"}},
            "settings can't hold output_dir: each run of a sequence",
        ),
        (
            {"settings": {"data.leave_out": "a"}},
            "settings can't hold data.leave_out: each run of a",
        ),
        (
            {"settings": {"save_model": False}},
            "settings can't hold save_model: each run of a seque",
        ),
        ({"columns": "one"}, "columns must be a list of names, at least one; got 'one'."),
        ({"columns": []}, "columns must be a list of names, at least one; got []."),
        ({"watched": 0}, "watched must be a list of names, at least one; got 0."),
        ({"settings": []}, "settings must hold pairs `name: value`; got []."),
        (
            {"watched_with": {"model.lambda": 2}},
            "watched_with.model.lambda is not read by evaluate, which scores what is watched; ",
        ),
        (
            {"settings": {"model.lambda": float("inf")}},
            "settings.model.lambda must be a finite number; got inf.",
        ),
        ({"watched_with": False}, "watched_with must hold pairs `name: value`; got False."),
        ({"config": ["nowhere"]}, "config: there is no file 'nowhere'."),
        ({"output_dir": ...}, "output_dir is missing from the sequence's file"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(load, changes, line):
    with pytest.raises(InputError) as error:
        load(**changes)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_what_is_watched_keeps_to_the_file(load):
    with pytest.raises(InputError, match=r"^--set data\.rows would not reach what is watched, wh"):
        load(None, ["data.rows=2"], watched_with={"data.rows": 3})
    given = load(None, ["data.max_length=2"], watched_with={"data.rows": 3})
    assert given.settings["data.max_length"] == 2


def test_what_is_typed_takes_the_place_of_the_file_s(load):
    given = load("there", ["model.lambda=0.5", "model.lr=1e-3"])
    assert given.output_dir == "there"
    assert given.settings == {"model.forget_weight": 0.5, "model.lr": "1e-3"}


def test_a_method_is_laid_over_the_file_s_configurations(load):
    given = load(None, [], "method/npo")
    assert given.config == ("run.yaml", "method/npo")
    (one, *_) = make_steps(given, parse)
    assert one.run.words[:5] == ("fit", "--config", "run.yaml", "--config", "method/npo")
    with pytest.raises(InputError, match=r"--method: there is no file 'method/nop'. Did you mean"):
        load(None, [], "method/nop")


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "sequence").glob("*.yaml")), ids=lambda p: p.stem
)
def test_shipped_sequences_are_read(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    given = load_requests(f"sequence/{path.stem}")
    assert len(given.requests) >= 3
    assert all(one.retain and one.retain_model for one in given.requests)
    # What scores earlier requests' rows is taken by the command that does it.
    steps = make_steps(given, parse)
    for watch in watches_of(given, steps, len(steps), ["m"], parse):
        assert why_unread("evaluate", watch.run.words[1:]) is None


# The runs.


def test_each_request_starts_from_the_last_one_s_model_and_keeps_no_row_of_it(load):
    given = load()
    one, two, three = steps = make_steps(given, parse)
    assert [step.run.name for step in steps] == [
        "1_request1",
        "2_sust-two",
        "3_request3",
    ]
    assert "--model.pretrained" not in options(one.run)
    assert options(two.run)["--model.pretrained"] == "out/1_request1/model"
    assert options(three.run)["--model.pretrained"] == "out/2_sust-two/model"
    assert [options(step.run)["--data.leave_out"] for step in steps] == [
        "request1",
        "request1+sust/two",
        "request1+sust/two+request3",
    ]
    assert options(one.run)["--data.retain_split"] == "retain+request2"
    assert options(one.run)["--data.retain_model"] == "near"
    assert options(two.run)["--data.retain_results"] == "theirs"
    # What the configuration says of the other would count, or be of other rows.
    assert options(one.run)["--data.retain_results"] == "null"
    assert options(two.run)["--data.retain_model"] == "null"
    assert "--data.retain_results" not in options(three.run)
    assert not {"--data.retain_split", "--data.retain_model"} & set(options(three.run))
    assert all(options(step.run)["--model.forget_weight"] == "0.2" for step in steps)
    assert one.run.key == run_key(parse(one.run.words))
    assert one.data["forget_split"] == "request1"


def test_a_request_leads_out_of_no_folder(load):
    given = load(requests=[{"forget": "../../a"}, {"forget": ".."}])
    assert [step.run.folder for step in make_steps(given, parse)] == [
        Path("out/1_..-..-a"),
        Path("out/2_.."),
    ]


def test_rows_of_earlier_requests_are_scored_after_each(load):
    given = load()
    steps = make_steps(given, parse)

    def due(after):
        return [(w.after, w.request) for w in watches_of(given, steps, after, ["m", "n"], parse)]

    assert [due(after) for after in range(4)] == [[], [], [(2, 1)], [(3, 1), (3, 2)]]
    (watch,) = watches_of(given, steps, 2, ["m", "n"], parse)
    assert watch.run.words[0] == "evaluate"
    found = options(watch.run)
    assert found["--model.pretrained"] == "out/2_sust-two/model"
    assert found["--data.forget_split"] == "request1"
    assert found["--data.retain_model"] == "near"
    assert (found["--metrics"], found["--output_dir"]) == ("m,n", "out/watched/2_on_1")
    # What only training reads stays with the runs: scoring would refuse it.
    assert options(steps[1].run)["--model.forget_weight"] == "0.2"
    assert "--model.forget_weight" not in found
    # A run that lacks a number of its own rows has them scored too.
    leave(steps[0].run, "a", {"forget_quality": 0.1})
    assert due(1) == [(1, 1)]
    leave(steps[0].run, "a", {"forget_quality": 0.1, "forget_probability": 0.2})
    assert due(1) == []


def test_rows_that_are_read_otherwise_are_scored_before_their_request_too(load):
    requests = [{"forget": "a", "watched_as": "hub:x/y/a"}, {"forget": "b"}, {"forget": "c"}]
    given = load(requests=requests, watched_with={"data.benchmark": "jsonl"})
    steps = make_steps(given, parse)

    def due(after):
        return [(w.after, w.request) for w in watches_of(given, steps, after, ["m"], parse)]

    assert [due(after) for after in range(4)] == [
        [(0, 1)],
        [(1, 1), (1, 2)],
        [(2, 1), (2, 2), (2, 3)],
        [(3, 1), (3, 2), (3, 3)],
    ]
    (first,) = watches_of(given, steps, 0, ["m"], parse)
    found = options(first.run)
    assert found["--data.forget_split"] == "hub:x/y/a"
    assert found["--data.benchmark"] == "jsonl"
    assert "--model.pretrained" not in found  # the configuration's own


def test_what_is_watched_is_read_as_the_file_says_not_as_the_request(load):
    requests = [{"forget": "a", "retain": "b"}, {"forget": "c"}]
    given = load(requests=requests, watched_with={"data.retain_split": "d"})
    steps = make_steps(given, parse)
    (watch, _) = watches_of(given, steps, 1, ["m"], parse)
    assert options(watch.run)["--data.retain_split"] == "d"
    assert options(steps[0].run)["--data.retain_split"] == "b"


def test_numbers_that_are_read_otherwise_are_none_of_the_run_s(load):
    given = load(watched_with={"data.rows": 3})
    steps = make_steps(given, parse)
    numbers = dict.fromkeys(given.watched, 0.5)
    leave(steps[0].run, "a", numbers, numbers)
    course = Course(given, steps)
    assert course.course(1, "forget_quality") == [None] * 4
    (watch,) = watches_of(given, steps, 0, ["m"], parse)
    leave(watch.run, "x", {**numbers, "forget_quality": 0.25}, command="evaluate")
    assert course.course(1, "forget_quality") == [0.25, None, None, None]


def test_a_scoring_counts_for_the_model_that_is_there_now(load):
    given = load()
    steps = make_steps(given, parse)
    (watch,) = watches_of(given, steps, 2, ["m"], parse)
    leave(steps[1].run, "now", {})
    assert not is_watched(watch, steps)
    leave(watch.run, "before", {}, command="evaluate")
    assert not is_watched(watch, steps)
    leave(watch.run, "now", {}, command="evaluate")
    assert is_watched(watch, steps)
    other, *_ = watches_of(given, steps, 2, ["n"], parse)
    assert not is_watched(other, steps)  # other numbers were asked for
    # Of models that are not noted nobody knows whether they are one.
    leave(steps[1].run, None, {})
    leave(watch.run, None, {}, command="evaluate")
    assert not is_watched(watch, steps)


# The rows.


def data_of(settings):
    names = ("forget_split", "retain_split", "leave_out", "retain_results", "retain_model")
    return UnlearningDataModule("quickstart", **{n: settings[n] for n in names if n in settings})


def quickstart_counts(load, *requests):
    return counts_of(load(requests=[{"forget": f, "retain": r} for f, r in requests]))


def counts_of(given):
    return count_rows(given.requests, make_steps(given, parse), data_of)


def test_rows_are_counted_before_anything_is_trained(load):
    assert quickstart_counts(
        load, ("request1", "retain+request2+request3"), ("request2", "full"), ("forget", "retain")
    ) == [
        RowCounts(16, 0, 480 + 24, 0),
        # ``full`` holds all of the forget rows: those asked for so far are left out.
        RowCounts(16, 0, 480 + 8, 32),
        RowCounts(40, 32, 480, 0),
    ]
    assert str(RowCounts(40, 32, 480, 3)) == (
        "40 rows, 32 of them asked for before; 480 retain rows, 3 left out as they are asked for"
    )


def test_a_request_asks_for_something_new_and_leaves_something(load):
    with pytest.raises(InputError) as error:
        quickstart_counts(load, ("forget", "retain"), ("request2", "retain"))
    assert str(error.value) == (
        "requests.2.forget 'request2' asks for nothing new: all of its 16 rows were asked for by "
        "earlier requests. Put the smaller split first."
    )
    with pytest.raises(InputError, match=r"requests\.2: data\.leave_out 'request1\+request2' l"):
        quickstart_counts(load, ("request1", "retain"), ("request2", "request1"))
    with pytest.raises(InputError, match=r"requests\.2\.forget must be forget, request1, "):
        quickstart_counts(load, ("request1", "retain"), ("request4", "retain"))
    requests = [{"forget": "request1"}, {"forget": "request2", "retain_results": "nowhere"}]
    with pytest.raises(InputError, match=r"requests\.2\.retain_results: nowhere does not exist"):
        counts_of(load(requests=requests))
    assert set(REQUESTS) == {"request1", "request2", "request3"}


# What is read beside the rows.


def inputs_of(load, runs=False, watched="extraction_strength", **second):
    """Look at what two requests on the quickstart read; the second one is told."""
    given = load(
        requests=[
            {"forget": "request1", "retain_model": "quickstart:retain"},
            {"forget": "request2", **second},
        ],
        watched=[watched],
    )
    steps = make_steps(given, parse)
    watches = [watch_of(given, steps, 2, n, [watched], parse) for n in (1, 2)]
    check_inputs(given, steps, watches, data_of, runs=runs)


def refused_inputs(load, **second):
    with pytest.raises(InputError) as error:
        inputs_of(load, **second)
    return str(error.value)


def test_a_later_request_s_retain_model_is_looked_for_at_once(load, monkeypatch):
    asked = []
    monkeypatch.setattr("etw_lightning.sequences.inputs.hub_answers", lambda: False)
    monkeypatch.setattr("etw_lightning.models.loading.hub_answers", lambda: asked.append(1))
    inputs_of(load, retain_model="quickstart:retain")
    # A plan is made where the hub is out of reach; a run needs the model.
    inputs_of(load, retain_model="nobody/nothing-of-the-kind")
    assert not asked
    line = refused_inputs(load, runs=True, retain_model="nobody/nothing-of-the-kind")
    assert line.startswith("requests.2.retain_model 'nobody/nothing-of-the-kind' could not be lo")
    assert "--requests.2" not in line
    assert asked
    Path("half").mkdir()
    assert {
        name: refused_inputs(load, retain_model=name)[:60]
        for name in ("quickstart:retian", "~/no/where", "half", "none.gguf", "a/b/c")
    } == {
        "quickstart:retian": "requests.2.retain_model must be quickstart:target or quickst",
        "~/no/where": "requests.2.retain_model: there is no folder '~/no/where'; gi",
        "half": "requests.2.retain_model: folder 'half' holds no config.json;",
        "none.gguf": "requests.2.retain_model: there is no file 'none.gguf'.",
        "a/b/c": "requests.2.retain_model: there is no folder 'a/b/c'; give a ",
    }


def test_rows_are_read_at_once_as_they_are_watched(load):
    inputs_of(load, watched_as="request3")
    assert refused_inputs(load, watched_as="request4").startswith("requests.2.watched_as must be f")


@pytest.mark.filterwarnings("ignore:data.retain_results")
def test_records_of_other_rows_are_told_at_once(load):
    """The retain model's records of all forty rows are none of a request's sixteen."""
    for name, rows in (("whole", 40), ("own", 16)):
        save_records(name, {"forget": [Record("forget", f"forget/{n}", "a") for n in range(rows)]})
    inputs_of(load, watched="forget_quality", retain_results="own")
    line = refused_inputs(load, watched="forget_quality", retain_results="whole")
    assert line.startswith(
        "requests.2.retain_results: whole holds 40 rows of 'forget', this run scores 16: it was "
        "made for another forget split; "
    )
    # They do not matter where no number of the rows asks for them.
    inputs_of(load, retain_results="whole")


# What is told.


@pytest.fixture
def gone(load):
    """Two of three requests that are done, with numbers that say where they come from."""
    given = load(columns=["model_utility"])
    steps = make_steps(given, parse)
    names = given.watched
    for step, model in zip(steps[:2], "ab", strict=True):
        k = step.number
        own = dict(zip(names, (k / 10, k / 100), strict=True))
        before = dict(zip(names, (0.0001, 0.9), strict=True))
        leave(step.run, model, {**own, "model_utility": 0.6}, before)
    (watch,) = watches_of(given, steps, 2, ["m"], parse)
    numbers = {"forget_quality": 0.05, "forget_probability": 0.31}
    leave(watch.run, "b", numbers, command="evaluate")
    return given, steps


COUNTS = [RowCounts(16, 0, 504, 0), RowCounts(16, 2, 488, 0), RowCounts(8, 0, 480, 0)]


def test_a_request_s_rows_are_followed(gone):
    course = Course(*gone)
    assert [step.number for step in course.done] == [1, 2]
    assert course.course(1, "forget_probability") == [0.9, 0.01, 0.31, None]
    assert course.course(2, "forget_probability") == [None, 0.9, 0.02, None]
    assert course.course(3, "forget_probability") == [None] * 4
    assert course.line(gone[1][1]) == (
        "request 2 of 3, sust/two: model_utility 0.600; since, request 1: forget_quality 0.050, "
        "forget_probability 0.310"
    )


def test_what_comes_after_a_request_that_is_not_done_is_not_done(gone):
    given, steps = gone
    (steps[0].run.folder / "results.json").unlink()
    assert Course(given, steps).done == []


def test_the_tables_say_what_was_forgotten_and_what_came_back(gone):
    course = Course(*gone)
    lines = course.as_markdown(COUNTS).splitlines()
    assert "| 2 | sust/two | 16, 2 again | 0.600 |" in lines
    assert f"| 3 | request3 | 8 | {MISSING} |" in lines
    head = lines.index("forget_probability of each request's rows; bold once they are forgotten.")
    assert lines[head + 2 : head + 7] == [
        "| request | forgets | before | after 1 | after 2 | after 3 | since |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        f"| 1 | request1 | 0.900 | **0.010** | 0.310 | {MISSING} | +0.300 |",
        f"| 2 | sust/two | {MISSING} | 0.900 | **0.020** | {MISSING} | {MISSING} |",
        f"| 3 | request3 | {MISSING} | {MISSING} | {MISSING} | {MISSING} | {MISSING} |",
    ]
    assert any("| 1.0e-04 | **0.100** | 0.050 |" in line for line in lines)


def test_what_is_written_can_be_read_by_machines_and_seen(gone):
    course = Course(*gone)
    assert course.write(COUNTS) == Path("out/report.md").read_text().rstrip("\n")
    found = json.loads(Path("out/sequence.json").read_text())
    assert (found["command"], found["finished"]) == ("sequence", False)
    one, two, three = found["requests"]
    assert one["rows"] == {"forget": 16, "asked_before": 0, "retain": 504, "left_out": 0}
    assert (one["model"], two["folder"], three["numbers"]) == ("a", "2_sust-two", None)
    assert one["numbers"] == {"model_utility": 0.6}
    assert one["watched"]["2"] == {"forget_quality": 0.05, "forget_probability": 0.31}
    assert list(one["watched"]) == ["0", "1", "2"]
    assert three["watched"] == {}
    course.write(COUNTS)
    (board,) = Path("out/course").iterdir()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(board))
    curves.Reload()
    known = curves.Scalars("forget_probability of each request/1 request1")
    assert [(one.step, round(one.value, 6)) for one in known] == [(0, 0.9), (1, 0.01), (2, 0.31)]
    assert [one.step for one in curves.Scalars("after each request/model_utility")] == [1, 2]


def test_a_report_keeps_what_a_run_has_noted_since(gone):
    given, steps = gone
    reporting, running = Course(given, steps), Course(given, steps)
    running.begin(steps[1])
    running.write(COUNTS)
    reporting.write(COUNTS)
    found = json.loads(Path("out/sequence.json").read_text())["requests"]
    assert [one["started_from"] for one in found] == [None, "a", None]


def test_a_run_from_another_model_than_there_is_now_is_refused(gone):
    given, steps = gone
    course = Course(given, steps)
    course.check_start(steps[1])  # nothing is noted of it
    course.begin(steps[1])
    course.write(COUNTS)
    again = Course(given, steps)
    again.check_start(steps[1])
    leave(steps[0].run, "c", {})
    with pytest.raises(InputError) as error:
        again.check_start(steps[1])
    assert str(error.value) == (
        "'out/2_sust-two' started from another model than 'out/1_request1' holds now; remove it "
        "and those after it, and the same command runs them again."
    )
    again.check_start(steps[0])
