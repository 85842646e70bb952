"""The bridge to lm-evaluation-harness: its number is ours, on tasks of local rows."""

import json
import logging
import sys
from types import ModuleType
from unittest.mock import ANY

import pytest
import torch
import yaml
from refusals import message

from etw_lightning.benchmarks.choice import Choice, ChoicePrompt
from etw_lightning.benchmarks.source import Source
from etw_lightning.data.encode import Encoder
from etw_lightning.metrics import Metric, choice_accuracy
from etw_lightning.models.loading import LabelScorer
from etw_lightning.schema import Record
from etw_lightning.scoring.batches import build_batches, make_records, score_batch
from etw_lightning.scoring.lm_eval_bridge import lm_eval_scores

_WORDS = (
    "town",
    "the old mill",
    "a river",
    "author",
    "book",
    "Quillmere",
    "an answer by the river",
)
ROWS = [
    {
        "question": f" What of the {_WORDS[i % 7]}, {_WORDS[i % 5]}? ",
        "choices": [_WORDS[(i + step) % 7] for step in (0, 1, 3, 5)],
        "answer": i % 4,
    }
    for i in range(24)
]
#: The harness's own WMDP task, but for its name and the place of its rows.
_SHARED = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_target": "answer",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm")
    ],
}
_TASKS = {
    "letter": {
        "description": (
            "The following are multiple choice questions (with answers) about biology.\n\n"
        ),
        "doc_to_text": (
            "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
            "D. {{choices[3]}}\nAnswer:"
        ),
        "doc_to_choice": ["A", "B", "C", "D"],
    },
    "text": {
        "description": "The following are questions (with answers) about biology.\n\n",
        "doc_to_text": "Question: {{question.strip()}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
    },
}


def needs_lm_eval():
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness (the extra lm_eval) is missing")


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Files of tasks over the same local rows, by form."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "wmdp" / "bio.jsonl"
    rows.parent.mkdir()
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    paths = {}
    for form, own in _TASKS.items():
        files = {"data_files": {"test": str(rows)}, "cache_dir": str(tmp_path / "cache")}
        task = {"task": f"local_{form}", "dataset_kwargs": files, **_SHARED, **own}
        paths[form] = tmp_path / f"{form}.yaml"
        paths[form].write_text(yaml.safe_dump(task))
    return paths


@pytest.fixture(scope="module")
def lm(tiny_model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir).train()


def plain_records(lm, tokenizer, examples):
    """Score options with nothing but the model's logits, in float64."""
    records = []
    for example in examples:
        prompt = tokenizer(example.question)["input_ids"]
        logps, sizes = [], []
        for choice in example.choices:
            ids = torch.tensor([tokenizer(example.question + choice)["input_ids"]])
            with torch.no_grad():
                said = lm.eval()(input_ids=ids).logits[0].double().log_softmax(-1)
            places = range(len(prompt), ids.shape[1])
            logps.append(sum(said[t - 1, ids[0, t]].item() for t in places))
            sizes.append(len(places))
        records.append(
            Record(
                "wmdp_bio",
                example.id,
                example.answer,
                choices=example.choices,
                choice_logps=tuple(logps),
                choice_num_tokens=tuple(sizes),
                right_choice=example.right_choice,
            )
        )
    return records


@pytest.mark.parametrize("form", _TASKS)
def test_the_scorer_sums_the_logits_own_log_probabilities(tasks, lm, tiny_tokenizer, form):
    reader = Choice(Source(root=tasks[form].parent), "wmdp_bio", prompt=ChoicePrompt(form))
    eval_set = reader.eval_sets()["wmdp_bio"]
    scorer = LabelScorer(lm.eval())
    batches = build_batches(eval_set, Encoder(tiny_tokenizer, "chat"), 8)
    scores = [one for batch in batches for one in score_batch(scorer, batch, tiny_tokenizer)]
    plain = plain_records(lm, tiny_tokenizer, eval_set.examples)
    for record, own in zip(make_records(eval_set, scores), plain, strict=True):
        assert record.choice_logps == pytest.approx(own.choice_logps, rel=1e-5)
        assert record.choice_num_tokens == own.choice_num_tokens
        assert (record.choices, record.right_choice) == (own.choices, own.right_choice)


