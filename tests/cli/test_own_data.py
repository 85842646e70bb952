"""Own rows as a benchmark like any other: every number, every model that is given."""

import json
import math
import shutil
import zlib

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import ks_2samp
from transformers import AutoModelForCausalLM, AutoTokenizer

from etw_lightning.scoring.retain_results import load_records

#: What stands for a number that is missing.
MISSING = "\u2013"


@pytest.fixture
def rows(home, corpus, write_rows):
    """Own rows in the current folder: 4 to forget, 5 to keep, 3 of which no model knows."""
    parts = {
        "forget": corpus["forget_perturbed"][:4],
        "retain": corpus["retain"][:5],
        "unseen": corpus["full"][-3:],
    }
    for name, part in parts.items():
        write_rows(home / f"{name}.jsonl", part)
    return parts


@pytest.fixture
def own(own_args, rows):
    """What own rows need on the command line, of ``fit`` or of ``evaluate``."""
    return own_args


@pytest.fixture
def run(command, home):
    """Run a command to its end; return what it printed, its results and its records."""

    def call(name, *args, into="out"):
        folder = home / into
        result = command(name, *args, f"--output_dir={folder}")
        assert (result.status, result.err) == (0, ""), result.err
        return result.out, json.loads((folder / "results.json").read_text()), load_records(folder)

    return call


