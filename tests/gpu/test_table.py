"""The program that makes the table of methods on a GPU: its plan, its state, and a smallest run."""

import json
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import table
import torch
import yaml

from etw_lightning.sweeps.choice import Point

SLEEP = ["sleep", "60"]


def options(tmp_path, *more):
    folders = ("--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"))
    return ["--root", "DIR", "--device", "cpu", *folders, *more]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_run(tmp_path, capsys):
    words = ["--root", "DIR", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert table.main(words) == table.FAILED
    assert "--device cpu --small" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_plan_is_of_runs_that_can_be_parsed(tmp_path, capsys):
    """Each of its lines is read as ``fit`` reads it before it is printed."""
    assert table.main(options(tmp_path, "--small", "--plan")) == table.DONE
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 + len(table.GRID) == 11
    assert all(line[:2] == ["etw", "fit"] for line in lines)
    target, retain = lines[:2]
    assert target[target.index("--data.split") + 1] == "retain90+forget10"
    assert retain[retain.index("--data.split") + 1] == "retain90"


def test_all_rows_are_taken_and_each_method_has_its_lambdas(tmp_path):
    given = table.parsed(options(tmp_path))
    made = table.Table(given)
    sweep = table.sweep_file(given, made.lambdas, made.seeds[:1])
    rows = sweep["settings"]["data.rows"]
    assert (rows["forget10"], rows["retain90"]) == (400, 800)
    assert set(sweep["methods"]) == {
        *("ga", "wga", "satimp", "scn", "npo", "simnpo", "etw", "etw_npo", "random"),
    }
    assert all(len(one["model.forget_weight"]) == 3 for one in sweep["methods"].values())
    with pytest.raises(SystemExit):
        table.parsed(options(tmp_path, "--rows", "401"))


def leave(folder, finished=True, **metrics):
    folder.mkdir(parents=True)
    numbers = {name: {"value": value} for name, value in metrics.items()}
    (folder / "results.json").write_text(json.dumps({"finished": finished, "metrics": numbers}))
    (folder / "config.yaml").write_text("model: {}\n")


def test_the_state_holds_what_is_finished_and_no_weights(tmp_path):
    given = table.parsed(options(tmp_path))
    leave(given.work / "runs" / "ga", forget_quality=0.1)
    leave(given.work / "runs" / "etw", finished=False)
    leave(given.work / "target")
    leave(given.work / "retain")
    (given.work / "target" / "model").mkdir()
    (given.work / "target" / "model" / "model.safetensors").write_text("weights")
    (given.work / "retain" / "records").mkdir()
    (given.work / "retain" / "records" / "forget.jsonl.gz").write_text("said")
    table.Table(given).keep()
    state = given.out / "state"
    kept = sorted(str(one.relative_to(state)) for one in state.rglob("*") if one.is_file())
    assert kept == [
        "retain/config.yaml",
        "retain/records/forget.jsonl.gz",
        "retain/results.json",
        "runs/ga/config.yaml",
        "runs/ga/results.json",
        "target/config.yaml",
        "target/results.json",
    ]
    new = table.parsed(options(tmp_path / "new", "--state", str(state)))
    table.Table(new).restore()
    assert (new.work / "runs" / "ga" / "results.json").is_file()


def test_a_machine_that_lost_the_target_trains_it_again_and_nothing_else(tmp_path, monkeypatch):
    made = table.Table(table.parsed(options(tmp_path)))
    leave(made.given.work / "target")
    leave(made.given.work / "retain")
    calls = []
    monkeypatch.setattr(made, "start", lambda words: calls.append(words) or 0)
    assert made.models() == table.DONE
    (words,) = calls
    assert words[words.index("--output_dir") + 1].endswith("/target")
    assert words[-1] == "--overwrite"


def test_a_piece_ends_with_its_time(tmp_path, monkeypatch):
    begin = subprocess.Popen
    waiting = SimpleNamespace(**{**vars(subprocess), "Popen": lambda *_, **__: begin(SLEEP)})
    monkeypatch.setattr(table, "subprocess", waiting)
    made = table.Table(table.parsed(options(tmp_path, "--minutes", "0")))
    assert made.start(["fit"]) == table.MORE


def test_a_row_is_the_median_and_the_range_over_seeds():
    values = {"forget_quality": [0.1, 0.5, 0.2], "model_utility": [0.5, 0.55, 0.58]}

    class Known(Point):
        found = (1, 2, 3)

        def numbers(self, metric, *, of_target=False):
            return [0.6] * 3 if of_target else values.get(metric, [])

    row = table.row_of(Known("etw", (("lambda", "0.05"),)), keeps=False)
    assert row["forget_quality"] == [0.2, 0.1, 0.5]
    assert row["utility_lost_points"] == pytest.approx([5, 2, 10])
    found = {"target": {"forget_quality": 1e-9}, "retain": {}, "methods": [row]}
    text = table.as_markdown({**found, "rows": 400, "seeds": [0, 1, 2]})
    assert "| target |  | 1e-09 |" in text
    assert "| etw | 0.05 * | 0.2 (0.1 to 0.5) | 0.55 (0.5 to 0.58) |" in text
    assert "400 forget rows, seeds [0, 1, 2]; median (lowest to highest)" in text


def test_a_model_is_joined_of_its_parts(tmp_path):
    for part, text in (("aa", "one"), ("ab", "two")):
        (tmp_path / f"m.gguf.part-{part}").write_text(text)
    table.join_model(tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "onetwo"
    table.join_model(tmp_path / "other.gguf")
    assert not (tmp_path / "other.gguf").exists()


@pytest.mark.slow
def test_the_smallest_table_is_made_in_pieces(tmp_path, data_dir, tiny_model_dir, capfd):
    words = options(tmp_path, "--small", "--rows", "4", "--methods", "ga", "etw", "--jobs", "1")
    words += ["--root", str(data_dir / "tofu"), "--model", str(tiny_model_dir)]
    assert table.main([*words, "--minutes", "0"]) == table.MORE
    assert table.main([*words, "--minutes", "60"]) == table.DONE, capfd.readouterr()
    found = json.loads(Path(tmp_path / "out" / "table.json").read_text())
    assert [row["method"] for row in found["methods"]] == ["ga", "etw"]
    assert all(row["seeds"] == 2 for row in found["methods"])
    for name in table.COLUMNS:
        assert all(name in row for row in found["methods"]), name
    assert "| etw | 0.05" in (tmp_path / "out" / "table.md").read_text()
    assert yaml.safe_load((tmp_path / "work" / "seeds2.yaml").read_text())["methods"]
