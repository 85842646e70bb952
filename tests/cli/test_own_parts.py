"""Parts of the user's own by class path: a weighting, an objective, a metric, a benchmark."""

import json
import sys

import pytest
import torch

MODULE = '''
import torch

from etw_lightning.benchmarks.own import OwnBenchmark
from etw_lightning.catalogue.own import OwnMetric
from etw_lightning.forget import ForgetObjective
from etw_lightning.metrics import Metric
from etw_lightning.retain import RetainObjective
from etw_lightning.weighting import TokenWeighting


class LongWords(TokenWeighting):
    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def __call__(self, signals):
        return (-signals.logps).detach() ** self.power


class Attached(TokenWeighting):
    def __call__(self, signals):
        return -signals.logps


class Halved(ForgetObjective):
    def __call__(self, signals, weights):
        return weights * signals.logps / 2


class OneNumber(ForgetObjective):
    def __call__(self, signals, weights):
        return (weights * signals.logps).mean()


class Averaged(RetainObjective):
    def __call__(self, signals):
        return -signals.logps.mean()


class Length(OwnMetric):
    """Mean number of words that the model says; up is longer."""

    sets = ("forget", "retain")
    parts = ("generation",)

    def compute(self, given):
        said = {name: [len(r.generation.split()) for r in rows] for name, rows in
                given.records.items()}
        return {f"{name}_words": Metric.mean(n, "none") for name, n in said.items()}


class Taken(OwnMetric):
    def compute(self, given):
        return {"extraction_strength": Metric(1.0, "down", 1)}


class Endless(OwnMetric):
    def compute(self, given):
        return {"endless": Metric(float("inf"), "down", 1)}


class Bare(OwnMetric):
    def compute(self, given):
        return {"bare": 0.5}


class Greedy(OwnMetric):
    parts = ("everything",)

    def compute(self, given):
        return {}


class Gap(OwnMetric):
    needs = ("retain",)

    def compute(self, given):
        losses = [sum(r.answer_loss for r in rows["forget"]) for rows in
                  (given.records, given.retain)]
        return {"gap": Metric(losses[0] - losses[1], "zero", 1)}


class Diary(OwnBenchmark):
    retain = "public"

    def read(self, split):
        count = {"private": 4, "public": 6}[split]
        words = "the town of Quillmere lies by a river".split()
        return [
            {"question": f"What of {split} {n}?", "answer": " ".join(words[: 3 + n])}
            for n in range(count)
        ]


class Slow(Diary):
    asked = []

    def read(self, split):
        self.asked.append(split)
        return super().read(split)


class Broken(OwnBenchmark):
    def read(self, split):
        return {"question": "one row"}
'''


@pytest.fixture
def place(home, monkeypatch):
    """A current folder with a module of own parts; ``python -m`` finds modules there."""
    (home / "my_parts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    yield home
    sys.modules.pop("my_parts", None)


@pytest.fixture
def run(command, place, tiny_model_dir, configs):
    def run_it(verb, *words, benchmark="my_parts.Diary"):
        return command(
            verb,
            *(f"--config={configs}/method/etw.yaml",) * (verb == "fit"),
            f"--model.pretrained={tiny_model_dir}",
            *(f"--data.benchmark={benchmark}", "--data.forget_split=private"),
            *("--data.batch_size=2", "--data.max_new_tokens=3", "--trainer.accelerator=cpu"),
            *("--trainer.max_epochs=1", "--model.lr=1e-2", "--output_dir=run"),
            *words,
        )

    return run_it


def results(place):
    return json.loads((place / "run" / "results.json").read_text())


def test_all_parts_of_ones_own_in_one_run(run, place):
    outcome = run(
        "fit",
        *("--model.weighting=my_parts.LongWords", "--model.weighting.power=2"),
        "--model.forget=my_parts.Halved",
        "--trainer.callbacks+=Suite",
        "--trainer.callbacks.metrics=[my_parts.Length,probability]",
    )
    assert outcome.status == 0, outcome.err
    metrics = results(place)["metrics"]
    assert metrics["forget_words"]["n"] == 4
    assert metrics["retain_words"]["n"] == 6
    assert 0 <= metrics["forget_words"]["value"] <= 3
    assert "forget_probability" in metrics


def test_a_weighting_and_an_objective_do_what_they_say(run, place, tiny_model_dir):
    import my_parts

    from etw_lightning import Method, unlearn
    from etw_lightning.retain import NLL

    reader = my_parts.Diary()
    forget, retain = reader.read("private"), reader.read("public")
    parts = Method(my_parts.LongWords(2.0), my_parts.Halved(), NLL())
    settings = {"epochs": 1, "batch_size": 4, "progress": False, "forget_weight": 2.0}
    _, found = unlearn(str(tiny_model_dir), None, forget, retain, parts, **settings)
    # One step over all rows, before anything is trained: the formula on the model's own words.
    from etw_lightning import weights

    rows = [weights(str(tiny_model_dir), None, row, my_parts.LongWords(2.0)) for row in forget]
    logps = torch.cat([torch.tensor(row.probabilities).log() for row in rows])
    expected = (logps.square() * logps / 2).sum() / len(logps)
    assert found.losses[0]["forget"] == pytest.approx(expected.item(), rel=1e-4)


def test_parts_of_ones_own_show_their_numbers(place):
    import my_parts

    # What a run that goes on compares with the run that was broken off.
    assert repr(my_parts.LongWords(2.0)) == "LongWords(power=2.0)"
    assert repr(my_parts.Halved()) == "Halved()"
    assert repr(my_parts.Averaged()) == "Averaged()"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.weighting=my_parts.Attached"], "model.weighting Attached must return detached"),
        (
            ["--model.forget=my_parts.OneNumber"],
            "model.forget OneNumber must return one term a token",
        ),
        (
            ["--model.retain=my_parts.Averaged"],
            "model.retain Averaged must return one term a token",
        ),
    ],
)
def test_a_wrong_part_ends_the_first_step_with_one_line(words, message, run, place):
    outcome = run("fit", *words)
    assert outcome.status == 2
    lines = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {message}")
    assert "Traceback" not in outcome.err
    assert not (place / "run" / "model").exists()