class ByHand:
    """What a model says of rows, by transformers alone, row by row."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    def logps(self, row, answer):
        """Return the log-probability of each token of an answer and of its end, and the moments."""
        turns = [{"role": "user", "content": row["question"]}]
        prompt = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        start = len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        text = prompt + answer + self.tokenizer.eos_token
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logps = self.lm(ids).logits[0, start - 1 : -1].log_softmax(-1)
        labels = ids[0, start:, None]
        own = logps.gather(-1, labels)[:, 0]
        mean = (logps.exp() * logps).sum(-1)
        deviation = ((logps.exp() * logps**2).sum(-1) - mean**2).sqrt()
        return own.numpy(), ((own - mean) / deviation).numpy()

    def loss(self, row, answer):
        return -float(self.logps(row, answer)[0].mean())

    def losses(self, rows):
        return [self.loss(row, row["answer"]) for row in rows]


def auc(members, others):
    """Return how often a member has the lower score; half for a tie."""
    pairs = [(a < b) + 0.5 * (a == b) for a in members for b in others]
    return sum(pairs) / len(pairs)


def lowest(values, share=0.4):
    kept = sorted(values)[: int(share * len(values))]
    return -float(np.mean(kept))


def test_evaluate_gives_every_number_of_own_rows_and_uses_the_other_models(
    run, own, rows, retain_model_dir, tiny_model_dir
):
    others = [f"--data.retain_model={retain_model_dir}", f"--data.target_model={tiny_model_dir}"]
    out, results, records = run("evaluate", *own, *others, "--data.holdout_split=unseen")
    ours, theirs = ByHand(tiny_model_dir), ByHand(retain_model_dir)
    value = {name: metric["value"] for name, metric in results["metrics"].items()}
    beside = {
        role: {name: metric["value"] for name, metric in found.items()}
        for role, found in results["others"].items()
    }
    near = pytest.approx

    # Probabilities, of this, of the target (the same weights here) and of the retain model.
    for name in ("forget", "retain"):
        wanted = np.mean(np.exp(-np.array(ours.losses(rows[name]))))
        assert value[f"{name}_probability"] == near(wanted, rel=1e-4)
        assert beside["target"][f"{name}_probability"] == value[f"{name}_probability"]
        wanted = np.mean(np.exp(-np.array(theirs.losses(rows[name]))))
        assert beside["retain"][f"{name}_probability"] == near(wanted, rel=1e-4)

    # Truth ratios and forget quality.
    def ratios(model):
        found = []
        for row in rows["forget"]:
            wrong = np.mean([model.loss(row, one) for one in row["perturbed_answer"]])
            found.append(math.exp(model.loss(row, row["paraphrased_answer"]) - wrong))
        return found

    mine, retain = ratios(ours), ratios(theirs)
    assert value["forget_quality"] == near(ks_2samp(mine, retain).pvalue, rel=1e-9)
    wanted = np.mean([min(one, 1 / one) for one in mine])
    assert value["forget_truth_ratio_closer_to_one"] == near(wanted, rel=1e-4)

    # Membership: scores of both sets, by each attack's formula.
    def scores(model, part, attack):
        found = []
        for row in rows[part]:
            logps, plus = model.logps(row, row["answer"])
            found.append(
                {
                    "loss": -logps.mean(),
                    "zlib": -logps.mean() / len(zlib.compress(row["answer"].encode())),
                    "min_k": lowest(logps),
                    "min_k_plus_plus": lowest(plus),
                }[attack]
            )
        return found

    def attacked(model, attack):
        return auc(scores(model, "forget", attack), scores(model, "unseen", attack))

    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        assert value[f"mia_{attack}"] == near(attacked(ours, attack))
        assert beside["retain"][f"mia_{attack}"] == near(attacked(theirs, attack))
        wanted = 100 * (attacked(ours, attack) / attacked(theirs, attack) - 1)
        assert value[f"mia_{attack}_relative_difference"] == near(wanted)
    own_auc, retain_auc = 1 - attacked(ours, "min_k"), 1 - attacked(theirs, "min_k")
    assert value["privleak"] == near(100 * (own_auc - retain_auc) / retain_auc)

    # Texts: ROUGE by its library, repetition and distinct n-grams by counting.
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for name in ("forget", "retain"):
        said = [record.generation for record in records[name]]
        found = [
            scorer.score(row["answer"], text)["rougeL"].recall
            for row, text in zip(rows[name], said, strict=True)
        ]
        assert value[f"{name}_rougeL_recall"] == near(np.mean(found))
        assert value[f"{name}_empty_generations"] == np.mean([not text.split() for text in said])
        assert {f"{name}_repetition_{n}" for n in range(1, 5)} <= set(value)

    # The honest table speaks of the same numbers, and the verdict of them.
    judged = results["judgement"]
    assert list(judged["models"]) == ["target", "this model", "retain"]
    mine = judged["models"]["this model"]
    for name in ("forget_probability", "forget_quality", "privleak", "retain_stutter"):
        assert mine[name] == near(value[name])
    assert mine["forget_repetition"] == near(value["forget_repetition_4"])
    assert judged["models"]["retain"]["forget_probability"] == near(
        beside["retain"]["forget_probability"]
    )
    assert f"\n{judged['verdict']}\n" in out

    # Every model has its column in one table, and nothing is left out without its reason.
    lines = [line.split() for line in out.splitlines()]
    (heading,) = [line for line in lines if line[:2] == ["metric", "n"]]
    assert heading[-2:] == ["target", "retain"]
    (shown,) = [line for line in lines if line and line[0] == "forget_probability"]
    assert MISSING not in shown
    assert all(
        reason.startswith(("slow:", "needs data.annotations", "needs gibberish_classifier"))
        for reason in results["left_out"].values()
    )
    assert len(value) > 50


@pytest.mark.parametrize("names", ["repetition", "mia_loss,mia_min_k", "privleak"])
def test_single_metrics_of_own_rows_are_defined(run, own, retain_model_dir, names):
    more = [f"--data.retain_model={retain_model_dir}", "--data.holdout_split=unseen"]
    _, results, _ = run("evaluate", *own, *more, "--metrics", names)
    assert {name.split("_repetition")[0] for name in results["metrics"]} >= {
        "repetition": {"forget", "retain"},
        "privleak": {"privleak"},
    }.get(names, set(names.split(",")))
    # What stands beside is of the same numbers.
    assert set(results["others"].get("retain", {})) <= set(results["metrics"])


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_a_misspelled_file_is_what_a_run_blames(command, own, home, name):
    result = command(
        "fit", *own, f"--data.{name}_split=mispelt.csv", f"--output_dir={home / 'out'}"
    )
    assert result.status == 2
    assert "mispelt.csv" in result.err
    assert "metrics" not in result.err
    assert result.err.count("\n") == 1


def test_membership_without_holdout_rows_says_which_key_gives_them(command, own, home):
    result = command("evaluate", *own, "--metrics", "mia_loss", f"--output_dir={home / 'out'}")
    assert (result.status, result.err) == (
        2,
        "error: metrics: mia_loss needs data.holdout_split; give it, or leave mia_loss out of "
        "--metrics.\n",
    )
    result = command(
        "evaluate", *own, "--data.benchmark=tofu", "--data.holdout_split=unseen",
        f"--output_dir={home / 'out'}",
    )  # fmt: skip
    assert result.status == 2
    assert "data.holdout_split is 'unseen', but only own rows" in result.err


def test_raw_text_has_its_numbers_beside_questions(run, own, home, rows, write_rows):
    write_rows(home / "prose.jsonl", [{"text": row["answer"]} for row in rows["retain"]])
    _, results, _ = run("evaluate", *own, "--data.retain_split=prose")
    found = set(results["metrics"])
    assert {"retain_probability", "forget_probability", "forget_repetition_1"} <= found
    assert not {name for name in found if name.startswith("retain_r")}
    _, results, _ = run(
        "evaluate", *own, "--data.forget_split=prose", "--data.retain_split=prose", into="raw"
    )
    assert results["left_out"]["rouge"] == (
        "needs questions in data.forget_split or data.retain_split, as raw text is not continued"
    )
    assert results["left_out"]["truth_ratio"] == (
        "needs a paraphrased_answer and perturbed_answer in each row"
    )


def test_fit_without_a_callback_shows_numbers_of_all_models(run, own, rows, retain_model_dir):
    none = "--trainer.callbacks=[]"
    out, results, records = run("fit", *own, none, f"--data.retain_model={retain_model_dir}")
    assert results["metrics"]["forget_probability"]["n"] == 4
    table = results["table"]
    assert list(table) == ["target", "unlearned", "retain"]
    losses = ByHand(retain_model_dir).losses(rows["retain"])
    wanted = np.mean(np.exp(-np.array(losses)))
    assert table["retain"]["retain_probability"] == pytest.approx(wanted, rel=1e-4)
    after = [math.exp(-record.answer_loss) for record in records["retain"]]
    assert table["unlearned"]["retain_probability"] == pytest.approx(np.mean(after))
    # No line is empty, and the scores of the retain set are among them.
    [shown] = [line for line in out.splitlines() if "retain probability" in line]
    numbers = [f"{table[name]['retain_probability']:.4f}" for name in table]
    assert shown.split()[-3:] == numbers
    assert "model utility" not in out
    lines = out[: out.index("verdict: ")].splitlines()
    assert not any(line.count(MISSING) == 3 for line in lines)

    _, results, _ = run("fit", *own, none, "--data.target_model", retain_model_dir, into="given")
    assert list(results["table"]) == ["target", "start", "unlearned"]
    given = results["table"]["target"]["retain_probability"]
    assert given == pytest.approx(wanted, rel=1e-4)
    compared = ("forget_quality", "d_times_n", "n", "forget_quality_floor")
    assert results["table"]["start"] == table["target"] | dict.fromkeys(compared)


def test_fine_tuning_on_own_rows_shows_a_number_too(run, own):
    _, results, _ = run(
        "fit", *own, "--trainer.callbacks=[]", "--model.forget=null", "--data.split=retain",
        "--data.forget_split=null", "--data.retain_split=null",
    )  # fmt: skip
    assert set(results["metrics"]) == {"retain_probability", "retain_rougeL_recall"}
    assert results["metrics"]["retain_probability"]["direction"] == "up"


def test_rows_of_chat_go_all_the_way(run, own, home, rows, write_rows):
    def chat(row):
        said = (row["question"], row["answer"], "And then?", row["answer"])
        roles = ("user", "assistant")
        return {"messages": [{"role": roles[n % 2], "content": t} for n, t in enumerate(said)]}

    for name in ("forget", "retain"):
        write_rows(home / f"{name}.jsonl", [chat(row) for row in rows[name]])
    for which, n in (("last", 4), ("all", 8)):
        _, results, records = run("fit", *own, f"--data.which_turns={which}", into=which)
        assert results["metrics"]["forget_probability"]["n"] == n
        assert len(records["forget"]) == n
    assert [record.id for record in records["forget"][:2]] == ["forget/0/turn0", "forget/0/turn1"]


@pytest.fixture
def long(own, home, rows, write_rows):
    """Own rows of which the second to forget has an answer of 4,000 words."""
    answer = " ".join(f"word{n}" for n in range(4000))
    asked = rows["forget"][:3]
    mine = [{key: row[key] for key in ("question", "answer")} for row in asked]
    mine[1]["answer"] = answer
    write_rows(home / "forget.jsonl", mine)
    return [*own, "--data.max_length=128", "--trainer.callbacks=[]"]


def test_labels_that_are_lost_are_told_and_refused_if_wanted(command, long, home, tiny_model_dir):
    folder = home / "out"
    with pytest.warns(UserWarning, match="lose") as told:
        result = command("fit", *long, f"--output_dir={folder}")
    assert result.status == 0, result.err
    rows = [json.loads(line) for line in (home / "forget.jsonl").read_text().splitlines()]
    by_hand = ByHand(tiny_model_dir)
    lengths, starts = [], []
    for row in rows:
        turns = [{"role": "user", "content": row["question"]}]
        prompt = by_hand.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        text = prompt + row["answer"] + by_hand.tokenizer.eos_token
        starts.append(len(by_hand.tokenizer(prompt, add_special_tokens=False)["input_ids"]))
        lengths.append(len(by_hand.tokenizer(text, add_special_tokens=False)["input_ids"]))
    lost = [max(length - 128, 0) for length in lengths]
    labels = sum(lengths) - sum(starts)
    found = json.loads((folder / "results.json").read_text())["lost_labels"]["forget"]
    assert found == {
        "labels": sum(lost),
        "share": pytest.approx(sum(lost) / labels),
        "rows": sum(one > 0 for one in lost),
        "of_rows": 3,
        "first": [f"forget/{n}" for n, one in enumerate(lost) if one],
    }
    assert lost[1] > 4000
    said = next(str(one.message) for one in told if "forget rows lose" in str(one.message))
    assert said.startswith(f"{found['rows']} of 3 forget rows lose {found['labels']} labels (")
    assert "forget/1" in said

    result = command("fit", *long, "--data.truncation=error", f"--output_dir={home / 'no'}")
    assert result.status == 2
    assert "data.max_length = 128, and data.truncation is 'error'" in result.err
    assert result.err.count("\n") == 1


def test_forget_rows_that_repeat_others_are_told(command, own, home, rows, write_rows):
    write_rows(home / "forget.jsonl", [rows["forget"][n] for n in (0, 1, 0, 2, 1)])
    with pytest.warns(UserWarning, match="say the same") as told:
        result = command("check", *own)
    assert result.status == 0, result.err
    (said,) = {str(one.message) for one in told if "say the same" in str(one.message)}
    assert said.startswith(
        "2 rows of data.forget_split say the same as an earlier one: forget/2 as forget/0, "
        "forget/4 as forget/1."
    )


#: What makes another run of the same rows incomparable, and what is said of it.
OTHERWISE = {
    "template": (["--data.template=plain"], "data.template 'chat', this run has 'plain'"),
    "length": (["--data.max_length=300"], "data.max_length 512, this run has 300"),
    "rows": (["--data.rows={forget: 3}"], "holds 4 rows of 'forget', this run scores 3"),
    "conventions": (["--conventions=peer"], "was made with conventions.attention_mask 'length'"),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the first test that needs it leaves such a run for the others."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def scored(run, own, home, kept):
    """Folder of a run whose records are given as another model's; the cache has them too."""
    places = {home / "scored": kept / "scored", home.parent / "cache": kept / "cache"}
    if not (kept / "scored").is_dir():
        run("evaluate", *own, into="scored")
        for place, copy in places.items():
            shutil.copytree(place, copy)
        return "scored"
    for place, copy in places.items():
        shutil.copytree(copy, place)
    return "scored"


