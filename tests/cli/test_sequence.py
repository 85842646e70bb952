"""``sequence`` from end to end, on a few rows of TOFU's shape and tiny models."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from faults import ForkedProgram

ROOT = Path(__file__).resolve().parents[2]
SEQUENCE = {
    "config": ["configs/tofu_forget10.yaml", "small.yaml"],
    "output_dir": "out",
    "requests": [
        {"forget": "forget01", "retain": "full"},
        {"forget": "forget05-forget01", "retain": "full"},
    ],
    "columns": ["forget_quality", "model_utility"],
    "watched": ["forget_quality", "forget_probability", "extraction_strength"],
}
LAST = SEQUENCE["requests"][1]


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_rows, corpus, small_tofu):
    """A folder with a sequence of two requests: two rows, then two more."""
    folder = tmp_path_factory.mktemp("sequence")
    (folder / "configs").symlink_to(ROOT / "configs")
    rows = folder / "rows"
    for tail in ("", "_perturbed"):
        write_rows(rows / f"forget01{tail}.jsonl", corpus[f"forget{tail}"][2:4])
        write_rows(rows / f"forget05{tail}.jsonl", corpus[f"forget{tail}"][:4])
    write_rows(rows / "full.jsonl", [*corpus["retain"][:6], *corpus["forget"][:4]])
    write_rows(rows / "retain_perturbed.jsonl", corpus["retain_perturbed"][:3])
    for name in ("real_authors_perturbed", "world_facts_perturbed"):
        write_rows(rows / f"{name}.jsonl", corpus[name][:2])
    for name, some in (("holdout01", slice(2)), ("holdout05", slice(4))):
        write_rows(rows / f"{name}.jsonl", corpus["holdout"][some])
    callbacks = [
        {"class_path": f"etw_lightning.callbacks.{name}", "init_args": {"every_n_epochs": 1}}
        for name in ("ForgetQuality", "ModelUtility")
    ]
    (folder / "small.yaml").write_text(yaml.safe_dump(small_tofu(rows, callbacks)))
    (folder / "requests.yaml").write_text(yaml.safe_dump(SEQUENCE, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETW_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


def run(command, sub, *words):
    """Run a sequence whose runs are forked."""
    forking = SimpleNamespace(**{**vars(subprocess), "Popen": ForkedProgram})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("etw_lightning.sweeps.processes.subprocess", forking)
        return command("sequence", sub, "--config", "requests.yaml", *words)


def test_a_plan_counts_rows_and_runs_nothing(place, command):
    out = run(command, "plan", "--output_dir", "planned")
    assert (out.status, out.err) == (0, "")
    told, first, again, second, watch = out.out.splitlines()
    assert told == (
        "# request 1, forget01: 2 rows; 8 retain rows, 2 left out as they are asked for"
    )
    assert again == (
        "# request 2, forget05-forget01: 2 rows; 6 retain rows, 4 left out as they are asked for"
    )
    assert first.endswith("--data.leave_out forget01 --output_dir planned/1_forget01")
    assert "--model.pretrained planned/1_forget01/model " in second
    assert watch.startswith("python -m etw_lightning evaluate ")
    assert not (place / "planned").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"watched": ["forget_qality"]},
            "error: watched must name numbers of results.json; got 'forget_qality'. Did you mean",
        ),
        (
            {"requests": [{"forget": one, "retain": "full"} for one in ("forget05", "forget01")]},
            "error: requests.2.forget 'forget01' asks for nothing new: all of its 2 rows",
        ),
        (
            {"requests": [{"forget": "forget01", "retain": "full"}, {"forget": "forget02"}]},
            "error: requests.2.forget must be forget01, ",
        ),
        (
            {"requests": [SEQUENCE["requests"][0], {**LAST, "retain_model": "./nowhere"}]},
            "error: requests.2.retain_model: there is no folder './nowhere'; give a folder saved ",
        ),
        (
            {"requests": [SEQUENCE["requests"][0], {**LAST, "watched_as": "forget02"}]},
            "error: requests.2.watched_as must be forget01, ",
        ),
        (
            {"watched_with": {"data.rows": {"forget01": 9}}},
            "error: requests.1: watched_with.data.rows.forget01 is 9, but forget01 has 2 rows; ",
        ),
        (
            {"watched": ["verbmem"]},
            "error: requests.1: watched: verbmem is not defined for data.benchmark tofu",
        ),
    ],
    ids=["number", "nothing-new", "split", "retain-model", "watched-as", "watched-with", "watched"],
)
@pytest.mark.parametrize("sub", ["plan", "run"])
def test_bad_input_is_refused_before_anything_runs(place, command, change, line, sub):
    (place / "bad.yaml").write_text(yaml.safe_dump({**SEQUENCE, **change}))
    out = command("sequence", sub, "--config", "bad.yaml", "--output_dir", "bad")
    assert (out.status, out.out) == (2, "")
    assert out.err.startswith(line)
    assert out.err.count("\n") == 1
    assert not (place / "bad").exists()


@pytest.mark.parametrize("sub", ["plan", "run", "report"])
def test_a_folder_of_other_settings_is_refused_and_stays_as_it_is(place, command, sub):
    folder = place / f"other_{sub}"
    (folder / "2_forget05-forget01").mkdir(parents=True)
    results = {"command": "fit", "finished": True, "config_hash": "0123456789ab", "metrics": {}}
    theirs = json.dumps(results)
    path = folder / "2_forget05-forget01" / "results.json"
    path.write_text(theirs)
    (folder / "sequence.json").write_text("{}")
    out = run(command, sub, "--output_dir", folder.name)
    assert (out.status, out.out) == (2, "")
    line = f"error: '{folder.name}/2_forget05-forget01' holds a finished run of other settings ("
    assert out.err.startswith(line)
    assert out.err.endswith("); remove the folder, or give another --output_dir.\n")
    assert (path.read_text(), (folder / "sequence.json").read_text()) == (theirs, "{}")


def test_nothing_to_report_is_said(place, command):
    out = run(command, "report", "--output_dir", "none")
    assert (out.status, out.err) == (1, "")
    assert out.out.startswith("nothing is finished in 'none'; ")
    assert "sequence run --config requests.yaml --output_dir none runs it" in out.out


@pytest.mark.slow
def test_request_after_request_with_numbers_of_the_earlier(place, command):
    out = run(command, "run")
    assert (out.status, out.err) == (0, ""), out.err + out.out
    found = json.loads(Path("out/sequence.json").read_text())
    assert found["finished"]
    one, two = found["requests"]
    results = [json.loads(Path("out", name, "results.json").read_text()) for name in (
        "1_forget01", "2_forget05-forget01", "watched/2_on_1"
    )]  # fmt: skip
    # The second began with what the first left, and the first's rows were scored on the second.
    assert two["started_from"] == one["model"] == results[0]["provenance"]["model"]["hash"]
    assert results[2]["provenance"]["model"]["hash"] == two["model"]
    assert results[2]["provenance"]["sets"]["forget"]["rows"] == 2
    for place_, of in (("1", 1), ("2", 2)):
        assert set(one["watched"][place_]) == set(SEQUENCE["watched"]), of
    assert (
        one["watched"]["2"]["forget_probability"]
        == (results[2]["metrics"]["forget_probability"]["value"])
    )
    assert one["watched"]["2"]["forget_probability"] != one["watched"]["1"]["forget_probability"]
    assert (
        two["watched"]["1"]["forget_probability"]
        == (results[1]["history"][0]["metrics"]["forget_probability"]["value"])
    )
    text = Path("out/report.md").read_text()
    assert out.out.endswith(text)
    again = run(command, "run")
    assert again.status == 0
    assert "start " not in again.out
    # Killed before the second was through: what is done stays, the rest is made again.
    Path("out/2_forget05-forget01/results.json").unlink()
    before = Path("out/1_forget01/results.json").stat().st_mtime_ns
    third = run(command, "run")
    assert third.status == 0, third.out
    assert "start 2_forget05-forget01" in third.out
    assert "start 1_forget01" not in third.out
    assert Path("out/1_forget01/results.json").stat().st_mtime_ns == before
    report = command("report", "out", "--format", "json")
    assert report.status == 0, report.err
    compared = command("compare", "out", "--rank", "fq_at_utility_floor")
    assert compared.status == 0, compared.err
    assert compared.err.count("left out: ") == 1


def test_tofu_s_requests_ask_for_new_rows(command, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--config", "sequence/tofu", "--set", f"data.root={data_dir / 'tofu'}")
    out = command("sequence", "plan", *words)
    assert (out.status, out.err) == (0, "")
    assert [line for line in out.out.splitlines() if line.startswith("#")] == [
        "# request 1, forget01: 40 rows; 3960 retain rows",
        "# request 2, forget05-forget01: 160 rows; 3800 retain rows",
        "# request 3, forget10-forget05: 200 rows; 3600 retain rows",
    ]
    assert out.out.count("python -m etw_lightning evaluate ") == 3


@pytest.fixture
def muse_sequence(command, muse_args, muse_dir, write_rows, tmp_path):
    """MUSE's shipped sequence on a few rows and tiny models, its folds read from files."""
    root = tmp_path / "rows"
    shutil.copytree(muse_dir, root)
    rows = [json.loads(line) for line in (root / "raw/forget.jsonl").read_text().splitlines()]
    # The second fold asks again for a row of the first, the retain texts hold one of the second.
    write_rows(root / "sust/forget_1.jsonl", rows[:2])
    write_rows(root / "sust/forget_2.jsonl", rows[1:4])
    for fold in (3, 4):
        write_rows(root / f"sust/forget_{fold}.jsonl", [{"text": f"Fold {fold} says so."}] * 2)
    kept = (root / "raw/retain1.jsonl").read_text()
    (root / "raw/retain1.jsonl").write_text(kept + json.dumps(rows[3]) + "\n")
    write_rows(root / "privleak/retain.jsonl", rows[:2])
    given = yaml.safe_load((ROOT / "configs/sequence/muse_news.yaml").read_text())
    words = dict(word.removeprefix("--").split("=", 1) for word in muse_args[2:])
    model = words.pop("data.retain_model")
    small = {key: yaml.safe_load(value) for key, value in words.items()}
    given["settings"] = {
        **small,
        "data.root": str(root),
        "trainer.max_epochs": 1,
        "trainer.precision": "32-true",
        "model.dtype": "float32",
    }
    for request in given["requests"]:
        request["retain_model"] = model
        request["watched_as"] = request["watched_as"].removeprefix("hub:muse-bench/MUSE-News/")
    given["watched_with"] = {"data.benchmark": "jsonl", "data.retain_split": "privleak/retain"}

    def call(sub, requests=4):
        some = {**given, "requests": given["requests"][:requests], "output_dir": "out"}
        Path("muse.yaml").write_text(yaml.safe_dump(some))
        forking = SimpleNamespace(**{**vars(subprocess), "Popen": ForkedProgram})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("etw_lightning.sweeps.processes.subprocess", forking)
            return command("sequence", sub, "--config", "muse.yaml")

    return call