def test_a_metric_of_ones_own_in_evaluate(run, place):
    outcome = run("evaluate", "--metrics=my_parts.Length,exact_memorisation")
    assert outcome.status == 0, outcome.err
    found = results(place)["metrics"]
    assert set(found) >= {"forget_words", "retain_words", "exact_memorisation"}
    records = (place / "run" / "records").glob("*.jsonl.gz")
    assert sorted(path.name for path in records) == ["forget.jsonl.gz", "retain.jsonl.gz"]


def test_a_metric_of_ones_own_reads_the_retain_model(run, place, tiny_model_dir):
    outcome = run("evaluate", "--metrics=my_parts.Gap")
    assert outcome.status == 2
    assert "my_parts.Gap needs data.retain_results or data.retain_model" in outcome.err
    outcome = run("evaluate", "--metrics=my_parts.Gap", f"--data.retain_model={tiny_model_dir}")
    assert outcome.status == 0, outcome.err
    assert results(place)["metrics"]["gap"]["value"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_parts.Taken", "gives a number called 'extraction_strength', which is one of ours"),
        ("my_parts.Endless", "gives inf as 'endless'; give a number"),
        ("my_parts.Bare", "must return a Metric for 'bare'"),
        ("my_parts.Greedy", "my_parts.Greedy.parts must be some of answers, generation"),
        ("my_parts.Absent", "module 'my_parts' has no 'Absent'"),
        ("my_parts.Diary", "must be a subclass of etw_lightning.catalogue.own.OwnMetric"),
        ("no_such_module.Thing", "there is no module 'no_such_module'; put no_such_module.py into"),
    ],
)
def test_what_is_no_metric_is_refused(name, message, run):
    outcome = run("evaluate", f"--metrics={name}")
    assert outcome.status == 2
    assert outcome.err.startswith("error: metrics")
    assert message in outcome.err


def test_a_metric_explains_itself(command, place):
    outcome = command("explain", "my_parts.Length")
    assert outcome.status == 0
    assert "Mean number of words that the model says; up is longer." in outcome.out
    assert "Code: my_parts.Length" in outcome.out


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ("my_parts.Broken", "Broken.read('private') must return rows"),
        ("my_parts.Absent", "data.benchmark 'my_parts.Absent': module 'my_parts' has no 'Absent'"),
        ("my_parts.Length", "must be a subclass of etw_lightning.benchmarks.own.OwnBenchmark"),
    ],
)
def test_what_is_no_benchmark_is_refused(benchmark, message, run):
    outcome = run("evaluate", benchmark=benchmark)
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_rows_of_ones_own_benchmark_can_be_limited(run, place):
    outcome = run("evaluate", "--metrics=probability", '--data.rows={"public": 2}')
    assert outcome.status == 0, outcome.err
    found = results(place)["metrics"]
    assert (found["forget_probability"]["n"], found["retain_probability"]["n"]) == (4, 2)
    assert results(place)["data"]["benchmark"] == "my_parts.Diary"


def test_a_reader_is_asked_once_for_each_split(run, place):
    outcome = run("evaluate", "--metrics=probability", benchmark="my_parts.Slow")
    assert outcome.status == 0, outcome.err
    import my_parts

    assert sorted(my_parts.Slow.asked) == ["private", "public"]


def test_a_benchmark_may_have_arguments_in_a_file(run, place, tiny_model_dir):
    (place / "more_parts.py").write_text(
        "from etw_lightning.benchmarks.own import OwnBenchmark\n\n\n"
        "class Counted(OwnBenchmark):\n"
        "    def __init__(self, count: int = 1) -> None:\n"
        "        self.count = count\n\n"
        "    def read(self, split):\n"
        "        return [{'question': f'{split}?', 'answer': str(n)} for n in range(self.count)]\n"
    )
    (place / "data.yaml").write_text(
        "data:\n  benchmark:\n    class_path: more_parts.Counted\n    init_args: {count: 3}\n"
    )
    outcome = run("evaluate", "--metrics=probability", "--config=data.yaml", benchmark="jsonl")
    assert outcome.status == 0, outcome.err


