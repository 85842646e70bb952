"""A point is chosen on some forget rows and reported on the others, by some seeds or all."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from etw_lightning.commands import sweep as command
from etw_lightning.metrics import forget_quality, privleak
from etw_lightning.metrics.membership import min_k_auc
from etw_lightning.schema import InputError
from etw_lightning.scoring.retain_results import load_set
from etw_lightning.sweeps import parts as sweep_parts
from etw_lightning.sweeps.choice import choose_all, gather, rule
from etw_lightning.sweeps.grid import load_sweep
from etw_lightning.sweeps.parts import check_parts, in_part, part_numbers, rows_of
from etw_lightning.sweeps.reading import with_keys
from etw_lightning.sweeps.report import report
from etw_lightning.sweeps.rules import Validation, read_frontier
from etw_lightning.sweeps.run_records import RunRecords
from etw_lightning.sweeps.runs import Finished, expand

SWEEP = {
    "config": ["run.yaml"],
    "output_dir": "out",
    "methods": {"etw": {"model.lambda": [0.1, 0.2]}},
    "grid": {"seed_everything": [0, 1]},
    "select": {"maximise": "forget_quality", "validation": {"block": 4, "every": 3}},
    "columns": ["forget_quality", "model_utility"],
}
#: Twelve rows in three blocks: those of the retain model, and those far from it.
NEAR = [0.1 * row for row in range(12)]
FAR = [5 + 0.1 * row for row in range(12)]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a sweep's file, changed in some keys, with the files it names."""
    monkeypatch.chdir(tmp_path)
    Path("configs/method").mkdir(parents=True)
    for path in ("run.yaml", "configs/method/etw.yaml", "configs/method/ga.yaml"):
        Path(path).write_text("model: {}\n")

    def call(select=None, **changes):
        given = {**SWEEP, **changes, "select": {**SWEEP["select"], **(select or {})}}
        Path("sweep.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
        return load_sweep("sweep.yaml")

    return call


def parse(words):
    pairs = list(zip(words[1::2], words[2::2], strict=False))
    return {key: value for key, value in pairs if key.count(".")} | {
        "seed_everything": dict(pairs).get("--seed_everything"),
        "method": [value for key, value in pairs if key == "--config"],
    }


def runs_of(sweep):
    return with_keys(expand(sweep), parse)


def mixed(validation, test):
    """Return rows of which the validation part is of one kind and the others of another."""
    return [*test[:8], *validation[8:]]


def test_parts_are_whole_blocks():
    parts = Validation(20, 4)
    held = rows_of(400, parts, "validation")
    assert held[:2] == [60, 61]
    assert {row // 20 for row in held} == {3, 7, 11, 15, 19}
    assert len(held) == 100
    assert sorted([*held, *rows_of(400, parts, "test")]) == list(range(400))
    assert rows_of(400, parts, "all") == rows_of(400, None, "test") == list(range(400))
    # The last block may be shorter.
    assert rows_of(5, Validation(2, 3), "validation") == [4]


@pytest.mark.parametrize(
    ("n", "block", "every", "line"),
    [
        (60, 20, 4, "select.validation.block must be at most 19 with every: 4, so that one of the "
         "60 forget rows is in the validation part; got {block: 20, every: 4}."),
        (3, 2, 9, "select.validation.every must be at most 3 with block: 1, so that one of the 3 "
         "forget rows is in the validation part; got {block: 2, every: 9}."),
        (1, 1, 2, "select.validation must be left out, so that one of the 1 forget rows is in the "
         "validation part; got {block: 1, every: 2}."),
    ],
)  # fmt: skip
def test_a_part_without_rows_is_refused_with_what_would_do(n, block, every, line):
    with pytest.raises(InputError) as error:
        rows_of(n, Validation(block, every), "validation")
    assert str(error.value) == line
    # What is named would do, and no more.
    if n > 1:
        most = int(line.split("at most ")[1].split()[0])
        one, more = (
            (Validation(size, every) if "block must" in line else Validation(1, size))
            for size in (most, most + 1)
        )
        assert rows_of(n, one, "validation")
        with pytest.raises(InputError):
            rows_of(n, more, "validation")


class Rows:
    """Forget rows of TOFU's shape, as many as a setting says; none can be read where it is 0."""

    family, set_names = "tofu", ("forget", "retain")

    def __init__(self, settings):
        self.count = settings["count"]

    def num_offered(self, name):
        assert name == "forget"
        if not self.count:
            raise InputError("data.root: no rows.")
        return self.count


def test_blocks_are_held_against_the_rows_before_anything_runs(write):
    given = write()
    made = []

    def make(settings):
        made.append(settings)
        return Rows(settings)

    def look(*counts, whole=True):
        runs = [
            replace(run, settings={"data": {"count": count, "seed": run.seed}})
            for run, count in zip(runs_of(given), counts, strict=False)
        ]
        return check_parts(given, runs, make, whole=whole)

    # Rows are read once for all seeds.
    assert look(12, 12, 12, 12) == ""
    assert made == [{"count": 12}]
    with pytest.raises(InputError, match=r"block must be at most 3 with every: 3.* 8 forget rows"):
        look(12, 12, 8, 8)
    with pytest.raises(InputError, match=r"^data\.root: no rows"):
        look(0)
    assert look(0, whole=False) == (
        "select.validation is not held against the forget rows: data.root: no rows."
    )


@pytest.mark.parametrize(
    ("family", "metric", "columns"),
    [
        ("muse", "verbmem", ["privleak", "knowmem_forget_rougeL_recall"]),
        ("dusk", "verbmem", ["privleak"]),
        ("tofu", "model_utility", ["retain_probability"]),
    ],
)
def test_a_part_that_no_number_is_made_of_is_refused(
    write, leave_run, monkeypatch, family, metric, columns
):
    """The report would say that a point was chosen on other rows than it is judged by."""
    given = write({"maximise": metric}, columns=columns)
    runs = runs_of(given)
    asked = [replace(run, settings={"data": {"count": 12}}) for run in runs]
    monkeypatch.setattr(Rows, "family", family)
    said = f"none of the numbers .* here: {metric}, {', '.join(columns)}. Leave select.validation"
    with pytest.raises(InputError, match=said):
        check_parts(given, asked, Rows, whole=True)
    leave_run(runs[0], NEAR)
    monkeypatch.setattr(sweep_parts, "_family", lambda folder: family)
    with pytest.raises(InputError, match=said):
        report(given, runs)


def test_a_point_is_chosen_on_the_one_part_and_reported_on_the_other(write, leave_run):
    given = write()
    runs = runs_of(given)
    for run in runs[:2]:
        leave_run(run, mixed(NEAR, FAR), forget_quality=0.5)
    for run in runs[2:]:
        leave_run(run, mixed(FAR, NEAR), forget_quality=0.9)
    chosen, keeps = choose_all(gather(runs), given.select)["etw"]
    assert chosen.values == (("lambda", "0.1"),)
    assert keeps
    text = report(given, runs)
    # The eight test rows of lambda .1 lie wholly above the retain model's: 2 / C(16, 8).
    assert "| etw | lambda 0.1 | 2 | 1.6e-04 (-3.81 ± 0.00) |" in text
    assert "on the validation part of the forget rows (every 3rd block of 4)." in text
    # By all rows it would be the other one.
    other = write({"validation": None})
    assert choose_all(gather(runs), other.select)["etw"][0].values == (("lambda", "0.2"),)


def test_numbers_of_a_part_are_those_of_its_rows(write, leave_run):
    given = write()
    run = runs_of(given)[0]
    leave_run(run, mixed(NEAR, FAR))
    rows = {who: {name: load_set(run.folder / who / "records" / f"{name}.jsonl.gz")
                  for name in ("forget", "holdout")} for who in ("", "retain_model")}  # fmt: skip
    mine, retain = (
        [rows[who]["forget"][place] for place in range(8)] for who in ("", "retain_model")
    )
    finished = Finished(run.folder, json.loads((run.folder / "results.json").read_text()))
    names = ["forget_quality", "privleak", "forget_repetition_4", "model_utility"]
    found = part_numbers(finished, names, RunRecords(), "test", given.select.validation)
    assert found["forget_quality"].value == forget_quality(mine, retain).p_value
    auc = min_k_auc(retain, rows["retain_model"]["holdout"])
    assert found["privleak"].value == privleak(mine, rows[""]["holdout"], auc).value
    assert found["forget_repetition_4"].n == 8
    # Utility is of other rows, and so the run's own.
    assert found["model_utility"].value == finished.number("model_utility")
    target = part_numbers(
        finished, ["forget_quality"], RunRecords(), "validation", given.select.validation, "target"
    )
    # Four rows, all above the retain model's: 2 / C(8, 4).
    assert target["forget_quality"].value == pytest.approx(2 / 70)


def test_a_share_of_the_target_is_of_the_part_too(write, leave_run):
    given = write({"subject_to": {"forget_probability": {"at_least_of_target": 0.5}}})
    run = runs_of(given)[0]
    leave_run(run, NEAR, loss=1.0)
    point = in_part(gather([run]), given.select, "validation", given.select.metrics)[0]
    # The target model's losses are lower by .9 in each row.
    assert point.share("forget_probability") == pytest.approx(math.exp(-0.9))


def test_what_a_folder_lacks_is_named(write, leave_run):
    given = write()
    run = runs_of(given)[0]
    leave_run(run, NEAR)
    (run.folder / "retain_model/records/forget.jsonl.gz").unlink()
    with pytest.raises(
        InputError, match=r"retain_model/records/forget.jsonl.gz is missing: what the retain model"
    ):
        choose_all(gather(runs_of(given)), given.select)
    other = write({"maximise": "token_auc_etw"})
    with pytest.raises(InputError, match="token_auc_etw can't be computed of some rows"):
        choose_all(gather(runs_of(other)), other.select)
    (run.folder / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"config.yaml must name a data.benchmark of tofu,"):
        choose_all(gather(runs_of(given)), given.select)


def test_some_seeds_choose_and_the_others_are_run_where_it_is_chosen(
    write, leave_run, monkeypatch, capsys
):
    given = write({"seeds": [0]})
    runs = runs_of(given)
    started = []

    def run_all(some, jobs):
        started.append([run.name for run in some])
        for run in some:
            leave_run(run, mixed(NEAR, FAR) if "0.2" in run.name else FAR)
        return 0

    monkeypatch.setattr(command, "run_all", run_all)
    command.plan(given, runs, {})
    assert "# if its point is chosen: python" in (said := capsys.readouterr().out)
    assert "# 2 of 4 runs to do" in said
    assert command._run(given, runs, 1) == 0
    assert started == [["etw_lambda0.1_seed0", "etw_lambda0.2_seed0"], ["etw_lambda0.2_seed1"]]
    started.clear()
    assert command._run(given, runs, 1) == 0
    assert started == [[], []]
    text = report(given, runs)
    assert "| etw | lambda 0.2 | 2 |" in text
    assert ", by seed 0, on the validation part" in text
    assert rule(given.select) in text


def test_a_chosen_run_that_equals_one_that_was_not_is_run(write, leave_run, monkeypatch):
    given = write({"seeds": [0]}, methods={"etw": {"model.lambda": [0.1, 0.2]}, "ga": {}})
    runs = runs_of(given)
    # What ga would do with seed 1 is what a point of etw that is not chosen would do.
    key = next(run for run in runs if run.name == "etw_lambda0.1_seed1")
    twin = next(run for run in runs if run.name == "ga_seed1")
    object.__setattr__(twin, "key", key.key)
    object.__setattr__(twin, "equal_to", key.name)
    started = []

    def run_all(some, jobs):
        started.extend(run.name for run in some)
        for run in some:
            leave_run(run, FAR if "0.1" in run.name else NEAR)
        return 0

    monkeypatch.setattr(command, "run_all", run_all)
    command._run(given, runs, 1)
    assert started[3:] == ["etw_lambda0.2_seed1", "etw_lambda0.1_seed1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select": {"validation": {"block": 4}}},
         r"select.validation.every must be a whole number >= 2; got None"),
        ({"select": {"validation": {"block": 0, "every": 2}}},
         r"select.validation.block must be a whole number >= 1; got 0"),
        ({"select": {"validation": {"blocks": 4}}},
         r"select.validation.blocks is not known. Did you mean select.validation.block\?"),
        ({"select": {"validation": 0.25}}, r"select.validation must hold pairs"),
        ({"select": {"seeds": [7]}},
         r"select.seeds must be among seed_everything of every method; etw has 0, 1, not 7"),
        ({"select": {"seeds": 0}}, r"select.seeds must be a list of seeds, as \[0\]; got 0"),
        ({"frontier": {"baseline": "gaa"}},
         r"frontier.baseline must be one of the methods, etw; got 'gaa'"),
        ({"frontier": {"baseline": ["etw"]}},
         r"frontier.baseline must be one of the methods, etw; got \['etw'\]"),
        ({"frontier": []}, r"frontier must hold pairs `name: value`; got \[\]"),
        ({"select": {"seeds": [0, 0]}}, r"select.seeds must hold each seed once; got 0 more often"),
        ({"select": {"subject_to": []}}, r"select.subject_to must hold pairs"),
        ({"select": {"subject_to": {"model_utility": {"at_least": float("nan")}}}},
         r"select.subject_to.model_utility.at_least must be a finite number; got nan"),
        ({"select": {"subject_to": {"model_utility": {}}}},
         r"select.subject_to.model_utility must hold at_least or at_most or at_least_of_target;"),
        ({"methods": {"etw": []}}, r"methods.etw must hold pairs `name: value`; got \[\]"),
        ({"methods": ["etw", "etw"]}, r"methods must hold each name once; got 'etw' more often"),
        ({"settings": []}, r"settings must hold pairs"),
        ({"grid": 0}, r"grid must hold pairs"),
        ({"search": False}, r"search must hold pairs"),
        ({"frontier": {"floor": 1}}, r"frontier.floor must be a number from 0 to below 1; got 1"),
        ({"frontier": {"draws": 99}}, r"frontier.draws must be a whole number from 100 to 20"),
        ({"frontier": {"draws": 20001}}, r"frontier.draws must .* to 20000; got 20001\. More take"),
        ({"frontier": {"flor": 1}}, r"frontier.flor is not known. Did you mean frontier.floor\?"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(write, changes, message):
    with pytest.raises(InputError, match=message):
        write(**changes)


def test_a_search_runs_all_seeds_of_a_point(write):
    from etw_lightning.sweeps.search import Searches

    given = write({"seeds": [0]})
    with pytest.raises(InputError, match=r"select.seeds must be left out of a search"):
        Searches(given, parse, 0)


@pytest.mark.parametrize("given", [{"draws": 100}, {"draws": 20_000}, {"floor": 0}])
def test_the_ends_of_what_a_frontier_takes_are_taken(given):
    found = read_frontier(given, ["etw"])
    assert {key: getattr(found, key) for key in given} == given