def test_muse_s_folds_are_watched_as_texts_of_one_s_own(muse_sequence):
    out = muse_sequence("plan")
    assert (out.status, out.err) == (0, "")
    told = [line for line in out.out.splitlines() if line.startswith("#")]
    assert told[0] == "# request 1, sust/forget_1: 2 rows; 6 retain rows"
    assert told[1] == (
        "# request 2, sust/forget_2: 3 rows, 1 of them asked for before; 5 retain rows, 1 left out "
        "as they are asked for"
    )
    scored = [line for line in out.out.splitlines() if " evaluate " in line]
    assert len(scored) == 1 + 2 + 3 + 4 + 4
    assert all("--data.benchmark jsonl" in line for line in scored)


@pytest.mark.slow
def test_muse_s_folds_have_numbers_of_their_own(muse_sequence):
    out = muse_sequence("run", requests=2)
    assert (out.status, out.err) == (0, ""), out.out + out.err
    one, two = json.loads(Path("out/sequence.json").read_text())["requests"]
    assert list(one["watched"]) == ["0", "1", "2"]
    assert list(two["watched"]) == ["1", "2"]
    for known in (*one["watched"].values(), *two["watched"].values()):
        assert 0 < known["forget_probability"] < 1
        assert known["extraction_strength"] is not None
    assert one["numbers"]["privleak"] is not None
