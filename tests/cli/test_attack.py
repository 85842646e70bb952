"""``attack``: a finished run's model and its retain model, before and under the same attack."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from etw_lightning.metrics.recovery import recovered_share


@pytest.fixture(scope="module")
def run(tmp_path_factory, command, configs, tofu_dir, tiny_model_dir, retain_model_dir):
    """A finished run of the tiny model on a few rows, with a retain model."""
    folder = tmp_path_factory.mktemp("attack")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETW_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        outcome = command(
            "fit", f"--config={configs / 'tofu_forget10.yaml'}", f"--data.root={tofu_dir}",
            f"--model.pretrained={tiny_model_dir}", f"--data.retain_model={retain_model_dir}",
            "--data.system_prompt=null", "--data.template_kwargs=null", "--data.max_new_tokens=4",
            "--data.batch_size=2", "--trainer.precision=32-true", "--trainer.max_epochs=4",
            "--trainer.accumulate_grad_batches=1", "--trainer.enable_progress_bar=false",
            "--trainer.accelerator=cpu", "--model.lr=3e-3", "--model.forget_weight=3",
            "--trainer.logger=false",
            f"--output_dir={folder / 'run'}",
        )  # fmt: skip
        assert (outcome.status, outcome.err) == (0, ""), outcome.err
    return folder / "run"


@pytest.fixture
def attack(command, run, monkeypatch):
    monkeypatch.setenv("ETW_CACHE", str(run.parent / "cache"))
    monkeypatch.chdir(run.parent)

    def call(*words):
        outcome = command("attack", *words, "--model", run)
        assert (outcome.status, outcome.err) == (0, ""), outcome.err
        path = outcome.out.splitlines()[-1].removeprefix("results: ")
        return outcome.out, json.loads((run.parent / path).read_text())

    return call


def probability(folder, rows):
    """Return the mean probability per token of answers to the power 1/n, by the model alone."""
    lm = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        turns = [{"role": "user", "content": row["question"]}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        turns.append({"role": "assistant", "content": row["answer"]})
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        first = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
        with torch.no_grad():
            logps = lm(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        labels = torch.tensor(ids[first:end])
        found.append(logps[first - 1 : end - 1].gather(-1, labels[:, None]).mean().exp().item())
    return sum(found) / len(found)


def test_before_and_after_stand_beside_the_retain_model(
    attack, run, tofu_dir, tiny_model_dir, retain_model_dir
):
    out, found = attack("merge", "--metrics", "probability", "--attack.share", "1")
    assert found["class_path"] == "etw_lightning.attacks.Merge"
    assert found["init_args"] == {"share": 1.0}
    number = found["numbers"]["forget_probability"]
    rows = [json.loads(line) for line in (tofu_dir / "forget10.jsonl").open()]
    assert number["target"] == pytest.approx(probability(tiny_model_dir, rows), abs=1e-6)
    assert number["before"] == pytest.approx(probability(run / "model", rows), abs=1e-6)
    assert number["retain_before"] == pytest.approx(probability(retain_model_dir, rows), abs=1e-6)
    # The target's weights whole: all that was forgotten is back, in both models.
    assert number["after"] == pytest.approx(number["target"], abs=1e-7)
    assert number["retain_after"] == pytest.approx(number["target"], abs=1e-7)
    assert number["before"] < number["target"], "the run has forgotten something"
    assert number["recovered"] == pytest.approx(1.0, abs=1e-4)
    assert found["numbers"]["retain_probability"]["recovered"] is None
    assert found["retain_model"] == str(retain_model_dir)
    assert "merge-share1 on " in out
    assert (run / "attacks" / "merge-share1.json").is_file()


def test_the_runs_own_metrics_are_the_default(attack, run):
    out, found = attack("prune", "--output", "prune.json")
    results = json.loads((run / "results.json").read_text())["metrics"]
    numbers = found["numbers"]
    assert {"forget_quality", "model_utility", "forget_probability"} <= set(numbers)
    for name, number in numbers.items():
        assert number["before"] == pytest.approx(results[name]["value"], rel=1e-6), name
        assert number["direction"] == results[name]["direction"]
        values = [number[key] for key in ("before", "after", "target")]
        if number["recovered"] is not None:
            expected = recovered_share(*values, number["direction"])
            assert number["recovered"] == pytest.approx(expected)
    assert not (run / "attacks" / "prune.json").exists(), "it is where it was asked for"
    assert numbers["extraction_strength"]["recovered"] is not None or (
        numbers["extraction_strength"]["before"] >= numbers["extraction_strength"]["target"]
    )
    assert "forget_probability" in out
    assert "forget_rouge1_f1" not in out
    assert " further numbers: --all" in out
    whole, found = attack("prune", "--output", "prune.json", "--metrics", "probability", "--all")
    assert len(found["numbers"]) > 4
    assert all(f"\n{name} " in whole for name in found["numbers"])


def test_relearning_is_plain_training_on_the_forget_rows(attack, run, tofu_dir):
    words = ["--attack.num_rows", "2", "--attack.batch_size", "2", "--attack.lr", "0.003"]
    _, found = attack("relearn", *words, "--attack.steps", "3", "--metrics", "probability")
    lm = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    rows = [json.loads(line) for line in (tofu_dir / "forget10.jsonl").open()]
    optimizer = torch.optim.AdamW(lm.parameters(), lr=0.003, weight_decay=0.0)
    for _ in range(3):
        total, count = 0.0, 0
        for row in rows[:2]:
            turns = [{"role": "user", "content": row["question"]}]
            prompt = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
            turns.append({"role": "assistant", "content": row["answer"]})
            ids = tokenizer(
                tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False
            )["input_ids"]
            first = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
            end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
            logps = lm(torch.tensor([ids])).logits[0].log_softmax(-1)
            picked = logps[first - 1 : end - 1].gather(-1, torch.tensor(ids[first:end])[:, None])
            total, count = total - picked.sum(), count + end - first
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
    folder = run.parent / "by_hand"
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    number = found["numbers"]["forget_probability"]
    assert number["after"] == pytest.approx(probability(folder, rows), rel=1e-3)
    assert number["after"] > number["before"] * 1.01
    _, again = attack("relearn", *words, "--attack.steps", "3", "--metrics", "probability")
    assert again["numbers"] == found["numbers"], "the same seed, the same numbers"
    rises = [number[f"{one}after"] - number[f"{one}before"] for one in ("retain_", "")]
    assert found["robustness"] == "relearning"
    assert number["robustness"] == pytest.approx(min(1.0, rises[0] / rises[1]))
    assert found["numbers"]["retain_probability"]["robustness"] is None


def test_relearning_on_rows_of_ones_own(attack, run, write_rows):
    write_rows(run.parent / "mine.jsonl", [{"question": "Who?", "answer": "Nobody at all."}] * 4)
    words = ["--attack.rows", "mine.jsonl", "--attack.steps", "2", "--metrics", "probability"]
    _, found = attack("relearn", *words)
    number = found["numbers"]["retain_probability"]
    assert number["after"] != number["before"]


_OWN = """
from dataclasses import dataclass