@pytest.mark.parametrize("form", _TASKS)
def test_the_harness_and_our_reader_give_one_accuracy(tasks, lm, tiny_tokenizer, form):
    needs_lm_eval()
    lm.train()
    found = lm_eval_scores(lm, tiny_tokenizer, [str(tasks[form])], batch_size=3)
    assert lm.training, "the model comes back in the mode it was in"
    reader = Choice(Source(root=tasks[form].parent), "wmdp_bio", prompt=ChoicePrompt(form))
    examples = reader.eval_sets()["wmdp_bio"].examples
    records = plain_records(lm, tiny_tokenizer, examples)
    for name, normalise in (("acc", "none"), ("acc_norm", "characters")):
        theirs, ours = found[f"lm_eval_local_{form}_{name}"], choice_accuracy(records, normalise)
        assert theirs.value == ours.value
        assert (theirs.n, theirs.direction) == (ours.n, "up") == (24, "up")
        half = 1.959963984540054 * (ours.value * (1 - ours.value) / 23) ** 0.5
        assert theirs.interval == pytest.approx((ours.value - half, ours.value + half))
    assert 0 < found[f"lm_eval_local_{form}_acc"].value < 1


def test_a_generation_ends_where_the_run_s_do(tasks, lm, tiny_tokenizer, tmp_path):
    """At a token that neither the model nor the tokenizer calls an end; none does without it."""
    needs_lm_eval()
    prompts, rows, ends = [row["question"].strip() for row in ROWS[:6]], [], set()
    for prompt in prompts:
        ids = torch.tensor([tiny_tokenizer(prompt)["input_ids"]])
        new = lm.eval().generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        ends.add(int(new[3]))
        rows.append((prompt, new.tolist()))
    texts = []
    for _, new in rows:
        stop = next(place for place, token in enumerate(new) if token in ends)
        texts.append(tiny_tokenizer.decode(new[: stop + 1], skip_special_tokens=True))
    path = tmp_path / "generated.jsonl"
    path.write_text(
        "".join(
            json.dumps({"question": prompt, "answer": text}) + "\n"
            for prompt, text in zip(prompts, texts, strict=True)
        )
    )
    files = {"data_files": {"test": str(path)}, "cache_dir": str(tmp_path / "cache")}
    task = {
        "task": "local_generated",
        "dataset_path": "json",
        "dataset_kwargs": files,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["no such text"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "higher_is_better": True}],
    }
    file = tmp_path / "generated.yaml"
    file.write_text(yaml.safe_dump(task))
    before = lm.generation_config
    name = "lm_eval_local_generated_exact_match"
    found = lm_eval_scores(lm, tiny_tokenizer, [str(file)], further_ends=ends, batch_size=3)
    assert found[name].value == 1
    assert lm_eval_scores(lm, tiny_tokenizer, [str(file)], batch_size=3)[name].value < 1
    assert lm.generation_config is before
    assert before.eos_token_id not in (sorted(ends), None)


def test_limits_and_generators_are_kept(tasks, lm, tiny_tokenizer):
    needs_lm_eval()
    before, pad = torch.get_rng_state(), tiny_tokenizer.pad_token
    found = lm_eval_scores(lm, tiny_tokenizer, [str(path) for path in tasks.values()], limit=5)
    assert [metric.n for metric in found.values()] == [5] * 4
    assert torch.equal(torch.get_rng_state(), before)
    assert tiny_tokenizer.pad_token == pad