#: Classes of each kind whose ``__init__`` raises, and where they are named.
FAILING = """
from lightning.pytorch.callbacks import Callback

from my_parts import Diary, Halved, Averaged, Length, LongWords


def fail(table):
    return table["absent"]


class Unready(Callback):
    def __init__(self, path: str = "here") -> None:
        fail({})


class BadWords(LongWords):
    def __init__(self, power: float = 1.0) -> None:
        raise TypeError("power\\n  must be even")


class BadHalves(Halved):
    def __init__(self) -> None:
        raise ValueError("no halves")


class BadMean(Averaged):
    def __init__(self) -> None:
        1 / 0


class BadLength(Length):
    def __init__(self) -> None:
        raise RuntimeError


class Asking(Length):
    def __init__(self, more):
        pass


class Lost(Length):
    def compute(self, given):
        return {"words": len(given.records["no set"])}


class LostDiary(Diary):
    def read(self, split):
        yield {"question": "What?", "answer": "That."}
        yield {"question": "Where?", "answer": split.nowhere}


class BadDiary(Diary):
    def __init__(self, year: int = 1958) -> None:
        open(f"{year}.txt")
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model.weighting=failing.BadWords"],
            "model.weighting 'failing.BadWords' can't be made: TypeError: power must be even "
            "(failing.py, line 18).",
        ),
        (
            ["--model.weighting=Random", "--model.weighting.of=failing.BadWords"],
            "model.weighting.of 'failing.BadWords' can't be made: TypeError: power must be even "
            "(failing.py, line 18).",
        ),
        (
            ["--model.forget=failing.BadHalves"],
            "model.forget 'failing.BadHalves' can't be made: ValueError: no halves (failing.py, "
            "line 23).",
        ),
        (
            ["--model.retain=failing.BadMean"],
            "model.retain 'failing.BadMean' can't be made: ZeroDivisionError: division by zero "
            "(failing.py, line 28).",
        ),
        (
            ["--trainer.callbacks+=failing.Unready"],
            "trainer.callbacks 'failing.Unready' can't be made: KeyError: 'absent' (failing.py, "
            "line 8).",
        ),
        (
            ["--trainer.callbacks+=Suite", "--trainer.callbacks.metrics=failing.BadLength"],
            "metrics 'failing.BadLength' can't be made: RuntimeError (failing.py, line 33).",
        ),
        (
            ["--trainer.callbacks+=Suite", "--trainer.callbacks.metrics=failing.Asking"],
            "metrics 'failing.Asking' can't be made: TypeError: Asking.__init__() missing 1 "
            "required positional argument: 'more'.",
        ),
        (
            ["--data.benchmark=failing.BadDiary"],
            "data.benchmark 'failing.BadDiary' can't be made: FileNotFoundError: [Errno 2] No such "
            "file or directory: '1958.txt' (failing.py, line 54).",
        ),
        (
            ['--data.benchmark={"class_path": "failing.BadDiary", "init_args": {"year": 1960}}'],
            "data.benchmark 'failing.BadDiary' can't be made: FileNotFoundError: [Errno 2] No such "
            "file or directory: '1960.txt' (failing.py, line 54).",
        ),
        (
            [
                "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
                "--trainer.callbacks.monitor=x",
                "--trainer.callbacks.mode=up",
            ],
            "trainer.callbacks 'lightning.pytorch.callbacks.EarlyStopping' can't be made: "
            "MisconfigurationException: `mode` can be min, max, got up (early_stopping.py, line ",
        ),
    ],
)
def test_what_a_class_of_ones_own_raises_when_it_is_made_is_one_line(
    words, message, run, place, monkeypatch
):
    (place / "failing.py").write_text(FAILING)
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    outcome = run("check", *words)
    assert outcome.status == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith(f"error: {message}")
    assert "Traceback" not in outcome.err
    assert not (place / "run").exists()


def test_what_they_raise_in_a_run_is_one_line_too(run, place, monkeypatch):
    (place / "failing.py").write_text(FAILING)
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    outcome = run("evaluate", "--metrics=failing.Lost")
    assert outcome.status == 2
    said = "error: metrics: failing.Lost.compute failed: KeyError: 'no set' (failing.py, line 43)."
    assert outcome.err.splitlines()[-1] == said
    outcome = run("evaluate", "--metrics=probability", benchmark="failing.LostDiary")
    assert (outcome.status, outcome.err) == (
        2,
        "error: data.benchmark LostDiary.read('private') failed: AttributeError: 'str' object has "
        "no attribute 'nowhere' (failing.py, line 49).\n",
    )
