"""Runs put together of parts have the settings that a whole parse gives, or are parsed whole."""

import sys
from pathlib import Path

import pytest

from etw_lightning.runs.key import run_key
from etw_lightning.schema import InputError
from etw_lightning.sweeps import reading
from etw_lightning.sweeps.reading import with_keys
from etw_lightning.sweeps.runs import Run

NUMBERS = {"GA": {}, "NPO": {"beta": 0.1}, "SimNPO": {"beta": 4.5, "delta": 0.0}}


def parse(words):
    """Read words as a parser would: a class has its own arguments, and ``both`` changes two."""
    pairs = list(zip(words[1::2], words[2::2], strict=True))
    objective = dict(pairs)["--config"]
    model = {
        "lr": 1e-4,
        "warmup": 0.0,
        "forget": {"class_path": objective, "init_args": dict(NUMBERS[objective])},
    }
    settings = {"seed_everything": 0, "model": model, "trainer": {"max_epochs": 5}}
    for word, value in pairs:
        key = word.removeprefix("--")
        if value == "bad":
            raise InputError(f"{key} is bad")
        if key == "seed_everything":
            settings[key] = int(value)
        elif key == "model.forget.beta":
            if objective == "GA":
                raise InputError(f"{key} is not known")
            model["forget"]["init_args"]["beta"] = float(value)
        elif key == "both":
            model["lr"], model["warmup"] = float(value), float(value)
        elif key == "trainer.max_epochs":
            # As where one setting follows from two.
            settings["trainer"]["max_epochs"] = int(value) * (1 + settings["seed_everything"] % 2)
        elif key.startswith("model."):
            model[key.removeprefix("model.")] = float(value)
    return settings


def run_of(method, *options):
    base = ("fit", "--config", method)
    own = tuple((key, (f"--{key}", str(value))) for key, value in options)
    words = [*base, *(word for _, option in own for word in option), "--output_dir", "out"]
    name = "_".join([method, *(str(value) for _, value in options)])
    return Run(name, method, (), (), "", tuple(words), Path("out") / name, base, own)


def grid(method, **axes):
    runs = [()]
    for key, values in axes.items():
        runs = [(*run, (key.replace("__", "."), value)) for run in runs for value in values]
    return [run_of(method, *run) for run in runs]


def keys_of(runs):
    """Return the keys that are found, and how often the parser was asked."""
    asked = []

    def counted(words):
        asked.append(words)
        return parse(words)

    return [run.key for run in with_keys(runs, counted)], len(asked)


def test_what_two_values_do_together_alone_is_found_by_the_first_run():
    """Each of both changes nothing else beside the last run's values; the first run has both."""

    def parse(words):
        held = dict(zip(words[1::2], words[2::2], strict=True))
        one, two = held["--model.one"], held["--model.two"]
        return {"model": {"one": one, "two": two, "both": one == two == "1"}}

    runs = grid("GA", model__one=[1, 2], model__two=[1, 2])
    assert [run.settings["model"]["both"] for run in with_keys(runs, parse)] == [
        *(True, False, False, False),
    ]


def test_a_value_that_changes_another_setting_is_parsed_whole():
    """Of the seeds 1, 2 and 3 the first and the last leave the same epochs, 2 leaves others."""
    runs = grid("GA", seed_everything=[1, 2, 3], trainer__max_epochs=[5])
    assert keys_of(runs)[0] == [run_key(parse(run.words)) for run in runs]
    assert [parse(run.words)["trainer"]["max_epochs"] for run in runs] == [10, 5, 10]


def test_a_class_reads_a_value_in_its_own_way():
    """Equal words are a whole number to the one and none to the other."""

    def parse(words):
        held = dict(zip(words[1::2], words[2::2], strict=True))
        kind = int if held["--config"] == "GA" else float
        return {"model": {"forget": {"beta": kind(held["--model.forget.beta"])}}}

    runs = [run for name in ("GA", "NPO") for run in grid(name, model__forget__beta=[1, 2, 3])]
    assert [run.key for run in with_keys(runs, parse)] == [
        run_key(parse(run.words)) for run in runs
    ]


def test_many_runs_are_read_with_few_parses():
    seeds, rates = range(10), [10.0**-power for power in range(1, 6)]
    runs = [
        run for method in NUMBERS for run in grid(method, model__lr=rates, seed_everything=seeds)
    ]
    found, count = keys_of(runs)
    assert found == [run_key(parse(run.words)) for run in runs]
    # Each method's last run and its first, and each value but the last's once for all methods.
    assert count == len(rates) - 1 + len(seeds) - 1 + 2 * len(NUMBERS)
    whole = grid("GA", model__lr=[1e-4], seed_everything=[3])
    assert keys_of(whole) == ([run_key(parse(whole[0].words))], 1)


def test_a_run_that_leaves_out_what_others_set_is_parsed_whole():
    runs = [
        *grid("GA", model__lr=[1e-4], seed_everything=[1, 2]),
        *grid("GA", model__lr=[1e-4]),
        *grid("GA", model__lr=[1e-4], seed_everything=[3]),
    ]
    found, _ = keys_of(runs)
    assert found == [run_key(parse(run.words)) for run in runs]
    assert len(set(found)) == 4


def test_arguments_of_a_class_are_read_for_each_method():
    runs = [
        run
        for method in ("NPO", "SimNPO")
        for run in grid(method, model__forget__beta=[0.1, 1, 4.5], seed_everything=[0, 1])
    ]
    found, _ = keys_of(runs)
    assert found == [run_key(parse(run.words)) for run in runs]


@pytest.mark.parametrize(
    "axes",
    [
        {"both": [1e-3, 1e-2], "model__lr": [1e-5, 1e-4]},
        {"seed_everything": [2, 3], "trainer__max_epochs": [1, 2]},
        {"trainer__max_epochs": [1, 2], "seed_everything": [2, 3]},
        {"seed_everything": [3, 2], "trainer__max_epochs": [2, 1]},
    ],
    ids=["one changes two settings", "one follows from two", "the other way", "backwards"],
)
def test_settings_that_depend_on_one_another_are_parsed_whole(axes):
    runs = grid("GA", **axes)
    found, _ = keys_of(runs)
    assert found == [run_key(parse(run.words)) for run in runs]
    assert len(set(found)) > 1


def test_a_bad_value_is_told_of_the_first_run_that_has_it():
    runs = grid("GA", seed_everything=[0, 1], model__lr=[1e-3, "bad"])
    with pytest.raises(InputError, match=r"model\.lr is bad \(run GA_0_bad\)"):
        keys_of(runs)
    runs = [*grid("NPO", model__forget__beta=[1]), *grid("GA", model__forget__beta=[1])]
    with pytest.raises(InputError, match=r"is not known \(run GA_1\)"):
        keys_of(runs)


def test_without_a_terminal_a_line_a_minute_tells_how_many_runs_are_read(monkeypatch, capsys):
    """Of ten seconds a run: after 60 seconds, 120, ..., and nothing of few runs."""
    seconds = iter(range(0, 10_000, 10))
    monkeypatch.setattr(reading.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    runs = [object() for _ in range(60)]
    assert list(reading._shown(runs)) == runs
    lines = capsys.readouterr().err.splitlines()
    # The clock is read once a run, and once more for each line.
    assert lines[0] == "reading the runs: 5 of 60"
    assert len(lines) == 10
    assert all(line.endswith(" of 60") for line in lines)
    assert list(reading._shown(runs[:49])) == runs[:49]
    assert capsys.readouterr().err == ""