def test_a_task_that_is_not_there_is_an_error(lm, tiny_tokenizer, tmp_path, monkeypatch):
    needs_lm_eval()
    from lm_eval.tasks import TaskManager

    text = message(lm_eval_scores, lm, tiny_tokenizer, ["wmpd_bio"])
    assert text.startswith("lm_eval.tasks: lm-evaluation-harness has no task 'wmpd_bio'")
    broken = tmp_path / "broken.yaml"
    broken.write_text(
        yaml.safe_dump(
            {"task": "broken", **_SHARED, "dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}
        )
    )
    text = message(lm_eval_scores, lm, tiny_tokenizer, [str(broken)])
    assert f"task {str(broken)!r} can't be loaded (" in text

    def unreachable(self, task):
        raise ConnectionError("Couldn't reach 'cais/wmdp' on the Hub")

    monkeypatch.setattr(TaskManager, "load", unreachable)
    text = message(lm_eval_scores, lm, tiny_tokenizer, [str(broken)])
    assert f"task {str(broken)!r} can't be loaded (Couldn't reach" in text
    assert "run it once with a connection" in text


def test_the_missing_extra_is_named(lm, tiny_tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    text = message(lm_eval_scores, lm, tiny_tokenizer, ["mmlu"])
    assert "pip install 'etw-lightning[lm_eval]'" in text


@pytest.mark.parametrize(
    ("tasks", "numbers", "said"),
    [
        ([], {}, "lm_eval.tasks must name at least one task"),
        (["gone.yaml"], {}, "lm_eval.tasks: there is no task file 'gone.yaml'"),
        (["mmlu"], {"num_fewshot": -1}, "lm_eval.num_fewshot must be null or >= 0; got -1"),
        (["mmlu"], {"limit": 0}, "lm_eval.limit must be null or a whole number >= 1; got 0"),
    ],
)
def test_bad_options_are_refused_before_the_harness_is_asked(lm, tasks, numbers, said):
    assert message(lm_eval_scores, lm, None, tasks, **numbers).startswith(said)


class Harness:
    """Stands for lm-evaluation-harness: notes what it is given, and gives made-up results."""

    def __init__(self, monkeypatch, results):
        self.given, self.results = {}, results
        main, models = ModuleType("lm_eval"), ModuleType("lm_eval.models.huggingface")
        tasks = ModuleType("lm_eval.tasks")
        main.simple_evaluate = lambda **given: self.given.update(given) or self.results
        models.HFLM = lambda **given: self.given.update(hflm=given) or "model"
        tasks.TaskManager = lambda **given: self.given.update(manager=given) or self
        for name, module in {
            "lm_eval": main,
            "lm_eval.models": ModuleType("lm_eval.models"),
            "lm_eval.models.huggingface": models,
            "lm_eval.tasks": tasks,
        }.items():
            monkeypatch.setitem(sys.modules, name, module)

    def load(self, names):
        """A group of two tasks, and tasks of their own names."""
        if names == ["group"]:
            return {
                "tasks": {"a": "task a", "b": "task b"},
                "groups": {"group": "all"},
                "group_map": {"group": ["a", "b"]},
            }
        return {"tasks": {name: f"task {name}" for name in names}, "groups": {}, "group_map": {}}


RESULTS = {
    "results": {
        "group": {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "group"},
        "a": {"acc,none": 0.25, "acc_stderr,none": "N/A", "perplexity,strict": 2, "name,x": "y"},
    },
    "higher_is_better": {"group": {"acc": True}, "a": {"acc": None, "perplexity": False}},
    "n-samples": {"a": {"effective": 3}, "b": {"effective": 4}},
    "group_subtasks": {"group": ["a", "b"]},
}


def test_what_the_harness_is_asked_and_what_becomes_of_its_numbers(
    lm, tiny_tokenizer, tmp_path, monkeypatch
):
    harness = Harness(monkeypatch, RESULTS)
    lm.eval()
    found = lm_eval_scores(lm, tiny_tokenizer, ["group", "c"])
    half = 1.959963984540054 * 0.1
    assert found == {
        "lm_eval_group_acc": Metric(0.5, "up", 7, (0.5 - half, 0.5 + half)),
        "lm_eval_a_acc": Metric(0.25, "up", 3),
        "lm_eval_a_perplexity_strict": Metric(2.0, "down", 3),
    }
    assert not lm.training
    given = dict(harness.given)
    assert given.pop("hflm") == {
        "pretrained": lm,
        "tokenizer": ANY,
        "batch_size": 8,
        "trust_remote_code": False,
    }
    assert harness.given["hflm"]["tokenizer"] is not tiny_tokenizer
    assert given == {
        "manager": {"include_defaults": True},
        "model": "model",
        "tasks": ["all", "task c"],
        "task_manager": harness,
        "num_fewshot": None,
        "limit": None,
        "apply_chat_template": False,
        "log_samples": False,
        "bootstrap_iters": 1000,
        "random_seed": None,
        "numpy_random_seed": None,
        "torch_random_seed": None,
    }
    for ending in ("yaml", "yml"):
        file = tmp_path / f"own.{ending}"
        file.write_text("")
        lm_eval_scores(lm, tiny_tokenizer, [str(file)], num_fewshot=0, limit=1, batch_size=2)
        assert harness.given["manager"] == {"include_defaults": False}
        assert harness.given["hflm"]["batch_size"] == 2
        assert (harness.given["num_fewshot"], harness.given["limit"]) == (0, 1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("c"), "lm_eval.tasks: lm-evaluation-harness has no task 'c'; "),
        (OSError("no \n rows" * 50), f"task 'c' can't be loaded ({('no rows' * 50)[:200]}). Its"),
        (ValueError(), "task 'c' can't be loaded (ValueError). Its rows come from"),
    ],
)
def test_a_task_that_the_harness_can_not_load_is_named(
    lm, tiny_tokenizer, monkeypatch, error, said
):
    harness = Harness(monkeypatch, RESULTS)

    def load(names):
        raise error

    monkeypatch.setattr(harness, "load", load)
    assert said in message(lm_eval_scores, lm, tiny_tokenizer, ["c"])


def test_the_harness_is_silenced_for_the_time_it_runs(lm, tiny_tokenizer, monkeypatch):
    harness = Harness(monkeypatch, RESULTS)
    logger = logging.getLogger("lm_eval")
    monkeypatch.setattr(logger, "level", logging.INFO)
    seen = []
    load = harness.load
    monkeypatch.setattr(harness, "load", lambda names: seen.append(logger.level) or load(names))
    lm_eval_scores(lm, tiny_tokenizer, ["a"], apply_chat_template=True)
    assert seen == [logging.ERROR]
    assert logger.level == logging.INFO
    assert harness.given["apply_chat_template"] is True