@pytest.mark.parametrize("name", OTHERWISE)
def test_records_made_otherwise_are_never_a_row_of_the_table(command, own, home, scored, name):
    more, said = OTHERWISE[name]
    for role in ("retain", "target"):
        words = [*own, "--trainer.callbacks=[]", f"--data.{role}_results={scored}", *more]
        result = command("fit", *words, f"--output_dir={home / 'out'}")
        assert result.status == 2
        assert result.err.startswith(f"error: data.{role}_results: scored ")
        assert said in result.err
        assert result.err.count("\n") == 1
    assert not (home / "out").exists()


def test_records_of_other_rows_are_refused(command, own, home, rows, scored, write_rows):
    asked = [{**row, "question": f"{row['question']} Tell me."} for row in rows["forget"]]
    said = [{**row, "answer": f"{row['answer']} So it is."} for row in rows["forget"]]
    for changed, what in ((asked, "another question"), (said, "another answer")):
        write_rows(home / "forget.jsonl", changed)
        words = [*own, "--trainer.callbacks=[]", f"--data.retain_results={scored}"]
        result = command("fit", *words, f"--output_dir={home / 'out'}")
        assert result.status == 2
        assert f"holds {what} in row forget/0" in result.err


@pytest.mark.parametrize("name", ["fit", "evaluate"])
def test_numbers_of_another_precision_are_marked(run, own, scored, name):
    """Rounding alone is no reason to refuse them; what the rows are is said, where they stand."""
    words = [*own, f"--data.retain_results={scored}", "--model.dtype=bfloat16"]
    words += ["--trainer.precision=bf16-true"]
    # No metric needs these records: they stand in the table alone.
    words += ["--trainer.callbacks=[]"] if name == "fit" else ["--metrics=probability"]
    said = "dtype 'float32', this run has 'bfloat16', precision '32-true', this run has 'bf16-true'"
    with pytest.warns(
        UserWarning, match=f"data.retain_results: scored was made with {said}: round"
    ):
        out, results, _ = run(name, *words)
    assert results["precision_of_others"] == {"retain": said}
    assert f"retain was scored with {said}: rounding differs\n" in out