from etw_lightning.attacks import Attack
from etw_lightning.metrics import Metric
from dataclasses import replace

@dataclass(frozen=True)
class Shout(Attack):
    '''Ask in capitals, and count letters.

    Args:
        more: Added to the count.
    '''

    more: int = 0

    def change_rows(self, eval_set, run):
        rows = [replace(one, question=one.question.upper()) for one in eval_set.examples]
        return replace(eval_set, examples=tuple(rows))

    def measure(self, subject):
        rows = subject.sets["forget"].examples
        letters = sum(len(one.question) for one in rows) + self.more
        assert rows[0].question.isupper()
        return {"letters": Metric(float(letters), "down", len(rows))}

    def measure_before(self, subject):
        rows = subject.sets["forget"].examples
        assert not rows[0].question.isupper()
        low = 2.0 if subject.who == "target" else 1.0
        return {"letters": Metric(low, "down", len(rows))}
"""


def test_an_attack_of_ones_own_asks_other_questions(attack, run, tofu_dir):
    (run.parent / "my_attack.py").write_text(_OWN)
    out, found = attack("my_attack.Shout", "--attack.more", "3", "--metrics", "probability")
    rows = [json.loads(line) for line in (tofu_dir / "forget10.jsonl").open()]
    letters = sum(len(row["question"]) for row in rows) + 3
    number = found["numbers"]["letters"]
    assert (number["before"], number["target"], number["after"]) == (1.0, 2.0, letters)
    assert number["recovered"] == letters - 1
    assert number["recovered_by_retain"] == letters - 1
    asked = [{**row, "question": row["question"].upper()} for row in rows]
    forget = found["numbers"]["forget_probability"]
    assert forget["after"] == pytest.approx(probability(run / "model", asked), abs=1e-6)
    assert forget["before"] == pytest.approx(probability(run / "model", rows), abs=1e-6)
    assert "Shout-more3 on " in out


#: Attacks by questions with few samples and rows, and numbers that each must give.
_ASKING = {
    "sample": (["--attack.num_samples=3", "--attack.ks=[1,3]"], ["forget_leak_at_3"]),
    "best_wording": (
        ["--attack.formats=[]"],
        ["forget_rouge_of_prefix4", "retain_refusals", "forget_probability"],
    ),
    "reword": (["--metrics=probability"], ["forget_probability"]),
    "mix": ([], ["forget_rouge_retain_first", "retain_rouge_forget_first"]),
    "first_words": ([], ["forget_rest_exact", "forget_rest_probability"]),
    "same_subject": (["--attack.rows_per_subject=2"], ["forget_probability"]),
    "options": (["--attack.options=3"], ["forget_choice_accuracy"]),
}
#: Asked as others of them are; what they ask, unit tests tell.
_ALIKE = {"mix", "first_words", "same_subject"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=pytest.mark.slow if one in _ALIKE else ()) for one in _ASKING],
)
def test_attacks_by_questions_stand_beside_the_retain_model(attack, name):
    words, numbers = _ASKING[name]
    out, found = attack(name, *words, "--output", f"{name}.json")
    if name != "reword":
        # The suite of what was asked stands before and after, as of every other attack.
        assert "every other number of the run" in found["unchanged"]
        numbers = [*numbers, "forget_rougeL_recall", "forget_repetition_4"]
        text = found["numbers"]["forget_rougeL_recall"]
        cells = (text["before"], text["after"], text["target"])
        assert text["recovered"] == recovered_share(*cells, "down")
    for number in numbers:
        values = found["numbers"][number]
        for key in ("target", "before", "after", "retain_before", "retain_after"):
            # What no question as it is can stand for has no number before.
            assert values[key] is None or 0 <= values[key] <= 1
        assert None not in (values["after"], values["retain_after"])
        assert values["n"] in (3, 4)
        if name != "reword" and "repetition" not in number:
            for key in ("after", "retain_after"):
                low, high = values[f"interval_{key}"]
                assert low <= values[key] <= high
    assert "retain before" in out


def test_other_wording_is_no_other_number_where_the_question_stays(attack, run):
    """The question as it is counts as a wording, so the best of all is at least its number."""
    words = ["--attack.formats=[typos]", "--attack.prefixes=[]", "--output", "best.json"]
    _, found = attack("best_wording", *words)
    numbers = found["numbers"]
    results = json.loads((run / "results.json").read_text())["metrics"]
    plain = numbers["forget_probability_of_plain"]
    assert (
        plain["before"]
        == plain["after"]
        == pytest.approx(results["forget_probability"]["value"], rel=1e-6)
    )
    assert plain["retain_before"] == plain["retain_after"]
    assert numbers["forget_probability"]["after"] >= max(
        one["after"] for name, one in numbers.items() if name.startswith("forget_probability_of_")
    )


def test_without_a_retain_model_that_is_said(command, run, home):
    bare = home.parent / "bare"
    shutil.copytree(run, bare)
    text = (bare / "config.yaml").read_text()
    lines = [one for one in text.splitlines() if not one.strip().startswith("retain_model:")]
    (bare / "config.yaml").write_text("\n".join(lines) + "\n")
    outcome = command("attack", "prune", "--model", bare, "--metrics", "probability")
    assert (outcome.status, outcome.err) == (0, "")
    assert "warning: no retain model is at hand" in outcome.out
    found = json.loads((bare / "attacks" / "prune.json").read_text())
    assert found["retain_model"] is None
    assert found["warning"].startswith("no retain model is at hand")
    assert all(one["retain_after"] is None for one in found["numbers"].values())
    asked = command("attack", "prune", "--model", bare, "--metrics", "probability,forget_quality")
    assert (asked.status, asked.out) == (2, "")
    assert asked.err == (
        "error: attack: --metrics forget_quality needs data.retain_results or retain_model, which "
        "this attack does not have; leave it out, or give --retain_model PATH.\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prune"], "attack: the following arguments are required: --model; attack --help lists "),
        (["prune", "--model", "nowhere"], "attack --model: 'nowhere' is no folder of a run."),
        (["prune", "--model", "."], "attack --model: '.' holds no results.json, so it "
         "is no finished run."),
        (["prune", "--model", "{half}"], "attack --model: '{half}' is not finished: it was "
         "broken off."),
        (["prune", "--model", "{scored}"], "attack: --model '{scored}' is no run that made a model "
         "forget; "),
        (["prune", "--model", "{gone}"], "attack: --model '{gone}' holds no folder 'model': it was "
         "run with --no_save_model."),
        (["nope", "--model", "{run}"], "attack must be "),
        (["my.Nope", "--model", "{run}"], "attack 'my.Nope': there is no module 'my'"),
        (["prune", "--model", "{run}", "--attack.share", "2"], "attack.share must be from 0 to "
         "below 1; got 2.0."),
        (["prune", "--model", "{run}", "--attack.shore", "2"], "attack"),
        (["prune", "--model", "{run}", "--depth", "2"], "attack: there is no option '--depth'; "),
        (["mix", "--model", "{run}", "--metrics", "model_utility"], "attack: --metrics "
         "model_utility can't be computed under Mix, which asks rows of forget alone; it can "
         "compute rouge, "),
        (["relearn", "--model", "{run}", "--attack.rows", "no.jsonl"], "attack.rows must be "
         "forget, retain or a file of rows; there is no file 'no.jsonl'."),
        (["prune", "--model", "{run}", "--metrics", ","], "attack: --metrics must name at least "
         "one; got ','."),
        (["prune", "--model", "{run}", "--seed", "-1"], "attack: argument --seed: must be a whole "
         "number from 0 to 4294967295; got '-1'; "),
        (["prune", "--model", "{run}", "--output", "{run}"], "attack: --output '{run}' is a "
         "folder; give a file."),
        (["prune", "--model", "{run}", "--output", "{run}/config.yaml/x"], "attack: --output "
         "'{run}/config.yaml/x' is in '{run}/config.yaml', which is a file; give a file."),
        (["relearn", "--model", "{run}", "--attack.steps", "0"], "attack.steps must be "),
        (["relearn", "--model", "{run}", "--attack.rows", "null"], "attack.rows must have a value; "
         "got null."),
        (["relearn", "--model", "{run}", "--attack.lr", "inf"], "attack.lr must be a finite number "
         "> 0; got inf."),
        (["relearn", "--model", "{run}", "--attack.rows", "{run}/config.yaml"], "attack.rows "),
        (["relearn", "--model", "{run}", "--attack.num_rows", "9"], "attack.num_rows is "
         "9, but there are fewer rows: data.rows"),
        (["merge", "--model", "{run}", "--target_model", "./gone"], "target_model: there "
         "is no folder './gone'"),
        (["prune", "--model", "{run}", "--metrics", "nonsense"], "metrics must be some of "),
        (["sample", "--model", "{run}", "--attack.ks", "[1,64]"], "attack.ks: k must be from 1 to "
         "attack.num_samples, 32; got 64."),
        (["sample", "--model", "{run}", "--attack.judge", "mine"], "attack.judge must be rouge, "
         "said, or the path of a subclass of etw_lightning.attacks.LeakJudge; got 'mine'."),
        (["sample", "--model", "{run}", "--attack.judge", "etw_lightning.schema.Example"],
         "attack.judge 'etw_lightning.schema.Example' must be a subclass of "),
        (["reword", "--model", "{run}", "--attack.how", "null"], "attack.how or attack.prefix "),
        (["reword", "--model", "{run}", "--attack.how", "loud"], "attack.how must be upper, "),
        (["best_wording", "--model", "{run}", "--attack.questions", "no.jsonl"],
         "attack.questions 'no.jsonl' can't be read: No such file or directory."),
        (["best_wording", "--model", "{run}", "--attack.prefix_file", "/dev/null"],
         "attack.prefix_file '/dev/null' holds no prefix; write one a line."),
        (["mix", "--model", "{run}", "--attack.orders", "[]"], "attack.orders must name "),
        (["first_words", "--model", "{run}", "--attack.words", "99"], "attack.words is 99, and "),
        (["same_subject", "--model", "{run}", "--attack.facts", "0"], "attack.facts must be 1 "),
        (["options", "--model", "{run}", "--attack.options", "26"], "attack.options is 26, and "),
        (["prune", "--model", "{run}", "--data.batch_size", "7"], "data.batch_size is not read by "
         "attack, which scores rows as the run did, with the tokenizer of its model; got '7'. "),
        (["relearn", "--model", "{run}", "--data.seed=7"], "data.seed is not read by attack, which "
         "scores rows as the run did, with the tokenizer of its model; got '7'. Give --seed."),
        (["relearn", "--model", "{run}", "--data.split", "x"], "data.split is not read by attack"),
        (["prune", "--model", "{run}", "--data.tokenizer", "x"], "data.tokenizer is not read by "),
        (["prune", "--model", "{run}", "--data.leave_out", "forget10"], "data.leave_out is not "),
        (["prune", "--model", "{run}", "--data.num_workers", "1"], "data.num_workers is not read "),
        (["relearn", "--model", "{run}", "--data.leave_out", "forget10"], "data.leave_out is not "),
        (["relearn", "--model", "{run}", "--data.anchor", "retain"], "data.anchor is not read by "),
        (["prune", "--model", "{run}", "--data.retain_model", "./gone"], "data.retain_model: there "
         "is no folder './gone'"),
        (["prune", "--model", "{run}", "--retain_model", "a", "--data.retain_model", "b"],
         "attack: --retain_model 'a' and --data.retain_model 'b' are the same setting; "),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(refused, run, home, monkeypatch, words, message):
    monkeypatch.setenv("ETW_CACHE", str(run.parent / "cache"))
    places = {"run": run}
    for name in ("half", "scored", "gone"):
        if f"{{{name}}}" not in words:
            continue
        places[name] = home.parent / name
        shutil.copytree(run, places[name])
        results = json.loads((run / "results.json").read_text())
        changed = {"half": {"finished": False}, "scored": {"command": "evaluate"}}.get(name, {})
        (places[name] / "results.json").write_text(json.dumps({**results, **changed}))
        if name == "gone":
            shutil.rmtree(places[name] / "model")
    said = refused("attack", *[word.format(**places) for word in words])
    assert said.startswith(message.format(**places)), said
    assert not list(run.glob("attacks/prune.json"))


@pytest.mark.parametrize("option", ["--retain_model", "--data.retain_model"])
def test_a_typed_retain_model_is_the_one_that_is_attacked_and_compared_with(
    attack, run, tofu_dir, tiny_model_dir, option
):
    """Its own target model stands for one: nobody has forgotten anything then."""
    words = ["--attack.share=0.2", "--output", "typed.json"]
    _, found = attack("prune", option, tiny_model_dir, *words, "--metrics=forget_quality")
    assert found["retain_model"] == str(tiny_model_dir)
    # A model that is compared with itself.
    assert found["numbers"]["forget_quality"]["retain_before"] == pytest.approx(1.0)
    assert found["numbers"]["forget_quality"]["target"] == pytest.approx(1.0)


def test_settings_of_rows_stand_in_the_files_name(attack, run):
    words = ["--attack.share=0.3", "--metrics=probability", "--data.rows.forget10=2"]
    _, found = attack("prune", *words)
    assert (run / "attacks" / "prune-share0.3-forget102.json").is_file()
    assert found["numbers"]["forget_probability"]["n"] == 2


def test_a_misspelled_attack_is_guessed(refused, run):
    said = refused("attack", "relern", "--model", str(run)).rstrip()
    assert said.endswith("; got 'relern'. Did you mean 'relearn'?")


def test_help_lists_what_the_attack_takes(command, home):
    outcome = command("attack", "relearn", "--help")
    assert outcome.status == 0
    assert "--model RUN" in outcome.out
    assert "num_rows" in outcome.out
    assert "The first so many of them" in outcome.out