def test_records_made_alike_are_a_row(run, own, scored):
    words = [*own, "--trainer.callbacks=[]", f"--data.retain_results={scored}"]
    out, results, _ = run("fit", *words)
    assert "precision_of_others" not in results
    assert "rounding differs" not in out
    numbers = results["table"]["retain"]
    assert numbers["forget_probability"] == results["table"]["target"]["forget_probability"]


def test_evaluation_has_a_length_of_its_own(command, run, own, home, rows, tiny_model_dir):
    """A short training length leaves no answer of these prompts; scoring need not share it."""
    by_hand = ByHand(tiny_model_dir)
    turns = [{"role": "user", "content": rows["forget"][0]["question"]}]
    prompt = by_hand.tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )
    length = len(by_hand.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    words = ("evaluate", *own, "--metrics=probability", f"--data.max_length={length}")
    wanted = np.mean(np.exp(-np.array(by_hand.losses(rows["forget"]))))
    with pytest.warns(UserWarning, match=f"prompts of up to .* data.max_length = {length} leaves"):
        found = [run(*words), run(*words, "--data.eval_max_length=400", into="given")]
    used = []
    for _, results, _ in found:
        assert results["metrics"]["forget_probability"]["value"] == pytest.approx(wanted, rel=1e-4)
        assert "lost_labels" not in results
        used.append(results["provenance"]["template"]["max_length"])
    assert used[0] in (length * 2**n for n in range(1, 5))
    assert used[1] == 400
    result = command(*words, f"--data.eval_max_length={length}", f"--output_dir={home / 'no'}")
    assert f"no answer token left within data.eval_max_length = {length}" in result.err


def test_training_keeps_its_length_beside(run, own, rows):
    words = ["--trainer.callbacks=[]", "--data.max_length=60", "--data.eval_max_length=400"]
    with pytest.warns(UserWarning, match="lose"):
        _, results, records = run("fit", *own, *words)
    assert results["lost_labels"]["forget"]["rows"] > 0
    assert all(record.scored_text is None for record in records["forget"])
